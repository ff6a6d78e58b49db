"""Files: where the project keeps them, their hashes, and writing them whole or not at all."""

import hashlib
import os
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
