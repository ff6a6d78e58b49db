"""Documents to tokens, with proof that their bytes are counted right.

All data commands encode through this module.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.common import BOS, UNK, UserError
from data.tokenizer import Tokenizer, load_tokenizer

# Once per process: loading a model costs more than encoding a batch.
worker_tokenizer = functools.cache(load_tokenizer)


@dataclass
class Counts:
    """Sums over documents.

    source_bytes: UTF-8 as given.
    counted_bytes: by the byte table.
    tokens: BOS included.
    unknown: UNK tokens.
    lossless: whether every document came back byte for byte.
    """

    documents: int = 0
    source_bytes: int = 0
    counted_bytes: int = 0
    tokens: int = 0
    unknown: int = 0
    lossless: bool = True

    def __iadd__(self, other: "Counts") -> "Counts":
        self.documents += other.documents
        self.source_bytes += other.source_bytes
        self.counted_bytes += other.counted_bytes
        self.tokens += other.tokens
        self.unknown += other.unknown
        self.lossless = self.lossless and other.lossless
        return self


@dataclass(frozen=True)
class Encoded:
    """tokens: uint16 [N], a BOS before every document."""

    tokens: np.ndarray
    counts: Counts


def encode_documents(tokenizer: Tokenizer, texts: list[str], prove: bool = True) -> Encoded:
    """Encodes and counts documents.

    With `prove`, the decoder is the witness: raises UserError with both numbers when it writes
    another number of bytes than the table counts, and `lossless` compares contents. Without, in
    half the time, `lossless` compares each document's length.
    """
    table = tokenizer.table
    ids = [tokenizer.encode(text) for text in texts]
    sources = [text.encode() for text in texts]
    tokens, starts = _with_bos(ids)
    counted = np.zeros(0, np.int64)
    if texts:
        counted = np.add.reduceat(table.token_bytes(tokens), starts)
    lossless = np.array_equal(counted, [len(source) for source in sources])
    if prove:
        for text, document, size in zip(texts, ids, counted, strict=True):
            _require_agreement(tokenizer, text, document, size)
        pairs = zip(ids, sources, strict=True)
        lossless = lossless and all(table.decode(document) == source for document, source in pairs)
    counts = Counts(
        documents=len(texts),
        source_bytes=sum(map(len, sources)),
        counted_bytes=int(counted.sum()),
        tokens=len(tokens),
        unknown=int((tokens == UNK).sum()),
        lossless=lossless,
    )
    return Encoded(tokens, counts)


def _with_bos(documents: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The stream, uint16 [N], a BOS before every document; where they start, int64 [D]."""
    lengths = np.array([len(document) + 1 for document in documents], np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    tokens = np.empty(lengths.sum(), np.uint16)
    for document, start, end in zip(documents, starts, ends, strict=True):
        tokens[start] = BOS
        tokens[start + 1 : end] = document
    return tokens, starts


def _require_agreement(tokenizer: Tokenizer, text: str, ids: np.ndarray, counted: int) -> None:
    decoded = tokenizer.decoded_bytes(ids)
    if counted != decoded:
        excess = 100 * (counted / max(1, decoded) - 1)
        raise UserError(
            f"tokenizer refused: its byte table counts {counted:,} bytes where its decoder "
            f"writes {decoded:,} ({excess:+.2f} %), in the document {text[:60]!r}"
        )


def encode_batch(tokenizer_path: Path, texts: list[str]) -> Encoded:
    """`encode_documents` as a work item of a process pool."""
    return encode_documents(worker_tokenizer(tokenizer_path), texts)


def batched(texts: Iterable[str], limit: int = 1 << 20) -> Iterator[list[str]]:
    """Consecutive groups of texts of about `limit` characters.

    As work items they cost about the same, whatever the lengths of the documents.
    """
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= limit:
            yield batch
            batch = []
            size = 0
    if batch:
        yield batch
