"""Damaged and hostile files, counted: `python bench/faults.py` writes bench/results/faults.json.

Each reader of shards, manifests, artifacts, logs and record folders gets `--count` mutations of a sound file: bits, bytes, stretches and numbers
changed, parts cut, doubled or moved, JSON values exchanged for others of any type. Most mutated artifacts are sealed with their sha256 again, so that
damage reaches the code behind the seal. A reader must take the file or refuse it in one line; a traceback, a hang, a crash or memory beyond the limit
is a fault, kept with the mutation's number, which gives the same file again."""

import argparse
import copy
import hashlib
import json
import os
import platform
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
sys.path = [p for p in sys.path if Path(p).resolve() != ROOT / "bench"]  # bench/data.py must not hide the package

import data.common  # noqa: E402
import data.manifest  # noqa: E402
import data.shards  # noqa: E402
import data.tokenizer  # noqa: E402
import eval.check  # noqa: E402
import eval.dataset  # noqa: E402
import eval.errors  # noqa: E402
import eval.logs  # noqa: E402
import eval.pack  # noqa: E402
import eval.schema  # noqa: E402
import train_gpt as tg  # noqa: E402

REFUSALS = (tg.UserError, data.common.UserError, eval.errors.UserError)
SECONDS, MEMORY_BYTES = 20, 2 << 30  # per file: what a reader may take, on top of what the process holds before
VOCAB = 260
ODD = (None, True, -1, 0, 1, 3.5, 1e308, 10**30, float("nan"), "", "x", "1", "../../etc/passwd", "\ud800", [], {}, [[]], {"a": 1}, "9" * 400)


def mutate_bytes(raw: bytes, rng: random.Random) -> bytes:
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(out)) if out else 0
        length = min(len(out) - at, 1 << rng.randrange(12))
        match rng.randrange(9):
            case 0 if out:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + length] = rng.randbytes(length)
            case 2:
                del out[at : at + length]
            case 3:
                del out[at:]
            case 4:
                out[at:at] = out[at : at + length] * rng.choice((1, 2, 50))
            case 5:
                other = rng.randrange(len(out) + 1)
                out[other:other] = out[at : at + length]
            case 6:
                word = struct.pack("<q", rng.choice((0, -1, 1 << 31, (1 << 63) - 1, -(1 << 63), 255, 65_536)))
                out[at : at + 4 * rng.randrange(1, 3)] = word[: 4 * rng.randrange(1, 3)]
            case 7:
                digits = [i for i in range(at, min(len(out), at + 4000)) if 48 <= out[i] <= 57]
                if digits:
                    i = rng.choice(digits)
                    out[i : i + 1] = rng.choice((b"0", b"9", b"-", b".", b"e9", b"99999999999999999999", b"nan"))
            case _:
                out[at : at + length] = bytes([rng.choice((0, 10, 13, 27, 255, 32))]) * length
    return bytes(out)


def mutate_json(raw: bytes, rng: random.Random) -> bytes:
    """A value, key or element somewhere in the tree exchanged, dropped or doubled."""
    tree = json.loads(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places, stack = [], [tree]
        while stack:
            node = stack.pop()
            for key in node if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                if isinstance(node[key], dict | list):
                    stack.append(node[key])
        if not places:
            break
        node, key = rng.choice(places)
        match rng.randrange(5):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[rng.choice(("", "x", "seed", "format", "__class__"))] = node[key]
            case 2 if isinstance(node, list):
                node.insert(key, node[key])
            case 3:
                other, there = rng.choice(places)
                if (isinstance(other, dict) and there in other) or (isinstance(other, list) and there < len(other)):
                    node[key] = copy.deepcopy(other[there])
            case _:
                node[key] = copy.deepcopy(rng.choice(ODD))
    return json.dumps(tree).encode()


def resealed(raw: bytes) -> bytes:
    return raw[:-32] + hashlib.sha256(raw[:-32]).digest()


def mutate_artifact(raw: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:  # the header as JSON, its length kept true
        start = len(tg.ARTIFACT_MAGIC) + 16
        version, size, payload = struct.unpack_from("<IIQ", raw, len(tg.ARTIFACT_MAGIC))
        header = mutate_json(raw[start : start + size], rng)
        return resealed(tg.ARTIFACT_MAGIC + struct.pack("<IIQ", version, len(header), payload) + header + raw[start + size :])
    out = mutate_bytes(raw, rng)
    return resealed(out) if len(out) > 32 and rng.random() < 0.7 else out


def mutate_text_or_json(raw: bytes, rng: random.Random) -> bytes:
    return mutate_json(raw, rng) if rng.random() < 0.7 else mutate_bytes(raw, rng)


def sound_files(folder: Path) -> None:
    """A tiny byte-level dataset, an artifact of random weights, and the newest committed record with one seed's log."""
    dataset, rng = folder / "dataset", np.random.default_rng(0)
    manifest: dict = {"format": 1, "name": "tiny", "corpus": "test", "version": "0" * 64, "version_rule": "documents", "provenance": {}, "splits": {}}
    tokenizer, entry = data.tokenizer.ByteTokenizer.model, {"file": "bytes.json", "kind": "bytes", "vocab_size": VOCAB, "lossless": True}
    manifest["tokenizer"] = entry | {"sha256": hashlib.sha256(tokenizer).hexdigest()}
    dataset.mkdir()
    (dataset / "bytes.json").write_bytes(tokenizer)
    for split, count in (("train", 3000), ("val", 500)):
        tokens = rng.integers(4, VOCAB, count).astype(np.uint16)
        tokens[::50] = tg.BOS_ID
        path = dataset / f"tiny_{split}_000000.bin"
        data.shards.write_shard(path, [tokens])
        entry = {"name": path.name, "tokens": count, "sha256": tg.sha256_file(path)}
        held = int((tokens >= 4).sum())
        manifest["splits"][split] = {"documents": count // 50, "source_bytes": held, "counted_bytes": held, "tokens": count, "files": [entry]}
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    torch.manual_seed(0)
    cfg = tiny_config()
    (folder / "artifact.bin").write_bytes(tg.pack(tg.GPT(cfg), cfg, "0" * 64)[0])
    record = sorted((ROOT / "records/track_docs_cpu").glob("*_ema-ngram"))[-1]
    shutil.copytree(record, folder / "record", ignore=shutil.ignore_patterns("*.png", "train_seed[!1]*", "artifact*"))
    log = (record / "train_seed1337.log").read_bytes()
    (folder / "train.log").write_bytes(log)


def tiny_config() -> tg.Config:
    flags = "--vocab-size 260 --model-dim 32 --num-layers 2 --num-encoder-layers 1 --num-heads 4 --num-kv-heads 2 --mlp-hidden 48 --pre-enrich-hidden 24"
    more = "--bigram-buckets 64 --bigram-dim 8 --xsa-layers 1 --train-batch-tokens 256 --train-seq-len 32 --micro-batch-tokens 256 --eval-seq-len 32"
    return tg.parse_config([*flags.split(), *more.split(), "--eval-stride", "8", "--eval-batch-tokens", "256"], {})[0]


def read_log(path: Path) -> None:
    """A log lists what is wrong with it; that is its refusal."""
    if problems := eval.logs.parse_log(path).problems:
        raise eval.errors.UserError(str(problems[0]))


def check_record(folder: Path) -> None:
    """A folder's faults become verdicts; any line of the report that differs from the sound folder's is its refusal."""
    report = eval.check.format_report(eval.check.check_folder(folder, with_audit=True))
    if report != SOUND_REPORT.setdefault("record", report):
        raise eval.errors.UserError("the report differs")


SOUND_REPORT: dict[str, str] = {}


def open_all(dataset: Path) -> None:
    opened = eval.dataset.Dataset(dataset)
    for name in ("train", "val"):
        opened.split(name).tokens.sum()


# reader -> (file that is mutated, how, what reads it)
READERS: dict[str, tuple[str, Callable[[bytes, random.Random], bytes], Callable[[Path], object]]] = {
    "shard, train_gpt.py": ("dataset/tiny_val_000000.bin", mutate_bytes, lambda f: tg.open_shard(f / "dataset/tiny_val_000000.bin", VOCAB)),
    "shard, data": ("dataset/tiny_val_000000.bin", mutate_bytes, lambda f: data.shards.read_shard(f / "dataset/tiny_val_000000.bin").sum()),
    "shard, eval": ("dataset/tiny_val_000000.bin", mutate_bytes, lambda f: eval.dataset.read_shard(f / "dataset/tiny_val_000000.bin")),
    "manifest, train_gpt.py": ("dataset/manifest.json", mutate_text_or_json, lambda f: tg.open_dataset(f / "dataset", tiny_config(), tg.Runtime())),
    "manifest, data": ("dataset/manifest.json", mutate_text_or_json, lambda f: data.manifest.load_manifest(f / "dataset")),
    "manifest, eval": ("dataset/manifest.json", mutate_text_or_json, lambda f: open_all(f / "dataset")),
    "artifact": ("artifact.bin", mutate_artifact, lambda f: tg.unpack((f / "artifact.bin").read_bytes(), "artifact.bin")),
    "log": ("train.log", mutate_bytes, lambda f: read_log(f / "train.log")),
    "submission.json": ("record/submission.json", mutate_text_or_json, lambda f: eval.schema.load_submission(f / "record")),
    "audit.json": ("record/audit.json", mutate_text_or_json, lambda f: eval.pack.read_audit(f / "record")),
    "record folder": ("record", mutate_bytes, lambda f: check_record(f / "record")),
}


class Hang(BaseException):
    """Not an Exception, so that no reader can swallow it."""


def one(name: str, number: int, folder: Path, sound: dict[Path, bytes]) -> str:
    """Outcome of one mutation: accepted, refused, or a fault in words. Leaves the folder as it was."""
    target, mutate, read = READERS[name]
    rng = random.Random(f"{name} {number}")
    path = folder / target
    if path.is_dir():
        path = rng.choice(sorted(p for p in path.iterdir() if p.is_file()))
        mutate = mutate_text_or_json if path.suffix == ".json" else mutate
    path.write_bytes(mutate(sound.setdefault(path, path.read_bytes()), rng))
    try:
        signal.alarm(SECONDS)
        read(folder)
        return "accepted"
    except REFUSALS as error:
        return "refused" if "\n" not in str(error) and str(error) else f"a refusal of several lines: {str(error)[:200]!r}"
    except Hang:
        return f"more than {SECONDS} s"
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
        path.write_bytes(sound[path])


def worker(name: str, first: int, count: int) -> None:
    """Prints a JSON line before each mutation, one more where it is a fault, and the tally at the end."""

    def ring(*_: object) -> None:
        raise Hang

    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, ring)
    with tempfile.TemporaryDirectory() as folder:
        sound_files(Path(folder))
        READERS[name][2](Path(folder))  # the sound file must be taken
        held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES,) * 2)
        tally, sound = {"accepted": 0, "refused": 0}, {}
        for number in range(first, first + count):
            print(json.dumps({"at": number}), flush=True)
            outcome = one(name, number, Path(folder), sound)
            if outcome in tally:
                tally[outcome] += 1
            else:
                print(json.dumps({"number": number, "fault": outcome}), flush=True)
    print(json.dumps(tally), flush=True)


def fuzz(name: str, count: int, workers: int) -> dict:
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True).stdout.strip()
    out: dict = {"mutations": count, "accepted": 0, "refused": 0, "faults": [], "commit": commit + " with changes" * bool(changed)}
    began, size = time.perf_counter(), -(-count // workers)
    parts = [(first, min(size, count - first)) for first in range(0, count, size)]
    command = [sys.executable, __file__, "--worker", name]
    running = [subprocess.Popen([*command, str(a), str(b)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for a, b in parts]
    for process, (first, part) in zip(running, parts, strict=True):
        last, tally = first, None
        watchdog = threading.Timer(5 * SECONDS, process.kill)  # an alarm does not end a loop in C
        watchdog.start()
        for line in process.stdout:
            watchdog.cancel()
            watchdog = threading.Timer(5 * SECONDS, process.kill)
            watchdog.start()
            said = json.loads(line)
            if "at" in said:
                last = said["at"]
            elif "fault" in said:
                out["faults"].append(said)
            else:
                tally = said
        watchdog.cancel()
        if process.wait() or tally is None:
            out["faults"].append({"number": last, "fault": f"the process ended with {process.returncode}; {first + part - last - 1} mutations were not tried"})
        for key, n in (tally or {}).items():
            out[key] += n
    return out | {"seconds": round(time.perf_counter() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--count", type=int, default=10_000, help="mutations per reader")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS), metavar="READER", help=f"of: {', '.join(READERS)}")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "faults.json")
    parser.add_argument("--worker", nargs=3, metavar=("READER", "FIRST", "COUNT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker[0], int(args.worker[1]), int(args.worker[2]))
        return 0
    results = json.loads(args.out.read_text()) if args.out.exists() else {"readers": {}}
    for name in tqdm(args.readers, desc="readers"):
        results["readers"][name] = fuzz(name, args.count, len(os.sched_getaffinity(0)))
        results["environment"] = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        tg.write_atomically(args.out, (json.dumps(results, indent=1) + "\n").encode())
    print(f"{'reader':<24}{'mutations':>10}{'accepted':>10}{'refused':>10}{'faults':>8}")
    for name, row in results["readers"].items():
        print(f"{name:<24}{row['mutations']:>10,}{row['accepted']:>10,}{row['refused']:>10,}{len(row['faults']):>8,}")
    return int(any(row["faults"] for row in results["readers"].values()))


if __name__ == "__main__":
    sys.exit(main())
