"""Killed runs and damaged files, counted: `python bench/faults.py` writes bench/results/faults.json.

`--kills` pipelines (train, export, score, pack) meet a SIGKILL at a random moment, in turns in each phase, and are started again with --resume: score,
record and artifact must be those of a run that nobody disturbed.

Each reader of shards, manifests, artifacts, logs and record folders gets `--count` mutations of a sound file: bits, bytes, stretches and numbers
changed, parts cut, doubled or moved, JSON values exchanged for others of any type. Most mutated artifacts are sealed with their sha256 again, so that
damage reaches the code behind the seal. A reader must take the file or refuse it in one line; a traceback, a hang, a crash or memory beyond the limit
is a fault, kept with the mutation's number, which gives the same file again."""

import argparse
import contextlib
import copy
import dataclasses
import hashlib
import io
import json
import os
import platform
import random
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
sys.path = [
    p for p in sys.path if Path(p).resolve() != ROOT / "bench"
]  # bench/data.py must not hide the package

import data.common  # noqa: E402
import data.manifest  # noqa: E402
import data.shards  # noqa: E402
import data.tokenizer  # noqa: E402
import train_gpt as tg  # noqa: E402
from eval.errors import UserError  # noqa: E402
from eval.papers.audits.reading import read_audit  # noqa: E402
from eval.papers.checks.report import format_report  # noqa: E402
from eval.papers.checks.run import check_folder  # noqa: E402
from eval.papers.logs.reading import parse_log  # noqa: E402
from eval.papers.submission.reading import load_submission  # noqa: E402
from eval.text.corpus.dataset import Dataset, read_shard  # noqa: E402

REFUSALS = (tg.UserError, data.common.UserError, UserError)
SECONDS, MEMORY_BYTES = (
    20,
    2 << 30,
)  # per file: what a reader may take, on top of what the process holds before
VOCAB = 260
ODD = (
    None,
    True,
    -1,
    0,
    1,
    3.5,
    1e308,
    10**30,
    float("nan"),
    "",
    "x",
    "1",
    "../../etc/passwd",
    "\ud800",
    [],
    {},
    [[]],
    {"a": 1},
    "9" * 400,
)


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
                word = struct.pack(
                    "<q", rng.choice((0, -1, 1 << 31, (1 << 63) - 1, -(1 << 63), 255, 65_536))
                )
                out[at : at + 4 * rng.randrange(1, 3)] = word[: 4 * rng.randrange(1, 3)]
            case 7:
                digits = [i for i in range(at, min(len(out), at + 4000)) if 48 <= out[i] <= 57]
                if digits:
                    i = rng.choice(digits)
                    out[i : i + 1] = rng.choice(
                        (b"0", b"9", b"-", b".", b"e9", b"99999999999999999999", b"nan")
                    )
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
                if (isinstance(other, dict) and there in other) or (
                    isinstance(other, list) and there < len(other)
                ):
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
        return resealed(
            tg.ARTIFACT_MAGIC
            + struct.pack("<IIQ", version, len(header), payload)
            + header
            + raw[start + size :]
        )
    out = mutate_bytes(raw, rng)
    return resealed(out) if len(out) > 32 and rng.random() < 0.7 else out


def mutate_checkpoint(raw: bytes, rng: random.Random) -> bytes:
    """Mostly one array, its header or data, in a zip file that is sound; else the file as a whole."""
    if rng.random() < 0.2:
        return mutate_bytes(raw, rng)
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = rng.choice(sorted(members))
    match rng.randrange(4):
        case 0:
            del members[name]
        case 1:
            members[name] = members[rng.choice(sorted(members))]
        case _:
            members[name] = mutate_bytes(members[name], rng)
    with zipfile.ZipFile(out := io.BytesIO(), "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return out.getvalue()


def mutate_text_or_json(raw: bytes, rng: random.Random) -> bytes:
    return mutate_json(raw, rng) if rng.random() < 0.7 else mutate_bytes(raw, rng)


def sound_files(folder: Path) -> None:
    """A tiny byte-level dataset, an artifact of random weights, and the newest committed record with one seed's log."""
    dataset, rng = folder / "dataset", np.random.default_rng(0)
    manifest: dict = {
        "format": 1,
        "name": "tiny",
        "corpus": "test",
        "version": "0" * 64,
        "version_rule": "documents",
        "provenance": {},
        "splits": {},
    }
    tokenizer, entry = (
        data.tokenizer.ByteTokenizer.model,
        {"file": "bytes.json", "kind": "bytes", "vocab_size": VOCAB, "lossless": True},
    )
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
        manifest["splits"][split] = {
            "documents": count // 50,
            "source_bytes": held,
            "counted_bytes": held,
            "tokens": count,
            "files": [entry],
        }
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    torch.manual_seed(0)
    cfg = tiny_config()
    (folder / "artifact.bin").write_bytes(tg.pack(tg.GPT(cfg), cfg, "0" * 64)[0])
    record = sorted((ROOT / "records/track_docs_cpu").glob("*_ema-ngram"))[-1]
    shutil.copytree(
        record,
        folder / "record",
        ignore=shutil.ignore_patterns("*.png", "train_seed[!1]*", "artifact*"),
    )
    head, step, tail = (record / "train_seed1337.log").read_bytes().rpartition(b"\nstep:100/")
    env = tg.describe_environment(tg.Runtime(), tg.Config())[0]
    resume = (
        f"\nresume step:80 train_time:17000ms file:checkpoint_0.npz {env}".encode()
    )  # as an interrupted run's log has it
    (folder / "train.log").write_bytes(head + resume + step + tail)
    saved = checkpoints_in(folder / "run")
    saved.rt.log_path.write_text("log_format:1\n")
    with contextlib.redirect_stdout(None):
        saved.save(1, 32, 0, 0.5)
    saved.find()[0].rename(folder / "checkpoint.npz")


def tiny_config() -> tg.Config:
    flags = "--vocab-size 260 --model-dim 32 --num-layers 2 --num-encoder-layers 1 --num-heads 4 --num-kv-heads 2 --mlp-hidden 48 --pre-enrich-hidden 24"
    more = "--bigram-buckets 64 --bigram-dim 8 --xsa-layers 1 --train-batch-tokens 256 --train-seq-len 32 --micro-batch-tokens 256 --eval-seq-len 32"
    return tg.parse_config(
        [*flags.split(), *more.split(), "--eval-stride", "8", "--eval-batch-tokens", "256"], {}
    )[0]


def checkpoints_in(run: Path) -> tg.Checkpoints:
    run.mkdir(exist_ok=True)
    state = {
        "weight.0": torch.ones(8, 4),
        "adam.0.step": torch.ones(()),
        "muon.0": torch.ones(2, 3, 5),
    }
    return tg.Checkpoints(
        "run",
        state,
        dataclasses.replace(tiny_config(), out=str(run)),
        tg.Runtime(log_path=run / "train.log"),
    )


def read_checkpoint(folder: Path) -> None:
    """Under the name that its bytes give it: damage without that is passed over."""
    raw, saved = (folder / "checkpoint.npz").read_bytes(), checkpoints_in(folder / "run")
    path = (
        folder
        / "run"
        / f"checkpoint_{saved.run}_000001_0000001_{hashlib.sha256(raw).hexdigest()}.npz"
    )
    path.write_bytes(raw)
    try:
        with contextlib.redirect_stdout(None):
            saved.load()
    finally:
        path.unlink()


def read_log(path: Path) -> None:
    """A log lists what is wrong with it; that is its refusal."""
    if problems := parse_log(path).problems:
        raise UserError(str(problems[0]))


def check_record(folder: Path) -> None:
    """A folder's faults become verdicts; any line of the report that differs from the sound folder's is its refusal."""
    report = format_report(check_folder(folder, with_audit=True))
    if report != SOUND_REPORT.setdefault("record", report):
        raise UserError("the report differs")


SOUND_REPORT: dict[str, str] = {}


def open_all(dataset: Path) -> None:
    opened = Dataset(dataset)
    for name in ("train", "val"):
        opened.split(name).tokens.sum()


# reader -> (file that is mutated, how, what reads it)
READERS: dict[
    str, tuple[str, Callable[[bytes, random.Random], bytes], Callable[[Path], object]]
] = {
    "shard, train_gpt.py": (
        "dataset/tiny_val_000000.bin",
        mutate_bytes,
        lambda f: tg.open_shard(f / "dataset/tiny_val_000000.bin", VOCAB),
    ),
    "shard, data": (
        "dataset/tiny_val_000000.bin",
        mutate_bytes,
        lambda f: data.shards.read_shard(f / "dataset/tiny_val_000000.bin").sum(),
    ),
    "shard, eval": (
        "dataset/tiny_val_000000.bin",
        mutate_bytes,
        lambda f: read_shard(f / "dataset/tiny_val_000000.bin"),
    ),
    "manifest, train_gpt.py": (
        "dataset/manifest.json",
        mutate_text_or_json,
        lambda f: tg.open_dataset(f / "dataset", tiny_config(), tg.Runtime()),
    ),
    "manifest, data": (
        "dataset/manifest.json",
        mutate_text_or_json,
        lambda f: data.manifest.load_manifest(f / "dataset"),
    ),
    "manifest, eval": (
        "dataset/manifest.json",
        mutate_text_or_json,
        lambda f: open_all(f / "dataset"),
    ),
    "artifact": (
        "artifact.bin",
        mutate_artifact,
        lambda f: tg.unpack((f / "artifact.bin").read_bytes(), "artifact.bin"),
    ),
    "checkpoint": ("checkpoint.npz", mutate_checkpoint, read_checkpoint),
    "log": ("train.log", mutate_bytes, lambda f: read_log(f / "train.log")),
    "submission.json": (
        "record/submission.json",
        mutate_text_or_json,
        lambda f: load_submission(f / "record"),
    ),
    "audit.json": (
        "record/audit.json",
        mutate_text_or_json,
        lambda f: read_audit(f / "record"),
    ),
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
        return (
            "refused"
            if "\n" not in str(error) and str(error)
            else f"a refusal of several lines: {str(error)[:200]!r}"
        )
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


def commit() -> str:
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
    ).stdout.strip()
    return head + " with changes" * bool(changed)


def fuzz(name: str, count: int, workers: int) -> dict:
    out: dict = {"mutations": count, "accepted": 0, "refused": 0, "faults": [], "commit": commit()}
    began, size = time.perf_counter(), -(-count // workers)
    parts = [(first, min(size, count - first)) for first in range(0, count, size)]
    command = [sys.executable, __file__, "--worker", name]
    running = [
        subprocess.Popen(
            [*command, str(a), str(b)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for a, b in parts
    ]
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
            out["faults"].append(
                {
                    "number": last,
                    "fault": f"the process ended with {process.returncode}; {first + part - last - 1} mutations were not tried",
                }
            )
        for key, n in (tally or {}).items():
            out[key] += n
    return out | {"seconds": round(time.perf_counter() - began, 1)}


# --- What a SIGKILL costs ---

PHASES = ("training", "checkpoint write", "export", "scoring", "packaging")
MARKS = {
    "training": "step:1/",
    "export": "averaging ",
    "scoring": "artifact ",
}  # log lines that begin a phase
SIZE = "--preset docs_cpu --iterations 30 --warmdown-steps 20 --log-every 5"


class Pipeline:
    """A copy of the project in `folder`, with a data set of its own text; `start` trains, exports, scores and packs, or goes on with that."""

    def __init__(self, folder: Path, every: int):
        self.root, self.every = folder / "project", every
        names = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z", "--", ":!records/track_*"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name in filter(None, names.split("\0")):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, self.root / name)
        text = folder / "text"
        text.mkdir()
        for path in sorted([*self.root.glob("*/*.py"), *self.root.glob("*.md")]):
            shutil.copyfile(path, text / f"{path.parent.name}_{path.stem}.txt")
        build = [
            sys.executable,
            "-m",
            "data",
            "text",
            "--data-root",
            str(self.root / "data"),
            *map(str, sorted(text.iterdir())),
        ]
        subprocess.run(build, check=True, cwd=self.root, capture_output=True)

    def start(self, name: str) -> subprocess.Popen:
        """One shell, a session of its own. --resume 1 on the first start as on any other."""
        run = self.out(name)
        train = [
            sys.executable,
            "train_gpt.py",
            *SIZE.split(),
            "--data-dir",
            "data/datasets/text_sp1024",
            "--out",
            str(run),
            "--resume",
            "1",
        ]
        pack = [
            sys.executable,
            "-m",
            "eval",
            "pack",
            str(run / "train.log"),
            "--name",
            name,
            "--slug",
            name,
            "--track",
            "track_non_record_16mb",
        ]
        pack += ["--author", "faults", "--github-id", "faults", "--replace"]
        script = f"{shlex.join([*train, '--checkpoint-every', str(self.every)])} && exec {shlex.join(pack)}"
        settings = {
            "cwd": self.root,
            "env": os.environ | {"OMP_NUM_THREADS": "1"},
            "start_new_session": True,
            "stdout": subprocess.DEVNULL,
        }
        with open(self.root / f"{name}.err", "w") as errors:
            return subprocess.Popen(["bash", "-c", script], stderr=errors, **settings)

    def out(self, name: str) -> Path:
        return self.root / "runs" / name

    def lines(self, name: str) -> list[str]:
        """Of the log, behind the source in it."""
        log = self.out(name) / "train.log"
        text = log.read_text(errors="replace") if log.is_file() else ""
        return text.rpartition("===== end source =====")[2].splitlines()

    def said(self, name: str, start: str) -> bool:
        return any(line.startswith(start) for line in self.lines(name))

    def record(self, name: str) -> Path | None:
        return next(iter((self.root / "records" / "track_non_record_16mb").glob(f"*_{name}")), None)

    def packing(self, name: str) -> bool:
        """Whether the new record is being built beside the old one, which it is about to replace."""
        return any((self.root / "records" / "track_non_record_16mb").glob(f".*_{name}.*.tmp"))

    def plant(self, name: str, record: Path) -> None:
        """An older record under the name that the pipeline will give its own."""
        shutil.copytree(record, record.with_name(record.name.replace("undisturbed", name)))

    def outcome(self, name: str) -> dict:
        """What a user keeps: the score to the last printed digit, by log and by record, and the artifact."""
        result = next(line for line in self.lines(name) if line.startswith("result "))
        submission = json.loads((self.record(name) / "submission.json").read_text())
        artifact = tg.sha256_file(self.out(name) / "artifact.bin")
        bpb = result.split("val_bpb:")[1].split()[0]
        return {
            "val_bpb": bpb,
            "packed_val_bpb": submission["val_bpb"],
            "artifact_sha256": artifact,
            "packed_anew": submission["name"] == name,
        }


def watch(pipeline: Pipeline, name: str, process: subprocess.Popen) -> dict[str, float]:
    """Seconds at which each phase began, and at which all ended, in a run that nobody disturbs."""
    began, started = {}, time.perf_counter()
    while process.poll() is None:
        for line in pipeline.lines(name):
            for phase, mark in MARKS.items():
                if line.startswith(mark):
                    began.setdefault(phase, time.perf_counter() - started)
        if pipeline.packing(name):
            began.setdefault("packaging", time.perf_counter() - started)
        time.sleep(0.005)
    return began | {"end": time.perf_counter() - started}


def kill_in(
    phase: str, pipeline: Pipeline, name: str, began: dict[str, float], rng: random.Random
) -> str:
    """Starts the pipeline and kills every process of it at a random moment of a phase; says what it was doing."""
    process, out = pipeline.start(name), pipeline.out(name)
    order = [*MARKS, "packaging", "end"]
    if phase == "checkpoint write":
        already, moment = rng.randrange(4), rng.uniform(0, 0.03)
        ready = lambda: (
            len(list(out.glob("checkpoint_*.npz"))) >= min(2, already)
            and any(out.glob(".checkpoint_*.tmp"))
        )  # noqa: E731
    else:
        ready = lambda: (
            pipeline.packing(name) if phase == "packaging" else pipeline.said(name, MARKS[phase])
        )  # noqa: E731
        moment = rng.uniform(0, began[order[order.index(phase) + 1]] - began[phase])
    while process.poll() is None and not ready():
        time.sleep(0.001)
    time.sleep(moment)
    met = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if not met:
        return "nothing"
    if any(out.glob(".checkpoint_*.tmp")):
        return "checkpoint write"
    if pipeline.packing(name) or pipeline.said(name, "result "):
        return "packaging"
    begun = [p for p, mark in MARKS.items() if pipeline.said(name, mark)]
    return begun[-1] if begun else "start"


def half_written(pipeline: Pipeline, name: str) -> list[str]:
    """Files under their final names that are not whole."""
    out, record, bad = pipeline.out(name), pipeline.record(name), []
    bad += [p.name for p in out.glob("checkpoint_*.npz") if tg.sha256_file(p) != p.stem[-64:]]
    try:
        if (out / "artifact.bin").exists():
            tg.load_artifact(out / "artifact.bin", tg.Runtime())
        if record is None:
            return [*bad, "the record has gone"]
        load_submission(record)
        if {p.name for p in record.iterdir()} != {
            p.name for p in pipeline.record("undisturbed").iterdir()
        }:
            bad.append(f"{record.name}: files are missing")
    except REFUSALS as error:
        bad.append(str(error))
    return bad


def measure_kills(count: int) -> dict:
    """`count` pipelines, each killed once and gone on with, against one that nobody disturbs; then the folder's other files are looked at."""
    rng, trials = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(Path(folder), every=3)
        began = watch(pipeline, "undisturbed", pipeline.start("undisturbed"))
        if set(began) != {*MARKS, "packaging", "end"}:
            raise SystemExit(
                f"error: the undisturbed run failed: {(pipeline.root / 'undisturbed.err').read_text()[-2000:]}"
            )
        expected = pipeline.outcome("undisturbed")
        for i in tqdm(range(count), desc="kills"):
            name = f"killed-{i}"
            phase = PHASES[i % len(PHASES)]
            pipeline.plant(name, pipeline.record("undisturbed"))
            while (
                met := kill_in(phase, pipeline, name, began, rng)
            ) == "nothing":  # it had ended: another moment
                shutil.rmtree(pipeline.out(name))
            trial = {"aimed_at": phase, "met": met, "half_written": half_written(pipeline, name)}
            again = pipeline.start(name).wait()
            resumed = [
                line.split()[1] for line in pipeline.lines(name) if line.startswith("resume ")
            ]
            same = (
                again == 0
                and pipeline.outcome(name) == expected
                and not half_written(pipeline, name)
            )
            error = "" if again == 0 else (pipeline.root / f"{name}.err").read_text()[-500:]
            trials.append(
                trial
                | {
                    "resumed_at": resumed[-1] if resumed else "the start",
                    "same": same,
                    "error": error,
                }
            )
            shutil.rmtree(pipeline.out(name))
    met = {
        phase: sum(t["met"] == phase for t in trials)
        for phase in sorted({t["met"] for t in trials})
    }
    return {
        "kills": count,
        "same": sum(t["same"] and not t["half_written"] for t in trials),
        "met": met,
        "undisturbed": expected,
        "trials": trials,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--count", type=int, default=10_000, help="mutations per reader; 0 = none")
    parser.add_argument(
        "--kills", type=int, default=20, help="pipelines killed and gone on with; 0 = none"
    )
    parser.add_argument(
        "--readers",
        nargs="+",
        choices=READERS,
        default=list(READERS),
        metavar="READER",
        help=f"of: {', '.join(READERS)}",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "faults.json")
    parser.add_argument(
        "--worker", nargs=3, metavar=("READER", "FIRST", "COUNT"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.worker:
        worker(args.worker[0], int(args.worker[1]), int(args.worker[2]))
        return 0
    results = json.loads(args.out.read_text()) if args.out.exists() else {"readers": {}}
    if args.kills:
        results["kills"] = measure_kills(args.kills) | {"commit": commit()}
        tg.write_atomically(args.out, (json.dumps(results, indent=1) + "\n").encode())
    for name in tqdm(args.readers if args.count else [], desc="readers"):
        results["readers"][name] = fuzz(name, args.count, len(os.sched_getaffinity(0)))
        results["environment"] = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        tg.write_atomically(args.out, (json.dumps(results, indent=1) + "\n").encode())
    if kills := results.get("kills"):
        met = ", ".join(f"{phase} {n}" for phase, n in kills["met"].items())
        print(
            f"{kills['same']} of {kills['kills']} killed runs ended, resumed, with the undisturbed run's score {kills['undisturbed']['val_bpb']}; met in: {met}"
        )
    print(f"{'reader':<24}{'mutations':>10}{'accepted':>10}{'refused':>10}{'faults':>8}")
    for name, row in results["readers"].items():
        print(
            f"{name:<24}{row['mutations']:>10,}{row['accepted']:>10,}{row['refused']:>10,}{len(row['faults']):>8,}"
        )
    lost = "kills" in results and results["kills"]["same"] < results["kills"]["kills"]
    return int(lost or any(row["faults"] for row in results["readers"].values()))


if __name__ == "__main__":
    sys.exit(main())
