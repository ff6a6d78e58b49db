"""Runs on disk: train.log says what a run is and what came out, metrics.jsonl how it went.

A run may be at work, killed in the middle of a line, or older than metrics.jsonl.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from eval.errors import UserError
from tools.script import PREFERRED_SEED

LOG = "train.log"
METRICS = "metrics.jsonl"
SHOWN = ("steps", "train_loss", "lr_scale", "tokens_per_s", "train_s", "left_s")
SILENT_S = 120.0  # a run without metrics.jsonl counts as ended after so long without a line


class State(Enum):
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"  # by a signal that it answered
    BROKEN_OFF = "broken off"  # killed, or ended by an error


class Point(NamedTuple):
    """One logged point: losses in nats per token, time in seconds of training."""

    step: int
    seconds: float | None
    train_loss: float | None = None
    val_loss: float | None = None


class Setting(NamedTuple):
    """A setting that differs from the preset, as the log prints both values."""

    value: str
    default: str


@dataclass(frozen=True)
class Run:
    """One folder of a run. None where the log does not say (yet)."""

    folder: Path
    state: State
    preset: str
    settings: dict[str, Setting]  # those that make an experiment: no seed, no folders
    seed: int
    code: str  # sha256 of the script
    config: str  # sha256 of all settings that seeds share
    corpus: str  # version of the data
    points: list[Point]
    latest: dict[str, Any]  # the newest step of metrics.jsonl
    steps: int | None  # that it is to take
    phase: str  # what it does or did last
    val_bpb: float | None = None
    neural_bpb: float | None = None  # of the model alone
    train_s: float | None = None
    eval_s: float | None = None
    bytes_total: int | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def step(self) -> int:
        """The last one that was logged."""
        return self.points[-1].step if self.points else 0

    @property
    def experiment(self) -> tuple[str, str, str]:
        """Equal for runs that differ in their seed alone."""
        return self.code, self.config, self.corpus

    def train_points(self) -> list[Point]:
        return [point for point in self.points if point.train_loss is not None]

    def val_points(self) -> list[Point]:
        return [point for point in self.points if point.val_loss is not None]


def find_runs(places: Sequence[Path]) -> list[Run]:
    """The runs in these folders, each a run itself or a folder that holds some, by name.

    Raises UserError for a place without runs.
    """
    runs: dict[Path, Run] = {}
    for place in places:
        folders = [place] if (place / LOG).is_file() else sorted(_folders_below(place))
        if not folders:
            raise UserError(
                f"{place}: expected a run or a folder of runs ({LOG}), found none; "
                "train one, or name another folder"
            )
        for folder in folders:
            runs.setdefault(folder.resolve(), read_run(folder))
    return list(runs.values())


def _folders_below(place: Path) -> Iterator[Path]:
    """Runs lie one or two folders deep: runs/x_seed1, runs/sweep/x_seed1."""
    for pattern in (f"*/{LOG}", f"*/*/{LOG}"):
        for log in place.glob(pattern):
            yield log.parent


def read_run(folder: Path) -> Run:
    """Raises UserError where the log cannot be read."""
    from eval.papers.logs.proof import NO_EXPERIMENT
    from eval.papers.logs.reading import parse_runs
    from eval.papers.logs.values import integer_of

    path = folder / LOG
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: expected a log, found {error.strerror}") from None
    whole_lines = raw[: raw.rfind(b"\n") + 1]
    (log, *_) = parse_runs(whole_lines, path)
    metrics = read_metrics(folder / METRICS)
    overrides = dict(map(_override, log.overrides))
    points = [_point(record) for record in metrics if record["event"] != "result"]
    if not points:
        points = [Point(s.step, s.train_s, s.train_loss, s.val_loss) for s in log.steps]
    trained = training_records(metrics)
    own_lines = whole_lines[whole_lines.rfind(b"\n===== end source =====") :]
    seed = log.seed
    if seed is None and "seed" in overrides:
        seed = integer_of(overrides["seed"].value)
    return Run(
        folder=folder,
        state=_state(folder, own_lines, log.number("result.val_bpb") is not None),
        preset=log.text("config.preset") or "none",
        settings={name: o for name, o in overrides.items() if name not in NO_EXPERIMENT},
        seed=PREFERRED_SEED if seed is None else seed,
        code=log.text("source.sha256") or "",
        config=log.text("config.sha256") or "",
        corpus=log.text("data.version") or "",
        points=points,
        latest=trained[-1] if trained else {},
        steps=log.steps[-1].of if log.steps else None,
        phase=_phase(own_lines),
        val_bpb=log.number("result.val_bpb"),
        neural_bpb=log.number("neural.val_bpb"),
        train_s=log.number("result.train_s"),
        eval_s=log.number("result.eval_s"),
        bytes_total=log.integer("result.bytes_total"),
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole objects of a metrics.jsonl; none where there is no such file."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # half a line, or no line of ours
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int) and "event" in record:
            records.append(record)
    return records


def training_records(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of training steps that hold every number which is shown of one."""
    found = []
    for record in metrics:
        whole = all(_finite(record, name) is not None for name in SHOWN)
        if record["event"] == "step" and whole:
            found.append(record)
    return found


def _point(record: dict[str, Any]) -> Point:
    names = ("train_s", "train_loss", "val_loss")
    return Point(record["step"], *(_finite(record, name) for name in names))


def _finite(record: dict[str, Any], name: str) -> float | None:
    """A number of the record; None where it is missing or none that can be drawn."""
    value = record.get(name)
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return value if is_number else None


def _override(text: str) -> tuple[str, Setting]:
    """`muon_lr=0.03 (default 0.025, from flag)`."""
    assignment, _, rest = text.partition(" (default ")
    name, _, value = assignment.partition("=")
    return name, Setting(value, rest.rpartition(", from ")[0])


def _state(folder: Path, lines: bytes, has_result: bool) -> State:
    if has_result:
        return State.DONE
    if is_at_work(folder):
        return State.RUNNING
    after_resume = lines[lines.rfind(b"\nresume step:") + 1 :]
    return State.STOPPED if b"\nstopped step:" in after_resume else State.BROKEN_OFF


def is_at_work(folder: Path) -> bool:
    """Whether a process holds the lock of metrics.jsonl.

    Where there is no such file, or no locks, whether the log has grown lately.
    """
    try:
        import fcntl

        with open(folder / METRICS, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return time.time() - (folder / LOG).stat().st_mtime < SILENT_S


def _phase(lines: bytes) -> str:
    """What comes after the last line of a known kind."""
    phases = {
        b"\nneural ": "mixing n-grams",
        b"\nartifact ": "final scoring",
        b"\naveraging ": "export",
        b"\nwarmup ": "training",
    }
    for head, phase in phases.items():
        if head in lines:
            return phase
    return "start"
