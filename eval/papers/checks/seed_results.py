"""Checks of the values stated for each seed, against that seed's log."""

import re
from collections.abc import Iterator

from eval.papers.checks.report import (
    Check,
    Evidence,
    agrees,
    cannot_tell,
    cite,
    fails,
    passes,
    say,
    shorten,
)
from eval.papers.checks.scores import partner_loss
from eval.papers.folder import LENIENT, Record
from eval.papers.logs.choice import foreign, unquantised
from eval.papers.logs.log import Fact, Log, LoggedScore, Step
from eval.papers.logs.sizes import Size, sizes_of
from eval.papers.logs.values import decimals, shown_decimals
from eval.papers.submission.schema import SeedResult

Proof = tuple[float, Fact | LoggedScore | Step | Size]  # a value and the line that states it

# Values whose JSON form may have lost trailing zeros.
SCORE_ENDINGS = ("loss", "bpb", "nats")
FACT_PREFIXES = {
    "parameters": "model.",
    "pre_quant_val_loss": "final.",
    "pre_quant_val_bpb": "final.",
}
SIZES = ("artifact_bytes", "bytes_total")
HEADLINE_FIELDS = ("val_bpb", "val_loss")
TIMES = ("train_s", "eval_s")
TIME_ERROR = 1.0  # seconds: a public time may be cut, or read at another line
STEP_TIME_ERROR = 0.005  # relative: scripts average over all steps or over those after warm-up
FEWEST_DIGITS = 5  # of a figure that may be looked for in the text of a log


def check_seed_results(record: Record) -> Iterator[Check]:
    """Every number that submission.json states for a seed, against that seed's log."""
    if record.submission is None:
        return
    wrong: list[Check] = []
    unproven = []
    proven = 0
    for seed, row in record.submission.seed_results.items():
        for name, value in _stated_values(record, seed, row):
            found = _proofs(record, seed, name, value)
            if not found:
                unproven.append(f"{name} of seed {seed}" if seed.isdigit() else name)
            elif _is_proven(record, name, value, found):
                proven += 1
            else:
                wrong.append(_differing(record, seed, name, value, found))
    yield from wrong
    if unproven:
        yield cannot_tell("seed_results", f"in no log: {', '.join(unproven)}")
    if proven and not wrong:
        yield passes(
            "seed_results", f"{proven} stated values agree with their logs to the last digit"
        )


def _stated_values(record: Record, seed: str, row: SeedResult) -> Iterator[tuple[str, float]]:
    """The numbers of a row that are no question of their own: name and value.

    The headline stands for the score of an only seed, and the parameters are the record's.
    """
    by_seed = any(
        isinstance(record.stated.get(key), dict | list) for key in ("seed_results", "seeds")
    )
    for name, value in row.model_dump(exclude_none=True).items():
        if not isinstance(value, int | float):
            continue
        of_record = record.submission.origin == "imported" and not (by_seed and seed.isdigit())
        if of_record and name in HEADLINE_FIELDS:
            continue
        if name == "parameters" and not seed.isdigit():
            continue
        yield name, value


def _proofs(record: Record, seed: str, name: str, value: float) -> dict[str, Proof]:
    """What the seed's log says, by the log's name; where no seed is named, all own logs."""
    logs = list(record.chosen.values())
    if seed.isdigit():
        log = record.by_seed.get(int(seed))
        logs = [] if log is None else [log]
    proofs = {log.name: logged_value(record, log, name, value) for log in logs}
    return {log: proof for log, proof in proofs.items() if proof is not None}


def _is_proven(record: Record, name: str, value: float, found: dict[str, Proof]) -> bool:
    """Whether a stated value is a logged one, or lies among those of several logs."""
    figures = [computed for computed, _ in found.values()]
    if record.submission.origin == "imported" and min(figures) <= value <= max(figures):
        return True
    if any(_is_meant(record, name, value, computed) for computed in figures):
        return True
    logs = [record.logs[log] for log in found]
    if name == "train_s" and record.track and value == record.track.train_seconds:
        return True  # the limit, where the logs' own clocks are judged elsewhere
    return any(_is_setting(log, name, value) or _is_printed(log, value) for log in logs)


def _is_meant(record: Record, name: str, value: float, computed: float) -> bool:
    """Whether a stated value is the logged one to its last digit.

    Public scores may be cut instead of rounded, and times of a step are averaged in several ways.
    """
    score = name.endswith(SCORE_ENDINGS)
    if agrees(value, computed, decimals(value) if score else shown_decimals(value)):
        return True
    if record.submission.origin != "imported":
        return False
    if name in TIMES:
        return abs(value - computed) < TIME_ERROR
    if name == "step_avg_ms":
        return abs(value - computed) <= STEP_TIME_ERROR * computed
    return score and abs(value - computed) <= LENIENT


def _is_setting(log: Log, name: str, value: float) -> bool:
    """Whether a time is the limit that the run was given, or the clock of one of its steps."""
    if name != "train_s" or log.native:
        return False
    clocks = [step.train_s for step in log.steps if step.train_s is not None]
    digits = shown_decimals(value)
    at_a_step = any(agrees(value, clock, digits) for clock in clocks[-2:])
    return at_a_step or value == log.number("config.max_wallclock_seconds")


def _is_printed(log: Log, value: float) -> bool:
    """Whether a figure of enough digits stands anywhere in a public log."""
    figure = f"{value:.15g}"
    if log.native or len(figure.replace(".", "").lstrip("0")) < FEWEST_DIGITS:
        return False
    whole = re.compile(rf"(?<![\d.]){re.escape(figure)}0*(?![\d])")
    return any(figure in text and whole.search(text) for _, text in log.lines)


def _differing(
    record: Record, seed: str, name: str, value: float, found: dict[str, Proof]
) -> Check:
    """A stated value that is in no log of the seed.

    An evaluation that took longer than its log's last one may be the sum of several.
    """
    said = ", ".join(f"{computed:.10g}" for computed, _ in found.values())
    whose = f"seed {seed}" if seed.isdigit() else "without a seed"
    detail = f"{whose}: {name} {value:.10g}, its log says {said}"
    stated = _stating_line(record, seed, name, value)
    lines = [cite(record.logs[log], line) for log, (_, line) in found.items()]
    longer = name == "eval_s" and value > max(computed for computed, _ in found.values())
    verdict = cannot_tell if longer and record.submission.origin == "imported" else fails
    return verdict("seed_results", detail, stated, *lines)


def _stating_line(record: Record, seed: str, name: str, value: float) -> Evidence:
    """The line of submission.json that states a value.

    Where the author's key is not ours it is found by the value.
    """
    line = say(record, name, seed) if seed.isdigit() else say(record, name)
    if line.line is not None:
        return line
    figure = f"{value:.15g}"
    for number, text in enumerate(record.json_lines, 1):
        if figure in text:
            return Evidence(file=record.json_file, line=number, text=shorten(text))
    return line


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
