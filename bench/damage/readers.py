"""Every reader of the project, with the file that it reads and the damage that suits it."""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import data.common
import data.manifest
import data.shards
import eval.errors
import train_gpt as tg
from bench.damage import sound_files as sound
from bench.damage.mutations import (
    Mutation,
    mutate_artifact,
    mutate_bytes,
    mutate_checkpoint,
    mutate_text_or_json,
)
from eval.papers.audits.reading import read_audit
from eval.papers.checks.run import check_folder
from eval.papers.checks.showing import format_report
from eval.papers.logs.reading import parse_log
from eval.papers.submission.reading import load_submission
from eval.text.corpus.dataset import Dataset, read_shard

REFUSALS = (tg.UserError, data.common.UserError, eval.errors.UserError)


class Refusal(eval.errors.UserError):
    """What is wrong with a file, from a reader that reports instead of raising."""


class Reader(NamedTuple):
    """`read` takes a folder of sound files, one of which, `file`, is damaged."""

    file: str
    mutate: Mutation
    read: Callable[[Path], object]


def read_dataset_to_train(folder: Path) -> None:
    cfg = sound.tiny_config(data_dir=str((folder / sound.MANIFEST).parent))
    tg.open_dataset(cfg, tg.Ranks())


def read_dataset_to_judge(folder: Path) -> None:
    opened = Dataset((folder / sound.MANIFEST).parent)
    for split in ("train", "val"):
        opened.split(split).tokens.sum()


def read_artifact(folder: Path) -> None:
    tg.unpack((folder / sound.ARTIFACT).read_bytes(), sound.ARTIFACT)


def read_checkpoint(folder: Path) -> None:
    """Under the name that its bytes give it; otherwise the damage would be passed over."""
    raw = (folder / sound.CHECKPOINT).read_bytes()
    checkpoints = sound.checkpoints_in(folder / "run")
    digest = hashlib.sha256(raw).hexdigest()
    path = folder / "run" / f"checkpoint_{checkpoints.run}_000001_0000001_{digest}.npz"
    path.write_bytes(raw)
    try:
        with contextlib.redirect_stdout(None):
            checkpoints.load(sound.log_of(folder / "run"))
    finally:
        path.unlink()


def read_log(folder: Path) -> None:
    """A log lists what is wrong with it; that is its refusal."""
    problems = parse_log(folder / sound.LOG).problems
    if problems:
        raise Refusal(str(problems[0]))


class RecordReader:
    """A folder's faults become verdicts.

    Any line of the report that differs from the sound folder's, which is read first, is a refusal.
    """

    def __init__(self) -> None:
        self.sound_report: str | None = None

    def __call__(self, folder: Path) -> None:
        report = format_report(check_folder(folder / sound.RECORD, with_audit=True))
        if self.sound_report is None:
            self.sound_report = report
        if report != self.sound_report:
            raise Refusal("the report differs")


READERS = {
    "shard, train_gpt.py": Reader(
        sound.SHARD, mutate_bytes, lambda f: tg.open_shard(f / sound.SHARD, sound.VOCAB)
    ),
    "shard, data": Reader(
        sound.SHARD, mutate_bytes, lambda f: data.shards.read_shard(f / sound.SHARD).sum()
    ),
    "shard, eval": Reader(sound.SHARD, mutate_bytes, lambda f: read_shard(f / sound.SHARD)),
    "manifest, train_gpt.py": Reader(sound.MANIFEST, mutate_text_or_json, read_dataset_to_train),
    "manifest, data": Reader(
        sound.MANIFEST, mutate_text_or_json, lambda f: data.manifest.load_manifest(f / "dataset")
    ),
    "manifest, eval": Reader(sound.MANIFEST, mutate_text_or_json, read_dataset_to_judge),
    "artifact": Reader(sound.ARTIFACT, mutate_artifact, read_artifact),
    "checkpoint": Reader(sound.CHECKPOINT, mutate_checkpoint, read_checkpoint),
    "log": Reader(sound.LOG, mutate_bytes, read_log),
    "submission.json": Reader(
        f"{sound.RECORD}/submission.json",
        mutate_text_or_json,
        lambda f: load_submission(f / sound.RECORD),
    ),
    "audit.json": Reader(
        f"{sound.RECORD}/audit.json", mutate_text_or_json, lambda f: read_audit(f / sound.RECORD)
    ),
    "record folder": Reader(sound.RECORD, mutate_bytes, RecordReader()),
}
