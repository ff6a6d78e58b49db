"""Checks of the values stated for each seed and of the aggregates over seeds."""

import math
import re
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from eval.papers.checks.report import (
    Check,
    agrees,
    cannot_tell,
    cite,
    decimals,
    fails,
    passes,
    say,
    shown_decimals,
)
from eval.papers.checks.scores import partner_loss
from eval.papers.folder import Record
from eval.papers.logs.log import Fact, Log, LoggedScore


def check_seed_results(record: Record) -> Iterable[Check]:
    """Every number that submission.json states for a seed, against that seed's log."""
    if record.submission is None or not record.submission.seed_results:
        return
    wrong, unproven, count = [], [], 0
    for seed, row in record.submission.seed_results.items():
        log = _log_of(record, seed)
        for name, value in row.model_dump(exclude_none=True).items():
            if not isinstance(value, int | float):
                continue
            proof = logged_value(log, name) if log else None
            if proof is None:
                unproven.append(f"{name} of seed {seed}" if seed.isdigit() else name)
                continue
            count += 1
            computed, line = proof
            if not agrees(
                value,
                computed,
                decimals(value)
                if name.endswith(("loss", "bpb", "nats"))
                else shown_decimals(value),
            ):
                stated = (
                    say(record, name, seed)
                    if seed.isdigit()
                    else say(
                        record, next((k for k, v in record.stated.items() if v == value), name)
                    )
                )
                wrong.append(
                    (
                        f"seed {seed}: {name} {value:.10g}, its log says {computed:.10g}",
                        [stated, cite(log, line)],
                    )
                )
    for detail, evidence in wrong:
        yield fails("seed_results", detail, *evidence)
    if unproven:
        yield cannot_tell("seed_results", f"in no log: {', '.join(unproven)}")
    if count and not wrong:
        yield passes(
            "seed_results", f"{count} stated values agree with their logs to the last digit"
        )


def _log_of(record: Record, seed: str) -> Log | None:
    if seed.isdigit():
        return record.by_seed.get(int(seed))
    return next(iter(record.logs.values())) if len(record.logs) == 1 else None


def logged_value(log: Log, name: str) -> tuple[float, Fact | LoggedScore] | None:
    """(value, line) that a log states for a field of SeedResult."""
    final = log.final
    if final is None:
        return None
    if name in ("val_bpb", "val_loss") and log.ambiguous:
        return None
    if name == "val_bpb":
        return final.val_bpb, final
    if name == "val_loss":
        partner = partner_loss(log, final)
        return (partner.val_loss, partner) if partner else None
    if name == "step_avg_ms" and log.number("result.train_s") and log.number("result.steps"):
        return 1000 * log.number("result.train_s") / log.number("result.steps"), log.facts[
            "result.steps"
        ]
    if name in ("pre_quant_val_loss", "pre_quant_val_bpb") and not log.native:
        return _pre_quant(log, name.removeprefix("pre_quant_"))
    prefixes = {
        "parameters": "model.",
        "pre_quant_val_loss": "final.",
        "pre_quant_val_bpb": "final.",
    }
    prefix = "neural." if name.startswith("neural_") else prefixes.get(name, "result.")
    fact = log.facts.get(prefix + name.removeprefix("neural_"))
    value = log.number(prefix + name.removeprefix("neural_"))
    return (value, fact) if fact and value is not None else None


def _pre_quant(log: Log, name: str) -> tuple[float, Any] | None:
    """Public logs print the unquantised score as the last validation step, 4 decimals."""
    last = next((step for step in reversed(log.steps) if step.val_loss is not None), None)
    return (getattr(last, name), last) if last and getattr(last, name) is not None else None


AGGREGATE = re.compile(r"(?:train_)?(?P<field>[a-z_]+?)_(?P<kind>mean|max|min|std)")
AGGREGATE_FIELDS = {"steps": "steps", "eval_time_s": "eval_s", "eval_time": "eval_s"}

KINDS: dict[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "max": max,
    "min": min,
    "std": statistics.stdev,
}


def check_aggregates(record: Record) -> Iterable[Check]:
    """Standard deviations, means, maxima and claimed differences, recomputed from the logs."""
    if record.submission is None:
        return
    s = record.submission
    stated = {
        k: v
        for k, v in (("val_bpb_std", s.val_bpb_std), ("val_loss_std", s.val_loss_std))
        if v is not None
    } | s.stated
    good, n = [], len(record.logs)
    for key, value in stated.items():
        computed = _aggregate(record, key)
        if computed is None:
            yield cannot_tell(
                "aggregates", f"{key} {value:g}: nothing in the folder proves it", say(record, key)
            )
        elif agrees(value, computed, shown_decimals(value)) or _delta_agrees(
            record, key, value, computed
        ):
            good.append(f"{key} {value:.10g}")
        elif key.endswith("_std") and agrees(
            value, computed * math.sqrt((n - 1) / n), shown_decimals(value)
        ):
            good.append(f"{key} {value:.10g} (divides by n; the sample value is {computed:.5f})")
        else:
            yield fails(
                "aggregates", f"{key} {value:.10g}, recomputed {computed:.10g}", say(record, key)
            )
    if good:
        yield passes("aggregates", f"recomputed: {', '.join(good)}")


def _aggregate(record: Record, key: str) -> float | None:
    s = record.submission
    base = s.stated.get("comparison_baseline_bpb")
    if key.startswith("delta_") and base is not None:
        bits = s.val_bpb - base
        return (
            bits * s.val_loss / s.val_bpb
            if key.endswith("nats") and s.val_loss
            else bits
            if key.endswith("bpb")
            else None
        )
    if (match := AGGREGATE.fullmatch(key)) is None:
        return None
    name = AGGREGATE_FIELDS.get(match["field"], match["field"])
    if name == "artifact_bytes" and all(
        row.artifact_bytes is None for row in s.seed_results.values()
    ):
        name = "bytes_total"  # the author's word for it, see _settle_totals
    values = [proof[0] for log in record.logs.values() if (proof := logged_value(log, name))]
    enough = len(values) == len(record.logs) and len(values) >= (2 if match["kind"] == "std" else 1)
    return KINDS[match["kind"]](values) if enough else None


def _delta_agrees(record: Record, key: str, value: float, computed: float) -> bool:
    """Differences in nats are products of rounded figures: half a unit of the stated bpb difference is allowed to propagate."""
    bits = record.submission.stated.get("delta_vs_leaderboard_bpb")
    if not key.startswith("delta_") or bits is None or not key.endswith("nats"):
        return False
    ratio = record.submission.val_loss / record.submission.val_bpb
    return abs(value - computed) <= ratio * 0.5 * 10.0 ** -decimals(bits) + 0.5 * 10.0 ** -decimals(
        value
    )
