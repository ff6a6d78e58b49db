"""`python -m data retokenize`: a document list of any size to shards, on one machine or many.

data/parts.py says what a work item is. On a Slurm cluster the items go through datatrove's
executor (data/slurm.py). On one machine they do not: that executor waits forever when one of its
workers is killed (measured with 0.10.1), where concurrent.futures says so at once.
"""

import dataclasses
import hashlib
import shutil
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.common import UserError, atomic_write, process_pool
from data.corpora import is_packed
from data.job import Job, discard, place_tokenizer, up_to_date
from data.manifest import Manifest, summary
from data.parts import (
    Chunk,
    Plan,
    Work,
    document_key,
    document_lines,
    encode_part,
    finish_if_complete,
    lock,
)

# A work item takes a core about three seconds. A kill can cost each process no more than that.
CHUNK_BYTES = 1 << 24
# A Slurm task takes seconds to start, and one array of at most 1,000 tasks should do for 45 GB.
SLURM_CHUNK_BYTES = 1 << 28


@dataclass(frozen=True)
class Cluster:
    """Who does the work items.

    machine: (i, n), this machine's share of n.
    slurm: a partition to submit everything to, or None to work here.
    """

    machine: tuple[int, int] = (0, 1)
    slurm: str | None = None
    slurm_time: str = "24:00:00"

    def share(self, items: int) -> range:
        """The work items of this machine."""
        i, n = self.machine
        return range(i * items // n, (i + 1) * items // n)


def retokenize(
    job: Job, docs: Path, val_documents: int, shard_tokens: int, chunk_bytes: int, cluster: Cluster
) -> Manifest | None:
    """Runs or resumes the job.

    Returns None when this machine's share is done and another's is not, or when Slurm has taken
    over. Raises UserError on bad documents, and on an unfinished job with other settings.
    """
    if is_packed(docs):
        raise UserError(
            f"{docs}: expected plain JSON lines, of which each process reads a part, found a "
            f"packed file; unpack it first: gunzip --keep {docs.name}"
        )
    docs = docs.absolute()
    job = dataclasses.replace(job, data_root=job.data_root.absolute())
    folder = job.folder()
    work = Work(folder / ".work")
    recipe = {
        "docs_sha256": hash_with_progress(docs),
        "val_documents": val_documents,
        "shard_tokens": shard_tokens,
        **job.options(),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(work):
        unfinished = work.plan.exists()
        existing = None if unfinished else up_to_date(folder, recipe)
        if existing:
            shutil.rmtree(work.folder, ignore_errors=True)
            print(f"{folder}: up to date, sizes and sha256 checked")
            return existing
        if unfinished:
            plan = work.load_plan()
        else:
            plan = make_plan(job, work, docs, val_documents, chunk_bytes, recipe)
    if plan.recipe != recipe:
        raise UserError(
            f"{work.folder}: an unfinished job with other documents or settings; "
            "run that one again, or delete this folder"
        )
    if cluster.slurm:
        submit_all(job, work, plan, cluster)
        return None
    return run_share(job, work, plan, cluster)


# --- planning -------------------------------------------------------------------------------------


def hash_with_progress(path: Path) -> str:
    """sha256 of a file that takes minutes to read. Raises UserError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        bar = tqdm(total=size, desc="hashing", unit="B", unit_scale=True, disable=None, leave=False)
        with bar, open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
                bar.update(len(block))
    except OSError as error:
        raise UserError(f"{path}: document list cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def validation_keys(docs: Path, val_documents: int) -> tuple[list[bytes], int]:
    """Keys of the validation documents, and the byte where the first training document begins.

    Raises UserError when no document is left to train on.
    """
    keys: list[bytes] = []
    for offset, text in document_lines(docs, 0, docs.stat().st_size):
        if len(keys) == val_documents:
            return keys, offset
        keys.append(document_key(text))
    raise UserError(
        f"{docs}: {len(keys):,} documents; the first {val_documents:,} are the validation set, "
        "which leaves none to train on; lower --val-documents"
    )


def make_plan(
    job: Job, work: Work, docs: Path, val_documents: int, chunk_bytes: int, recipe: dict[str, Any]
) -> Plan:
    """Prepares the job: the validation documents' keys, the tokenizer, and last the plan."""
    size = docs.stat().st_size
    keys, val_end = validation_keys(docs, val_documents)
    train_texts = (text for _, text in document_lines(docs, val_end, size))
    tokenizer = place_tokenizer(job, train_texts)
    discard(work.dataset)
    # A kill while an earlier, perhaps different, job was cleaned up leaves parts without a plan.
    shutil.rmtree(work.folder, ignore_errors=True)
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


# --- doing the work -------------------------------------------------------------------------------


def submit_all(job: Job, work: Work, plan: Plan, cluster: Cluster) -> None:
    """Hands everything to Slurm and returns at once."""
    from data.slurm import submit  # seconds of imports that nothing else needs

    items = len(plan.chunks())
    submit(job, work, items, cluster.slurm, cluster.slurm_time)
    print(
        f"{work.dataset}: {items} work items submitted to {cluster.slurm}; the last job "
        "writes the shards. Running this again submits what is missing"
    )


def run_share(job: Job, work: Work, plan: Plan, cluster: Cluster) -> Manifest | None:
    """Does this machine's work items, and the shards if no other machine is still at work."""
    chunks = plan.chunks()
    run_items(job, work, chunks, cluster.share(len(chunks)))
    manifest = finish_if_complete(job, work)
    if manifest:
        print(summary(work.dataset, manifest))
    else:
        share, machines = cluster.machine
        print(
            f"{work.dataset}: share {share}/{machines} done; "
            "the machine that ends last writes the shards"
        )
    return manifest


def run_items(job: Job, work: Work, chunks: list[Chunk], ranks: range) -> None:
    """Does the work items of these ranks in processes of this machine."""
    total = sum(chunks[rank].size for rank in ranks)
    with (
        process_pool(job.workers) as pool,
        tqdm(total=total, desc="tokenizing", unit="B", unit_scale=True, disable=None) as bar,
    ):
        tasks = {pool.submit(encode_part, work.folder, rank): chunks[rank] for rank in ranks}
        try:
            for task in as_completed(tasks):
                task.result()
                bar.update(tasks[task].size)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
