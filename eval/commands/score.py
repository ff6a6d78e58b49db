"""`python -m eval score`: the score of a record by code that its author did not write.

The record's script gives one loss for each token. The referee does the rest: it makes sure that
every target has a loss, counts the bytes that they stand for, adds up and divides. Exit code 1 when
the claim disagrees with this score or with the artifact, or the scorer breaks the contract, 2 for
bad input.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.papers.folder import Record, open_for_trial
from eval.papers.submission.schema import DOCS_TRACK, SeedResult
from eval.rules import CURRENT, load_rules
from eval.trial.runner.claims import (
    Repetition,
    name_given_artifact,
    other_artifact,
    repetition,
)
from eval.trial.runner.devices import DEVICES, require_device
from eval.trial.runner.python import require_python
from eval.trial.runner.scorer import RunFailed, Scorer, Stream
from eval.trial.runner.scores import (
    RunSettings,
    Score,
    make_scorer,
    open_dataset,
    out_of_time,
    stream_to_score,
)
from eval.trial.runner.waiting import Expected, waiting
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
        "--device",
        choices=DEVICES,
        default="auto",
        help="cuda insists on a GPU inside the sandbox, cpu hides it (default: what there is)",
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
    require_python(record.script)
    dataset = open_dataset(record, args.dataset)
    mechanism = choose("none" if args.no_sandbox else "auto")
    if mechanism == "none":
        print("warning: no sandbox, the submission can read and write whatever you can")
    require_device(args.device, mechanism)
    rng = np.random.default_rng()
    settings = RunSettings(rules, mechanism, rng, args.nproc, args.wall_seconds, args.device)
    whole_split = args.tokens is None
    disagreements = name_given_artifact(record) if whole_split else []
    stream, scored_bytes = stream_to_score(args.tokens, dataset, record)
    scores: dict[str, Score] = {}
    limits: list[Repetition] = []
    for seed, artifact in record.artifacts.items():
        scorer = make_scorer(record, artifact, dataset, settings)
        number = f"{len(scores) + 1} of {len(record.artifacts)}"
        what = f"scoring seed {seed} ({number}), {len(stream):,} tokens"
        with waiting(what, expected_time(record, seed, scores if whole_split else None)):
            nll, problems = losses(scorer, seed, stream)
        disagreements += problems
        if nll is None:
            continue
        score = Score(float(nll.sum()), len(nll), scored_bytes, scorer.outcomes[-1].seconds)
        scores[seed] = score
        claim = record.claim(seed) if whole_split else None
        limit = repetition(record, seed, rules, 0.0)
        if claim is not None and not limit.allows(score.val_bpb, claim.val_bpb):
            with waiting(f"scoring seed {seed} again, to see how far reruns differ", None):
                limit = repetition(record, seed, rules, rerun_noise(scorer, seed, stream, nll))
        limits.append(limit)
        print(score_line(seed, score, claim, limit), flush=True)
        if claim is not None:
            disagreements += wrong_claims(seed, score, claim, limit)
        if whole_split:
            disagreements += wrong_artifact(record, seed)
    if whole_split and args.seed is None and args.artifact is None:
        disagreements += wrong_headline(record, scores, limits)
    elif whole_split and record.submission is None:
        disagreements.append(str(record.problem))
    for text in disagreements:
        print(f"DISAGREES {text}")
    return int(bool(disagreements))


def expected_time(record: Record, seed: str, scores: dict[str, Score] | None) -> Expected | None:
    """By the last seed that was scored here, else by the record; None for another stream."""
    if scores is None:
        return None
    if scores:
        last = list(scores)[-1]
        return Expected(scores[last].seconds, f"seed {last} took")
    claim = record.claim(seed)
    if claim is None or claim.eval_s is None:
        return None
    return Expected(claim.eval_s, "on its own machine the record took")


def losses(scorer: Scorer, seed: str, stream: np.ndarray) -> tuple[np.ndarray | None, list[str]]:
    """nll float64 [N-1] nats of a stream [N], or None and what kept it from being one.

    Raises UserError when the run took too long.
    """
    try:
        (scored,) = scorer.score([Stream(stream)], f"seed {seed}")
    except RunFailed as error:
        if error.outcome.killed == WALL_CLOCK:
            raise out_of_time(error) from None
        print(f"seed:{seed} failed: {error.outcome.why()}")
        return None, [str(error)]
    problems = list(scored.problems)
    impossible = scored.impossible()
    if impossible is not None:
        problems.append(impossible)
    if scored.nll is None or problems:
        print(f"seed:{seed} contract broken: {'; '.join(problems)}")
        return None, problems
    return scored.nll, []


def rerun_noise(scorer: Scorer, seed: str, stream: np.ndarray, nll: np.ndarray) -> float:
    """How far single losses of a second run are off in the mean, as a share of the mean loss."""
    again, _ = losses(scorer, seed, stream)
    if again is None or not nll.sum() > 0:
        return 0.0
    return float(np.abs(again - nll).sum() / nll.sum())


def score_line(seed: str, score: Score, claim: SeedResult | None, limit: Repetition) -> str:
    """What the referee found and, beside it, what submission.json claims."""
    tokens = [
        f"seed:{seed}",
        f"val_bpb:{score.val_bpb:.8f}",
        f"nats:{score.nats:.6f}",
        f"tokens:{score.tokens}",
        f"bytes:{score.bytes}",
        f"seconds:{score.seconds:.2f}",
    ]
    if claim is not None:
        tokens += [
            f"claimed:{claim.val_bpb:.8f}",
            f"difference:{score.val_bpb - claim.val_bpb:+.2e}",
            f"tolerance:{limit.relative * claim.val_bpb:.1e}",
            f"({limit.why})",
        ]
    return " ".join(tokens)


def wrong_claims(seed: str, score: Score, claim: SeedResult, limit: Repetition) -> list[str]:
    """Where a seed's score, tokens or bytes are not what submission.json says."""
    wrong = []
    if not limit.allows(score.val_bpb, claim.val_bpb):
        stated = f"submission.json says {claim.val_bpb:.8f}"
        wrong.append(f"seed {seed}: val_bpb {score.val_bpb:.8f}, {stated}")
    counts = (
        ("scored_tokens", score.tokens, claim.scored_tokens),
        ("scored_bytes", score.bytes, claim.scored_bytes),
    )
    for name, counted, claimed in counts:
        if claimed is not None and claimed != counted:
            wrong.append(f"seed {seed}: {name} {counted:,}, submission.json says {claimed:,}")
    return wrong


def wrong_artifact(record: Record, seed: str) -> list[str]:
    """Where a seed's artifact is not the one that submission.json describes."""
    differences = other_artifact(record, seed)
    return [
        f"seed {seed}: {name} {found}, submission.json says {stated}"
        for name, found, stated in differences
    ]


def wrong_headline(
    record: Record, scores: dict[str, Score], limits: Sequence[Repetition]
) -> list[str]:
    """The mean over seeds against the record's val_bpb; every claimed seed must be there."""
    submission = record.submission
    if submission is None or not scores:
        return [] if record.problem is None else [record.problem]
    wrong = []
    if submission.track == DOCS_TRACK:
        wrong += [
            f"seed {seed}: claimed, but there is no artifact of it" for seed in record.missing
        ]
    mean = float(np.mean([score.val_bpb for score in scores.values()]))
    headline = submission.val_bpb
    limit = max(limits, key=lambda limit: limit.relative)
    if not record.missing and not limit.allows(mean, headline):
        found = f"mean over {len(scores)} seeds {mean:.8f}"
        wrong.append(f"{found}, submission.json says {headline:.8f}")
    print(f"mean val_bpb:{mean:.8f} seeds:{len(scores)} claimed:{headline:.8f}")
    return wrong
