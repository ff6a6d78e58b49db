"""Documents to tokens, with the proof that their bytes are counted right. The one encoder of all data commands."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.common import BOS, UNK, UserError
from data.tokenizer import Tokenizer, load_tokenizer

worker_tokenizer = functools.cache(
    load_tokenizer
)  # once per process: loading a model costs more than encoding a batch


@dataclass
class Counts:
    """Sums over documents. source: UTF-8 as given; counted: by the byte table; lossless: every document came back byte for byte."""

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
    """tokens: uint16, a BOS before every document."""

    tokens: np.ndarray
    counts: Counts


def encode_documents(tokenizer: Tokenizer, texts: list[str], prove: bool = True) -> Encoded:
    """Encodes and counts. With `prove`, every document's count is held against what the decoder writes (UserError with both numbers when
    they differ) and `lossless` compares contents; without, in half the time, `lossless` compares each document's length."""
    table = tokenizer.table
    ids = [tokenizer.encode(text) for text in texts]
    sources = [text.encode() for text in texts]
    starts = np.cumsum([0, *(len(document) + 1 for document in ids)])
    tokens = np.empty(starts[-1], np.uint16)
    tokens[starts[:-1]] = BOS
    for document, start in zip(ids, starts, strict=False):
        tokens[start + 1 : start + 1 + len(document)] = document
    counted = (
        np.add.reduceat(table.token_bytes(tokens), starts[:-1]) if texts else np.zeros(0, np.int64)
    )
    lossless = np.array_equal(counted, [len(source) for source in sources])
    if prove:
        for text, document, source, size in zip(texts, ids, sources, counted, strict=True):
            decoded = tokenizer.decoded_bytes(document)
            if size != decoded:
                raise UserError(
                    f"tokenizer refused: its byte table counts {size:,} bytes where its decoder writes {decoded:,} "
                    f"({100 * (size / max(1, decoded) - 1):+.2f} %), in the document {text[:60]!r}"
                )
            lossless = lossless and table.decode(document) == source
    unknown = int((tokens == UNK).sum())
    return Encoded(
        tokens,
        Counts(
            len(texts), sum(map(len, sources)), int(counted.sum()), len(tokens), unknown, lossless
        ),
    )


def encode_batch(tokenizer_path: Path, texts: list[str]) -> Encoded:
    """`encode_documents` as a work item of a process pool."""
    return encode_documents(worker_tokenizer(tokenizer_path), texts)


def batched(texts: Iterable[str], limit: int = 1 << 20) -> Iterator[list[str]]:
    """Consecutive groups of texts of about `limit` characters: work items of even cost whatever the document length."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= limit:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
