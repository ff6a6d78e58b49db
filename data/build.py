"""Documents in memory to a dataset folder: deduplicate, split by hash, tokenize, write shards."""

import functools
import hashlib
import lzma
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.common import UserError, process_pool
from data.corpora import Corpus
from data.encode import Counts, Encoded, batched, encode_batch
from data.job import Job, discard, place_tokenizer, split_of, up_to_date
from data.manifest import Manifest, Split, TokenizerEntry, summary
from data.shards import write_split
from data.tokenizer import Tokenizer, load_tokenizer

# Bytes. xz -9e does about 1.5 MB/s, so a larger validation set would take most of a minute.
XZ_LIMIT = 64_000_000


def tally(batches: Iterable[Encoded], counts: Counts) -> Iterator[np.ndarray]:
    """The batches' tokens on their way to the shards. Adds each batch's counts to `counts`."""
    for batch in batches:
        counts += batch.counts
        yield batch.tokens


def split_documents(documents: list[str], val_fraction: float) -> dict[str, list[str]]:
    """The different documents in sha256 order, split into train and val by the same sha256.

    val: those whose digest is below val_fraction of the range, so equal texts never part.
    Raises UserError when a split is empty.
    """
    by_digest = {hashlib.sha256(text.encode()).digest(): text for text in documents}
    bound = int(val_fraction * 2**64)
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for digest in sorted(by_digest):
        held_out = int.from_bytes(digest[:8], "big") < bound
        split = "val" if held_out else "train"
        splits[split].append(by_digest[digest])
    for split, texts in splits.items():
        if not texts:
            raise UserError(
                f"the {split} split is empty: {len(by_digest):,} different documents at "
                f"--val-fraction {val_fraction}; give more text, cut it finer (--documents "
                "blocks, a smaller --min-characters, or lines) or change the fraction"
            )
    return splits


def corpus_version(splits: dict[str, list[str]]) -> str:
    """The version by the manifest's rule "documents"."""
    version = hashlib.sha256()
    for text in splits["train"] + splits["val"]:
        version.update(hashlib.sha256(text.encode()).digest())
    return version.hexdigest()


def xz_size(texts: list[str]) -> int | None:
    """Bytes of the texts under xz -9e; None beyond XZ_LIMIT."""
    raw = "".join(texts).encode()
    if len(raw) > XZ_LIMIT:
        return None
    return len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))


def build(job: Job, recipe: dict[str, Any], make_corpus: Callable[[], Corpus]) -> Manifest:
    """Builds the dataset, or finds it valid and touches nothing.

    Raises UserError when a split is empty or the tokenizer does not fit the documents.
    """
    folder = job.folder()
    full_recipe = {**recipe, **job.options()}
    existing = up_to_date(folder, full_recipe)
    if existing:
        print(f"{folder}: up to date, sizes and sha256 checked")
        return existing
    started = time.perf_counter()
    corpus = make_corpus()
    documents = split_documents(corpus.documents, job.val_fraction)
    tokenizer_path = place_tokenizer(job, documents["train"])
    tokenizer = load_tokenizer(tokenizer_path)
    discard(folder)
    splits, lossless = _write_splits(job, tokenizer_path, documents)
    if lossless:
        _require_round_trip(tokenizer, tokenizer_path, documents["val"])
    elif job.tokenizer is None:
        raise AssertionError("a tokenizer of our own lost bytes")
    kept = sum(map(len, documents.values()))
    manifest = Manifest(
        name=folder.name,
        corpus=corpus.name,
        version=corpus_version(documents),
        tokenizer=TokenizerEntry.of(tokenizer_path, tokenizer, lossless),
        splits=splits,
        provenance={
            **corpus.provenance,
            "recipe": full_recipe,
            "duplicates_dropped": len(corpus.documents) - kept,
            "python": platform.python_version(),
        },
    )
    manifest.save(folder)
    print(summary(folder, manifest, f", {time.perf_counter() - started:.1f} s"))
    return manifest


def _write_splits(
    job: Job, tokenizer: Path, documents: dict[str, list[str]]
) -> tuple[dict[str, Split], bool]:
    """Writes the shards of all splits. Returns their entries, and whether nothing was lost."""
    splits: dict[str, Split] = {}
    lossless = True
    with process_pool(job.workers) as pool:
        xz = pool.submit(xz_size, documents["val"])
        for name, texts in documents.items():
            batches = pool.map(functools.partial(encode_batch, tokenizer), batched(texts))
            bar = tqdm(batches, f"tokenizing {name}", unit=" MB", disable=None)
            counts = Counts()
            files = write_split(job.folder(), job.name, name, tally(bar, counts))
            splits[name] = split_of(counts, files)
            lossless = lossless and counts.lossless
        splits["val"].xz_bytes = xz.result()
    return splits, lossless


def _require_round_trip(tokenizer: Tokenizer, path: Path, texts: list[str]) -> None:
    """The byte table agreed that nothing is lost; this asks the library's own decoder."""
    for text in texts:
        if tokenizer.decode(tokenizer.encode(text)) != text:
            raise UserError(
                f"tokenizer {path}: decode(encode(x)) differs from x for the document {text[:60]!r}"
            )
