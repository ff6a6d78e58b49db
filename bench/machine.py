"""The machine, the commit and the files of a measurement."""

import json
import os
import platform
import resource
from pathlib import Path

import torch

import train_gpt as tg

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def peak_memory() -> int:
    """The most bytes that this program has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    # elsewhere; under Linux this may be the peak of the process which started this one
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def git(*arguments: str) -> str:
    """What git prints about this repository; nothing where either is missing."""
    return tg.output_of("git", "-C", str(ROOT), *arguments)


def commit() -> str:
    return git("rev-parse", "HEAD")


def software() -> dict:
    """The keys that every `environment` of a results file has."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": commit(),
    }


def write_json(path: Path, result: dict) -> None:
    """Raises UserError where it cannot be written."""
    tg.write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
