"""What every data command shares: the user's error, files that appear whole or not at all, hashes, processes."""

import contextlib
import hashlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from typing import BinaryIO

DATA_ROOT = Path(__file__).resolve().parent
DOCS_FILE = (
    "docs_selected.jsonl"  # the published FineWeb documents, by this name in the export and here
)
PAD, BOS, EOS, UNK = 0, 1, 2, 3


class UserError(Exception):
    """Bad input. The message names the file, what was expected, what was found and what to do; the CLI prints it and exits with code 2."""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name only once the block has ended without an error; a half-written one never exists under `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_workers() -> int:
    """Cores this process may use (a container's or a batch system's share, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _die_with_parent() -> None:
    """A worker whose parent was killed would otherwise wait for work for ever."""

    def watch() -> None:
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def process_pool(workers: int) -> ProcessPoolExecutor:
    """The one kind of pool in this package. Raises BrokenProcessPool when a worker is killed, instead of waiting for it."""
    return ProcessPoolExecutor(workers, initializer=_die_with_parent)
