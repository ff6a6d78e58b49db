"""Which mechanisms of the sandbox work here, a run in one of them, and what it left behind."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.trial.sandbox import running as sandbox
from eval.trial.sandbox.job import GIB, Job, Limits, Outcome

ROOT = Path(__file__).resolve().parents[1]
WALL = 3.0


def mechanisms(*names: str) -> list:
    """One parameter for each mechanism.

    Those that do not work here are skipped with the sandbox's own reason."""
    reasons = {
        name: sandbox.unavailable(name) if sys.platform == "linux" else "not Linux"
        for name in names
    }
    return [
        pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=f"{name}: {reason}"))
        for name, reason in reasons.items()
    ]


ISOLATED = mechanisms("bubblewrap", "unshare")
ANY = [
    *ISOLATED,
    pytest.param("none", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")),
]

NEEDS_SANDBOX = pytest.mark.skipif(
    sys.platform != "linux" or all(map(sandbox.unavailable, sandbox.ISOLATING)),
    reason="neither bubblewrap nor namespaces work here, and the audit refuses to run without",
)


def run(code: str, mechanism: str, collect: tuple[str, ...] = (), **limits) -> Outcome:
    settings = {
        "wall_seconds": WALL,
        "memory_bytes": GIB // 2,
        "printed_bytes": 1 << 20,
        "file_bytes": 1 << 24,
        "output_bytes": 1 << 25,
        "processes": 64,
    }
    job = Job(
        {"a.py": code.encode()},
        {"given.txt": b"hello"},
        ["{code}/a.py", "{in}", "{out}"],
        collect,
        Limits(**(settings | limits)),
    )
    return sandbox.run(job, mechanism)


def processes_with(marker: str) -> list[str]:
    """Numbers of the processes that have `marker` in their command line."""
    commands = Path("/proc").glob("[0-9]*/cmdline")
    return [path.parent.name for path in commands if marker.encode() in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    latest = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < latest, f"not within {seconds:g} s"
        time.sleep(0.02)
