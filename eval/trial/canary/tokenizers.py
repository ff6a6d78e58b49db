"""Tokenizers of the contest's sizes, made by the referee: SentencePiece BPE with byte fallback.

They are trained on the topics that Python's own `help()` prints, so no download is needed and no
text of the contest is seen; another Python version gives other pieces. Ids, options and the
meaning of pieces are those of the contest's own tokenizers: pad 0, BOS 1, EOS 2, UNK 3, then the
256 byte pieces, then pieces that may begin with U+2581. A public script's own table of bytes
therefore reads them as it reads the real ones, and the referee knows what it must come to.
"""

import io
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from eval.errors import UserError
from eval.text.corpus.bytes import ByteTable, sentencepiece_table

SMALLEST_VOCABULARY = 512  # 4 special ids, 256 byte pieces, the letters, and some merges
LARGEST_VOCABULARY = 12288  # the text gives no more merges than that
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
    """`model` is a SentencePiece ModelProto, `vocabulary` the text of its `.vocab` file."""

    vocab_size: int
    model: bytes
    vocabulary: bytes
    table: ByteTable

    def byte_counts(self, tokens: np.ndarray) -> np.ndarray:
        """Bytes that each token of a stream [N] stands for as the contest counts them, int64 [N].

        The first token is context only and counts 0."""
        counted = self.table.table_bytes(np.asarray(tokens, np.int64))
        return np.concatenate([[0], counted])

    def encode(self, text: str) -> list[int]:
        return _processor(self.model).encode(text)

    @property
    def byte_pieces(self) -> np.ndarray:
        """bool [V]: pieces that stand for one raw byte and are no text alone."""
        return np.array([self._is_byte(index) for index in range(self.vocab_size)])

    def _is_byte(self, index: int) -> bool:
        return _processor(self.model).is_byte(index)


@lru_cache(maxsize=8)
def make_tokenizer(vocab_size: int) -> Tokenizer:
    """The tokenizer of a size; the same size gives the same bytes.

    Raises UserError for a size outside SMALLEST_VOCABULARY to LARGEST_VOCABULARY."""
    if not SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
        raise UserError(
            f"vocabulary of {vocab_size:,} ids: the referee makes tokenizers of "
            f"{SMALLEST_VOCABULARY:,} to {LARGEST_VOCABULARY:,}; set VOCAB_SIZE with --env"
        )
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(plain_documents()),
        model_writer=model,
        vocab_size=vocab_size,
        **TRAINING,
    )
    proto = model.getvalue()
    return Tokenizer(
        vocab_size=vocab_size,
        model=proto,
        vocabulary=_vocabulary_text(proto),
        table=sentencepiece_table(proto, f"tokenizer of {vocab_size:,} ids"),
    )


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


# --- Text ---


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
