"""What an artifact's bytes are spent on, by group of tensors, read without running any code.

Two containers are known: the artifact of this project's `train_gpt.py` (version 3), and a zip of
NumPy arrays behind any header (`numpy.savez_compressed`). Of any other file only the size is told.
"""

import io
import json
import math
import re
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MAGIC = b"PGOLFART"
VERSION = 3
SIZES = struct.Struct("<IIQ")  # version, bytes of the header, bytes of the payload
PLANE = struct.Struct("<I")  # bytes of the coded plane that follows; 0 for a plane as it is
SETTINGS = ("config", "model", "scoring")  # groups of a header, of version 1 and of later ones
VALUE_PLANES = {"fp32": 4, "fp16": 2, "bf16": 2}  # bytes of a value; integer symbols have one
SCALE_PLANES = 2  # bytes of a row's scale, which only integer symbols have
# What a layer's number and the kind of a tensor add to the name of its group.
NOT_OF_THE_GROUP = re.compile(r"\.\d+(?=\.)|^\d+\.|(\.weight)?(\.npy)?$")
DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    struct.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class Group:
    """Tensors that differ in their layer alone, with the bytes that they take in the file."""

    name: str
    bytes: int
    tensors: int = 1
    formats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """An artifact as it lies on the disk.

    `groups` are largest first and end with what belongs to no tensor; none where the container is
    unknown. `settings` are those of model and scoring; none where the file states none.
    """

    size: int
    groups: tuple[Group, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


def read_artifact(data: bytes) -> Artifact:
    """The composition of an artifact's bytes. Never raises for its contents."""
    settings = {}
    try:
        if data.startswith(MAGIC):
            header = _header(data)
            for group in SETTINGS:
                settings |= header.get(group, {})
            tensors = list(_coded_tensors(data, header))
        else:
            tensors = list(_zipped_tensors(data))
    except DAMAGE:
        return Artifact(len(data), (), settings)
    return Artifact(len(data), tuple(_grouped(tensors, len(data))), settings)


def _header(data: bytes) -> dict[str, Any]:
    """The JSON header of any version. Raises ValueError, struct.error or AttributeError."""
    _, length, _ = SIZES.unpack_from(data, len(MAGIC))
    start = len(MAGIC) + SIZES.size
    return dict(json.loads(data[start : start + length]).items())


def _coded_tensors(data: bytes, header: dict[str, Any]) -> Iterator[Group]:
    """Each tensor with the bytes of its planes, in the order of the header.

    Raises ValueError, KeyError or struct.error.
    """
    version, length, payload = SIZES.unpack_from(data, len(MAGIC))
    if version != VERSION:
        raise ValueError("of another version, whose layout is not known here")
    at = len(MAGIC) + SIZES.size + length
    end = at + payload
    for name, stored in header["tensors"].items():
        start = at
        values = math.prod(stored["shape"])
        planes = [values] * VALUE_PLANES.get(stored["format"], 1)
        if stored["format"] not in VALUE_PLANES:
            planes += [stored["shape"][0]] * SCALE_PLANES
        for size in planes:
            coded = PLANE.unpack_from(data, at)[0]
            at += PLANE.size + (coded or size)
        yield Group(name, at - start, formats=(stored["format"],))
    if at != end:
        raise ValueError("its planes are not as long as its payload")


def _zipped_tensors(data: bytes) -> Iterator[Group]:
    """Each array of a zip with its compressed bytes. Raises BadZipFile."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                yield Group(member.filename, member.compress_size)


def _grouped(tensors: list[Group], size: int) -> Iterator[Group]:
    """Groups by size, then the rest of the file; nothing where no tensor was found."""
    groups: dict[str, Group] = {}
    for tensor in tensors:
        name = NOT_OF_THE_GROUP.sub("", tensor.name)
        known = groups.get(name, Group(name, 0, 0))
        groups[name] = Group(
            name,
            known.bytes + tensor.bytes,
            known.tensors + 1,
            tuple(sorted({*known.formats, *tensor.formats})),
        )
    if not groups:
        return
    yield from sorted(groups.values(), key=lambda group: -group.bytes)
    yield Group("header and hashes", size - sum(group.bytes for group in groups.values()), 0)
