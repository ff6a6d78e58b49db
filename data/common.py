"""What every data command shares: the user's error, whole-or-absent files, hashes, processes."""

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
# The published FineWeb documents have this name in the export and here.
DOCS_FILE = "docs_selected.jsonl"
SHARD_TOKENS = 100_000_000  # the contest's shard size

PAD = 0
BOS = 1
EOS = 2
UNK = 3


class UserError(Exception):
    """Bad input. The command line prints the message and exits with code 2.

    The message names the file, what was expected, what was found and what to do.
    """


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name only when the block ends without an error.

    A half-written file never exists under `path`.
    """
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
    """The file's sha256 as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_workers() -> int:
    """Cores that this process may use: its share in a container or a batch job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _die_with_parent() -> None:
    """Ends a worker when its parent is killed. Otherwise it would wait for work forever."""

    def watch() -> None:
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def process_pool(workers: int) -> ProcessPoolExecutor:
    """The one kind of pool in this package.

    It raises BrokenProcessPool when a worker is killed, instead of waiting for it.
    """
    return ProcessPoolExecutor(workers, initializer=_die_with_parent)
