"""`python -m eval score`: the score of a record by code that its author did not write.

The record's script gives one loss for each token; that every target has one, how many bytes they stand for, the sum and the division are
the referee's. Exit code 1 when the claim disagrees with this score or with the artifact, or the scorer breaks the contract, 2 for bad input."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval import sandbox
from eval.bytes import ByteTable
from eval.dataset import Dataset, Split, read_shard
from eval.environment import visible_environment
from eval.errors import UserError
from eval.record import GIVEN, RecordFolder, open_dataset, open_record, sha256_of, tolerance
from eval.rules import CURRENT, Rules, load_rules
from eval.runner import RunFailed, Scorer, Stream
from eval.sandbox import WALL_CLOCK
from eval.schema import DOCS_TRACK, allowed_difference


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "score", help="score a record independently", description=__doc__, allow_abbrev=False
    )
    add_run_options(parser)
    parser.add_argument(
        "--tokens",
        type=Path,
        metavar="FILE",
        help="score this shard instead of the validation split; nothing is compared",
    )
    parser.set_defaults(run=run)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options that `score` and `audit` share."""
    parser.add_argument("record", type=Path, metavar="RECORD", help="record folder")
    parser.add_argument(
        "--artifact", type=Path, metavar="FILE", help="artifact, where the folder holds none"
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="only this seed's artifact (with --artifact: the seed that it belongs to)",
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        metavar="DIR",
        help="dataset folder (default: data/datasets/NAME as submission.json says)",
    )
    parser.add_argument(
        "--nproc",
        type=int,
        default=1,
        metavar="N",
        help="run the scorer on N ranks under torchrun (default 1)",
    )
    parser.add_argument(
        "--wall-seconds",
        type=float,
        metavar="S",
        help="end a run after S seconds (default: the rule set's)",
    )
    parser.add_argument(
        "--no-sandbox",
        action="store_true",
        help="run the submission unprotected; the report says so",
    )
    parser.add_argument(
        "--rules", default=CURRENT, metavar="NAME", help=f"rule set (default {CURRENT})"
    )


@dataclass(frozen=True)
class Score:
    """nats over `tokens` targets and `bytes` of text; `seconds` from the start to the end of the scorer's last process."""

    nats: float
    tokens: int
    bytes: int
    seconds: float

    @property
    def val_bpb(self) -> float:
        return self.nats / math.log(2) / self.bytes


def run(args: argparse.Namespace) -> int:
    rules = load_rules(args.rules)
    record = open_record(args.record, args.artifact, args.seed)
    dataset = open_dataset(record, args.dataset)
    mechanism = sandbox.choose("none" if args.no_sandbox else "auto")
    if mechanism == "none":
        print("warning: no sandbox, the submission can read and write whatever you can")
    disagreements = name_given_artifact(record) if args.tokens is None else []
    stream, scored_bytes = _stream(args.tokens, dataset, record)
    scores = {}
    for seed, artifact in record.artifacts.items():
        scorer = make_scorer(
            record,
            artifact,
            dataset,
            rules,
            mechanism,
            args.nproc,
            np.random.default_rng(),
            args.wall_seconds,
        )
        try:
            (scored,) = scorer.score([Stream(stream)], f"seed {seed}")
        except RunFailed as error:
            if error.outcome.killed == WALL_CLOCK:
                raise out_of_time(error) from None
            disagreements.append(str(error))
            print(f"seed:{seed} failed: {error.outcome.why()}")
            continue
        if scored.nll is None or scored.problems:
            disagreements += scored.problems
            print(f"seed:{seed} contract broken: {'; '.join(scored.problems)}")
            continue
        scores[seed] = Score(
            float(scored.nll.sum()), len(scored.nll), scored_bytes, scorer.outcomes[-1].seconds
        )
        disagreements += _print(seed, scores[seed], record, rules, compare=args.tokens is None)
        if args.tokens is None:
            disagreements += [
                f"seed {seed}: {name} {found}, submission.json says {stated}"
                for name, found, stated in other_artifact(record, seed)
            ]
    if args.tokens is None and args.seed is None and args.artifact is None:
        disagreements += _headline(record, scores, rules)
    elif args.tokens is None and record.submission is None:
        disagreements.append(str(record.problem))
    for text in disagreements:
        print(f"DISAGREES {text}")
    return int(bool(disagreements))


def make_scorer(
    record: RecordFolder,
    artifact: Path,
    dataset: Dataset,
    rules: Rules,
    mechanism: str,
    nproc: int,
    rng: np.random.Generator,
    wall_seconds: float | None,
) -> Scorer:
    """A scorer with the environment that the rule set shows for this corpus. Raises UserError for a `wall_seconds` that is no time."""
    scorer = Scorer(record.code, artifact, dataset.vocab_size, rules, mechanism, rng)
    scorer.nproc = nproc
    if mechanism != "none":
        docs_track = record.submission is None or record.submission.track == DOCS_TRACK
        scorer.emptied, scorer.binds = visible_environment(dataset.manifest, docs_track, rules)
    if wall_seconds is not None:
        if not 0 < wall_seconds < math.inf:
            raise UserError(
                f"--wall-seconds: expected a number of seconds above 0, found {wall_seconds:g}; leave it out for the rule set's limit"
            )
        scorer.wall_seconds = wall_seconds
    return scorer


def out_of_time(error: RunFailed) -> UserError:
    """The time that one run may take here is the referee's own limit, which says nothing about the record."""
    return UserError(
        f"{error.args[0].split(':')[0]}: expected a run that ends by itself, ended it after {error.outcome.seconds:.0f} s; pass --wall-seconds"
    )


def gpus_here() -> list[str]:
    """Model of each NVIDIA GPU of this machine, as its driver says."""
    texts = [
        path.read_text(errors="replace")
        for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    ]
    return [
        line.partition(":")[2].strip()
        for text in texts
        for line in text.splitlines()
        if line.startswith("Model:")
    ]


def other_hardware(record: RecordFolder, seed: str, nproc: int) -> str | None:
    """Why seconds measured here are not those that the record's track limits; None where GPU model and number are the claimed ones."""
    stated, here = record.claimed_environment(seed), gpus_here()
    if stated is None or stated.gpu is None:
        return "the record does not say on which GPU it ran"
    count = stated.world_size or stated.gpus or (record.track.gpus if record.track else None)
    if (
        len(here) < (count or 1)
        or nproc != count
        or any(name.lower() != stated.gpu.lower() for name in here)
    ):
        return f"claimed on {count or '?'} x {stated.gpu}, run as {nproc} rank{'s' * (nproc > 1)} on {len(here)} x {here[0] if here else 'no GPU'}"
    return None


def name_given_artifact(record: RecordFolder) -> list[str]:
    """Find the seed of an artifact that was passed by hand without one, by its claimed hash. Returns what disagrees: no claim has that hash.
    Raises UserError where several seeds are claimed and none with a hash."""
    if (
        GIVEN not in record.artifacts
        or record.submission is None
        or len(record.submission.seed_results) < 2
    ):
        return []
    path, stated = (
        record.artifacts[GIVEN],
        {
            c.artifact_sha256: seed
            for seed, c in record.submission.seed_results.items()
            if c.artifact_sha256
        },
    )
    if not stated:
        seeds = ", ".join(record.submission.seed_results)
        raise UserError(
            f"{path}: expected --seed with it, found seeds {seeds} without a sha256 in submission.json; say which of them it belongs to"
        )
    found = sha256_of(path)
    if found in stated:
        record.artifacts = {stated[found]: path}
        return []
    return [f"{path.name}: sha256 {found[:16]}…, submission.json states it for no seed"]


def other_artifact(record: RecordFolder, seed: str) -> list[tuple[str, str, str]]:
    """(what, found, stated) where the artifact is not the claimed one."""
    claim, path = record.claim(seed), record.artifacts[seed]
    if claim is None:
        return []
    pairs = [
        ("artifact_sha256", sha256_of(path), claim.artifact_sha256),
        ("artifact_bytes", path.stat().st_size, claim.artifact_bytes),
    ]
    return [
        (name, str(found), str(stated))
        for name, found, stated in pairs
        if stated is not None and found != stated
    ]


def _stream(tokens: Path | None, dataset: Dataset, record: RecordFolder) -> tuple[np.ndarray, int]:
    """(ids, bytes of the scored targets). Raises UserError when the validation split is not the published or not the claimed one."""
    if tokens is not None:
        ids = read_shard(tokens)[0].astype(np.int64)
        if len(ids) < 2 or ids.max() >= dataset.vocab_size:
            raise UserError(
                f"{tokens}: expected at least two ids below {dataset.vocab_size}, found {len(ids)} up to {ids.max(initial=0)}"
            )
        return ids, int(dataset.table.table_bytes(ids).sum())
    split = dataset.split("val")
    complaints = (
        split.complaints
        + dataset.tokenizer_complaints
        + [c for c in (split.sidecar_complaint,) if c]
    )
    if complaints:
        raise UserError(
            f"{dataset.folder}: {complaints[0]}; a score on it would be of another text; build the dataset again"
        )
    stated = record.submission.data if record.submission else None
    if stated is not None and stated.version != dataset.manifest.version:
        raise UserError(
            f"{dataset.folder}: corpus version {dataset.manifest.version[:16]}…, the record was scored on {stated.version[:16]}…; "
            "install the packages of its requirements and build the dataset again, or pass --dataset"
        )
    return split.tokens, denominator(split, dataset.table)


def denominator(split: Split, table: ByteTable) -> int:
    """Bytes that the contest divides by: source bytes where the tokenizer is lossless (they are then decoded here), table bytes where it is
    lossy, and the sidecar's sum where a transform keeps the original bytes in one."""
    if split.sidecar is not None:
        return int(split.sidecar[1:].sum())
    if not table.lossy:
        return table.decoded_bytes(split.tokens)
    return int(table.table_bytes(split.tokens).sum())


def _print(seed: str, score: Score, record: RecordFolder, rules: Rules, compare: bool) -> list[str]:
    line = f"seed:{seed} val_bpb:{score.val_bpb:.8f} nats:{score.nats:.6f} tokens:{score.tokens} bytes:{score.bytes} seconds:{score.seconds:.2f}"
    claim = record.claim(seed)
    wrong = []
    if compare and claim is not None:
        limit, why = tolerance(record, seed, rules)
        difference = score.val_bpb - claim.val_bpb
        line += f" claimed:{claim.val_bpb:.8f} difference:{difference:+.2e} tolerance:{limit * claim.val_bpb:.1e} ({why})"
        if abs(difference) > allowed_difference(claim.val_bpb, limit):
            wrong.append(
                f"seed {seed}: val_bpb {score.val_bpb:.8f}, submission.json says {claim.val_bpb:.8f}"
            )
        for name, counted in (("scored_tokens", score.tokens), ("scored_bytes", score.bytes)):
            stated = getattr(claim, name)
            if stated is not None and stated != counted:
                wrong.append(f"seed {seed}: {name} {counted:,}, submission.json says {stated:,}")
    print(line, flush=True)
    return wrong


def _headline(record: RecordFolder, scores: dict[str, Score], rules: Rules) -> list[str]:
    """The mean over seeds against the record's val_bpb; every claimed seed must be there."""
    if record.submission is None or not scores:
        return [] if record.problem is None else [record.problem]
    wrong = [
        f"seed {seed}: claimed, but there is no artifact of it"
        for seed in record.missing
        if record.submission.track == DOCS_TRACK
    ]
    mean = float(np.mean([s.val_bpb for s in scores.values()]))
    limit = max(tolerance(record, seed, rules)[0] for seed in scores)
    if not record.missing and abs(mean - record.submission.val_bpb) > allowed_difference(
        record.submission.val_bpb, limit
    ):
        wrong.append(
            f"mean over {len(scores)} seeds {mean:.8f}, submission.json says {record.submission.val_bpb:.8f}"
        )
    print(f"mean val_bpb:{mean:.8f} seeds:{len(scores)} claimed:{record.submission.val_bpb:.8f}")
    return wrong
