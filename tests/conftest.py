"""Shared fixtures: the root script as a module, and a tiny byte-level data set written without the project's own writer."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# What every test process may see of the outside: nothing that would configure a run.
CLEAN_ENV = {
    k: v
    for k, v in os.environ.items()
    if k in ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
}

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
    return [
        text for k, v in (TINY | overrides).items() for text in (f"--{k.replace('_', '-')}", str(v))
    ]


def write_shard(
    path: Path,
    tokens: np.ndarray,
    magic: int = 20240520,
    version: int = 1,
    promised: int | None = None,
) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens) if promised is None else promised
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes())


def write_dataset(folder: Path, splits: dict[str, list[bytes]]) -> Path:
    """Byte-level data set (ids = byte + 4, BOS before each document) in two train shards and one validation shard, with its manifest."""
    folder.mkdir(parents=True)
    version = hashlib.sha256(
        b"".join(d for documents in splits.values() for d in documents)
    ).hexdigest()
    manifest = {
        "format": 1,
        "name": folder.name,
        "corpus": "test",
        "version": version,
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
        tokens = np.concatenate(
            [
                np.concatenate([[1], np.frombuffer(d, np.uint8).astype(np.int64) + 4])
                for d in documents
            ]
        )
        files = []
        for i, part in enumerate(np.array_split(tokens, 2 if split == "train" else 1)):
            path = folder / f"test_{split}_{i:06d}.bin"
            write_shard(path, part)
            files.append(
                {
                    "name": path.name,
                    "tokens": len(part),
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                }
            )
        size = sum(map(len, documents))
        manifest["splits"][split] = {
            "documents": len(documents),
            "source_bytes": size,
            "tokens": len(tokens),
            "files": files,
            "xz_bytes": None,
        }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def english_documents() -> list[bytes]:
    """Real text that every Python has: the docstrings of some standard modules, paragraph by paragraph."""
    import argparse
    import decimal
    import doctest
    import turtle

    text = "\n\n".join(
        getattr(obj, "__doc__", None) or ""
        for m in (argparse, decimal, doctest, turtle)
        for obj in [m, *vars(m).values()]
    )
    return sorted(
        {p.strip().encode() for p in text.split("\n\n") if len(p.strip()) > 40},
        key=lambda d: hashlib.sha256(d).digest(),
    )


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = english_documents()
    return write_dataset(
        tmp_path_factory.mktemp("data") / "datasets" / "test_byte",
        {"train": documents[20:], "val": documents[:20]},
    )


def run_script(
    *argv: object,
    nproc: int = 1,
    env: dict[str, str] | None = None,
    script: Path = ROOT / "train_gpt.py",
) -> subprocess.CompletedProcess:
    """`python train_gpt.py ARGV`, or the same under torchrun, in a clean environment."""
    launcher = [sys.executable]
    if nproc > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}"]
    command = [*launcher, str(script), *map(str, argv)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"} | (env or {}),
    )


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 700 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        ).returncode
    ):
        pytest.skip("needs root and the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leaves 4 kB on the file system of a folder."""
    room = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(room.f_bavail * room.f_bsize - 4096))
