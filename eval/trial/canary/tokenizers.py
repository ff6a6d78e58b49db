"""Tokenizers of the contest's sizes, made by the referee as SentencePiece models.

Ids, options and the meaning of pieces are those of the contest's own tokenizers: pad 0, BOS 1,
EOS 2, UNK 3, then byte pieces if any, then pieces that may begin with U+2581. A public script's
own table of bytes therefore reads them as it reads the real ones, and the referee knows what it
must come to.

* `english_tokenizer`: BPE with byte fallback, trained on the topics that Python's own `help()`
  prints. No download is needed and no text of the contest is seen; another Python version gives
  other pieces.
* `even_tokenizer`: every piece stands for four bytes, so that a stream's bytes follow from the
  number of its tokens, whichever of them a script scores.
"""

import io
import json
import re
import string
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from eval.errors import UserError
from eval.text.corpus.bytes import (
    ADD_DUMMY_PREFIX,
    BOS,
    EOS,
    FIRST_BYTE_ID,
    FIXED32,
    LENGTH_DELIMITED,
    NORMAL,
    NORMALIZER_NAME,
    NORMALIZER_SPEC,
    PAD,
    PIECES,
    SPACE,
    SPECIAL_TYPES,
    TRAINER_SPEC,
    UNK,
    VARINT,
    ByteTable,
    byte_level_table,
    sentencepiece_table,
)

BYTE_LEVEL = 260  # no merges: 4 special ids and an id for each value of a byte
SMALLEST_VOCABULARY = 512  # 4 special ids, 256 byte pieces, the letters, and some merges
LARGEST_VOCABULARY = 12288  # the text gives no more merges than that
SCATTER = 7919  # prime to 26, so that multiplying permutes words of letters
SPACE_ID = 4  # of a piece that is only a space, in `even_tokenizer`
TRAINING = {
    "model_type": "bpe",
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "character_coverage": 1.0,
    "split_digits": True,
    "max_sentence_length": 1 << 20,
    "minloglevel": 2,
    "num_threads": 1,
}
DASHES = re.compile("--+")


@dataclass(frozen=True)
class Tokenizer:
    """`model` is a SentencePiece ModelProto, `vocabulary` the text of its `.vocab` file.

    `byte_pieces` bool [V]: pieces that stand for one raw byte and are no text alone."""

    vocab_size: int
    model: bytes
    vocabulary: bytes
    table: ByteTable
    byte_pieces: np.ndarray

    def byte_counts(self, tokens: np.ndarray) -> np.ndarray:
        """Bytes that each token of a stream [N] stands for as the contest counts them, int64 [N].

        The first token is context only and counts 0."""
        counted = self.table.table_bytes(np.asarray(tokens, np.int64))
        return np.concatenate([[0], counted])

    def encode(self, text: str) -> list[int]:
        if self.vocab_size == BYTE_LEVEL:
            return [FIRST_BYTE_ID + value for value in text.encode()]
        return _processor(self.model).encode(text)


def _vocabulary_text(proto: bytes) -> bytes:
    """A line `piece<TAB>score` for each id, as SentencePiece writes it."""
    processor = _processor(proto)
    lines = []
    for index in range(processor.vocab_size()):
        lines.append(f"{processor.id_to_piece(index)}\t{processor.get_score(index):g}\n")
    return "".join(lines).encode()


@lru_cache(maxsize=8)
def _processor(proto: bytes):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=proto)


def tokenizer_of(proto: bytes, vocab_size: int) -> Tokenizer:
    is_byte = _processor(proto).is_byte
    return Tokenizer(
        vocab_size=vocab_size,
        model=proto,
        vocabulary=_vocabulary_text(proto),
        table=sentencepiece_table(proto, f"tokenizer of {vocab_size:,} ids"),
        byte_pieces=np.array([is_byte(index) for index in range(vocab_size)]),
    )


def check_size(vocab_size: int) -> None:
    """Raises UserError unless it is BYTE_LEVEL or SMALLEST_VOCABULARY to LARGEST_VOCABULARY."""
    is_usual = SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY
    if not is_usual and vocab_size != BYTE_LEVEL:
        raise UserError(
            f"vocabulary of {vocab_size:,} ids: the referee makes tokenizers of {BYTE_LEVEL} and "
            f"{SMALLEST_VOCABULARY:,} to {LARGEST_VOCABULARY:,}; set VOCAB_SIZE with --env"
        )


# --- English ---


@lru_cache(maxsize=4)
def english_tokenizer(vocab_size: int) -> Tokenizer:
    """BPE of a size; the same size gives the same bytes. Raises UserError as `check_size`."""
    check_size(vocab_size)
    if vocab_size == BYTE_LEVEL:
        return byte_level_tokenizer()
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(plain_documents()),
        model_writer=model,
        vocab_size=vocab_size,
        **TRAINING,
    )
    return tokenizer_of(model.getvalue(), vocab_size)


@lru_cache(maxsize=1)
def plain_documents() -> tuple[str, ...]:
    """English prose in ASCII, one document a topic, without runs of blanks.

    Raises UserError in an interpreter that was installed without its help."""
    try:
        from pydoc_data import topics
    except ImportError:
        raise UserError(
            "the canary's tokenizers are made from the topics of Python's help(), which this "
            "interpreter lacks (pydoc_data); run the referee with a full installation of Python"
        ) from None

    texts = (topics.topics[name] for name in sorted(topics.topics))
    return tuple(" ".join(text.encode("ascii", "ignore").decode().split()) for text in texts)


@lru_cache(maxsize=1)
def typeset_documents() -> tuple[str, ...]:
    """The same prose with typographic dashes and apostrophes.

    These are outside the alphabet that the tokenizers are trained on, so each is three byte
    pieces: about as many of all tokens as in the contest's text."""
    return tuple(map(_typeset, plain_documents()))


def _typeset(text: str) -> str:
    with_dashes = DASHES.sub("\u2014", text)
    return with_dashes.replace("'", "\u2019")


# --- Bytes ---


@lru_cache(maxsize=1)
def byte_level_tokenizer() -> Tokenizer:
    """No merges at all, described by the JSON that the contest's byte-level scripts read.

    Printable ASCII is text; every other value counts as a stray byte."""
    description = {
        "tokenizer_type": "pure_byte",
        "vocab_size": BYTE_LEVEL,
        "config": {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "byte_offset": 4},
    }
    model = json.dumps(description).encode()
    table = byte_level_table(model, "byte-level tokenizer")
    values = np.arange(BYTE_LEVEL) - FIRST_BYTE_ID
    is_text = (values >= ord(" ")) & (values <= ord("~"))
    return Tokenizer(BYTE_LEVEL, model, b"", table, ~is_text & ~table.boundary)


# --- Even ---


@lru_cache(maxsize=4)
def even_tokenizer(vocab_size: int) -> Tokenizer:
    """Pieces of four letters and of three behind a space, half and half, and one of a space.

    Raises UserError as `check_size`."""
    check_size(vocab_size)
    if vocab_size == BYTE_LEVEL:
        return byte_level_tokenizer()
    return tokenizer_of(_even_model(vocab_size), vocab_size)


def even_ids(tokenizer: Tokenizer) -> np.ndarray:
    """The pieces of four bytes; of a byte-level vocabulary those of printable ASCII."""
    if tokenizer.vocab_size == BYTE_LEVEL:
        return np.flatnonzero(~tokenizer.table.boundary & ~tokenizer.byte_pieces)
    return np.arange(SPACE_ID + 1, tokenizer.vocab_size)


def _even_pieces(vocab_size: int) -> Iterator[tuple[str, int]]:
    """(text, type) of each id."""
    yield from zip(("<pad>", "<s>", "</s>", "<unk>"), SPECIAL_TYPES, strict=True)
    yield SPACE, NORMAL
    for number in range(vocab_size - SPACE_ID - 1):
        word = _word(number // 2, letters=3)
        yield (SPACE + word if number % 2 else word + word[0]), NORMAL


def _word(number: int, letters: int) -> str:
    """One of 26^letters words, another for each number below that, in no visible order."""
    alphabet = string.ascii_lowercase
    left = number * SCATTER % len(alphabet) ** letters
    word = ""
    for _ in range(letters):
        left, letter = divmod(left, len(alphabet))
        word += alphabet[letter]
    return word


# Field numbers and values of sentencepiece_model.proto.
UNIGRAM = 1
PIECE, SCORE, KIND = 1, 2, 3


def _even_model(vocab_size: int) -> bytes:
    """A ModelProto: a unigram model, for which any pieces will do."""
    proto = b""
    for text, kind in _even_pieces(vocab_size):
        score = bytes([SCORE << 3 | FIXED32]) + struct.pack("<f", 0.0)
        fields = _bytes_field(PIECE, text.encode()) + score + _number_field(KIND, kind)
        proto += _bytes_field(PIECES, fields)
    trainer = {3: UNIGRAM, 4: vocab_size, 40: UNK, 41: BOS, 42: EOS, 43: PAD}
    numbers = (_number_field(field, value) for field, value in trainer.items())
    proto += _bytes_field(TRAINER_SPEC, b"".join(numbers))
    normalizer = _bytes_field(NORMALIZER_NAME, b"identity") + _number_field(ADD_DUMMY_PREFIX, 0)
    return proto + _bytes_field(NORMALIZER_SPEC, normalizer)


def _bytes_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | LENGTH_DELIMITED) + _varint(len(content)) + content


def _number_field(number: int, value: int) -> bytes:
    return _varint(number << 3 | VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    out = []
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
