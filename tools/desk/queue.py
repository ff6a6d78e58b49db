"""Starts the runs of a sweep one after another, and goes on where an interrupted one stopped."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from eval.errors import UserError
from tools.desk.plan import Plan, PlannedRun
from tools.desk.reading import (
    LOG,
    METRICS,
    State,
    is_at_work,
    read_metrics,
    read_run,
    training_records,
)
from tools.desk.watching import duration

OUTPUT = "output.txt"  # what a run prints
POLL_S = 0.2


@dataclass
class Queue:
    """The runs of a plan in one folder."""

    plan: Plan
    folder: Path
    script: Path
    environment: dict[str, str]
    extra: list[str] = field(default_factory=list)  # flags of every run that are no experiment
    nproc: int = 1
    seconds: list[float] = field(default_factory=list)  # that finished runs took

    def run_all(self) -> list[str]:
        """Runs what is not done. Returns what went wrong, a line for each failed run.

        Raises UserError for a folder that another process is at work in.
        """
        failures = []
        for number, planned in enumerate(self.plan.runs, 1):
            place = f"[{number}/{len(self.plan.runs)}] {planned.name}"
            if self._is_done(planned):
                print(f"{place}: done before", flush=True)
                continue
            started = time.monotonic()
            code = self._run(planned, place)
            took = time.monotonic() - started
            if code:
                failures.append(f"{planned.name}: {self._last_words(planned, code)}")
                print(f"{place}: failed: {failures[-1]}", flush=True)
                continue
            self.seconds.append(took)
            print(f"{place}: {self._result(planned)} in {duration(took)}{self._left(number)}")
        return failures

    def _is_done(self, planned: PlannedRun) -> bool:
        folder = self.folder / planned.name
        if not (folder / LOG).is_file():
            return False
        found = read_run(folder)
        if found.state is State.RUNNING:
            raise UserError(f"{folder}: expected no run at work, found one; wait for it or end it")
        return found.state is State.DONE and found.experiment[:2] == (
            self.plan.code,
            planned.config,
        )

    def _run(self, planned: PlannedRun, place: str) -> int:
        """Exit code of one run. What it prints goes to its folder."""
        folder = self.folder / planned.name
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / OUTPUT, "a", encoding="utf-8") as output:
            child = subprocess.Popen(
                self.command(planned),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,  # Ctrl-C is for us to pass on
            )
            with _status_line() as show, _ended_with_us(child):
                while child.poll() is None:
                    show(f"{place}: {_how_far(folder)}")
                    time.sleep(POLL_S)
        return child.returncode or int(read_run(folder).state is not State.DONE)

    def command(self, planned: PlannedRun) -> list[str]:
        launcher = [sys.executable]
        if self.nproc > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            launcher += [f"--nproc_per_node={self.nproc}"]
        flags = planned.flags(self.plan.preset, self.folder / planned.name)
        return [*launcher, str(self.script), *flags, "--resume", "1", *self.extra]

    def _last_words(self, planned: PlannedRun, code: int) -> str:
        """The last line that a failed run printed."""
        path = self.folder / planned.name / OUTPUT
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1].removeprefix("error: ") if said else f"exit code {code}"

    def _result(self, planned: PlannedRun) -> str:
        return f"val_bpb {read_run(self.folder / planned.name).val_bpb:.5f}"

    def _left(self, number: int) -> str:
        rest = len(self.plan.runs) - number
        if not rest:
            return ""
        return f", about {duration(rest * sum(self.seconds) / len(self.seconds))} left"


def _how_far(folder: Path) -> str:
    records = training_records(read_metrics(folder / METRICS))
    if not records or not is_at_work(folder):
        return "starting"
    last = records[-1]
    if last["left_s"] <= 0:
        return "export and scoring"
    where = f"step {last['step']:,} of {last['steps']:,}, loss {last['train_loss']:.4f}"
    return f"{where}, {duration(last['left_s'])} of training left"


@contextlib.contextmanager
def _status_line() -> Iterator[Callable[[str], None]]:
    """Shows one changing line on a terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("") as status:
        yield lambda text: status.update(escape(text))


@contextlib.contextmanager
def _ended_with_us(child: subprocess.Popen) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the child too, which then writes a checkpoint."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
