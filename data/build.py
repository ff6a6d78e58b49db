"""Documents to a dataset folder: dedup, split by hash, tokenizer, shards, manifest."""

import functools
import hashlib
import lzma
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.common import UserError, atomic_write, default_workers, process_pool
from data.corpora import Corpus
from data.encode import Counts, Encoded, batched, encode_batch
from data.manifest import Manifest, Split, TokenizerEntry, check_files, manifest_of, summary
from data.shards import write_split
from data.tokenizer import load_tokenizer, train_tokenizer

XZ_LIMIT = 64_000_000  # bytes; xz -9e does about 1.5 MB/s, and a validation set beyond this would take most of a minute


def tally(batches: Iterable[Encoded], counts: Counts) -> Iterator[np.ndarray]:
    """The batches' tokens, their counts added up as they stream past on their way to the shards."""
    for batch in batches:
        counts += batch.counts
        yield batch.tokens


def split_documents(documents: list[str], val_fraction: float) -> dict[str, list[str]]:
    """Deduplicated, ordered by sha256, and split by it: val = digests below val_fraction of their range, so equal texts never part."""
    by_digest = {hashlib.sha256(text.encode()).digest(): text for text in documents}
    bound = int(val_fraction * 2**64)
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for digest in sorted(by_digest):
        splits["val" if int.from_bytes(digest[:8], "big") < bound else "train"].append(
            by_digest[digest]
        )
    for split, texts in splits.items():
        if not texts:
            raise UserError(
                f"the {split} split is empty: {len(by_digest):,} different documents at --val-fraction {val_fraction}; "
                "give more text, cut it finer (--documents blocks, a smaller --min-characters, or lines) or change the fraction"
            )
    return splits


def corpus_version(splits: dict[str, list[str]]) -> str:
    digests = (
        hashlib.sha256(text.encode()).digest()
        for split in ("train", "val")
        for text in splits[split]
    )
    return hashlib.sha256(b"".join(digests)).hexdigest()


def xz_size(texts: list[str]) -> int | None:
    raw = "".join(texts).encode()
    return len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) if len(raw) <= XZ_LIMIT else None


@dataclass(frozen=True)
class Job:
    """Where a dataset goes and how it is tokenized. `tokenizer`: an existing model, or None to train one of `vocab_size`."""

    data_root: Path
    name: str
    vocab_size: int = 1024
    tokenizer: Path | None = None
    val_fraction: float = 1 / 16
    workers: int = default_workers()

    def options(self) -> dict[str, Any]:
        sha = (
            hashlib.sha256(load_tokenizer(self.tokenizer).model).hexdigest()
            if self.tokenizer
            else None
        )
        return {
            "vocab_size": None if sha else self.vocab_size,
            "tokenizer_sha256": sha,
            "val_fraction": self.val_fraction,
            "layout": 1,
        }

    def folder(self) -> Path:
        tokenizer = load_tokenizer(self.tokenizer) if self.tokenizer else None
        kind = "byte" if tokenizer and tokenizer.kind == "bytes" else "sp"
        return (
            self.data_root
            / "datasets"
            / f"{self.name}_{kind}{tokenizer.vocab_size if tokenizer else self.vocab_size}"
        )


def place_tokenizer(job: Job, train_texts: Iterable[str]) -> Path:
    """The tokenizer under data_root/tokenizers: trained on the training split alone, or a copy of the user's file."""
    folder = job.data_root / "tokenizers"
    if job.tokenizer is None:
        path, model = (
            folder / f"{job.name}_{job.vocab_size}_bpe.model",
            train_tokenizer(train_texts, job.vocab_size),
        )
    else:
        path, model = folder / job.tokenizer.name, job.tokenizer.read_bytes()
        if path.exists() and path.read_bytes() != model:
            raise UserError(
                f"{path}: another tokenizer has this name already; rename {job.tokenizer}"
            )
    if not path.exists() or path.read_bytes() != model:
        with atomic_write(path) as file:
            file.write(model)
    return path


def up_to_date(folder: Path, recipe: dict[str, Any]) -> Manifest | None:
    """The folder's manifest when it was made by this recipe and every file still has its size and sha256."""
    manifest = manifest_of(folder, recipe)
    try:
        if manifest:
            check_files(folder, manifest)
    except UserError:
        return None  # what follows builds it again
    return manifest


def build(job: Job, recipe: dict[str, Any], make_corpus: Callable[[], Corpus]) -> Manifest:
    """Builds the dataset, or finds it valid and touches nothing. The manifest goes first and comes last: a torn build never looks whole."""
    folder, recipe = job.folder(), {**recipe, **job.options()}
    if manifest := up_to_date(folder, recipe):
        print(f"{folder}: up to date, sizes and sha256 checked")
        return manifest
    started = time.perf_counter()
    corpus = make_corpus()
    splits = split_documents(corpus.documents, job.val_fraction)
    tokenizer_path = place_tokenizer(job, splits["train"])
    tokenizer = load_tokenizer(tokenizer_path)
    discard(folder)
    entries: dict[str, Split] = {}
    lossless = True
    with process_pool(job.workers) as pool:
        xz = pool.submit(xz_size, splits["val"])
        for split, texts in splits.items():
            counts = Counts()
            batches = pool.map(functools.partial(encode_batch, tokenizer_path), batched(texts))
            bar = tqdm(batches, f"tokenizing {split}", unit=" MB", disable=None)
            files = write_split(folder, job.name, split, tally(bar, counts))
            lossless = lossless and counts.lossless
            entries[split] = Split(
                documents=counts.documents,
                source_bytes=counts.source_bytes,
                counted_bytes=counts.counted_bytes,
                tokens=counts.tokens,
                files=files,
            )
        entries["val"].xz_bytes = xz.result()
    for text in splits["val"] if lossless else ():
        if (
            tokenizer.decode(tokenizer.encode(text)) != text
        ):  # the byte table agreed already; this asks the decoder of the library
            raise UserError(
                f"tokenizer {tokenizer_path}: decode(encode(x)) differs from x for the document {text[:60]!r}"
            )
    if job.tokenizer is None and not lossless:
        raise AssertionError("a tokenizer of our own lost bytes")
    manifest = Manifest(
        name=folder.name,
        corpus=corpus.name,
        version=corpus_version(splits),
        tokenizer=TokenizerEntry(
            file=tokenizer_path.name,
            kind=tokenizer.kind,
            sha256=hashlib.sha256(tokenizer_path.read_bytes()).hexdigest(),
            vocab_size=tokenizer.vocab_size,
            lossless=lossless,
        ),
        splits=entries,
        provenance={
            **corpus.provenance,
            "recipe": recipe,
            "duplicates_dropped": len(corpus.documents)
            - sum(len(texts) for texts in splits.values()),
            "python": platform.python_version(),
        },
    )
    manifest.save(folder)
    print(summary(folder, manifest, f", {time.perf_counter() - started:.1f} s"))
    return manifest


def discard(folder: Path) -> None:
    """Removes an earlier build: its manifest first, then the shards that this program writes (a reader would glob them up)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    for path in folder.glob("*_[0-9][0-9][0-9][0-9][0-9][0-9].bin"):
        path.unlink()
