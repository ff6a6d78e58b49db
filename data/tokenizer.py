"""Tokenizers: our own lossless SentencePiece BPE, any SentencePiece model, and pure bytes."""

import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm

from data.bytes import SPACE, ByteTable
from data.common import BOS, EOS, PAD, UNK, UserError

FIRST_BYTE_ID = 4  # byte260: pad, BOS, EOS, UNK, then the 256 byte values
MAX_VOCAB = 1 << 16  # a token is a uint16
# The trainer holds its text in memory. Documents come in hash order, so the first are a fair
# sample.
TRAIN_CHARS = 100_000_000
# Rarer characters go by bytes, which is lossless too; 0.98 is the least that the trainer takes.
# Scripts with many signs need it: their frequent characters alone can exceed a small vocabulary.
COVERAGES = (0.999, 0.99, 0.98)
# A transform of the text (upper case, say) marks its places with characters for private use.
PRIVATE_USE = ("\ue000", "\uf8ff")


class SentencePieceTokenizer:
    """`encode` and `decode` of one document, without BOS.

    Raises UserError on a model that this project cannot score.

    marks: pieces of a reversible transform of the text. Their bytes depend on their context.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, source: str = "tokenizer"):
        try:
            self.sp = spm.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(
                f"{source}: not a SentencePiece model ({len(model):,} bytes)"
            ) from error
        self.model = model
        self.vocab_size = self.sp.vocab_size()
        self._require_scorable(source)
        self.table = ByteTable.of_sentencepiece(self.sp)
        self.marks = [i for i in range(self.vocab_size) if self._is_mark(i)]
        self.unk_surface = len(self.sp.decode([UNK]).encode())
        self.spell = self._spelled_space_mark()

    def _require_scorable(self, source: str) -> None:
        if self.vocab_size > MAX_VOCAB:
            raise UserError(
                f"{source}: {self.vocab_size:,} pieces, "
                f"but a token is stored in 16 bits (at most {MAX_VOCAB:,})"
            )
        ids = (self.sp.pad_id(), self.sp.bos_id(), self.sp.eos_id(), self.sp.unk_id())
        if ids != (PAD, BOS, EOS, UNK):
            raise UserError(
                f"{source}: expected pad 0, BOS 1, EOS 2, UNK 3, found {ids}; "
                "train the tokenizer with these ids"
            )
        if self.sp.is_unknown(self.sp.piece_to_id(SPACE)):
            raise UserError(
                f"{source}: U+2581, the space mark, is not a piece of its own among "
                f"{self.vocab_size:,}: a lone space would become three tokens or unknown "
                "and be miscounted; train it with required_chars or enough character coverage"
            )

    def _is_mark(self, i: int) -> bool:
        piece = self.sp.id_to_piece(i)
        first, last = PRIVATE_USE
        return len(piece) == 1 and first <= piece <= last

    def _spelled_space_mark(self) -> np.ndarray | None:
        """The ids that spell U+2581 in bytes, uint16 [3]; None for a lossy model.

        Even a model that neither normalises nor strips cannot tell a written U+2581 from a
        space. Spelling it in bytes keeps it.
        """
        probe = "  \uff21\n \t x  "
        lossless = self.sp.decode(self.sp.encode(probe)) == probe
        if not (lossless and self.sp.is_byte(FIRST_BYTE_ID)):
            return None
        return np.array([self.sp.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()], np.uint16)

    def encode(self, text: str) -> np.ndarray:
        """uint16 [N] ids."""
        if self.spell is None or SPACE not in text:
            return self._pieces(text)
        first, *others = text.split(SPACE)
        parts = [self._pieces(first)]
        for other in others:
            parts += [self.spell, self._pieces(other)]
        return np.concatenate(parts)

    def _pieces(self, text: str) -> np.ndarray:
        return self.sp.encode_as_numpy(text).astype(np.uint16)

    def decode(self, ids: np.ndarray) -> str:
        """SentencePiece's own decoder: the witness that the byte table is checked against."""
        return self.sp.decode(ids.tolist())

    def decoded_bytes(self, ids: np.ndarray) -> int:
        """UTF-8 bytes of `decode`, less the marks that the decoder writes for unknown pieces."""
        unknown = int((ids == UNK).sum())
        return len(self.decode(ids).encode()) - self.unk_surface * unknown


BYTE_TOKENIZER_SPEC: dict[str, Any] = {
    "tokenizer_type": "pure_byte",
    "config": {
        "pad_id": PAD,
        "bos_id": BOS,
        "eos_id": EOS,
        "unk_id": UNK,
        "byte_offset": FIRST_BYTE_ID,
        "byte_count": 256,
    },
    "vocab_size": FIRST_BYTE_ID + 256,
}


class ByteTokenizer:
    """Pure bytes (the contest's byte260): id = 4 + byte value."""

    kind = "bytes"
    vocab_size = FIRST_BYTE_ID + 256
    marks: tuple[int, ...] = ()
    table = ByteTable.of_pieces([b""] * FIRST_BYTE_ID + [bytes([i]) for i in range(256)])
    model = (json.dumps(BYTE_TOKENIZER_SPEC, indent=2) + "\n").encode()

    def encode(self, text: str) -> np.ndarray:
        """uint16 [N] ids."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint16) + np.uint16(FIRST_BYTE_ID)

    def decode(self, ids: np.ndarray) -> str:
        return self.table.decode(ids).decode(errors="replace")

    def decoded_bytes(self, ids: np.ndarray) -> int:
        return int((ids >= FIRST_BYTE_ID).sum())


Tokenizer = SentencePieceTokenizer | ByteTokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """A SentencePiece model, or from a .json file the byte tokenizer. Raises UserError."""
    try:
        model = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: tokenizer cannot be read ({error.strerror})") from error
    if path.suffix.lower() != ".json":
        return SentencePieceTokenizer(model, str(path))
    try:
        spec = json.loads(model)
        vocab_size = spec["vocab_size"]
        byte_offset = spec.get("config", {}).get("byte_offset", FIRST_BYTE_ID)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: expected the JSON description of a byte tokenizer, found {model[:60]!r}"
        ) from error
    if (vocab_size, byte_offset) != (ByteTokenizer.vocab_size, FIRST_BYTE_ID):
        raise UserError(
            f"{path}: expected 260 ids with bytes from id 4, "
            f"found vocab_size {vocab_size}, byte_offset {byte_offset}"
        )
    return ByteTokenizer()


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """A lossless SentencePiece BPE model. The same texts in the same order give the same bytes.

    No path, date or machine enters the file: texts come from an iterator, the model leaves
    through memory, and num_threads, which the model records, is a constant. Identity
    normalisation, no dummy prefix and no whitespace stripping make decode(encode(x)) == x.

    Raises UserError when the texts do not support a vocabulary of this size.
    """
    least = FIRST_BYTE_ID + 256 + 1
    if not least <= vocab_size <= MAX_VOCAB:
        raise UserError(
            f"--vocab-size {vocab_size}: expected {least} "
            f"(4 marks, 256 bytes and the space) to {MAX_VOCAB:,}"
        )
    sample = _training_sample(texts)
    failure = ""
    for coverage in COVERAGES:
        try:
            return _train_bpe(sample, vocab_size, coverage)
        except RuntimeError as error:
            failure = str(error).strip()
        if "required_chars" not in failure:
            break
    limit = re.search(r"value <= (\d+)", failure)
    reason = f"this text allows at most {limit[1]}" if limit else failure.rsplit("] ", 1)[-1]
    raise UserError(f"--vocab-size {vocab_size}: {reason}; give more text or another size")


def _training_sample(texts: Iterable[str]) -> list[str]:
    """The first texts, up to TRAIN_CHARS characters."""
    sample = []
    size = 0
    for text in texts:
        if size >= TRAIN_CHARS:
            break
        sample.append(text)
        size += len(text)
    return sample


def _train_bpe(texts: list[str], vocab_size: int, coverage: float) -> bytes:
    """The model's bytes. Raises RuntimeError where SentencePiece does."""
    writer = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=writer,
        model_type="bpe",
        vocab_size=vocab_size,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        split_digits=True,
        character_coverage=coverage,
        required_chars=SPACE,
        max_sentence_length=1 << 30,
        pad_id=PAD,
        bos_id=BOS,
        eos_id=EOS,
        unk_id=UNK,
        num_threads=4,
        minloglevel=2,
    )
    return writer.getvalue()
