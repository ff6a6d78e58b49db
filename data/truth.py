"""`python -m data bytes`: what a tokenizer does to the bytes of your files, counted three ways."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from data.corpora import blocks, is_json_lines, jsonl_texts, read_text
from data.encode import Counts, batched, encode_documents
from data.tokenizer import Tokenizer

MIN_CHARACTERS = 1000  # of a document cut out of plain text


@dataclass(frozen=True)
class Truth:
    """One tokenizer on one file.

    `counts.counted_bytes` was held against the decoder's own text, document by document.
    """

    tokenizer: str
    file: str
    counts: Counts

    @property
    def lost(self) -> int:
        """Bytes of the source that no token stands for."""
        return self.counts.source_bytes - self.counts.counted_bytes

    def row(self) -> dict[str, object]:
        return {
            "tokenizer": self.tokenizer,
            "file": self.file,
            **asdict(self.counts),
            "source_minus_counted": self.lost,
        }


def documents(path: Path) -> Iterator[str]:
    """The documents of a JSON-lines or plain text file. Raises UserError on bad contents."""
    texts = jsonl_texts(path) if is_json_lines(path) else blocks(read_text(path), MIN_CHARACTERS)
    return (text for text in texts if text.strip())


def measure(tokenizers: dict[str, Tokenizer], files: list[Path]) -> Iterator[Truth]:
    """Every tokenizer on every file.

    Raises UserError, with both numbers, at the first document whose counted bytes are not the
    decoded ones.
    """
    for name, tokenizer in tokenizers.items():
        for path in files:
            counts = Counts()
            for texts in batched(documents(path)):
                counts += encode_documents(tokenizer, texts).counts
            yield Truth(name, path.name, counts)


def print_report(tokenizers: dict[str, Tokenizer], files: list[Path]) -> None:
    """One line a tokenizer and file, printed as soon as it is measured."""
    print(
        f"{'tokenizer':28} {'file':24} {'documents':>9} {'source':>11} {'counted':>11} "
        f"{'lost':>9} {'unknown':>8} {'bytes/token':>11}"
    )
    for truth in measure(tokenizers, files):
        counts = truth.counts
        bytes_per_token = counts.counted_bytes / max(1, counts.tokens)
        print(
            f"{truth.tokenizer:28} {truth.file:24} {counts.documents:9,} "
            f"{counts.source_bytes:11,} {counts.counted_bytes:11,} {truth.lost:9,} "
            f"{counts.unknown:8,} {bytes_per_token:11.4f}"
        )
    print(
        "counted bytes equal decoded bytes in every document; "
        "lost is source less counted: what normalisation and unknown pieces drop"
    )
