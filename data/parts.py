"""The pieces of a `python -m data retokenize` job: plan, work items, parts, shards.

The documents file is cut into byte ranges that depend on nothing but the file, so any number of
processes and machines does the same work items. Each item becomes a part: its tokens, then a
small JSON that says the part is whole. The parts are then cut into shards. Whatever is killed,
and wherever: the next run does the missing parts and shards, and the bytes come out the same.
"""

import functools
import hashlib
import platform
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from pydantic import BaseModel
from tqdm import tqdm

from data.bytes import BLOCK
from data.common import DOCS_FILE, atomic_write, process_pool, sha256_file
from data.corpora import decode_utf8, jsonl_text
from data.encode import Counts, batched, encode_documents, worker_tokenizer
from data.job import Job, split_of
from data.manifest import Manifest, Split, TokenizerEntry, file_version, load_manifest
from data.shards import HEADER_BYTES, ShardFile, write_shard

# Of a document's sha256. The chance of one false match between 50,000 and 15 M documents is
# 2^-78.
KEY_BYTES = 16


@dataclass(frozen=True)
class Chunk:
    """The documents whose line begins in [start, stop) of the file."""

    split: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Plan(BaseModel):
    """The whole job, fixed before the first document is encoded. All machines share it.

    val_end: the byte where the first training document begins.
    """

    docs: Path
    docs_bytes: int
    val_end: int
    tokenizer: Path
    chunk_bytes: int
    recipe: dict[str, Any]

    def chunks(self) -> list[Chunk]:
        edges = {"val": (0, self.val_end), "train": (self.val_end, self.docs_bytes)}
        chunks = []
        for split, (low, high) in edges.items():
            for start in range(low, high, self.chunk_bytes):
                stop = min(high, start + self.chunk_bytes)
                chunks.append(Chunk(split, start, stop))
        return chunks


class Part(BaseModel):
    """Written when the part's tokens are in place.

    dropped: training documents that are also validation documents.
    """

    split: str
    counts: dict[str, int]
    dropped: int


@dataclass(frozen=True)
class Work:
    """The job's own folder, inside the dataset's. It goes when the shards are there."""

    folder: Path

    @property
    def dataset(self) -> Path:
        return self.folder.parent

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    @property
    def held_out(self) -> Path:
        return self.folder / "val_keys.bin"

    def tokens(self, rank: int) -> Path:
        return self.folder / f"part_{rank:06d}.bin"

    def part(self, rank: int) -> Path:
        return self.folder / f"part_{rank:06d}.json"

    def load_plan(self) -> Plan:
        return Plan.model_validate_json(self.plan.read_bytes())

    def load_part(self, rank: int) -> Part:
        return Part.model_validate_json(self.part(rank).read_bytes())


# --- reading --------------------------------------------------------------------------------------


def document_lines(docs: Path, start: int, stop: int) -> Iterator[tuple[int, str]]:
    """(offset, text) of the documents whose line begins in [start, stop) of the file.

    Raises UserError on a line that is no document.
    """
    with open(docs, "rb") as file:
        if start:
            # Skip the rest of a line that began earlier. When a line begins at `start`, that
            # rest is the newline before it.
            file.seek(start - 1)
            file.readline()
        offset = file.tell()
        while offset < stop:
            raw = file.readline()
            if not raw:
                return
            line = decode_utf8(docs, raw, offset).removeprefix("\ufeff")
            if line.strip():
                yield offset, jsonl_text(docs, f"line at byte {offset:,}", line)
            offset += len(raw)


def document_key(text: str) -> bytes:
    """Identifies a document's text."""
    return hashlib.sha256(text.encode()).digest()[:KEY_BYTES]


@functools.cache
def held_out_keys(path: Path) -> frozenset[bytes]:
    raw = path.read_bytes()
    return frozenset(raw[i : i + KEY_BYTES] for i in range(0, len(raw), KEY_BYTES))


# --- the work item --------------------------------------------------------------------------------


class PartEncoder:
    """Encodes one chunk. `counts` and `dropped` are final when `tokens` has ended."""

    def __init__(self, plan: Plan, chunk: Chunk, held_out: frozenset[bytes]) -> None:
        self.plan = plan
        self.chunk = chunk
        self.held_out = held_out
        self.counts = Counts()
        self.dropped = 0

    def tokens(self) -> Iterator[np.ndarray]:
        """The chunk's tokens, uint16, batch by batch."""
        tokenizer = worker_tokenizer(self.plan.tokenizer)
        prove = self.chunk.split == "val"
        for texts in batched(self._kept()):
            batch = encode_documents(tokenizer, texts, prove)
            self.counts += batch.counts
            yield batch.tokens

    def _kept(self) -> Iterator[str]:
        for _, text in document_lines(self.plan.docs, self.chunk.start, self.chunk.stop):
            if document_key(text) in self.held_out:
                self.dropped += 1
            else:
                yield text


def encode_part(folder: Path, rank: int) -> None:
    """One work item. Does nothing when its part is there already."""
    work = Work(folder)
    if work.part(rank).exists():
        return
    if not work.plan.exists():  # another machine has finished the whole job
        return
    plan = work.load_plan()
    chunk = plan.chunks()[rank]
    held_out = held_out_keys(work.held_out) if chunk.split == "train" else frozenset()
    encoder = PartEncoder(plan, chunk, held_out)
    write_shard(work.tokens(rank), encoder.tokens())
    part = Part(split=chunk.split, counts=asdict(encoder.counts), dropped=encoder.dropped)
    with atomic_write(work.part(rank)) as file:
        file.write(part.model_dump_json().encode())


# --- parts to shards ------------------------------------------------------------------------------


def slice_parts(parts: list[tuple[Path, int]], start: int, stop: int) -> Iterator[np.ndarray]:
    """Tokens [start, stop) of the concatenation of parts, each a path and its tokens.

    Reads the parts instead of mapping them: the pages of a mapped part would count as this
    process's memory.
    """
    offset = 0
    for part, tokens in parts:
        low = max(start - offset, 0)
        high = min(stop - offset, tokens)
        for at in range(low, high, BLOCK):
            count = min(BLOCK, high - at)
            yield np.fromfile(part, "<u2", count, offset=HEADER_BYTES + 2 * at)
        offset += tokens


def cut_shard(parts: list[tuple[Path, int]], path: Path, start: int, stop: int) -> ShardFile:
    """Writes tokens [start, stop) of the parts' concatenation as one shard.

    A shard that exists stays: it came into being whole.
    """
    if not path.exists():
        write_shard(path, slice_parts(parts, start, stop))
    return ShardFile(name=path.name, tokens=stop - start, sha256=sha256_file(path))


def cut_split(
    pool: ProcessPoolExecutor,
    job: Job,
    work: Work,
    parts: dict[int, Part],
    split: str,
    shard_tokens: int,
) -> tuple[Split, bool]:
    """Cuts the shards of one split from its parts, by rank.

    Returns the split's entry, and whether nothing was lost.
    """
    counts = Counts()
    for part in parts.values():
        counts += Counts(**part.counts)
    sources = [(work.tokens(rank), part.counts["tokens"]) for rank, part in parts.items()]
    starts = range(0, counts.tokens, shard_tokens)
    stops = [min(counts.tokens, start + shard_tokens) for start in starts]
    paths = [work.dataset / f"{job.name}_{split}_{i:06d}.bin" for i in range(len(starts))]
    cuts = pool.map(functools.partial(cut_shard, sources), paths, starts, stops)
    files = list(tqdm(cuts, f"{split} shards", len(paths), unit="shard", disable=None))
    return split_of(counts, files), counts.lossless


def finish(job: Job, plan: Plan, work: Work) -> Manifest:
    """All parts are there: writes shards and manifest, and removes the work folder."""
    parts = [work.load_part(rank) for rank in range(len(plan.chunks()))]
    splits: dict[str, Split] = {}
    lossless = True
    with process_pool(job.workers) as pool:
        for name in ("train", "val"):
            own = {rank: part for rank, part in enumerate(parts) if part.split == name}
            split, kept = cut_split(pool, job, work, own, name, plan.recipe["shard_tokens"])
            splits[name] = split
            lossless = lossless and kept
    tokenizer = worker_tokenizer(plan.tokenizer)
    manifest = Manifest(
        name=work.dataset.name,
        corpus="fineweb" if plan.docs.name == DOCS_FILE else plan.docs.stem,
        version=file_version(plan.recipe["docs_sha256"], plan.recipe["val_documents"]),
        version_rule="file",
        tokenizer=TokenizerEntry.of(plan.tokenizer, tokenizer, lossless),
        splits=splits,
        provenance={
            "recipe": plan.recipe,
            "train_documents_dropped_as_in_val": sum(part.dropped for part in parts),
            "unknown_tokens": sum(part.counts["unknown"] for part in parts),
            "python": platform.python_version(),
        },
    )
    manifest.save(work.dataset)
    shutil.rmtree(work.folder)
    for stray in work.dataset.glob(".*.tmp"):  # of processes that were killed
        stray.unlink(missing_ok=True)
    return manifest


def lock(work: Work) -> FileLock:
    """Held while the plan is made and while shards are cut.

    It lies outside the work folder, which goes when the job is done. The system releases it when
    its holder is killed.
    """
    return FileLock(work.dataset.parent / f".{work.dataset.name}.lock")


def finish_if_complete(job: Job, work: Work) -> Manifest | None:
    """Of several machines exactly one cuts the shards; None while parts are missing."""
    with lock(work):
        if not work.plan.exists():
            return load_manifest(work.dataset)
        plan = work.load_plan()
        complete = all(work.part(rank).exists() for rank in range(len(plan.chunks())))
        return finish(job, plan, work) if complete else None
