"""The sound files that mutations start from, all small."""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch

import train_gpt as tg
from bench.machine import ROOT
from data.shards import write_shard
from data.tokenizer import ByteTokenizer

VOCAB = ByteTokenizer.vocab_size
SHARD = "dataset/tiny_val_000000.bin"
MANIFEST = "dataset/manifest.json"
ARTIFACT = "artifact.bin"
CHECKPOINT = "checkpoint.npz"
LOG = "train.log"
RECORD = "record"

TOKENS = {"train": 3000, "val": 500}
DOCUMENT_TOKENS = 50


def tiny_config(**changes: object) -> tg.Config:
    cfg = tg.Config().with_settings(
        vocab_size=VOCAB,
        model_dim=32,
        num_layers=2,
        num_encoder_layers=1,
        num_heads=4,
        num_kv_heads=2,
        mlp_hidden=48,
        pre_enrich_hidden=24,
        bigram_buckets=64,
        bigram_dim=8,
        xsa_layers=1,
        train_batch_tokens=256,
        train_seq_len=32,
        micro_batch_tokens=256,
        eval_seq_len=32,
        eval_stride=8,
        eval_batch_tokens=256,
    )
    return tg.validate(cfg.with_settings(**changes))


def write_sound_files(folder: Path) -> None:
    """A byte-level data set, an artifact of random weights, a checkpoint, a log and a record.

    The record is the newest committed one, with one seed's log. The log is that of a run which was
    interrupted.
    """
    write_dataset(folder / "dataset")
    torch.manual_seed(0)
    cfg = tiny_config()
    packed = tg.pack(tg.GPT(cfg.model), cfg, "0" * 64)
    (folder / ARTIFACT).write_bytes(packed.data)
    copy_record(folder / RECORD)
    write_interrupted_log(folder / RECORD / "train_seed1337.log", folder / LOG)
    write_checkpoint(folder / CHECKPOINT, folder / "run")


def write_dataset(folder: Path) -> None:
    folder.mkdir()
    (folder / "bytes.json").write_bytes(ByteTokenizer.model)
    rng = np.random.default_rng(0)
    splits = {split: write_split(folder, split, count, rng) for split, count in TOKENS.items()}
    manifest = {
        "format": 1,
        "name": "tiny",
        "corpus": "test",
        "version": "0" * 64,
        "version_rule": "documents",
        "provenance": {},
        "splits": splits,
        "tokenizer": {
            "file": "bytes.json",
            "kind": "bytes",
            "vocab_size": VOCAB,
            "lossless": True,
            "sha256": hashlib.sha256(ByteTokenizer.model).hexdigest(),
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write_split(folder: Path, split: str, count: int, rng: np.random.Generator) -> dict:
    """One shard of random bytes; the split's entry in the manifest."""
    tokens = rng.integers(4, VOCAB, count).astype(np.uint16)
    tokens[::DOCUMENT_TOKENS] = tg.BOS_ID
    path = folder / f"tiny_{split}_000000.bin"
    write_shard(path, [tokens])
    held = int((tokens >= 4).sum())
    return {
        "documents": count // DOCUMENT_TOKENS,
        "source_bytes": held,
        "counted_bytes": held,
        "tokens": count,
        "files": [{"name": path.name, "tokens": count, "sha256": tg.sha256_file(path)}],
    }


def copy_record(target: Path) -> None:
    newest = sorted((ROOT / "records/track_docs_cpu").glob("*_ema-ngram"))[-1]
    left_out = shutil.ignore_patterns("*.png", "train_seed[!1]*", "artifact*")
    shutil.copytree(newest, target, ignore=left_out)


def write_interrupted_log(whole: Path, target: Path) -> None:
    """The log of a run that went on from a checkpoint before step 100."""
    head, step, tail = whole.read_bytes().rpartition(b"\nstep:100/")
    environment = tg.environment_line(tg.Ranks())
    resume = f"\nresume step:80 train_time:17000ms file:checkpoint_0.npz {environment}"
    target.write_bytes(head + resume.encode() + step + tail)


def log_of(run: Path) -> tg.Log:
    return tg.Log(run / "train.log")


def checkpoints_in(run: Path) -> tg.Checkpoints:
    run.mkdir(exist_ok=True)
    state = {
        "weight.0": torch.ones(8, 4),
        "adam.0.step": torch.ones(()),
        "muon.0": torch.ones(2, 3, 5),
    }
    return tg.Checkpoints("run", state, tiny_config(out=str(run)), tg.Ranks())


def write_checkpoint(target: Path, run: Path) -> None:
    checkpoints = checkpoints_in(run)
    log = log_of(run)
    log.path.write_text("log_format:1\n")
    with contextlib.redirect_stdout(None):
        checkpoints.save(tg.Checkpoint(step=1, row=32, snapshots=0, seconds=0.5), log)
    written = next(run.glob("checkpoint_*.npz"))
    written.rename(target)
