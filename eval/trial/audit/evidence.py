"""The test `evidence`: the papers agree with each other and with the referee's own score."""

from collections.abc import Sequence

import numpy as np

from eval.papers.audits.report import SeedScore
from eval.papers.checks.report import Severity
from eval.papers.checks.run import check_record
from eval.papers.folder import Record
from eval.rules import Rules, Verdict
from eval.text.corpus.dataset import Dataset
from eval.trial.audit.collector import Collector
from eval.trial.runner.claims import Repetition, other_artifact, other_versions

# Checks of the papers that count for another test.
EVIDENCE_ELSEWHERE = {
    "size": "budget",
    "bytes": "budget",
    "cap": "budget",
    "train_time": "budget",
    "eval_time": "budget",
    "implied_bytes": "bytes",
}


def judge_papers(record: Record, collectors: dict[str, Collector]) -> None:
    """The papers, by `python -m eval check`: its failed checks count here.

    What a reviewer must ask and matters of format are remarks. Those of sizes and of the log's
    clocks count as budget."""
    if record.submission is None and record.problem is not None:
        collectors["evidence"].ran_check()
        collectors["evidence"].add(
            "INVALID",
            "submission.json",
            "a record that states its results",
            record.problem,
            "evidence",
        )
        return
    for outcome in check_record(record).checks:
        into = collectors[EVIDENCE_ELSEWHERE.get(outcome.name, "evidence")]
        into.ran_check()
        if outcome.verdict is Verdict.FAIL:
            proof = f" [{outcome.evidence[0]}]" if outcome.evidence else ""
            refuted = outcome.severity is Severity.BLOCKING
            into.add(
                Verdict.INVALID if refuted else Verdict.WARN,
                f"check {outcome.name}",
                "agreement",
                outcome.detail + proof,
                "submission.json, README, logs, code and artifacts agree",
            )


def judge_given_artifact(complaints: Sequence[str], into: Collector) -> None:
    """An artifact passed by hand is one of the claimed ones."""
    for complaint in complaints:
        into.add(
            "INVALID",
            "artifact",
            "one of the claimed artifacts",
            complaint,
            "the audited artifact is the claimed one",
        )


def judge_artifact(record: Record, seed: str, into: Collector) -> None:
    """Bytes and hash of an artifact against the claim."""
    for name, found, stated in other_artifact(record, seed):
        into.add(
            "INVALID",
            f"{name} of seed {seed}",
            stated,
            found,
            "the audited artifact is the claimed one",
        )


def judge_score(
    record: Record, score: SeedScore, dataset: Dataset, limit: Repetition, into: Collector
) -> None:
    """The referee's score of one seed against the claim."""
    seed = score.seed
    claim = record.claim(seed)
    if claim is None:
        into.skip("no claim to compare with" if record.problem is None else record.problem)
        return
    into.ran_check()
    into.tolerance = f"{limit.relative:.3g} of val_bpb"
    into.tolerance_source = f"{limit.why}; bounds by the rule set, see its comments"
    difference = abs(score.val_bpb - claim.val_bpb)
    into.figure("largest_difference_from_claimed_bpb", difference)
    data = record.submission.data if record.submission else None
    if data is not None and data.version != dataset.manifest.version:
        into.skip("scored on another corpus version than claimed, so not compared")
        return
    if limit.allows(score.val_bpb, claim.val_bpb):
        return
    found = f"{score.val_bpb:.8f}"
    expected = f"{claim.val_bpb:.8f} ± {limit.relative * claim.val_bpb:.1e} ({limit.why})"
    needed = other_versions(record, seed)
    if needed is not None:
        into.leave(f"seed {seed}: expected {expected}, found {found}; {needed}")
        return
    into.add("INVALID", f"val_bpb of seed {seed}", expected, found, "the claim repeats")


def judge_headline(
    record: Record,
    scores: Sequence[SeedScore],
    dataset: Dataset,
    rules: Rules,
    limits: Sequence[Repetition],
    into: Collector,
) -> None:
    """The mean over all claimed seeds against the record's val_bpb; `limits` are the scores'."""
    submission = record.submission
    if submission is None:
        return
    commits_artifacts = record.track is not None and record.track.commits_artifacts
    if rules.policy.require_all_seeds and record.missing and commits_artifacts:
        into.add(
            "INVALID",
            "artifacts",
            f"one for each claimed seed {submission.seeds}",
            f"none for {', '.join(record.missing)}",
            "all seeds are counted",
        )
    data = submission.data
    if data is not None and data.version != dataset.manifest.version:
        return  # `judge_score` has said so
    if not scores or record.missing:
        return
    if len(scores) != len(submission.seeds):
        into.skip(f"the headline, with {len(scores)} of {len(submission.seeds)} seeds scored")
        return
    mean = float(np.mean([s.val_bpb for s in scores]))
    limit = max(limits, key=lambda limit: limit.relative)
    if not limit.allows(mean, submission.val_bpb):
        into.add(
            "INVALID",
            "headline val_bpb",
            f"{mean:.8f}, the mean over {len(scores)} seeds",
            f"{submission.val_bpb:.8f}",
            "all seeds are counted",
        )
