"""Check of the number of seeds: whether they can show an improvement at the contest's level."""

import math
import re
import statistics
from collections.abc import Iterator

from eval.papers.checks.report import (
    Check,
    Evidence,
    Severity,
    cannot_tell,
    cite,
    fails,
    passes,
    say,
)
from eval.papers.folder import CONTEST_TRACK, Record
from eval.papers.logs.log import LoggedScore

# Upper 1 % points of Student's distribution by degrees of freedom.
CRITICAL_T = {1: 31.8205, 2: 6.9646, 3: 4.5407, 4: 3.7469, 5: 3.3649, 6: 3.1427, 7: 2.9980}
CRITICAL_LEVEL = 0.01
USUAL_SEEDS = 3  # the contest: most often an average over 3 training runs is sufficient
BASELINE_KEY = re.compile(
    r"(?:comparison_)?baseline(?:_val)?_bpb|(?:prev(?:ious)?_)?sota(?:_val)?_bpb"
)
CLAIM_KEY = re.compile(r"p_?val(?:ue)?|t_stat(?:istic)?|welch_\w+")


def check_enough_seeds(record: Record) -> Iterator[Check]:
    """Whether the record's seeds can show an improvement at the contest's level.

    Against a fixed score, which is the most favourable test: against another record's seeds their
    spread comes on top.
    """
    scores = record.final_scores()
    if record.track_name != CONTEST_TRACK or not scores:
        return
    claims = [say(record, key) for key in record.stated if CLAIM_KEY.fullmatch(key)]
    lines = [cite(record.logs[name], score) for name, score in scores.items()]
    count = len(scores)
    if count < USUAL_SEEDS:
        severity = Severity.BLOCKING if claims and count < 2 else Severity.EXPLAIN
        detail = f"{count} seed(s); the contest asks for enough to show p < {CRITICAL_LEVEL}"
        if count > 1:
            detail += f", here a gain of {_smallest_gain(scores):.5f} bpb over a fixed score"
        yield cannot_tell("enough_seeds", detail, *claims, *lines, severity=severity)
        return
    if count - 1 in CRITICAL_T:
        yield _against_stated_baseline(record, scores, [*claims, *lines])
    else:
        yield passes("enough_seeds", f"{count} seeds", *lines)


def _smallest_gain(scores: dict[str, LoggedScore]) -> float:
    """Bits per byte by which the mean has to beat a fixed score, for the contest's level."""
    bits = [score.val_bpb for score in scores.values()]
    return CRITICAL_T[len(bits) - 1] * statistics.stdev(bits) / math.sqrt(len(bits))


def _against_stated_baseline(
    record: Record, scores: dict[str, LoggedScore], lines: list[Evidence]
) -> Check:
    """FAIL where a gain that is called significant is not, even over a fixed score."""
    smallest = _smallest_gain(scores)
    detail = (
        f"{len(scores)} seeds: a gain of {smallest:.5f} bpb over a fixed score has "
        f"p < {CRITICAL_LEVEL}"
    )
    mean = statistics.fmean(score.val_bpb for score in scores.values())
    claimed = any(CLAIM_KEY.fullmatch(key) for key in record.stated)
    for key, baseline in record.stated.items():
        if not BASELINE_KEY.fullmatch(key) or not isinstance(baseline, float):
            continue
        gain = baseline - mean
        detail += f"; the stated gain is {gain:.5f}"
        if claimed and gain < smallest:
            return fails("enough_seeds", f"{detail}, yet called significant", *lines)
        break
    return passes("enough_seeds", detail, *lines)
