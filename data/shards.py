"""The contest's shard file.

A header of 256 little-endian int32, `[20240520, 1, num_tokens, 0...]`, then num_tokens
little-endian uint16. A split's stream is its shards, concatenated in name order. A document may
cross a shard boundary.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from data.common import SHARD_TOKENS, UserError, atomic_write, sha256_file

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = HEADER_INTS * 4


class ShardFile(BaseModel):
    """One shard as a manifest names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[A-Za-z0-9._-]+\.bin$")
    tokens: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def header(num_tokens: int) -> bytes:
    """The 1,024 bytes that begin a shard of num_tokens tokens."""
    ints = np.zeros(HEADER_INTS, "<i4")
    ints[:3] = [MAGIC, VERSION, num_tokens]
    return ints.tobytes()


def write_shard(path: Path, arrays: Iterable[np.ndarray]) -> int:
    """Writes one shard from pieces of its token stream (uint16). Returns the number of tokens."""
    tokens = 0
    with atomic_write(path) as file:
        file.write(header(0))
        for array in arrays:
            file.write(np.ascontiguousarray(array, "<u2").data)
            tokens += len(array)
        file.seek(0)
        file.write(header(tokens))
    return tokens


class TokenTap:
    """A stream of token arrays, drawn in pieces of any length."""

    def __init__(self, arrays: Iterable[np.ndarray]) -> None:
        self._arrays = (array for array in arrays if len(array))
        self._rest = next(self._arrays, None)

    @property
    def empty(self) -> bool:
        return self._rest is None

    def draw(self, tokens: int) -> Iterator[np.ndarray]:
        """The stream's next `tokens` tokens in pieces, fewer at its end."""
        room = tokens
        while room and self._rest is not None:
            piece = self._rest[:room]
            remainder = self._rest[room:]
            room -= len(piece)
            # Hand the piece out before reading on: the next array may take long to arrive.
            self._rest = remainder if len(remainder) else None
            yield piece
            if self._rest is None:
                self._rest = next(self._arrays, None)


def write_split(
    folder: Path,
    prefix: str,
    split: str,
    arrays: Iterable[np.ndarray],
    shard_tokens: int = SHARD_TOKENS,
) -> list[ShardFile]:
    """Cuts a token stream (uint16 arrays) into `<prefix>_<split>_%06d.bin`.

    Every shard holds exactly `shard_tokens` tokens, except the last, which may be shorter.
    """
    files: list[ShardFile] = []
    stream = TokenTap(arrays)
    while not stream.empty:
        path = folder / f"{prefix}_{split}_{len(files):06d}.bin"
        tokens = write_shard(path, stream.draw(shard_tokens))
        files.append(ShardFile(name=path.name, tokens=tokens, sha256=sha256_file(path)))
    return files


def read_shard(path: Path) -> np.ndarray:
    """The tokens of one shard, uint16 [num_tokens], memory-mapped read-only.

    Raises UserError when the file is missing or is not one whole shard.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            raw = file.read(HEADER_BYTES)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); "
            "build the dataset again or correct the path"
        ) from error
    if size < HEADER_BYTES:
        raise UserError(
            f"{path}: a shard begins with {HEADER_BYTES:,} bytes of header, "
            f"the file holds {size:,}; delete it and build it again"
        )
    magic, version, tokens = np.frombuffer(raw, "<i4")[:3].tolist()
    if (magic, version) != (MAGIC, VERSION):
        raise UserError(
            f"{path}: expected magic {MAGIC} version {VERSION}, found {magic} and {version}; "
            "this is not a token shard"
        )
    expected = HEADER_BYTES + 2 * tokens
    if tokens < 1 or size != expected:
        raise UserError(
            f"{path}: header promises {tokens:,} tokens ({expected:,} bytes), "
            f"file holds {size:,} bytes; build it again"
        )
    return np.memmap(path, "<u2", "r", HEADER_BYTES)
