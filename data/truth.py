"""`python -m data bytes`: what a tokenizer does to the bytes of your files, counted three ways."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from data.corpora import JSONL_SUFFIXES, blocks, decode_utf8, jsonl_texts
from data.encode import Counts, batched, encode_documents
from data.tokenizer import Tokenizer

MIN_CHARACTERS = 1000  # of a document cut out of plain text


@dataclass(frozen=True)
class Truth:
    """One tokenizer on one file. `counts.counted_bytes` has been held against the decoder's own text, document by document."""

    tokenizer: str
    file: str
    counts: Counts

    def row(self) -> dict[str, object]:
        lost = self.counts.source_bytes - self.counts.counted_bytes
        return {
            "tokenizer": self.tokenizer,
            "file": self.file,
            **asdict(self.counts),
            "source_minus_counted": lost,
        }


def documents(path: Path) -> Iterator[str]:
    texts = (
        jsonl_texts(path)
        if path.suffix in JSONL_SUFFIXES
        else blocks(decode_utf8(path, path.read_bytes()), MIN_CHARACTERS)
    )
    return (text for text in texts if text.strip())


def measure(tokenizers: dict[str, Tokenizer], files: list[Path]) -> Iterator[Truth]:
    """Raises UserError at the first document whose counted bytes are not the decoded ones, with both numbers."""
    for name, tokenizer in tokenizers.items():
        for path in files:
            counts = Counts()
            for texts in batched(documents(path)):
                counts += encode_documents(tokenizer, texts).counts
            yield Truth(name, path.name, counts)


def print_report(tokenizers: dict[str, Tokenizer], files: list[Path]) -> None:
    print(
        f"{'tokenizer':28} {'file':24} {'documents':>9} {'source':>11} {'counted':>11} {'lost':>9} {'unknown':>8} {'bytes/token':>11}"
    )
    for truth in measure(tokenizers, files):
        c = truth.counts
        print(
            f"{truth.tokenizer:28} {truth.file:24} {c.documents:9,} {c.source_bytes:11,} {c.counted_bytes:11,} "
            f"{c.source_bytes - c.counted_bytes:9,} {c.unknown:8,} {c.counted_bytes / max(1, c.tokens):11.4f}"
        )
    print(
        "counted bytes equal decoded bytes in every document; lost is source less counted: what normalisation and unknown pieces drop"
    )
