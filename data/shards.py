"""The contest's shard file: 256 little-endian int32 of header `[20240520, 1, num_tokens, 0...]`, then num_tokens little-endian uint16.

A split's stream is its shards concatenated in name order; a document may cross a shard boundary."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from data.common import UserError, atomic_write, sha256_file

MAGIC, VERSION, HEADER_INTS = 20240520, 1, 256
HEADER_BYTES = HEADER_INTS * 4
SHARD_TOKENS = 100_000_000  # the contest's shard size


class ShardFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[A-Za-z0-9._-]+\.bin$")
    tokens: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def header(num_tokens: int) -> bytes:
    ints = np.zeros(HEADER_INTS, "<i4")
    ints[:3] = MAGIC, VERSION, num_tokens
    return ints.tobytes()


def write_shard(path: Path, arrays: Iterable[np.ndarray]) -> int:
    """Writes one shard from pieces of its token stream (uint16); returns the number of tokens."""
    with atomic_write(path) as file:
        file.write(header(0))
        tokens = 0
        for array in arrays:
            file.write(np.ascontiguousarray(array, "<u2").data)
            tokens += len(array)
        file.seek(0)
        file.write(header(tokens))
    return tokens


def write_split(
    folder: Path,
    prefix: str,
    split: str,
    arrays: Iterable[np.ndarray],
    shard_tokens: int = SHARD_TOKENS,
) -> list[ShardFile]:
    """Cuts a token stream into `<prefix>_<split>_%06d.bin` of exactly `shard_tokens` tokens each, the last one shorter."""
    files: list[ShardFile] = []
    pending = (array for array in arrays if len(array))
    rest: np.ndarray | None = next(pending, None)

    def one_shard() -> Iterator[np.ndarray]:
        nonlocal rest
        room = shard_tokens
        while rest is not None and room:
            piece, rest = rest[:room], rest[room:] if len(rest) > room else None
            room -= len(piece)
            yield piece
            if rest is None:
                rest = next(pending, None)

    while rest is not None:
        path = folder / f"{prefix}_{split}_{len(files):06d}.bin"
        tokens = write_shard(path, one_shard())
        files.append(ShardFile(name=path.name, tokens=tokens, sha256=sha256_file(path)))
    return files


def read_shard(path: Path) -> np.ndarray:
    """The tokens of one shard, uint16 [num_tokens], memory-mapped read-only. UserError when the file is missing or is not a whole shard."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = np.frombuffer(file.read(HEADER_BYTES), "<i4") if size >= HEADER_BYTES else None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); build the dataset again or correct the path"
        ) from error
    if head is None:
        raise UserError(
            f"{path}: a shard begins with {HEADER_BYTES:,} bytes of header, the file holds {size:,}; delete it and build it again"
        )
    if (head[0], head[1]) != (MAGIC, VERSION):
        raise UserError(
            f"{path}: expected magic {MAGIC} version {VERSION}, found {head[0]} and {head[1]}; this is not a token shard"
        )
    expected = HEADER_BYTES + 2 * int(head[2])
    if head[2] < 1 or size != expected:
        raise UserError(
            f"{path}: header promises {head[2]:,} tokens ({expected:,} bytes), file holds {size:,} bytes; build it again"
        )
    return np.memmap(path, "<u2", "r", HEADER_BYTES)
