"""A tiny record by hand: bytes, a uniform distribution, one behaviour changed at a time."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from eval.papers.audits.report import AuditReport
from eval.rules import load_rules
from eval.text.corpus.dataset import shard_bytes
from eval.trial.audit.audit import Options, audit_record

BOS = 1

# Enough for a scorer of 30 lines that breaks one rule everywhere.
FEW = {
    "pairs": 24,
    "tiny_pairs": 24,
    "dense_tokens": 512,
    "sweeps": 0,
    "fresh_tokens": 2000,
    "probes": 64,
}
SMALL = load_rules().profile["quick"].model_copy(update=FEW)

UNIFORM = """
import argparse, json, math, os, sys
from pathlib import Path
import numpy as np
V = 260
p = argparse.ArgumentParser()
p.add_argument("command")
p.add_argument("--artifact")
p.add_argument("--tokens", nargs="+")
p.add_argument("--out")
p.add_argument("--probes")
a = p.parse_args()
probes = json.loads(Path(a.probes).read_text()) if a.probes else {}
for path in map(Path, a.tokens):
    x = np.fromfile(path, "<u2", offset=1024)
    nll = np.full(len(x) - 1, math.log(V))
    row = np.full((len(probes.get(path.stem, [])), V), -math.log(V))
    CHANGE
    np.save(Path(a.out, path.stem + ".nll.npy"), nll)
    if path.stem in probes:
        np.save(Path(a.out, path.stem + ".probe.npy"), row)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """20 validation and 40 training documents of a few words."""
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "of", "the", "is"]
    texts = [" ".join(rng.choice(words, size=rng.integers(10, 60))) + "." for _ in range(60)]
    return write_dataset(tmp_path_factory.mktemp("tiny"), texts[:20], texts[20:])


def write_dataset(root: Path, val: list[str], train: list[str]) -> Path:
    """A dataset folder with a byte vocabulary: id = 4 + byte, BOS before each document."""
    folder = root / "datasets" / "tiny"
    folder.mkdir(parents=True)
    tokenizer = json.dumps({"vocab_size": 260}).encode()
    (folder / "bytes.json").write_bytes(tokenizer)
    version = hashlib.sha256()
    for text in (*train, *val):
        version.update(hashlib.sha256(text.encode()).digest())
    splits = {
        "train": write_split(folder, "train", train),
        "val": write_split(folder, "val", val),
    }
    described = {
        "file": "bytes.json",
        "kind": "bytes",
        "sha256": hashlib.sha256(tokenizer).hexdigest(),
        "vocab_size": 260,
        "lossless": True,
    }
    manifest = {
        "format": 1,
        "name": "tiny",
        "corpus": "tiny",
        "version": version.hexdigest(),
        "tokenizer": described,
        "splits": splits,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_split(folder: Path, name: str, texts: list[str]) -> dict[str, object]:
    """Write the one shard of a split; returns what the manifest says of it."""
    ids: list[int] = []
    for text in texts:
        ids.append(BOS)
        ids += [4 + byte for byte in text.encode()]
    raw = shard_bytes(np.array(ids))
    shard = f"tiny_{name}_000000.bin"
    (folder / shard).write_bytes(raw)
    file = {"name": shard, "tokens": len(ids), "sha256": hashlib.sha256(raw).hexdigest()}
    return {
        "documents": len(texts),
        "source_bytes": sum(len(text.encode()) for text in texts),
        "tokens": len(ids),
        "files": [file],
    }


def record(folder: Path, change: str = "pass", artifact: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "train_gpt.py").write_text(UNIFORM.replace("CHANGE", change.replace("\n", "\n    ")))
    (folder / "artifact_seed1337.bin").write_bytes(artifact)
    return folder


def judge(folder: Path, dataset: Path, *only: str, **more) -> AuditReport:
    """An audit with few streams, unless told otherwise."""
    options = {"dataset": dataset, "only": only, "random_seed": 3, "profile": SMALL}
    return audit_record(folder, Options(**(options | more)))
