"""Data at scale, measured: `python bench/data.py` writes bench/results/data.json.

Needs the docs dataset (`python -m data docs`), whose text is repeated to the sizes asked for.
All parts are measured in one run on one machine:

  throughput  `data retokenize` from JSON lines to verified shards, against SentencePiece's own
              multi-threaded encoder on texts in memory
  memory      the largest process of `data retokenize` at growing inputs
  reading     `read_shard` against numpy.fromfile
  kills       SIGKILL at random moments, then the shards' sha256 against those of an undisturbed
              run
  bytes       counted, decoded and source bytes of the given tokenizers on the given text
"""

import argparse
import functools
import json
import multiprocessing
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece as spm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.common import BOS, atomic_write, default_workers, sha256_file  # noqa: E402
from data.corpora import text_files  # noqa: E402
from data.manifest import load_manifest, tokenizer_path  # noqa: E402
from data.shards import HEADER_BYTES, read_shard, write_shard  # noqa: E402
from data.tokenizer import load_tokenizer  # noqa: E402
from data.truth import measure  # noqa: E402

PARTS = ("throughput", "memory", "reading", "kills", "bytes")
MB = 1_000_000
READING_TOKENS = 100 * MB
KILLS_BYTES = 40 * MB
# Beyond this, the documents stay on disk. Only the memory part asks for more, and needs no list.
KEPT_BYTES = 300 * MB

RETOKENIZE = """
import sys
from pathlib import Path
from data.job import Job
from data.retokenize import CHUNK_BYTES, Cluster, retokenize
docs, tokenizer, root, workers, chunk = sys.argv[1:]
job = Job(Path(root), "bench", tokenizer=Path(tokenizer), workers=int(workers))
retokenize(job, Path(docs), 500, 100_000_000, int(chunk) or CHUNK_BYTES, Cluster())
"""
# Runs between this process and the measured one. On Linux a process's peak memory begins with
# that of whoever started it, and this process is large.
MEASURE = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
wall = time.perf_counter() - began
print(json.dumps([wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]))
sys.exit(bool(status))
"""


class Seconds(NamedTuple):
    wall: float
    cpu: float


# --- texts ----------------------------------------------------------------------------------------


def docs_texts(dataset: Path) -> tuple[list[str], Path]:
    """The docs corpus back from its shards (its tokenizer is lossless), and that tokenizer."""
    manifest = load_manifest(dataset)
    path = tokenizer_path(dataset, manifest.tokenizer)
    tokenizer = load_tokenizer(path)
    texts = []
    for split in manifest.splits.values():
        for file in split.files:
            tokens = np.array(read_shard(dataset / file.name))
            documents = np.split(tokens, np.flatnonzero(tokens == BOS))[1:]
            texts += [tokenizer.decode(ids[1:]) for ids in documents]
    return texts, path


def write_documents(path: Path, texts: list[str], size: int) -> list[str]:
    """Writes about `size` bytes of documents, numbered so that no two are equal.

    Returns them, or an empty list when they are larger than KEPT_BYTES.
    """
    kept = []
    written = 0
    number = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            text = f"{number} {texts[number % len(texts)]}"
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
            number += 1
            if size <= KEPT_BYTES:
                kept.append(text)
    return kept


# --- the two sides --------------------------------------------------------------------------------


def retokenize_command(
    docs: Path, tokenizer: Path, root: Path, workers: int, chunk: int = 0
) -> list[str]:
    arguments = [docs, tokenizer, root, workers, chunk]
    return [sys.executable, "-c", RETOKENIZE, *map(str, arguments)]


def retokenize(docs: Path, tokenizer: Path, root: Path, workers: int) -> tuple[Seconds, int]:
    """Seconds of all processes, from start to manifest, and peak resident bytes of the largest."""
    command = [sys.executable, "-c", MEASURE, *retokenize_command(docs, tokenizer, root, workers)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    wall, cpu, peak = json.loads(done.stdout)
    return Seconds(wall, cpu), peak


def sentencepiece_seconds(model: bytes, texts: list[str], threads: int) -> Seconds:
    """Time of the encoder alone, on texts in memory, in a process of its own as ours is."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_sentencepiece_seconds, (model, texts, threads))


def _sentencepiece_seconds(model: bytes, texts: list[str], threads: int) -> Seconds:
    sp = spm.SentencePieceProcessor(model_proto=model)
    wall_began = time.perf_counter()
    cpu_began = time.process_time()
    sp.encode(texts, num_threads=threads)
    return Seconds(time.perf_counter() - wall_began, time.process_time() - cpu_began)


def medians(runs: list[Seconds]) -> Seconds:
    wall = statistics.median(run.wall for run in runs)
    cpu = statistics.median(run.cpu for run in runs)
    return Seconds(wall, cpu)


# --- parts ----------------------------------------------------------------------------------------


def throughput(texts: list[str], tokenizer: Path, folder: Path, size: int, repeats: int) -> dict:
    """`size` bytes through both sides, in turns, so that a slow spell of the machine meets both."""
    workers = default_workers()
    docs = folder / "throughput.jsonl"
    made = write_documents(docs, texts, size)
    total = sum(len(text.encode()) for text in made)
    ours = []
    theirs = []
    for i in range(repeats):
        theirs.append(sentencepiece_seconds(tokenizer.read_bytes(), made, workers))
        seconds, _ = retokenize(docs, tokenizer, folder / f"out{i}", workers)
        ours.append(seconds)
    our_median = medians(ours)
    their_median = medians(theirs)
    return {
        "source_bytes": total,
        "workers": workers,
        "retokenize_wall_cpu_seconds": ours,
        "sentencepiece_wall_cpu_seconds": theirs,
        "retokenize_mb_per_s": total / 1e6 / our_median.wall,
        "sentencepiece_mb_per_s": total / 1e6 / their_median.wall,
        "ratio": their_median.wall / our_median.wall,
        # what is left when other programs share the machine
        "ratio_of_cpu_time": their_median.cpu / our_median.cpu,
    }


def memory(texts: list[str], tokenizer: Path, folder: Path, sizes: list[int]) -> list[dict]:
    """The largest process at each size in bytes."""
    rows = []
    for size in sizes:
        docs = folder / f"memory{size}.jsonl"
        write_documents(docs, texts, size)
        root = folder / f"memory{size}"
        seconds, peak = retokenize(docs, tokenizer, root, default_workers())
        rows.append(
            {
                "input_bytes": docs.stat().st_size,
                "peak_rss_bytes": peak,
                "seconds": seconds.wall,
            }
        )
        docs.unlink()
    return rows


def reading(folder: Path, tokens: int, repeats: int) -> dict:
    """Sum over a shard's tokens, so that every page is touched; warm cache."""
    path = folder / "reading.bin"
    write_shard(path, [np.random.default_rng(0).integers(0, 1024, tokens).astype(np.uint16)])
    ways = {
        "read_shard": functools.partial(read_shard, path),
        "fromfile": functools.partial(np.fromfile, path, "<u2", offset=HEADER_BYTES),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    sums = set()
    for _ in range(repeats):
        for name, read in ways.items():
            began = time.perf_counter()
            sums.add(int(read().sum(dtype=np.int64)))
            seconds[name].append(time.perf_counter() - began)
    if len(sums) != 1:
        raise RuntimeError("the two readers disagree")
    gb = {name: 2 * tokens / 1e9 / statistics.median(times) for name, times in seconds.items()}
    return {"tokens": tokens, "gb_per_s": gb, "ratio": gb["read_shard"] / gb["fromfile"]}


@dataclass(frozen=True)
class Victim:
    """A `data retokenize` job that can be started again and again, in process groups of its own."""

    docs: Path
    tokenizer: Path
    chunk: int

    def start(self, root: Path) -> subprocess.Popen:
        command = retokenize_command(self.docs, self.tokenizer, root, 2, self.chunk)
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, root: Path) -> None:
        if self.start(root).wait():
            raise RuntimeError(f"the run in {root} failed")

    def run_until(self, root: Path, moment: float) -> bool:
        """Kills the whole process group after `moment` seconds. False when it ended before."""
        process = self.start(root)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        return False


def shard_hashes(root: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted((root / "datasets").glob("*/*.bin"))}


def kills(texts: list[str], tokenizer: Path, folder: Path, count: int, size: int) -> dict:
    """One job, killed `count` times at moments drawn evenly from the length of an undisturbed run.

    A run that ends before its moment is not counted.
    """
    docs = folder / "kills.jsonl"
    write_documents(docs, texts, size)
    victim = Victim(docs, tokenizer, chunk=size // 40)
    undisturbed = folder / "undisturbed"
    disturbed = folder / "killed"
    began = time.perf_counter()
    victim.run(undisturbed)
    whole = time.perf_counter() - began
    expected = shard_hashes(undisturbed)
    rng = random.Random(0)
    moments: list[dict[str, Any]] = []
    killed = 0
    while killed < count:
        moment = rng.uniform(0, whole)
        was_killed = victim.run_until(disturbed, moment)
        moments.append({"after_s": round(moment, 3), "killed": was_killed})
        killed += was_killed
        manifest = next(disturbed.rglob("manifest.json"), None)
        if manifest:  # the job is done; begin another, so that every kill meets a running one
            if shard_hashes(disturbed) != expected:
                raise RuntimeError("a resumed run gave other bytes")
            manifest.unlink()
    victim.run(disturbed)
    return {
        "undisturbed_seconds": whole,
        "kills": count,
        "moments": moments,
        "identical": shard_hashes(disturbed) == expected,
    }


def byte_counts(tokenizers: list[Path], texts: list[Path]) -> list[dict]:
    """Every tokenizer on every file, as `python -m data bytes` counts."""
    loaded = {path.stem: load_tokenizer(path) for path in tokenizers}
    return [truth.row() for truth in measure(loaded, text_files(texts))]


# --- the program ----------------------------------------------------------------------------------


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return "unknown"


def machine() -> dict:
    return {
        "cpu": cpu_name(),
        "cores": default_workers(),
        "load_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "sentencepiece": spm.__version__,
    }


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        default=ROOT / "data" / "datasets" / "docs_sp1024",
        help="where the text comes from",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="what to measure; the other results in the file stay",
    )
    parser.add_argument("--throughput-mb", type=int, default=200)
    parser.add_argument("--memory-mb", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--tokenizers", type=Path, nargs="*", default=[], help="for the bytes part")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="for the bytes part")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "data.json")
    return parser


def measure_part(
    part: str, args: argparse.Namespace, texts: list[str], tokenizer: Path, folder: Path
) -> Any:
    """The result of one of PARTS."""
    match part:
        case "throughput":
            return throughput(texts, tokenizer, folder, args.throughput_mb * MB, repeats=3)
        case "memory":
            return memory(texts, tokenizer, folder, [mb * MB for mb in args.memory_mb])
        case "reading":
            return reading(folder, READING_TOKENS, repeats=5)
        case "kills":
            return kills(texts, tokenizer, folder, args.kills, KILLS_BYTES)
        case "bytes":
            return byte_counts(args.tokenizers, args.text)
    raise AssertionError(part)


def main() -> int:
    args = command_line().parse_args()
    texts, tokenizer = docs_texts(args.dataset)
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        for part in args.parts:
            found = measure_part(part, args, texts, tokenizer, Path(name))
            results[part] = {"machine": machine(), "result": found}
            shown = f"{len(found)} rows" if part == "bytes" else found
            print(part, json.dumps(shown))
            with atomic_write(args.out) as file:
                file.write((json.dumps(results, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
