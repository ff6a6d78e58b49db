"""Shared fixtures: a tiny byte-level data set written without the project's own writer, the script
as a process, and a disk that fills up."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from warm_support import run_warm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# What every test process may see of the outside: nothing that would configure a run.
VISIBLE = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
CLEAN_ENV = {name: os.environ[name] for name in VISIBLE if name in os.environ}

TINY = {
    "vocab_size": 260,
    "model_dim": 32,
    "num_layers": 4,
    "num_encoder_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_hidden": 48,
    "pre_enrich_hidden": 24,
    "bigram_buckets": 64,
    "bigram_dim": 8,
    "xsa_layers": 2,
    "train_batch_tokens": 1024,
    "train_seq_len": 32,
    "micro_batch_tokens": 1024,
    "iterations": 5,
    "train_seconds": 0.0,
    "warmup_steps": 0,
    "warmdown_steps": 3,
    "compile": 0,
    "log_every": 1,
    "val_every": 0,
    "eval_seq_len": 32,
    "eval_stride": 8,
    "eval_batch_tokens": 256,
    "swa_every": 0,
    "ema_decay": 0.5,
    "bf16": 0,  # equal to rounding on every CPU; what bfloat16 changes has tests of its own
}


def flags(**overrides: object) -> list[str]:
    """Flags of train_gpt.py for the tiny config, with some settings changed."""
    argv = []
    for name, value in (TINY | overrides).items():
        argv += [f"--{name.replace('_', '-')}", str(value)]
    return argv


def sha256_hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_shard(
    path: Path,
    tokens: np.ndarray,
    magic: int = 20240520,
    version: int = 1,
    promised: int | None = None,
) -> None:
    """A shard of ids [N], by default a sound one; `promised` is the number in its header."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = [magic, version, len(tokens) if promised is None else promised]
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes())


def write_dataset(folder: Path, splits: dict[str, list[bytes]]) -> Path:
    """Byte-level data set with its manifest: ids = byte + 4, BOS before each document.

    Two training shards and one validation shard."""
    folder.mkdir(parents=True)
    everything = b"".join(b"".join(documents) for documents in splits.values())
    manifest = {
        "format": 1,
        "name": folder.name,
        "corpus": "test",
        "version": sha256_hex(everything),
        "tokenizer": {
            "file": "bytes",
            "kind": "bytes",
            "sha256": "0" * 64,
            "vocab_size": 260,
            "lossless": True,
        },
        "splits": {},
        "provenance": {},
    }
    for split, documents in splits.items():
        tokens = np.concatenate([byte_ids(document) for document in documents])
        shards = np.array_split(tokens, 2 if split == "train" else 1)
        manifest["splits"][split] = {
            "documents": len(documents),
            "source_bytes": sum(map(len, documents)),
            "tokens": len(tokens),
            "files": [write_part(folder, split, i, part) for i, part in enumerate(shards)],
            "xz_bytes": None,
        }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def byte_ids(document: bytes) -> np.ndarray:
    """BOS and the byte-level ids of a document, int64."""
    return np.concatenate([[1], np.frombuffer(document, np.uint8).astype(np.int64) + 4])


def write_part(folder: Path, split: str, index: int, tokens: np.ndarray) -> dict:
    """Write one shard of a split; returns its entry in the manifest."""
    path = folder / f"test_{split}_{index:06d}.bin"
    write_shard(path, tokens)
    return {"name": path.name, "tokens": len(tokens), "sha256": sha256_hex(path.read_bytes())}


def english_documents() -> list[bytes]:
    """Real text that every Python has: docstrings of some standard modules, paragraph by paragraph.

    In an order that looks random and never changes."""
    import argparse
    import decimal
    import doctest
    import turtle

    documented = []
    for module in (argparse, decimal, doctest, turtle):
        documented += [module, *vars(module).values()]
    text = "\n\n".join(getattr(thing, "__doc__", None) or "" for thing in documented)
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n")]
    distinct = {paragraph.encode() for paragraph in paragraphs if len(paragraph) > 40}
    return sorted(distinct, key=sha256_hex)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = english_documents()
    folder = tmp_path_factory.mktemp("data") / "datasets" / "test_byte"
    return write_dataset(folder, {"train": documents[20:], "val": documents[:20]})


def run_script(
    *argv: object,
    nproc: int = 1,
    env: dict[str, str] | None = None,
    script: Path = ROOT / "train_gpt.py",
) -> subprocess.CompletedProcess:
    """`python train_gpt.py ARGV`, or the same as `nproc` ranks, in a clean environment."""
    environment = CLEAN_ENV | {"OMP_NUM_THREADS": "1"} | (env or {})
    return run_warm([str(script), *map(str, argv)], environment, nproc)


# --- Pictures ---


@pytest.fixture(autouse=True)
def quick_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record's pictures take half a second, and only tests marked `pictures` look at them."""
    packing = sys.modules.get("eval.papers.rendering.packing")
    if packing is not None and request.node.get_closest_marker("pictures") is None:
        for name in ("loss_picture", "score_picture"):
            monkeypatch.setattr(packing, name, lambda *_: b"\x89PNG")


# --- A disk that fills up ---


@pytest.fixture
def disk_size() -> int:
    """Bytes that `tiny_disk` holds. A test file whose own files are larger overrides it."""
    return 700_000


@pytest.fixture
def tiny_disk(tmp_path: Path, disk_size: int) -> Iterator[Path]:
    """A file system of `disk_size` bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={disk_size}", "tmpfs", str(folder)]
    is_root = os.geteuid() == 0
    if not is_root or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave 4 kB free on the file system of a folder."""
    room = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(room.f_bavail * room.f_bsize - 4096))
