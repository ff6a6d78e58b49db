"""`python -m data retokenize`: a document list of any size to shards, on all cores of one machine or of many.

The documents file is cut into byte ranges that depend on nothing but the file, so any number of processes and machines does the same
work items. Each item becomes a part (tokens, then a small JSON that says the part is whole); the parts are then cut into shards. Whatever
is killed, wherever: the next run does the missing parts and the missing shards, and the bytes come out the same.

On a Slurm cluster the items go through datatrove's executor. On one machine its executor is not used: it waits for ever when one of its
workers is killed (measured with 0.10.1), where concurrent.futures says so at once."""

import dataclasses
import functools
import hashlib
import platform
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from pydantic import BaseModel
from tqdm import tqdm

from data.build import Job, discard, place_tokenizer, up_to_date
from data.bytes import BLOCK
from data.common import DOCS_FILE, UserError, atomic_write, process_pool, sha256_file
from data.corpora import decode_utf8, jsonl_text
from data.encode import Counts, batched, encode_documents, worker_tokenizer
from data.manifest import Manifest, Split, TokenizerEntry, file_version, load_manifest, summary
from data.shards import HEADER_BYTES, ShardFile, write_shard

CHUNK_BYTES = (
    1 << 24
)  # a work item: about three seconds of a core, and the most that a kill can cost each process
SLURM_CHUNK_BYTES = (
    1 << 28
)  # a Slurm task takes seconds to start, and 45 GB in arrays of at most 1,000 tasks should need one array
KEY_BYTES = (
    16  # of a document's sha256: 2^-78 chance of one false match between 50,000 and 15 M documents
)


@dataclass(frozen=True)
class Chunk:
    """The documents whose line begins in [start, stop) of the file."""

    split: str
    start: int
    stop: int


class Plan(BaseModel):
    """The whole job, fixed before the first document is encoded; what machines share."""

    docs: Path
    docs_bytes: int
    val_end: int  # where the first training document begins
    tokenizer: Path
    chunk_bytes: int
    recipe: dict[str, Any]

    def chunks(self) -> list[Chunk]:
        edges = {"val": (0, self.val_end), "train": (self.val_end, self.docs_bytes)}
        return [
            Chunk(split, start, min(stop, start + self.chunk_bytes))
            for split, (low, stop) in edges.items()
            for start in range(low, stop, self.chunk_bytes)
        ]


class Part(BaseModel):
    """Written when the part's tokens are in place. dropped: training documents that are also validation documents."""

    split: str
    counts: dict[str, int]
    dropped: int


@dataclass(frozen=True)
class Work:
    """The job's folder, beside the shards it is going to make and removed when they are there."""

    folder: Path

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


# --- reading ----------------------------------------------------------------------------------------------------------


def document_lines(docs: Path, start: int, stop: int) -> Iterator[tuple[int, str]]:
    """(offset, text) of the documents whose line begins in [start, stop)."""
    with open(docs, "rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # the rest of a line that began earlier; just its end when a line begins at `start`
        offset = file.tell()
        while offset < stop and (raw := file.readline()):
            line = decode_utf8(docs, raw, offset)
            if line.strip():
                yield offset, jsonl_text(docs, f"line at byte {offset:,}", line)
            offset += len(raw)


def key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:KEY_BYTES]


@functools.cache
def held_out_keys(path: Path) -> frozenset[bytes]:
    raw = path.read_bytes()
    return frozenset(raw[i : i + KEY_BYTES] for i in range(0, len(raw), KEY_BYTES))


def hash_with_progress(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with (
            open(path, "rb") as file,
            tqdm(
                total=path.stat().st_size,
                desc="hashing",
                unit="B",
                unit_scale=True,
                disable=None,
                leave=False,
            ) as bar,
        ):
            while block := file.read(1 << 22):
                digest.update(block)
                bar.update(len(block))
    except OSError as error:
        raise UserError(f"{path}: document list cannot be read ({error.strerror})") from error
    return digest.hexdigest()


# --- planning ---------------------------------------------------------------------------------------------------------


def make_plan(
    job: Job, work: Work, docs: Path, val_documents: int, chunk_bytes: int, recipe: dict[str, Any]
) -> Plan:
    """Finds where validation ends, keeps its documents' keys, trains or takes the tokenizer, and fixes the plan last."""
    size = docs.stat().st_size
    keys, val_end = [], size
    for offset, text in document_lines(docs, 0, size):
        if len(keys) == val_documents:
            val_end = offset
            break
        keys.append(key(text))
    if val_end == size:
        raise UserError(
            f"{docs}: {len(keys):,} documents; the first {val_documents:,} are the validation set, which leaves none to train on; lower --val-documents"
        )
    tokenizer = place_tokenizer(job, (text for _, text in document_lines(docs, val_end, size)))
    discard(work.folder.parent)
    shutil.rmtree(
        work.folder, ignore_errors=True
    )  # parts without a plan: a kill while an earlier, perhaps different, job was cleaned up
    work.folder.mkdir(parents=True)
    with atomic_write(work.held_out) as file:
        file.write(b"".join(keys))
    plan = Plan(
        docs=docs,
        docs_bytes=size,
        val_end=val_end,
        tokenizer=tokenizer,
        chunk_bytes=chunk_bytes,
        recipe=recipe,
    )
    with atomic_write(work.plan) as file:
        file.write(plan.model_dump_json(indent=2).encode())
    return plan


# --- the work item ----------------------------------------------------------------------------------------------------


def encode_part(folder: Path, rank: int) -> None:
    """One work item; nothing when its part is there already."""
    work = Work(folder)
    if (
        work.part(rank).exists() or not work.plan.exists()
    ):  # no plan: another machine has finished the whole job
        return
    plan = Plan.model_validate_json(work.plan.read_bytes())
    chunk, counts, dropped = plan.chunks()[rank], Counts(), 0
    tokenizer = worker_tokenizer(plan.tokenizer)
    held_out = held_out_keys(work.held_out) if chunk.split == "train" else frozenset()

    def kept() -> Iterator[str]:
        nonlocal dropped
        for _, text in document_lines(plan.docs, chunk.start, chunk.stop):
            if key(text) in held_out:
                dropped += 1
            else:
                yield text

    def encoded() -> Iterator[np.ndarray]:
        nonlocal counts
        for texts in batched(kept()):
            batch = encode_documents(tokenizer, texts, prove=chunk.split == "val")
            counts += batch.counts
            yield batch.tokens

    write_shard(work.tokens(rank), encoded())
    with atomic_write(work.part(rank)) as file:
        file.write(
            Part(split=chunk.split, counts=asdict(counts), dropped=dropped)
            .model_dump_json()
            .encode()
        )


# --- parts to shards --------------------------------------------------------------------------------------------------


def cut_shard(parts: list[tuple[Path, int]], path: Path, start: int, stop: int) -> ShardFile:
    """Tokens [start, stop) of the parts' concatenation, as one shard; left alone where it exists, since it came into being whole."""

    def pieces() -> Iterator[np.ndarray]:
        offset = 0
        for part, tokens in parts:
            low, high = max(start - offset, 0), min(stop - offset, tokens)
            for at in range(
                low, high, BLOCK
            ):  # read, not mapped: pages of a mapped part would count as this process's memory
                yield np.fromfile(part, "<u2", min(BLOCK, high - at), offset=HEADER_BYTES + 2 * at)
            offset += tokens

    if not path.exists():
        write_shard(path, pieces())
    return ShardFile(name=path.name, tokens=stop - start, sha256=sha256_file(path))


def finish(job: Job, plan: Plan, work: Work) -> Manifest:
    """All parts are there: shards, manifest, and the work folder goes."""
    folder, size = work.folder.parent, plan.recipe["shard_tokens"]
    parts = [
        Part.model_validate_json(work.part(rank).read_bytes()) for rank in range(len(plan.chunks()))
    ]
    splits, lossless = {}, True
    with process_pool(job.workers) as pool:
        for split in ("train", "val"):
            ranks = [rank for rank, part in enumerate(parts) if part.split == split]
            counts = Counts()
            for rank in ranks:
                counts += Counts(**parts[rank].counts)
            sources = [(work.tokens(rank), parts[rank].counts["tokens"]) for rank in ranks]
            starts = range(0, counts.tokens, size)
            names = [folder / f"{job.name}_{split}_{i:06d}.bin" for i in range(len(starts))]
            stops = [min(counts.tokens, start + size) for start in starts]
            cuts = pool.map(functools.partial(cut_shard, sources), names, starts, stops)
            files = list(tqdm(cuts, f"{split} shards", len(names), unit="shard", disable=None))
            splits[split] = Split(
                documents=counts.documents,
                source_bytes=counts.source_bytes,
                counted_bytes=counts.counted_bytes,
                tokens=counts.tokens,
                files=files,
            )
            lossless = lossless and counts.lossless
    tokenizer = worker_tokenizer(plan.tokenizer)
    manifest = Manifest(
        name=folder.name,
        corpus="fineweb" if plan.docs.name == DOCS_FILE else plan.docs.stem,
        version=file_version(plan.recipe["docs_sha256"], plan.recipe["val_documents"]),
        version_rule="file",
        tokenizer=TokenizerEntry(
            file=plan.tokenizer.name,
            kind=tokenizer.kind,
            sha256=sha256_file(plan.tokenizer),
            vocab_size=tokenizer.vocab_size,
            lossless=lossless,
        ),
        splits=splits,
        provenance={
            "recipe": plan.recipe,
            "train_documents_dropped_as_in_val": sum(part.dropped for part in parts),
            "unknown_tokens": sum(part.counts["unknown"] for part in parts),
            "python": platform.python_version(),
        },
    )
    manifest.save(folder)
    shutil.rmtree(work.folder)
    for stray in folder.glob(".*.tmp"):  # of processes that were killed
        stray.unlink(missing_ok=True)
    return manifest


# --- the command ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """Who does the work items. machine: (i, n), this machine's share of n; slurm: a partition to submit everything to."""

    machine: tuple[int, int] = (0, 1)
    slurm: str | None = None
    slurm_time: str = "24:00:00"


def lock(work: Work) -> FileLock:
    """Outside the work folder, which goes when the job is done; released by the system when its holder is killed."""
    return FileLock(work.folder.parent.parent / f".{work.folder.parent.name}.lock")


def finish_if_complete(job: Job, work: Work) -> Manifest | None:
    """Of several machines exactly one cuts the shards; None while parts are missing."""
    with lock(work):
        if not work.plan.exists():
            return load_manifest(work.folder.parent)
        plan = Plan.model_validate_json(work.plan.read_bytes())
        complete = all(work.part(rank).exists() for rank in range(len(plan.chunks())))
        return finish(job, plan, work) if complete else None


def run_here(job: Job, work: Work, chunks: list[Chunk], ranks: range) -> None:
    with (
        process_pool(job.workers) as pool,
        tqdm(desc="tokenizing", unit="B", unit_scale=True, disable=None) as bar,
    ):
        bar.total = sum(chunks[rank].stop - chunks[rank].start for rank in ranks)
        tasks = {pool.submit(encode_part, work.folder, rank): chunks[rank] for rank in ranks}
        try:
            for task in as_completed(tasks):
                task.result()
                bar.update(tasks[task].stop - tasks[task].start)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def retokenize(
    job: Job, docs: Path, val_documents: int, shard_tokens: int, chunk_bytes: int, cluster: Cluster
) -> Manifest | None:
    """Runs or resumes the job; None when this machine's share is done and others' is not, or when Slurm has taken over."""
    docs, job = docs.absolute(), dataclasses.replace(job, data_root=job.data_root.absolute())
    recipe = {
        "docs_sha256": hash_with_progress(docs),
        "val_documents": val_documents,
        "shard_tokens": shard_tokens,
        **job.options(),
    }
    folder = job.folder()
    work = Work(folder / ".work")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(work):
        if work.plan.exists():
            plan = Plan.model_validate_json(work.plan.read_bytes())
        elif manifest := up_to_date(folder, recipe):
            shutil.rmtree(work.folder, ignore_errors=True)
            print(f"{folder}: up to date, sizes and sha256 checked")
            return manifest
        else:
            plan = make_plan(job, work, docs, val_documents, chunk_bytes, recipe)
    if plan.recipe != recipe:
        raise UserError(
            f"{work.folder}: an unfinished job with other documents or settings; run that one again, or delete this folder"
        )
    chunks = plan.chunks()
    if cluster.slurm:
        submit(job, work, cluster, len(chunks))
        print(
            f"{folder}: {len(chunks)} work items submitted to {cluster.slurm}; the last job writes the shards. Running this again submits what is missing"
        )
        return None
    share, machines = cluster.machine
    run_here(
        job,
        work,
        chunks,
        range(share * len(chunks) // machines, (share + 1) * len(chunks) // machines),
    )
    manifest = finish_if_complete(job, work)
    print(
        summary(folder, manifest)
        if manifest
        else f"{folder}: share {share}/{machines} done; the machine that ends last writes the shards"
    )
    return manifest


# --- Slurm ------------------------------------------------------------------------------------------------------------


def encode_step(folder: Path, data: Any, rank: int, world_size: int) -> None:
    """`encode_part` in the form that datatrove calls."""
    encode_part(folder, rank)


def finish_step(job: Job, folder: Path, data: Any, rank: int, world_size: int) -> None:
    """`finish_if_complete` in the form that datatrove calls."""
    if finish_if_complete(job, Work(folder)) is None:
        raise RuntimeError(
            "parts are missing: see the logs of the encoding job, then run the command again"
        )


def submit(job: Job, work: Work, cluster: Cluster, items: int) -> None:
    """Two Slurm jobs: the work items as an array, --workers of them at a time, then one item that cuts the shards."""
    from datatrove.executor import (
        SlurmPipelineExecutor,
    )  # seconds of imports that no other command needs

    logs = work.folder.parent / ".slurm"  # not in the work folder, which the last job removes
    environment = f'export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{Path(__file__).parents[1]}"'
    common = {
        "time": cluster.slurm_time,
        "partition": cluster.slurm,
        "env_command": environment,
        "qos": "",
    }
    encode = SlurmPipelineExecutor(
        [functools.partial(encode_step, work.folder)],
        tasks=items,
        workers=job.workers,
        logging_dir=str(logs / "encode"),
        job_name="encode",
        **common,
    )
    SlurmPipelineExecutor(
        [functools.partial(finish_step, job, work.folder)],
        tasks=1,
        logging_dir=str(logs / "shards"),
        job_name="shards",
        depends=encode,
        **common,
    ).run()
