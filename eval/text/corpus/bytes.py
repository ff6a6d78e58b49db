"""How many bytes of text a token stream stands for: the denominator of bits per byte, counted by the referee alone.

A SentencePiece model file is read here field by field (protobuf wire format, sentencepiece_model.proto), so the count shares no code
with the tokenizer library or with the project's data side. Three numbers are kept apart:

* source bytes: UTF-8 bytes of the documents before any normalisation, which only the dataset's manifest can state;
* decoded bytes: what decoding the ids gives, document by document, as SentencePiece's decoder does it;
* table bytes: the contest's sum over tokens (byte piece 1, U+2581 1, control, unknown and unused 0, other pieces their UTF-8 length,
  a leading U+2581 after a boundary token 0 when the encoder put it there).

For a lossless tokenizer all three agree. For a lossy one (NFKC, collapsed whitespace, no byte fallback) the contest divides by table bytes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.errors import UserError

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # ModelProto.SentencePiece.Type
FIRST_BYTE_ID = 4  # pure byte vocabularies: pad, BOS, EOS, UNK, then the 256 values


@dataclass(frozen=True)
class ByteTable:
    """`surface` [V] bytes of each id, U+2581 as a space; `counted` int64 [V] their lengths; `leading` bool [V] begins with U+2581;
    `boundary` bool [V] control, unknown or unused. `eats_prefix`: the decoder drops a document's leading space. `lossy` names every
    reason why text may not come back, and is empty for a lossless tokenizer."""

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
        """Contest's bytes of each target, int64 [N-1], for a stream of ids [N]; the first token is context only, never scored."""
        target, previous = tokens[1:], tokens[:-1]
        free = (
            self.leading[target] & self.boundary[previous]
            if self.eats_prefix
            else np.zeros(len(target), bool)
        )
        return self.counted[target] - free

    def decode(self, ids: np.ndarray) -> bytes:
        """Text of one document (control tokens are nothing), byte pieces left as they are even where they are no UTF-8."""
        out, at_start = [], self.eats_prefix
        for index in ids.tolist():
            text = self.surface[index]
            if at_start and self.leading[index]:
                text = text[1:]
                at_start = self.eats_all_leading and not text
            elif text:
                at_start = False
            out.append(text)
        return b"".join(out)

    def decoded_bytes(self, tokens: np.ndarray) -> int:
        """Sum of len(decode(document)) over the documents of a stream, without building the text."""
        if not self.eats_prefix:
            return int(self.counted[tokens].sum())
        total = int(self.counted[tokens].sum())
        for start, end in documents(tokens):
            for index in tokens[start:end].tolist():
                if self.leading[index]:
                    total -= 1
                    if not (self.eats_all_leading and len(self.surface[index]) == 1):
                        break
                elif self.surface[index]:
                    break
        return total


def documents(tokens: np.ndarray) -> Iterator[tuple[int, int]]:
    """[start, end) of each document of a stream; a document begins with BOS (the stream may begin inside one)."""
    starts = np.flatnonzero(tokens == BOS)
    if len(tokens) and (not len(starts) or starts[0] != 0):
        starts = np.concatenate([[0], starts])
    return zip(starts.tolist(), [*starts[1:].tolist(), len(tokens)], strict=True)


# --- Reading a tokenizer ---


def load_byte_table(path: Path) -> ByteTable:
    """Read a SentencePiece model or the JSON of a pure byte vocabulary. Raises UserError when it is neither."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: tokenizer cannot be read ({error.strerror}); build the dataset again or pass --dataset"
        ) from None
    if path.suffix == ".json":
        return _pure_bytes(raw, path)
    try:
        pieces, options, trainer = _model_proto(raw)
    except (IndexError, ValueError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: expected a SentencePiece model, found {len(raw):,} bytes that are none ({error})"
        ) from None
    if [kind for _, kind in pieces[: UNK + 1]] != [CONTROL, CONTROL, CONTROL, UNKNOWN]:
        raise UserError(
            f"{path}: expected ids pad 0, BOS 1, EOS 2, UNK 3, found piece types {[k for _, k in pieces[:4]]}"
        )
    return _table(pieces, options, trainer)


def _pure_bytes(raw: bytes, path: Path) -> ByteTable:
    try:
        spec = json.loads(raw)
        found = spec["vocab_size"], spec.get("config", {}).get("byte_offset", FIRST_BYTE_ID)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path}: expected the JSON description of a byte vocabulary with vocab_size, found {raw[:40]!r}"
        ) from None
    if found != (FIRST_BYTE_ID + 256, FIRST_BYTE_ID):
        raise UserError(
            f"{path}: expected 260 ids with the byte values from id 4, found vocab_size {found[0]}, byte_offset {found[1]}"
        )
    pieces = (
        [("", CONTROL)] * 3 + [("", UNKNOWN)] + [(f"<0x{value:02X}>", BYTE) for value in range(256)]
    )
    return _table(pieces, {}, {"byte_fallback": True})


def _table(
    pieces: list[tuple[str, int]], options: dict[str, object], trainer: dict[str, object]
) -> ByteTable:
    surface = []
    for text, kind in pieces:
        if kind in (CONTROL, UNKNOWN, UNUSED):
            surface.append(b"")
        elif kind == BYTE:
            surface.append(bytes([int(text[3:5], 16)]))
        else:
            surface.append(text.replace(SPACE, " ").encode())
    written = [kind in (NORMAL, USER_DEFINED) for _, kind in pieces]
    dummy, extra = (
        bool(options.get("add_dummy_prefix")),
        bool(options.get("remove_extra_whitespaces")),
    )
    lossy = []
    if options.get("charsmap"):
        lossy.append(f"normalises characters ({options.get('name') or 'custom rule'})")
    if extra:
        lossy.append("collapses whitespace")
    if not trainer.get("byte_fallback") and not {kind for _, kind in pieces} & {BYTE}:
        lossy.append("has no byte fallback")
    return ByteTable(
        surface=tuple(surface),
        counted=np.array([len(text) for text in surface], np.int64),
        leading=np.array(
            [w and text.startswith(SPACE) for w, (text, _) in zip(written, pieces, strict=True)]
        ),
        boundary=np.array([kind in (CONTROL, UNKNOWN, UNUSED) for _, kind in pieces]),
        eats_prefix=dummy or extra,
        eats_all_leading=extra,
        lossy=tuple(lossy),
    )


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of one protobuf message: varints as int, everything else as bytes."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = raw[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at
            if shift > 63:
                raise ValueError("a number longer than 64 bits")

    at = 0
    while at < len(raw):
        tag, at = varint(at)
        wire = tag & 7
        if wire == 0:
            value, at = varint(at)
        else:
            if wire == 2:
                size, at = varint(at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise ValueError(f"wire type {wire}")
            if at + size > len(raw):
                raise ValueError("a field longer than the file")
            value, at = raw[at : at + size], at + size
        yield tag >> 3, value


def _model_proto(raw: bytes) -> tuple[list[tuple[str, int]], dict[str, object], dict[str, object]]:
    """Pieces as (text, type), the normaliser's options and byte_fallback. Defaults as in sentencepiece_model.proto."""
    pieces: list[tuple[str, int]] = []
    options: dict[str, object] = {"add_dummy_prefix": True, "remove_extra_whitespaces": True}
    trainer: dict[str, object] = {"byte_fallback": False}
    for number, value in _fields(raw):
        if number in (1, 2, 3) and not isinstance(value, bytes):
            raise ValueError(f"field {number} is no message")
        if number == 1:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode(), int(piece.get(3, NORMAL))))
        elif number == 2:
            trainer["byte_fallback"] = bool(dict(_fields(value)).get(35, 0))
        elif number == 3:
            spec = dict(_fields(value))
            options["name"] = spec.get(1, b"").decode()
            options["charsmap"] = len(spec.get(2, b""))
            options["add_dummy_prefix"] = bool(spec.get(3, 1))
            options["remove_extra_whitespaces"] = bool(spec.get(4, 1))
    if len(pieces) <= UNK:
        raise ValueError(f"{len(pieces)} pieces")
    return pieces, options, trainer
