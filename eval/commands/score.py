"""`python -m eval score`: the score of a record by code that its author did not write.

The record's script gives one loss for each token; that every target has one, how many bytes they stand for, the sum and the division are
the referee's. Exit code 1 when the claim disagrees with this score or with the artifact, or the scorer breaks the contract, 2 for bad input.
"""

import argparse
from pathlib import Path

import numpy as np

from eval.papers.folder import Record, open_for_trial
from eval.papers.submission.schema import DOCS_TRACK, allowed_difference
from eval.rules import CURRENT, Rules, load_rules
from eval.trial.runner.claims import name_given_artifact, other_artifact, tolerance
from eval.trial.runner.scorer import RunFailed, Stream
from eval.trial.runner.scores import Score, make_scorer, open_dataset, out_of_time, stream_to_score
from eval.trial.sandbox.job import WALL_CLOCK
from eval.trial.sandbox.running import choose


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser)
    parser.add_argument(
        "--tokens",
        type=Path,
        metavar="FILE",
        help="score this shard instead of the validation split; nothing is compared",
    )


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


def run(args: argparse.Namespace) -> int:
    rules = load_rules(args.rules)
    record = open_for_trial(args.record, args.artifact, args.seed)
    dataset = open_dataset(record, args.dataset)
    mechanism = choose("none" if args.no_sandbox else "auto")
    if mechanism == "none":
        print("warning: no sandbox, the submission can read and write whatever you can")
    disagreements = name_given_artifact(record) if args.tokens is None else []
    stream, scored_bytes = stream_to_score(args.tokens, dataset, record)
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


def _print(seed: str, score: Score, record: Record, rules: Rules, compare: bool) -> list[str]:
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


def _headline(record: Record, scores: dict[str, Score], rules: Rules) -> list[str]:
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
