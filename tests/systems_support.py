"""The four reference systems: loading a script, a byte-level data set, flags for small runs."""

import contextlib
import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT, english_documents, write_shard

TRACK = ROOT / "records" / "track_docs_cpu"
SCRIPTS = {
    name: TRACK / f"2026-11-24_{name}" / "train_gpt.py"
    for name in ("mini-gpt-numpy", "manual-backward-gpt1", "transformer-encoder-gpt", "wikigpt")
}
VOCAB = 260
CONTEXT = 16
# Options that go by other names or need other values than in the other scripts.
SIZES = {"mini-gpt-numpy": {"d_model": 32, "d_ff": 48, "context_len": CONTEXT}}
STEPS = {"manual-backward-gpt1": 400}  # plain SGD with a warm-up of 100 steps


def load_system(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("system_" + name.replace("-", "_"), SCRIPTS[name])
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def byte_tokens(document: bytes) -> np.ndarray:
    """BOS, then byte + 4; int64 [N]."""
    return np.concatenate([[1], np.frombuffer(document, np.uint8).astype(np.int64) + 4])


def write_split(folder: Path, split: str, documents: list[bytes]) -> dict:
    """Two shards; returns the manifest's entry."""
    tokens = np.concatenate([byte_tokens(document) for document in documents])
    files = []
    for i, shard in enumerate(np.array_split(tokens, 2)):
        path = folder / f"bytes_{split}_{i:06d}.bin"
        write_shard(path, shard)
        files.append({"name": path.name, "tokens": len(shard), "sha256": sha256(path.read_bytes())})
    return {
        "documents": len(documents),
        "source_bytes": sum(map(len, documents)),
        "tokens": len(tokens),
        "files": files,
    }


def build_dataset(folder: Path) -> Path:
    """A byte-level corpus with a tokenizer file."""
    folder.mkdir(parents=True)
    model = b"one id per byte"
    (folder / "bytes.model").write_bytes(model)
    documents = english_documents()
    manifest = {
        "format": 1,
        "name": "bytes",
        "corpus": "test",
        "version": "0" * 64,
        "tokenizer": {
            "file": "bytes.model",
            "kind": "sentencepiece",
            "sha256": sha256(model),
            "vocab_size": VOCAB,
            "lossless": True,
        },
        "splits": {
            "train": write_split(folder, "train", documents[6:]),
            "val": write_split(folder, "val", documents[:6]),
        },
        "provenance": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def flags(**options: object) -> list[str]:
    """`--n-layers 2` from `n_layers=2`."""
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def train_flags(name: str, data: Path, out: Path, **more: object) -> list[str]:
    """A few steps of a small model."""
    sizes = SIZES.get(name, {"width": 32, "context": CONTEXT})
    run = {
        "n_layers": 2,
        "n_heads": 4,
        "vocab_size": VOCAB,
        "steps": STEPS.get(name, 40),
        "batch": 16,
        "data_dir": data,
        "out": out,
    }
    return flags(**(sizes | run | more))


def score_flags(artifact: Path, tokens: list[Path], out: Path) -> list[str]:
    places = ["--artifact", artifact, "--tokens", *tokens, "--out", out]
    return ["score", *map(str, places)]


def stream(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, 130, n)


@contextlib.contextmanager
def refused(capsys: pytest.CaptureFixture, *needles: str):
    """The block exits with code 2 and one line on stderr that holds all needles."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        yield
    text = capsys.readouterr().err
    assert stop.value.code == 2, text
    assert text.startswith("error: "), text
    assert text.count("\n") == 1, text
    for needle in needles:
        assert needle in text, text
