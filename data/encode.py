"""Documents to tokens, with the proof that their bytes are counted right. The one encoder of all data commands."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.common import BOS, UNK, UserError
from data.tokenizer import Tokenizer, load_tokenizer

worker_tokenizer = functools.cache(load_tokenizer)  # once per process: loading a model costs more than encoding a batch


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


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str], prove: bool = True) -> Encoded:
    """Encodes and counts. With `prove`, every document's count is held against what the decoder writes (UserError with both numbers when
    they differ) and `lossless` compares contents; without, a fifth faster, `lossless` compares lengths only."""
    counts, parts = Counts(), []
    bos = np.array([BOS], np.uint16)
    for text in texts:
        ids = np.concatenate([bos, tokenizer.encode(text)])
        source = text.encode()
        counted = tokenizer.table.count(ids)
        if prove:
            decoded = tokenizer.decoded_bytes(ids[1:])
            if counted != decoded:
                raise UserError(
                    f"tokenizer refused: its byte table counts {counted:,} bytes where its decoder writes {decoded:,} "
                    f"({100 * (counted / max(1, decoded) - 1):+.2f} %), in the document {text[:60]!r}"
                )
        same = counted == len(source) and (not prove or tokenizer.table.decode(ids) == source)
        counts += Counts(1, len(source), counted, len(ids), int((ids == UNK).sum()), same)
        parts.append(ids)
    return Encoded(np.concatenate(parts) if parts else np.zeros(0, np.uint16), counts)


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
