"""Is one experiment better than another? By the scores of their seeds."""

from collections.abc import Mapping
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of one experiment minus that of the base, with its confidence interval.

    `low`, `high` and `p` (two-sided) are None where nothing can be tested; `test` says why, or
    which test it was.
    """

    mean: float
    test: str
    low: float | None = None
    high: float | None = None
    p: float | None = None


def difference(base: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """From scores by seed; None where a side has none.

    Seeds that both have are compared in pairs (Student's t test of the differences): a seed decides
    initial weights and the order of batches, so a pair shares that luck. With fewer than two such
    seeds, Welch's t test of the two means.
    """
    from scipy import stats

    shared = sorted(base.keys() & other.keys())
    if len(shared) >= 2:
        ours = [other[seed] for seed in shared]
        theirs = [base[seed] for seed in shared]
        mean = sum(ours) / len(shared) - sum(theirs) / len(shared)
        gaps = {round(a - b, 12) for a, b in zip(ours, theirs, strict=True)}
        if len(gaps) == 1:
            return Difference(mean, "no test: every seed differs alike")
        found = stats.ttest_rel(ours, theirs)
        test = f"paired t, {len(shared)} seeds"
    elif base and other:
        ours = list(other.values())
        theirs = list(base.values())
        mean = sum(ours) / len(ours) - sum(theirs) / len(theirs)
        if len(ours) < 2 or len(theirs) < 2:
            return Difference(mean, "no test: one seed")
        if len(set(ours)) == len(set(theirs)) == 1:
            return Difference(mean, "no test: no spread")
        found = stats.ttest_ind(ours, theirs, equal_var=False)
        test = f"Welch t, {len(ours)} and {len(theirs)} seeds"
    else:
        return None
    interval = found.confidence_interval(CONFIDENCE)
    return Difference(mean, test, float(interval.low), float(interval.high), float(found.pvalue))
