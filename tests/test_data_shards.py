"""Shard files: the format by hand, cutting, and every way a file can be wrong."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.common import UserError, atomic_write
from data.shards import header, read_shard, write_shard, write_split


def test_format_is_the_contests(tmp_path):
    write_shard(tmp_path / "a.bin", [np.array([1, 513], np.uint16), np.array([65535], np.uint16)])
    raw = (tmp_path / "a.bin").read_bytes()
    # 20240520, 1, 3 in little-endian int32
    assert raw[:12] == bytes([0x88, 0xD8, 0x34, 0x01, 1, 0, 0, 0, 3, 0, 0, 0])
    assert raw[12:1024] == bytes(1012)
    assert raw[1024:] == bytes([1, 0, 1, 2, 255, 255])
    assert read_shard(tmp_path / "a.bin").tolist() == [1, 513, 65535]


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=12), shard_tokens=st.integers(1, 30)
)
def test_cutting_keeps_the_stream(tmp_path_factory, lengths, shard_tokens):
    folder = tmp_path_factory.mktemp("cut")
    edges = np.cumsum([0, *lengths])
    arrays = [np.arange(low, high, dtype=np.uint16) for low, high in itertools.pairwise(edges)]
    files = write_split(folder, "x", "train", arrays, shard_tokens)
    total = int(edges[-1])
    whole, rest = divmod(total, shard_tokens)
    expected = [shard_tokens] * whole
    if rest:
        expected.append(rest)
    assert [file.tokens for file in files] == expected
    stream = []
    for file in files:
        stream += read_shard(folder / file.name).tolist()
    assert stream == list(range(total))
    left = sorted(path.name for path in folder.iterdir())
    assert left == [file.name for file in files]  # no temporary file


SOUND = header(5) + np.arange(5, dtype="<u2").tobytes()


def replaced(at: int, new: bytes) -> bytes:
    """The sound shard with other bytes from `at` on."""
    return SOUND[:at] + new + SOUND[at + len(new) :]


DAMAGED = {
    "shorter than a header": (SOUND[:100], "holds 100"),
    "one byte short": (SOUND[:-1], "file holds 1,033 bytes"),
    "one byte long": (SOUND + b"\0", "file holds 1,035 bytes"),
    "another magic": (replaced(0, b"\0"), "expected magic 20240520"),
    "another version": (replaced(4, b"\2"), "found 20240520 and 2"),
    "no tokens": (SOUND[:8] + bytes(1016), "promises 0 tokens"),
    "a negative count": (replaced(8, b"\xff" * 4), "promises -1 tokens"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_shard_is_refused(tmp_path, how):
    path = tmp_path / "a.bin"
    path.write_bytes(SOUND)
    assert read_shard(path).tolist() == [0, 1, 2, 3, 4]
    raw, says = DAMAGED[how]
    path.write_bytes(raw)
    with pytest.raises(UserError, match=says):
        read_shard(path)


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.bin: cannot be read"):
        read_shard(tmp_path / "none.bin")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
