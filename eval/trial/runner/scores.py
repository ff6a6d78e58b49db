"""A scorer for a record's artifact, and the referee's score of it."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.errors import UserError
from eval.files import DATASETS
from eval.papers.folder import Record
from eval.papers.submission.schema import DOCS_TRACK
from eval.rules import Rules
from eval.text.corpus.bytes import ByteTable
from eval.text.corpus.dataset import Dataset, Split, read_shard
from eval.text.corpus.environment import visible_environment
from eval.trial.runner.scorer import RunFailed, Scorer


def open_dataset(record: Record, given: Path | None) -> Dataset:
    """The dataset that the record was scored on, by --dataset or by the name in submission.json."""
    if given is not None:
        return Dataset(given)
    name = record.submission.data.dataset if record.submission and record.submission.data else None
    if name is None:
        raise UserError(f"{record.folder}: submission.json names no dataset; pass --dataset DIR")
    return Dataset(DATASETS / Path(name).name)


@dataclass(frozen=True)
class Score:
    """The referee's score of one stream: `nats` over `tokens` targets and `bytes` of text.

    `seconds` run from the start to the end of the scorer's last process. The report's SeedScore
    says besides of which artifact the score is and what was claimed for it; `score` has neither
    where it is given other tokens."""

    nats: float
    tokens: int
    bytes: int
    seconds: float

    @property
    def val_bpb(self) -> float:
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True)
class RunSettings:
    """How to run a scorer: rule set, mechanism of the sandbox, source of chance, ranks, seconds.

    Where `wall_seconds` is None, the rule set's limit holds. `device` is one of DEVICES."""

    rules: Rules
    mechanism: str
    rng: np.random.Generator
    nproc: int = 1
    wall_seconds: float | None = None
    device: str = "auto"


def make_scorer(record: Record, artifact: Path, dataset: Dataset, settings: RunSettings) -> Scorer:
    """A scorer with the environment that the rule set shows for this corpus.

    Raises UserError for a `wall_seconds` that is no time."""
    rules = settings.rules
    scorer = Scorer(
        record.script, artifact, dataset.vocab_size, rules, settings.mechanism, settings.rng
    )
    scorer.nproc = settings.nproc
    scorer.gpu = settings.device != "cpu"
    if settings.mechanism != "none":
        docs_track = record.submission is None or record.submission.track == DOCS_TRACK
        scorer.emptied, scorer.binds = visible_environment(dataset.manifest, docs_track, rules)
    seconds = settings.wall_seconds
    if seconds is not None:
        if not 0 < seconds < math.inf:
            raise UserError(
                f"--wall-seconds: expected a number of seconds above 0, found {seconds:g}; "
                "leave it out for the rule set's limit"
            )
        scorer.wall_seconds = seconds
    return scorer


def out_of_time(error: RunFailed) -> UserError:
    """The error for a run that the referee's own limit has ended.

    That limit says nothing about the record."""
    return UserError(
        f"{error.label}: expected a run that ends by itself, "
        f"ended it after {error.outcome.seconds:.0f} s; pass --wall-seconds"
    )


def stream_to_score(
    tokens: Path | None, dataset: Dataset, record: Record
) -> tuple[np.ndarray, int]:
    """(ids int64 [N], bytes of the scored targets): the shard `tokens` or the validation split.

    Raises UserError when that split is not the published or not the claimed one."""
    if tokens is not None:
        ids = read_shard(tokens)[0].astype(np.int64)
        if len(ids) < 2 or ids.max() >= dataset.vocab_size:
            raise UserError(
                f"{tokens}: expected at least two ids below {dataset.vocab_size}, "
                f"found {len(ids)} up to {ids.max(initial=0)}"
            )
        return ids, int(dataset.table.table_bytes(ids).sum())
    split = dataset.split("val")
    complaints = [*split.complaints, *dataset.tokenizer_complaints]
    if split.sidecar_complaint:
        complaints.append(split.sidecar_complaint)
    if complaints:
        raise UserError(
            f"{dataset.folder}: {complaints[0]}; "
            "a score on it would be of another text; build the dataset again"
        )
    stated = record.submission.data if record.submission else None
    if stated is not None and stated.version != dataset.manifest.version:
        raise UserError(
            f"{dataset.folder}: corpus version {dataset.manifest.version[:16]}…, "
            f"the record was scored on {stated.version[:16]}…; install the packages "
            "of its requirements and build the dataset again, or pass --dataset"
        )
    return split.tokens, denominator(split, dataset.table)


def denominator(split: Split, table: ByteTable) -> int:
    """Bytes that the contest divides by.

    They are the source bytes where the tokenizer is lossless (they are then decoded here), table
    bytes where it is lossy, and the sidecar's sum where a transform keeps the original bytes in
    one."""
    if split.sidecar is not None:
        return int(split.sidecar[1:].sum())
    if not table.lossy:
        return table.decoded_bytes(split.tokens)
    return int(table.table_bytes(split.tokens).sum())
