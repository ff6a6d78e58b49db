"""Data at scale, measured: `python bench/data.py` writes bench/results/data.json.

Needs the docs dataset (`python -m data docs`), whose text is repeated to the sizes asked for. Parts, all in one run on one machine:
  throughput  `data retokenize` from JSON lines to verified shards, against SentencePiece's own multi-threaded encoder on texts in memory
  memory      the largest process of `data retokenize` at growing inputs
  reading     `read_shard` against numpy.fromfile
  kills       SIGKILL at random moments, then the shards' sha256 against those of an undisturbed run
  bytes       counted, decoded and source bytes of the given tokenizers on the given text"""

import argparse
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
from pathlib import Path

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

RETOKENIZE = """
import sys
from pathlib import Path
from data.job import Job
from data.retokenize import CHUNK_BYTES, Cluster, retokenize
docs, tokenizer, root, workers, chunk = sys.argv[1:]
job = Job(Path(root), "bench", tokenizer=Path(tokenizer), workers=int(workers))
retokenize(job, Path(docs), 500, 100_000_000, int(chunk) or CHUNK_BYTES, Cluster())
"""
# Between this process and the measured one: on Linux a process's peak memory begins with that of whoever started it, and this one is large.
MEASURE = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]))
sys.exit(bool(status))
"""


def docs_texts(dataset: Path) -> tuple[list[str], Path]:
    """The docs corpus back from its shards (its tokenizer is lossless), and that tokenizer."""
    manifest = load_manifest(dataset)
    path = tokenizer_path(dataset, manifest.tokenizer)
    tokenizer, texts = load_tokenizer(path), []
    for split in manifest.splits.values():
        for file in split.files:
            tokens = np.array(read_shard(dataset / file.name))
            texts += [
                tokenizer.decode(ids[1:])
                for ids in np.split(tokens, np.flatnonzero(tokens == BOS))[1:]
            ]
    return texts, path


def write_documents(path: Path, texts: list[str], size: int) -> list[str]:
    """About `size` bytes of documents, numbered so that no two are equal; returns them."""
    written, number, made = 0, 0, []
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            text = f"{number} {texts[number % len(texts)]}"
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
            number += 1
            if (
                size <= 300_000_000
            ):  # the gigabyte is for the memory run, which needs no list of it here
                made.append(text)
    return made


def retokenize_command(
    docs: Path, tokenizer: Path, root: Path, workers: int, chunk: int = 0
) -> list[str]:
    return [
        sys.executable,
        "-c",
        RETOKENIZE,
        str(docs),
        str(tokenizer),
        str(root),
        str(workers),
        str(chunk),
    ]


def start(docs: Path, tokenizer: Path, root: Path, chunk: int) -> subprocess.Popen:
    command = retokenize_command(docs, tokenizer, root, 2, chunk)
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def retokenize(docs: Path, tokenizer: Path, root: Path, workers: int) -> tuple[float, float, int]:
    """Wall and CPU seconds from process start to manifest, all processes; peak resident bytes of the largest of them."""
    command = [sys.executable, "-c", MEASURE, *retokenize_command(docs, tokenizer, root, workers)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return tuple(json.loads(done.stdout))


def sentencepiece_seconds(model: bytes, texts: list[str], threads: int) -> tuple[float, float]:
    """Wall and CPU seconds. In a process of its own, as ours is. Time of the encoder alone; texts are in memory already."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_sentencepiece_seconds, (model, texts, threads))


def _sentencepiece_seconds(model: bytes, texts: list[str], threads: int) -> tuple[float, float]:
    sp = spm.SentencePieceProcessor(model_proto=model)
    wall, cpu = time.perf_counter(), time.process_time()
    sp.encode(texts, num_threads=threads)
    return time.perf_counter() - wall, time.process_time() - cpu


def throughput(texts: list[str], tokenizer: Path, folder: Path, size: int, repeats: int) -> dict:
    workers = default_workers()
    docs = folder / "throughput.jsonl"
    made = write_documents(docs, texts, size)
    total = sum(len(text.encode()) for text in made)
    ours, theirs = [], []
    for i in range(repeats):  # in turns, so that a slow spell of the machine meets both
        theirs.append(sentencepiece_seconds(tokenizer.read_bytes(), made, workers))
        ours.append(retokenize(docs, tokenizer, folder / f"out{i}", workers)[:2])
    wall, cpu = (
        [statistics.median(run[i] for run in runs) for runs in (ours, theirs)] for i in (0, 1)
    )
    return {
        "source_bytes": total,
        "workers": workers,
        "retokenize_wall_cpu_seconds": ours,
        "sentencepiece_wall_cpu_seconds": theirs,
        "retokenize_mb_per_s": total / 1e6 / wall[0],
        "sentencepiece_mb_per_s": total / 1e6 / wall[1],
        "ratio": wall[1] / wall[0],
        "ratio_of_cpu_time": cpu[1] / cpu[0],  # what is left when other programs share the machine
    }


def memory(texts: list[str], tokenizer: Path, folder: Path, sizes: list[int]) -> list[dict]:
    rows = []
    for size in sizes:
        docs = folder / f"memory{size}.jsonl"
        write_documents(docs, texts, size)
        seconds, _, peak = retokenize(docs, tokenizer, folder / f"memory{size}", default_workers())
        rows.append(
            {"input_bytes": docs.stat().st_size, "peak_rss_bytes": peak, "seconds": seconds}
        )
        docs.unlink()
    return rows


def reading(folder: Path, tokens: int, repeats: int) -> dict:
    """Sum over a shard's tokens, so that every page is touched; warm cache."""
    path = folder / "reading.bin"
    write_shard(path, [np.random.default_rng(0).integers(0, 1024, tokens).astype(np.uint16)])
    ways = {
        "read_shard": lambda: read_shard(path).sum(dtype=np.int64),
        "fromfile": lambda: np.fromfile(path, "<u2", offset=HEADER_BYTES).sum(dtype=np.int64),
    }
    seconds = {name: [] for name in ways}
    sums = set()
    for _ in range(repeats):
        for name, read in ways.items():
            began = time.perf_counter()
            sums.add(int(read()))
            seconds[name].append(time.perf_counter() - began)
    if len(sums) != 1:
        raise RuntimeError("the two readers disagree")
    gb = {name: 2 * tokens / 1e9 / statistics.median(times) for name, times in seconds.items()}
    return {"tokens": tokens, "gb_per_s": gb, "ratio": gb["read_shard"] / gb["fromfile"]}


def kills(texts: list[str], tokenizer: Path, folder: Path, count: int, size: int) -> dict:
    """One job, killed `count` times (its whole process group) at moments drawn evenly from the length of an undisturbed run."""
    docs, rng = folder / "kills.jsonl", random.Random(0)
    write_documents(docs, texts, size)
    chunk = size // 40

    def shards(root: Path) -> dict[str, str]:
        return {
            path.name: sha256_file(path) for path in sorted((root / "datasets").glob("*/*.bin"))
        }

    began = time.perf_counter()
    if start(docs, tokenizer, folder / "undisturbed", chunk).wait():
        raise RuntimeError("the undisturbed run failed")
    whole = time.perf_counter() - began
    moments = []  # a run that ends before its moment is not counted
    while sum(m["killed"] for m in moments) < count:
        process = start(docs, tokenizer, folder / "killed", chunk)
        moment = rng.uniform(0, whole)
        try:
            process.wait(moment)
            ended = True
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = False
        manifest = next((folder / "killed").rglob("manifest.json"), None)
        moments.append({"after_s": round(moment, 3), "killed": not ended})
        if manifest:  # the job is done; begin another, so that every kill meets a running one
            if shards(folder / "killed") != shards(folder / "undisturbed"):
                raise RuntimeError("a resumed run gave other bytes")
            manifest.unlink()
    if start(docs, tokenizer, folder / "killed", chunk).wait():
        raise RuntimeError("the last run failed")
    identical = shards(folder / "killed") == shards(folder / "undisturbed")
    return {
        "undisturbed_seconds": whole,
        "kills": count,
        "moments": moments,
        "identical": identical,
    }


def machine() -> dict:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "sentencepiece": spm.__version__,
    }
    return {
        "cpu": model,
        "cores": default_workers(),
        "load_at_start": os.getloadavg()[0],
        **versions,
    }


def main() -> int:
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
        default=["throughput", "memory", "reading", "kills", "bytes"],
        help="what to measure; the rest is kept",
    )
    parser.add_argument("--throughput-mb", type=int, default=200)
    parser.add_argument("--memory-mb", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--tokenizers", type=Path, nargs="*", default=[], help="for the bytes part")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="for the bytes part")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "data.json")
    args = parser.parse_args()
    texts, tokenizer = docs_texts(args.dataset)
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in args.parts:
            if part == "throughput":
                found = throughput(
                    texts, tokenizer, folder, args.throughput_mb * 1_000_000, repeats=3
                )
            elif part == "memory":
                found = memory(texts, tokenizer, folder, [mb * 1_000_000 for mb in args.memory_mb])
            elif part == "reading":
                found = reading(folder, 100_000_000, repeats=5)
            elif part == "kills":
                found = kills(texts, tokenizer, folder, args.kills, 40_000_000)
            elif part == "bytes":
                found = [
                    truth.row()
                    for truth in measure(
                        {path.stem: load_tokenizer(path) for path in args.tokenizers},
                        text_files(args.text),
                    )
                ]
            else:
                parser.error(f"no part {part}")
            results[part] = {"machine": machine(), "result": found}
            print(part, json.dumps(found if part != "bytes" else f"{len(found)} rows"))
            with atomic_write(args.out) as file:
                file.write((json.dumps(results, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
