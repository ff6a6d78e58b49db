"""Files: where the project keeps them, their hashes, and how they are written and published."""

import hashlib
import os
import sys
from pathlib import Path

_ABOVE = Path(__file__).resolve().parents[1]
# Where the referee is installed there is no project around it: the current folder stands for it.
REPOSITORY = _ABOVE if (_ABOVE / "train_gpt.py").is_file() else Path.cwd()
DATASETS = REPOSITORY / "data" / "datasets"
RECORDS = REPOSITORY / "records"


def sha256_of(content: Path | bytes) -> str:
    """Hexadecimal sha256 of a file or of bytes. Raises OSError for a file that cannot be read."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_of_tree(folder: Path, *suffixes: str) -> str:
    """sha256 over the names and contents of all files below a folder with these suffixes."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in suffixes:
            total.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    return total.hexdigest()


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write through a temporary name in the same folder, so that no reader sees half a file.

    Raises OSError when the disk is full; the old file is then still there."""
    raw = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(raw)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def published(text: str) -> str:
    """Text that leaves this machine, without the places that its owner gave to things."""
    import tempfile

    names = {
        sys.executable: "python",
        f"{sys.prefix}/": "",
        f"{REPOSITORY}/": "",
        f"{Path.cwd()}/": "",
        f"{tempfile.gettempdir()}/": "",
        f"{Path.home()}/": "~/",
    }
    for private in sorted(names, key=len, reverse=True):
        if len(private) > 2:  # a home of `/` would be everywhere
            text = text.replace(private, names[private])
    return text
