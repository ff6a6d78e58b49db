"""How many bytes of text a token stream stands for: the denominator of bits per byte.

The referee counts alone. It reads a SentencePiece model file field by field (protobuf wire format,
sentencepiece_model.proto), so the count shares no code with the tokenizer library or with the
project's data side. Three numbers are kept apart:

* source bytes: UTF-8 bytes of the documents before any normalisation; only the manifest of the
  dataset can state them;
* decoded bytes: what decoding the ids gives, document by document, as SentencePiece's decoder
  does it;
* table bytes: the contest's sum over tokens. A byte piece counts 1, U+2581 counts 1, control,
  unknown and unused pieces count 0, other pieces their UTF-8 length. A leading U+2581 after a
  boundary token counts 0 when the encoder put it there.

For a lossless tokenizer all three agree. For a lossy one (NFKC, collapsed whitespace, no byte
fallback) the contest divides by table bytes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.errors import UserError

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # ModelProto.SentencePiece.Type
SILENT = {CONTROL, UNKNOWN, UNUSED}  # types of pieces that stand for no text
SPECIAL_TYPES = [CONTROL, CONTROL, CONTROL, UNKNOWN]  # of pad, BOS, EOS and UNK
FIRST_BYTE_ID = 4  # pure byte vocabularies: pad, BOS, EOS, UNK, then the 256 values


@dataclass(frozen=True)
class ByteTable:
    """The bytes that each id of a tokenizer stands for; V is the number of ids.

    `surface` [V]: bytes of each id, U+2581 as a space.
    `counted` int64 [V]: their lengths.
    `leading` bool [V]: the piece begins with U+2581.
    `boundary` bool [V]: control, unknown or unused.
    `eats_prefix`: the decoder drops the leading space of a document.
    `eats_all_leading`: it drops all of them.
    `lossy`: every reason why text may not come back; empty for a lossless tokenizer."""

    surface: tuple[bytes, ...]
    counted: np.ndarray
    leading: np.ndarray
    boundary: np.ndarray
    eats_prefix: bool
    eats_all_leading: bool
    lossy: tuple[str, ...]

    @property
    def vocab_size(self) -> int:
        return len(self.surface)

    def table_bytes(self, tokens: np.ndarray) -> np.ndarray:
        """The contest's bytes of each target, int64 [N-1], for a stream of ids [N].

        The first token is context only and never scored."""
        target = tokens[1:]
        counted = self.counted[target]
        if not self.eats_prefix:
            return counted
        after_boundary = self.boundary[tokens[:-1]]
        return counted - (self.leading[target] & after_boundary)

    def decode(self, ids: np.ndarray) -> bytes:
        """Text of one document. Control tokens are nothing; byte pieces stay as they are, even
        where they are not UTF-8."""
        text = b"".join(map(self.surface.__getitem__, ids.tolist()))
        return text[self._eaten_bytes(ids) :] if self.eats_prefix else text

    def decoded_bytes(self, tokens: np.ndarray) -> int:
        """Sum of len(decode(document)) over a stream's documents, without building the text."""
        total = int(self.counted[tokens].sum())
        if not self.eats_prefix:
            return total
        for start, end in documents(tokens):
            total -= self._eaten_bytes(tokens[start:end])
        return total

    def _eaten_bytes(self, document: np.ndarray) -> int:
        """Leading spaces that the decoder drops from one document."""
        eaten = 0
        for index in document.tolist():
            if self.leading[index]:
                eaten += 1
                only_a_space = len(self.surface[index]) == 1
                if not (self.eats_all_leading and only_a_space):
                    break
            elif self.surface[index]:
                break
        return eaten


def documents(tokens: np.ndarray) -> Iterator[tuple[int, int]]:
    """[start, end) of each document of a stream.

    A document begins with BOS; the stream itself may begin inside one."""
    starts = np.flatnonzero(tokens == BOS).tolist()
    if len(tokens) and (not starts or starts[0] != 0):
        starts = [0, *starts]
    return zip(starts, [*starts[1:], len(tokens)], strict=True)


# --- Reading a tokenizer ---


class Piece(NamedTuple):
    """One id of a tokenizer; `kind` is a ModelProto.SentencePiece.Type."""

    text: str
    kind: int


class Model(NamedTuple):
    """What the byte count needs of a SentencePiece model file. `normaliser` is the name of the
    rule that rewrites characters; empty where none does."""

    pieces: list[Piece]
    byte_fallback: bool = False
    normaliser: str = ""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True


def load_byte_table(path: Path) -> ByteTable:
    """Read a SentencePiece model or the JSON of a pure byte vocabulary.

    Raises UserError when the file is neither."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: tokenizer cannot be read ({error.strerror}); "
            "build the dataset again or pass --dataset"
        ) from None
    if path.suffix == ".json":
        return _byte_table(_byte_vocabulary(raw, path))
    return sentencepiece_table(raw, str(path))


def sentencepiece_table(raw: bytes, name: str) -> ByteTable:
    """The table of a SentencePiece model; `name` is what errors call it.

    Raises UserError when the bytes are no such model, or one with other special ids."""
    try:
        model = _parse_model(raw)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{name}: expected a SentencePiece model, "
            f"found {len(raw):,} bytes that are none ({error})"
        ) from None
    found = [piece.kind for piece in model.pieces[: UNK + 1]]
    if found != SPECIAL_TYPES:
        raise UserError(
            f"{name}: expected ids pad 0, BOS 1, EOS 2, UNK 3, found piece types {found}"
        )
    return _byte_table(model)


def byte_level_table(raw: bytes, name: str) -> ByteTable:
    """The table of the JSON of a pure byte vocabulary; `name` is what errors call it.

    Raises UserError for any other description."""
    return _byte_table(_byte_vocabulary(raw, name))


def _byte_vocabulary(raw: bytes, path: Path | str) -> Model:
    """The pure byte vocabulary, as a model. Raises UserError for any other description."""
    try:
        spec = json.loads(raw)
        vocab_size = spec["vocab_size"]
        byte_offset = spec.get("config", {}).get("byte_offset", FIRST_BYTE_ID)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path}: expected the JSON description of a byte vocabulary with vocab_size, "
            f"found {raw[:40]!r}"
        ) from None
    if vocab_size != FIRST_BYTE_ID + 256 or byte_offset != FIRST_BYTE_ID:
        raise UserError(
            f"{path}: expected 260 ids with the byte values from id 4, "
            f"found vocab_size {vocab_size}, byte_offset {byte_offset}"
        )
    special = [Piece("", kind) for kind in SPECIAL_TYPES]
    values = [Piece(f"<0x{value:02X}>", BYTE) for value in range(256)]
    return Model(
        [*special, *values],
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    )


def _byte_table(model: Model) -> ByteTable:
    pieces = model.pieces
    surface = tuple(_surface(piece) for piece in pieces)
    return ByteTable(
        surface=surface,
        counted=np.array([len(text) for text in surface], np.int64),
        leading=np.array([_is_leading(piece) for piece in pieces]),
        boundary=np.array([piece.kind in SILENT for piece in pieces]),
        eats_prefix=model.add_dummy_prefix or model.remove_extra_whitespaces,
        eats_all_leading=model.remove_extra_whitespaces,
        lossy=tuple(_losses(model)),
    )


def _surface(piece: Piece) -> bytes:
    """The text that a piece stands for, as bytes."""
    if piece.kind in SILENT:
        return b""
    if piece.kind == BYTE:
        return bytes([int(piece.text[3:5], 16)])  # <0xFF>
    return piece.text.replace(SPACE, " ").encode()


def _is_leading(piece: Piece) -> bool:
    return piece.kind in (NORMAL, USER_DEFINED) and piece.text.startswith(SPACE)


def _losses(model: Model) -> Iterator[str]:
    """Every reason why text may not come back from its ids."""
    if model.normaliser:
        yield f"normalises characters ({model.normaliser})"
    if model.remove_extra_whitespaces:
        yield "collapses whitespace"
    has_byte_pieces = any(piece.kind == BYTE for piece in model.pieces)
    if not (model.byte_fallback or has_byte_pieces):
        yield "has no byte fallback"


# Field numbers of sentencepiece_model.proto.
PIECES, TRAINER_SPEC, NORMALIZER_SPEC = 1, 2, 3
PIECE_TEXT, PIECE_TYPE = 1, 3
BYTE_FALLBACK = 35
NORMALIZER_NAME, CHARSMAP, ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES = 1, 2, 3, 4


def _parse_model(raw: bytes) -> Model:
    """Defaults are those of sentencepiece_model.proto.

    Raises LookupError, ValueError, AttributeError or TypeError for anything but a model."""
    pieces: list[Piece] = []
    found: dict[str, object] = {}
    for number, value in _fields(raw):
        if number not in (PIECES, TRAINER_SPEC, NORMALIZER_SPEC):
            continue
        if not isinstance(value, bytes):
            raise ValueError(f"field {number} is no message")
        fields = dict(_fields(value))
        if number == PIECES:
            pieces.append(Piece(fields[PIECE_TEXT].decode(), int(fields.get(PIECE_TYPE, NORMAL))))
        elif number == TRAINER_SPEC:
            found["byte_fallback"] = bool(fields.get(BYTE_FALLBACK, 0))
        else:
            found |= _normalizer_options(fields)
    if len(pieces) <= UNK:
        raise ValueError(f"{len(pieces)} pieces")
    return Model(pieces, **found)


def _normalizer_options(fields: dict[int, int | bytes]) -> dict[str, object]:
    name = fields.get(NORMALIZER_NAME, b"").decode()
    rewrites = len(fields.get(CHARSMAP, b"")) > 0
    return {
        "normaliser": (name or "custom rule") if rewrites else "",
        "add_dummy_prefix": bool(fields.get(ADD_DUMMY_PREFIX, 1)),
        "remove_extra_whitespaces": bool(fields.get(REMOVE_EXTRA_WHITESPACES, 1)),
    }


# --- Protobuf wire format ---

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of one protobuf message: varints as int, everything else as bytes."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        wire = tag & 7
        if wire == VARINT:
            value, at = _varint(raw, at)
            yield tag >> 3, value
            continue
        if wire == LENGTH_DELIMITED:
            size, at = _varint(raw, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        end = at + size
        if end > len(raw):
            raise ValueError("a field longer than the file")
        yield tag >> 3, raw[at:end]
        at = end


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """(value, position behind it) of the number that begins at `at`, seven bits a byte."""
    value = 0
    shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number longer than 64 bits")
