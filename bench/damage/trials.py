"""Mutated files given to a reader by the thousand, in worker processes."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.damage.mutations import mutate_text_or_json
from bench.damage.readers import READERS, REFUSALS
from bench.damage.sound_files import write_sound_files
from bench.machine import commit, git

SECONDS = 20  # that a reader may take for a file
MEMORY_BYTES = 2 << 30  # that it may take, on top of what the process holds before
ACCEPTED = "accepted"
REFUSED = "refused"


class Hang(BaseException):
    """Not an Exception, so that no reader can swallow it."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises Hang inside the block once the seconds are over."""

    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def try_mutation(name: str, number: int, folder: Path, sound: dict[Path, bytes]) -> str:
    """ACCEPTED, REFUSED, or a fault in words. Leaves the folder as it was.

    The reader's name and the number decide the mutation. `sound` keeps the sound files' bytes
    between calls.
    """
    reader = READERS[name]
    mutate = reader.mutate
    rng = random.Random(f"{name} {number}")
    path = folder / reader.file
    if path.is_dir():
        path = rng.choice(sorted(p for p in path.iterdir() if p.is_file()))
        if path.suffix == ".json":
            mutate = mutate_text_or_json
    if path not in sound:
        sound[path] = path.read_bytes()
    path.write_bytes(mutate(sound[path], rng))
    try:
        return outcome_of(name, folder)
    finally:
        path.write_bytes(sound[path])


def outcome_of(name: str, folder: Path) -> str:
    try:
        with time_limit(SECONDS):
            READERS[name].read(folder)
    except REFUSALS as error:
        message = str(error)
        if message and "\n" not in message:
            return REFUSED
        return f"a refusal of several lines: {message[:200]!r}"
    except Hang:
        return f"more than {SECONDS} s"
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return ACCEPTED


# --- in a worker process --------------------------------------------------------------------------


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def say(**words: object) -> None:
    print(json.dumps(words), flush=True)


def worker(name: str, first: int, count: int) -> None:
    """Prints a JSON line before each mutation, another where it is a fault, and a tally at last."""
    warnings.simplefilter("ignore")
    tally = {ACCEPTED: 0, REFUSED: 0}
    sound: dict[Path, bytes] = {}
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        write_sound_files(folder)
        READERS[name].read(folder)  # the sound file must be taken
        limit_memory()
        for number in range(first, first + count):
            say(at=number)
            outcome = try_mutation(name, number, folder, sound)
            if outcome in tally:
                tally[outcome] += 1
            else:
                say(number=number, fault=outcome)
    say(**tally)


# --- over the workers -----------------------------------------------------------------------------


@dataclass
class Watchdog:
    """Kills a process that says nothing for a while: an alarm does not end a loop in C."""

    process: subprocess.Popen
    timer: threading.Timer | None = field(default=None, init=False)

    def feed(self) -> None:
        self.stop()
        self.timer = threading.Timer(5 * SECONDS, self.process.kill)
        self.timer.start()

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


@dataclass
class Share:
    """The mutations first .. first + count - 1, and the worker that tries them."""

    first: int
    count: int
    process: subprocess.Popen
    faults: list[dict] = field(default_factory=list)
    tally: dict[str, int] = field(default_factory=dict)

    def follow(self) -> None:
        """Until the worker ends."""
        last = self.first
        watchdog = Watchdog(self.process)
        watchdog.feed()
        for line in self.process.stdout:
            watchdog.feed()
            said = json.loads(line)
            if "at" in said:
                last = said["at"]
            elif "fault" in said:
                self.faults.append(said)
            else:
                self.tally = said
        watchdog.stop()
        exit_code = self.process.wait()
        if exit_code or not self.tally:
            untried = self.first + self.count - last - 1
            fault = f"the process ended with {exit_code}; {untried} mutations were not tried"
            self.faults.append({"number": last, "fault": fault})


def start_share(name: str, first: int, count: int) -> Share:
    """`python bench/faults.py --worker ...` in a process of its own."""
    script = str(Path(__file__).parents[1] / "faults.py")
    process = subprocess.Popen(
        [sys.executable, script, "--worker", name, str(first), str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return Share(first, count, process)


def commit_with_changes() -> str:
    """Says whether tracked files differ from the commit."""
    changed = git("status", "--porcelain", "--untracked-files=no")
    return commit() + (" with changes" if changed else "")


def fuzz(name: str, count: int, workers: int) -> dict:
    """What one reader made of `count` mutations."""
    began = time.perf_counter()
    size = -(-count // workers)
    shares = [start_share(name, first, min(size, count - first)) for first in range(0, count, size)]
    row: dict = {
        "mutations": count,
        ACCEPTED: 0,
        REFUSED: 0,
        "faults": [],
        "commit": commit_with_changes(),
    }
    for share in shares:
        share.follow()
        row["faults"] += share.faults
        for outcome, number in share.tally.items():
            row[outcome] += number
    row["seconds"] = round(time.perf_counter() - began, 1)
    return row
