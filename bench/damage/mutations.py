"""Random damage to a file's bytes. The same generator state gives the same damage."""

import copy
import hashlib
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import train_gpt as tg

Mutation = Callable[[bytes, random.Random], bytes]

# What a JSON value may be exchanged for.
ODD_VALUES = (
    None,
    True,
    -1,
    0,
    1,
    3.5,
    1e308,
    10**30,
    float("nan"),
    "",
    "x",
    "1",
    "../../etc/passwd",
    "\ud800",
    [],
    {},
    [[]],
    {"a": 1},
    "9" * 400,
)
ODD_KEYS = ("", "x", "seed", "format", "__class__")
ODD_DIGITS = (b"0", b"9", b"-", b".", b"e9", b"99999999999999999999", b"nan")
ODD_WORDS = (0, -1, 1 << 31, (1 << 63) - 1, -(1 << 63), 255, 65_536)
ODD_BYTES = (0, 10, 13, 27, 255, 32)


def mutate_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Bits, bytes, stretches or numbers changed, parts cut, doubled or moved."""
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        change_bytes(out, rng)
    return bytes(out)


def change_bytes(out: bytearray, rng: random.Random) -> None:
    """One change, in place."""
    at = rng.randrange(len(out)) if out else 0
    length = min(len(out) - at, 1 << rng.randrange(12))
    end = at + length
    match rng.randrange(9):
        case 0 if out:
            out[at] ^= 1 << rng.randrange(8)
        case 1:
            out[at:end] = rng.randbytes(length)
        case 2:
            del out[at:end]
        case 3:
            del out[at:]
        case 4:
            out[at:at] = out[at:end] * rng.choice((1, 2, 50))
        case 5:
            elsewhere = rng.randrange(len(out) + 1)
            out[elsewhere:elsewhere] = out[at:end]
        case 6:
            word = struct.pack("<q", rng.choice(ODD_WORDS))
            written = word[: 4 * rng.randrange(1, 3)]
            replaced = 4 * rng.randrange(1, 3)
            out[at : at + replaced] = written
        case 7:
            change_digit(out, at, rng)
        case _:
            out[at:end] = bytes([rng.choice(ODD_BYTES)]) * length


def change_digit(out: bytearray, at: int, rng: random.Random) -> None:
    """One of the digits soon after `at`, if there is any."""
    stop = min(len(out), at + 4000)
    digits = [i for i in range(at, stop) if out[i] in b"0123456789"]
    if digits:
        i = rng.choice(digits)
        out[i : i + 1] = rng.choice(ODD_DIGITS)


Place = tuple[Any, Any]  # a dictionary or list, and a key or index in it


def places_in(tree: Any) -> list[Place]:
    places = []
    unvisited = [tree]
    while unvisited:
        node = unvisited.pop()
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                unvisited.append(node[key])
    return places


def still_there(place: Place) -> bool:
    node, key = place
    if isinstance(node, dict):
        return key in node
    return key < len(node)


def mutate_json(raw: bytes, rng: random.Random) -> bytes:
    """A value, key or element somewhere in the tree exchanged, dropped or doubled."""
    tree = json.loads(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = places_in(tree)
        if not places:
            break
        change_place(places, rng)
    return json.dumps(tree).encode()


def change_place(places: list[Place], rng: random.Random) -> None:
    node, key = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[rng.choice(ODD_KEYS)] = node[key]
        case 2 if isinstance(node, list):
            node.insert(key, node[key])
        case 3:
            other = rng.choice(places)
            if still_there(other):
                other_node, other_key = other
                node[key] = copy.deepcopy(other_node[other_key])
        case _:
            node[key] = copy.deepcopy(rng.choice(ODD_VALUES))


def mutate_text_or_json(raw: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.7:
        return mutate_json(raw, rng)
    return mutate_bytes(raw, rng)


def sealed(artifact: bytes) -> bytes:
    """With a true sha256 at its end, so that damage reaches the code behind the seal."""
    return artifact[:-32] + hashlib.sha256(artifact[:-32]).digest()


def mutate_artifact(raw: bytes, rng: random.Random) -> bytes:
    """Often the header as JSON, else any bytes; mostly sealed again."""
    if rng.random() < 0.3:
        return sealed(mutate_artifact_header(raw, rng))
    out = mutate_bytes(raw, rng)
    if len(out) > 32 and rng.random() < 0.7:
        return sealed(out)
    return out


def mutate_artifact_header(raw: bytes, rng: random.Random) -> bytes:
    """Its length is kept true."""
    magic = tg.ARTIFACT_MAGIC
    start = len(magic) + 16
    version, header_bytes, payload_bytes = struct.unpack_from("<IIQ", raw, len(magic))
    end = start + header_bytes
    header = mutate_json(raw[start:end], rng)
    sizes = struct.pack("<IIQ", version, len(header), payload_bytes)
    return magic + sizes + header + raw[end:]


def mutate_checkpoint(raw: bytes, rng: random.Random) -> bytes:
    """Mostly one array, its header or data, in a sound zip file; else the file as a whole."""
    if rng.random() < 0.2:
        return mutate_bytes(raw, rng)
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    victim = rng.choice(sorted(members))
    match rng.randrange(4):
        case 0:
            del members[victim]
        case 1:
            members[victim] = members[rng.choice(sorted(members))]
        case _:
            members[victim] = mutate_bytes(members[victim], rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return out.getvalue()
