"""Shard files: the format by hand, cutting, and every way a file can be wrong."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.common import UserError, atomic_write
from data.shards import read_shard, write_shard, write_split


def test_format_is_the_contests(tmp_path):
    write_shard(tmp_path / "a.bin", [np.array([1, 513], np.uint16), np.array([65535], np.uint16)])
    raw = (tmp_path / "a.bin").read_bytes()
    assert raw[:12] == bytes(
        [0x88, 0xD8, 0x34, 0x01, 1, 0, 0, 0, 3, 0, 0, 0]
    )  # 20240520, 1, 3 in little-endian int32
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
    assert [file.tokens for file in files] == [shard_tokens] * (total // shard_tokens) + (
        [total % shard_tokens] if total % shard_tokens else []
    )
    stream = (
        np.concatenate([read_shard(folder / file.name) for file in files])
        if files
        else np.array([])
    )
    assert stream.tolist() == list(range(total))
    assert sorted(path.name for path in folder.iterdir()) == [
        file.name for file in files
    ]  # no temporary file is left


def damaged(raw: bytes, how: str) -> bytes:
    return {
        "shorter than a header": raw[:100],
        "one byte short": raw[:-1],
        "one byte long": raw + b"\0",
        "another magic": b"\0" + raw[1:],
        "another version": raw[:4] + b"\2" + raw[5:],
        "no tokens": raw[:8] + bytes(1016),
        "a negative count": raw[:8] + b"\xff" * 4 + raw[12:],
    }[how]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("shorter than a header", "holds 100"),
        ("one byte short", "file holds 1,033 bytes"),
        ("one byte long", "file holds 1,035 bytes"),
        ("another magic", "expected magic 20240520"),
        ("another version", "found 20240520 and 2"),
        ("no tokens", "promises 0 tokens"),
        ("a negative count", "promises -1 tokens"),
    ],
)
def test_a_damaged_shard_is_refused(tmp_path, how, says):
    path = tmp_path / "a.bin"
    write_shard(path, [np.arange(5, dtype=np.uint16)])
    path.write_bytes(damaged(path.read_bytes(), how))
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
