"""Checks of the aggregates over seeds: means, deviations, extremes and claimed differences."""

import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence

from eval.papers.checks.report import Check, agrees, cannot_tell, fails, passes, say
from eval.papers.checks.seed_results import STEP_TIME_ERROR, logged_value
from eval.papers.folder import LENIENT, Record
from eval.papers.logs.log import Log
from eval.papers.logs.values import decimals, shown_decimals

AGGREGATE = re.compile(r"(?:train_)?(?P<field>[a-z_]+?)_(?P<kind>mean|max|min|std)")
AGGREGATE_FIRST = re.compile(r"(?P<kind>mean|max|min|std)_(?P<field>[a-z_]+)")
AGGREGATE_FIELDS = {
    "steps": "steps",
    "eval_time_s": "eval_s",
    "eval_time": "eval_s",
    "seed": "val_bpb",
}
SCORES = ("val_bpb", "val_loss")
KINDS: dict[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "max": max,
    "min": min,
    "std": statistics.stdev,
}


def check_aggregates(record: Record) -> Iterator[Check]:
    """Standard deviations, means, maxima and claimed differences, recomputed from the logs."""
    submission = record.submission
    if submission is None:
        return
    spreads = {"val_bpb_std": submission.val_bpb_std, "val_loss_std": submission.val_loss_std}
    stated = {key: value for key, value in spreads.items() if value is not None}
    good = []
    for key, value in (stated | submission.stated).items():
        computed = [known for known in _aggregates(record, key) if known is not None]
        if not computed:
            detail = f"{key} {value:g}: nothing in the folder proves it"
            yield cannot_tell("aggregates", detail, say(record, key))
            continue
        agreements = [_agreement(record, key, value, known) for known in computed]
        agreeing = [agreement for agreement in agreements if agreement is not None]
        if agreeing:
            good.append(f"{key} {value:.10g}{agreeing[0]}")
        else:
            detail = f"{key} {value:.10g}, recomputed {computed[0]:.10g}"
            yield fails("aggregates", detail, say(record, key))
    if good:
        yield passes("aggregates", f"recomputed: {', '.join(good)}")


def _agreement(record: Record, key: str, value: float, computed: float) -> str | None:
    """A remark, perhaps empty, where a stated aggregate agrees; None where it does not."""
    digits = shown_decimals(value)
    imported = record.submission.origin == "imported"
    score = any(name in key for name in SCORES)
    allowed = 0.0
    if score:
        allowed = LENIENT
    elif "step_avg" in key:
        allowed = STEP_TIME_ERROR * abs(computed)
    if imported and abs(value - computed) <= allowed:
        return ""  # made of rounded parts
    if agrees(value, computed, digits) or _difference_agrees(record, key, value, computed):
        return ""
    count = len(record.chosen)
    if "std" in key.split("_") and agrees(value, computed * math.sqrt((count - 1) / count), digits):
        return f" (divides by n; the sample value is {computed:.5f})"
    return None


def _aggregates(record: Record, key: str) -> Iterator[float | None]:
    """What the key may mean: by the record's own logs, or with the runs that they are chosen of."""
    own = list(record.chosen.values())
    yield _aggregate(record, key, own)
    if record.choice.siblings:
        others = [record.logs[name] for name in record.choice.siblings]
        yield _aggregate(record, key, [*own, *others])


def _aggregate(record: Record, key: str, logs: Sequence[Log]) -> float | None:
    """An aggregate by logs, or a claimed difference by the stated baseline."""
    submission = record.submission
    base = submission.stated.get("comparison_baseline_bpb")
    if key.startswith("delta_") and base is not None:
        return _difference(record, key, base)
    match = AGGREGATE.fullmatch(key) or AGGREGATE_FIRST.fullmatch(key)
    if match is None:
        return None
    name = AGGREGATE_FIELDS.get(match["field"], match["field"])
    sizes = [row.artifact_bytes for row in submission.seed_results.values()]
    if name == "artifact_bytes" and all(size is None for size in sizes):
        name = "bytes_total"  # the author's word for it, as the import found out
    proofs = [logged_value(record, log, name) for log in logs]
    least = 2 if match["kind"] == "std" else 1
    if None in proofs or len(proofs) < least:
        return None
    return KINDS[match["kind"]]([value for value, _ in proofs])


def _difference(record: Record, key: str, base: float) -> float | None:
    """The headline minus a stated baseline, in bits per byte or nats per token by the key."""
    submission = record.submission
    if submission.val_bpb is None:
        return None
    bits = submission.val_bpb - base
    if key.endswith("nats") and submission.val_loss and submission.val_bpb:
        return bits * submission.val_loss / submission.val_bpb
    return bits if key.endswith("bpb") else None


def _difference_agrees(record: Record, key: str, value: float, computed: float) -> bool:
    """Differences in nats are products of rounded figures.

    Half a unit of the stated bpb difference may propagate.
    """
    bits = record.submission.stated.get("delta_vs_leaderboard_bpb")
    if not key.startswith("delta_") or bits is None or not key.endswith("nats"):
        return False
    if not record.submission.val_loss or not record.submission.val_bpb:
        return False
    ratio = record.submission.val_loss / record.submission.val_bpb
    allowed = ratio * 0.5 * 10.0 ** -decimals(bits) + 0.5 * 10.0 ** -decimals(value)
    return abs(value - computed) <= allowed
