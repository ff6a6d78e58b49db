"""Checks of the values stated for each seed and of the aggregates over seeds."""

import math
import re
import statistics
from collections.abc import Callable, Iterator

from eval.papers.checks.report import (
    Check,
    Evidence,
    agrees,
    cannot_tell,
    cite,
    fails,
    passes,
    say,
)
from eval.papers.checks.scores import partner_loss
from eval.papers.folder import Record
from eval.papers.logs.choice import foreign, unquantised
from eval.papers.logs.log import Fact, Log, LoggedScore, Step
from eval.papers.logs.sizes import Size, sizes_of
from eval.papers.logs.values import decimals, shown_decimals

Proof = tuple[float, Fact | LoggedScore | Step | Size]  # a value and the line that states it

# Values whose JSON form may have lost trailing zeros.
SCORE_ENDINGS = ("loss", "bpb", "nats")
FACT_PREFIXES = {
    "parameters": "model.",
    "pre_quant_val_loss": "final.",
    "pre_quant_val_bpb": "final.",
}
AGGREGATE = re.compile(r"(?:train_)?(?P<field>[a-z_]+?)_(?P<kind>mean|max|min|std)")
AGGREGATE_FIRST = re.compile(r"(?P<kind>mean|max|min|std)_(?P<field>[a-z_]+)")
SIZES = ("artifact_bytes", "bytes_total")
AGGREGATE_FIELDS = {"steps": "steps", "eval_time_s": "eval_s", "eval_time": "eval_s"}
KINDS: dict[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "max": max,
    "min": min,
    "std": statistics.stdev,
}


def check_seed_results(record: Record) -> Iterator[Check]:
    """Every number that submission.json states for a seed, against that seed's log."""
    if record.submission is None:
        return
    wrong: list[Check] = []
    unproven = []
    proven = 0
    for seed, row in record.submission.seed_results.items():
        logs = _logs_of(record, seed)
        for name, value in row.model_dump(exclude_none=True).items():
            # The record's number of parameters is a question of its own.
            asked_elsewhere = name == "parameters" and not seed.isdigit()
            if asked_elsewhere or not isinstance(value, int | float):
                continue
            proofs = [logged_value(record, log, name, value) for log in logs]
            found = {log.name: proof for log, proof in zip(logs, proofs, strict=True) if proof}
            if not found:
                unproven.append(f"{name} of seed {seed}" if seed.isdigit() else name)
                continue
            proven += 1
            if not any(_is_meant(name, value, computed) for computed, _ in found.values()):
                wrong.append(_differing(record, seed, name, value, found))
    yield from wrong
    if unproven:
        yield cannot_tell("seed_results", f"in no log: {', '.join(unproven)}")
    if proven and not wrong:
        yield passes(
            "seed_results", f"{proven} stated values agree with their logs to the last digit"
        )


def _logs_of(record: Record, seed: str) -> list[Log]:
    """The seed's log; where no seed is named, the record's own logs."""
    if not seed.isdigit():
        return list(record.chosen.values())
    log = record.by_seed.get(int(seed))
    return [] if log is None else [log]


def _is_meant(name: str, value: float, computed: float) -> bool:
    """Whether a stated value is the logged one to its last digit; scores may be cut, too."""
    if not name.endswith(SCORE_ENDINGS):
        return agrees(value, computed, shown_decimals(value))
    return agrees(value, computed, decimals(value))


def _differing(
    record: Record, seed: str, name: str, value: float, found: dict[str, Proof]
) -> Check:
    """A stated value that is in no log of the seed."""
    said = ", ".join(f"{computed:.10g}" for computed, _ in found.values())
    detail = f"seed {seed}: {name} {value:.10g}, its log says {said}"
    stated = _stating_line(record, seed, name, value)
    lines = [cite(record.logs[log], line) for log, (_, line) in found.items()]
    return fails("seed_results", detail, stated, *lines)


def _stating_line(record: Record, seed: str, name: str, value: float) -> Evidence:
    """The line of submission.json with a seed's value; by the value where no seed is named."""
    if seed.isdigit():
        return say(record, name, seed)
    keys = [key for key, stated in record.stated.items() if stated == value]
    return say(record, keys[0] if keys else name)


def logged_value(record: Record, log: Log, name: str, stated: float | None = None) -> Proof | None:
    """(value, line) that a log states for a field of SeedResult; None where it states none.

    Where several lines could be meant, the one that says what is `stated` counts: a script prints
    several sizes, and several scores under names of its own.
    """
    if name in ("val_bpb", "val_loss"):
        return _scored(record, log, name, stated)
    if name in SIZES and stated is not None:
        same = sizes_of(log.lines).stating(int(stated))
        if same is not None:
            return same.bytes, same
    if name == "step_avg_ms" and log.number("result.train_s") and log.number("result.steps"):
        step_ms = 1000 * log.number("result.train_s") / log.number("result.steps")
        return step_ms, log.facts["result.steps"]
    if name in ("pre_quant_val_loss", "pre_quant_val_bpb") and not log.native:
        return _before_quantisation(log, name.removeprefix("pre_quant_"), stated)
    return _fact_of(log, name)


def _scored(record: Record, log: Log, name: str, stated: float | None) -> Proof | None:
    """The score that counts; any other one that the log ends on, if that is the stated one."""
    final = record.score(log)
    if stated is not None and not log.native:
        digits = decimals(stated)
        for score in reversed(log.scores_in_order):
            value = getattr(score, name)
            fits = value is not None and agrees(stated, value, digits)
            if fits and not (foreign(score) or unquantised(score)):
                return value, score
    if final is None or log.final is None:
        return None
    if name == "val_bpb":
        return final.val_bpb, final
    partner = partner_loss(log, final)
    return (partner.val_loss, partner) if partner else None


def _before_quantisation(log: Log, name: str, stated: float | None) -> Proof | None:
    """Public logs print the unquantised score as the last validation step, 4 decimals.

    After it some print the score of averaged weights, which are not quantised either.
    """
    for score in filter(unquantised, log.scores):
        value = getattr(score, name)
        if None not in (value, stated) and agrees(stated, value, decimals(stated)):
            return value, score
    validations = [step for step in log.steps if step.val_loss is not None]
    if not validations:
        return None
    last = validations[-1]
    value = getattr(last, name)
    return None if value is None else (value, last)


def _fact_of(log: Log, name: str) -> Proof | None:
    if name.startswith("neural_"):
        key = f"neural.{name.removeprefix('neural_')}"
    else:
        key = FACT_PREFIXES.get(name, "result.") + name
    value = log.number(key)
    return None if value is None else (value, log.facts[key])


def check_aggregates(record: Record) -> Iterator[Check]:
    """Standard deviations, means, maxima and claimed differences, recomputed from the logs."""
    submission = record.submission
    if submission is None:
        return
    spreads = {"val_bpb_std": submission.val_bpb_std, "val_loss_std": submission.val_loss_std}
    stated = {key: value for key, value in spreads.items() if value is not None}
    good = []
    for key, value in (stated | submission.stated).items():
        computed = _aggregate(record, key)
        if computed is None:
            detail = f"{key} {value:g}: nothing in the folder proves it"
            yield cannot_tell("aggregates", detail, say(record, key))
            continue
        agreement = _agreement(record, key, value, computed)
        if agreement is None:
            detail = f"{key} {value:.10g}, recomputed {computed:.10g}"
            yield fails("aggregates", detail, say(record, key))
        else:
            good.append(f"{key} {value:.10g}{agreement}")
    if good:
        yield passes("aggregates", f"recomputed: {', '.join(good)}")


def _agreement(record: Record, key: str, value: float, computed: float) -> str | None:
    """A remark, perhaps empty, where a stated aggregate agrees; None where it does not."""
    digits = shown_decimals(value)
    if agrees(value, computed, digits) or _difference_agrees(record, key, value, computed):
        return ""
    count = len(record.chosen)
    if "std" in key.split("_") and agrees(value, computed * math.sqrt((count - 1) / count), digits):
        return f" (divides by n; the sample value is {computed:.5f})"
    return None


def _aggregate(record: Record, key: str) -> float | None:
    """An aggregate by the logs, or a claimed difference by the stated baseline."""
    submission = record.submission
    base = submission.stated.get("comparison_baseline_bpb")
    if key.startswith("delta_") and base is not None:
        return _difference(record, key, base)
    match = AGGREGATE.fullmatch(key) or AGGREGATE_FIRST.fullmatch(key)
    if match is None:
        return None
    name = AGGREGATE_FIELDS.get(match["field"], match["field"])
    if not record.chosen:
        return None
    sizes = [row.artifact_bytes for row in submission.seed_results.values()]
    if name == "artifact_bytes" and all(size is None for size in sizes):
        name = "bytes_total"  # the author's word for it, as the import found out
    proofs = [logged_value(record, log, name) for log in record.chosen.values()]
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
