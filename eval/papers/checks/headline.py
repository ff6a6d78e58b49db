"""The check of the headline score against the logs."""

import itertools
import math
import re
import statistics
from collections.abc import Iterable, Iterator

from eval.papers.checks.report import (
    Check,
    Evidence,
    Severity,
    agrees,
    cannot_tell,
    cite,
    cite_scores,
    fails,
    passes,
    policy,
    say,
    shorten,
)
from eval.papers.folder import LENIENT, README_FILE, Record
from eval.papers.logs.choice import foreign, seed_of, unquantised
from eval.papers.logs.log import Log, LoggedScore
from eval.papers.logs.values import decimals

MOST_COMBINATIONS = 20_000  # of one score of each log, that are held against the headline
FIGURE = re.compile(r"(?<![\d.])\d\.\d{4,10}(?!\d)")
STATED_CHOICE = re.compile(r"\b(?:best|lowest|single)[ -](?:seed|run|of)\b", re.IGNORECASE)
TELLING_DECIMALS = 6  # with fewer, some mean of some logs agrees with any headline
FEWEST_DECIMALS = 3  # to which scores are rounded before their mean is taken
MOST_LOGS = 10  # whose subsets are tried
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".out")
LARGEST_TABLE = 2_000_000  # bytes


def check_headline(record: Record) -> Iterator[Check]:
    """The headline is the mean of what the record's logs print under one name."""
    scores = record.final_scores()
    if record.submission is None or not scores:
        yield cannot_tell("headline", "no submission.json or no log with a final score")
    elif record.headline is None:
        yield _unstated_headline(record, scores)
    elif record.choice.label is None:
        yield _unproven_headline(record, scores)
    else:
        yield _proven_headline(record)


def _unstated_headline(record: Record, scores: dict[str, LoggedScore]) -> Check:
    """No val_bpb is stated; some authors put the number under val_loss."""
    loss = record.submission.val_loss
    lines = cite_scores(record, scores)
    mean = statistics.fmean(score.val_bpb for score in scores.values())
    if loss is not None and abs(loss - mean) <= LENIENT:
        detail = f"val_loss holds the bits per byte: {loss} is the mean {mean:.8f} of the logs"
        return passes("headline", detail, say(record, "val_loss"), *lines)
    return cannot_tell("headline", "submission.json states no val_bpb", *lines)


# --- A headline that some scores have as their mean ---


def _proven_headline(record: Record) -> Check:
    choice = record.choice
    stated = record.headline
    scores = choice.scores
    sample = next(iter(scores.values()))
    mean = statistics.fmean(score.val_bpb for score in scores.values())
    lines = [say(record, record.headline_key), *cite_scores(record, scores)]
    what = f"mean of {len(scores)} logs, {mean:.8f}" if len(scores) > 1 else "the log's final score"
    detail = f"val_bpb {stated} is {what} ({choice.label or 'unlabelled'})"
    if foreign(sample):
        return cannot_tell("headline", f"{detail}: a comparison, or a choice among scores", *lines)
    if unquantised(sample):
        return _unquantised_headline(record, detail, lines)
    if choice.siblings and choice.by_readme:
        return _headline_of_choice(record, lines)
    if record.naming:
        lines.append(_naming_line(record))
    if agrees(stated, mean):
        return passes("headline", detail, *lines)
    origin = _origin_of_decimals(record, mean)
    if origin is not None:
        return passes("headline", f"{detail}, {origin}", *lines)
    return _one_of_several(record, lines) or _unexplained_decimals(record, mean, lines)


def _origin_of_decimals(record: Record, mean: float) -> str | None:
    """How a headline close to the mean of the scores came from it; None where nothing tells."""
    stated = record.headline
    scores = record.choice.scores
    shown = decimals(stated)
    logged = min(score.decimals for score in scores.values())
    if logged < shown and agrees(stated, mean, logged):
        return f"to the {logged} decimals that the logs print"
    if _is_cut(stated, mean):
        return f"cut to {shown} decimals"
    for digits in range(FEWEST_DECIMALS, max(shown, FEWEST_DECIMALS) + 1):
        rounded = statistics.fmean(round(score.val_bpb, digits) for score in scores.values())
        if agrees(stated, rounded) or _is_cut(stated, rounded):
            return f"the scores rounded to {digits} decimals"
    parts = [_stated_part(record, name, score) for name, score in scores.items()]
    if None not in parts and agrees(stated, statistics.fmean(parts)):
        return "the scores rounded as they are stated by seed"
    return None


def _is_cut(stated: float, exact: float) -> bool:
    """Whether a stated value is the exact one without its further decimals."""
    dropped = exact - stated
    return -1e-12 <= dropped < 10.0 ** -decimals(stated) - 1e-12


def _stated_part(record: Record, name: str, score: LoggedScore) -> float | None:
    """What submission.json states for the seed of a log; None unless it is the log's score."""
    row = record.submission.seed_results.get(str(seed_of(record.logs[name])))
    part = None if row is None else row.val_bpb
    same = part is not None and (agrees(part, score.val_bpb) or _is_cut(part, score.val_bpb))
    return part if same else None


def _unexplained_decimals(record: Record, mean: float, lines: list[Evidence]) -> Check:
    """A headline that is close to the mean, and neither it nor a mean of rounded scores."""
    stated = record.headline
    better = stated < mean
    detail = (
        f"val_bpb {stated} is {abs(stated - mean):.1e} {'better' if better else 'worse'} than "
        f"{mean:.8f}, the mean of the logs ({record.choice.label or 'unlabelled'}): "
        "neither cut nor made of rounded scores"
    )
    if better:
        return fails("headline", detail, *lines)
    return cannot_tell("headline", detail, *lines, severity=Severity.EXPLAIN)


def _unquantised_headline(record: Record, detail: str, lines: list[Evidence]) -> Check:
    """The weights that are shipped have another score, where the logs print one."""
    shipped = {}
    for name, log in record.chosen.items():
        own = record.choice.scores[name]
        later = [s for s in log.scores_in_order if s.line > own.line and not unquantised(s)]
        if later:
            shipped[name] = later[-1]
    if len(shipped) < len(record.chosen):
        return cannot_tell("headline", f"{detail}, before the weights were quantised", *lines)
    mean = statistics.fmean(score.val_bpb for score in shipped.values())
    lines += cite_scores(record, shipped)
    told = f"{detail}, before the weights were quantised; the artifact scores {mean:.8f}"
    verdict = policy if record.headline >= mean else fails
    return verdict("headline", told, *lines)


def _headline_of_choice(record: Record, lines: list[Evidence]) -> Check:
    """README says which of several runs the headline is of."""
    choice = record.choice
    label = choice.label
    runs = [record.logs[name] for name in (*choice.own, *choice.siblings)]
    scores = [_under(log, label) for log in runs]
    mean = statistics.fmean(score.val_bpb for score in scores)
    detail = (
        f"val_bpb {record.headline} is {', '.join(choice.own)} alone, as README says; "
        f"the mean of {len(scores)} logs is {mean:.8f}"
    )
    return policy("headline", detail, _naming_line(record), *lines)


def _under(log: Log, label: str) -> LoggedScore | None:
    """The log's last score of that label, else the one it ends on."""
    named = [score for score in log.scores_in_order if score.label == label]
    return named[-1] if named else log.final


def _naming_line(record: Record) -> Evidence:
    naming = record.naming
    return Evidence(file=README_FILE, line=naming.line, text=shorten(naming.text))


# --- A headline that is no such mean ---


def _unproven_headline(record: Record, scores: dict[str, LoggedScore]) -> Check:
    """What else the headline may be: of one log, of stated seeds, of mixed scores, or nothing."""
    stated = record.headline
    lines = [say(record, record.headline_key), *cite_scores(record, scores)]
    mean = statistics.fmean(score.val_bpb for score in scores.values())
    explained = (
        _one_of_several(record, lines)
        or _mean_of_stated_seeds(record, lines)
        or _last_validation(record, mean, lines)
        or _mixed_scores(record)
        or _printed_elsewhere(record)
    )
    if explained is not None:
        return explained
    detail = f"val_bpb {stated} is neither the mean {mean:.8f} nor any log's final score"
    return fails("headline", detail, *lines)


def _one_of_several(record: Record, lines: list[Evidence]) -> Check | None:
    """The headline is the mean of some logs alone, and others are left out."""
    stated = record.headline
    for label, scores in _scores_by_label(record).items():
        some = _some_with_mean(scores, stated)
        if some is None:
            continue
        mean = statistics.fmean(score.val_bpb for score in scores.values())
        detail = _some_alone(stated, some, scores, mean)
        line = _choice_stated(record)
        if line is not None:
            return policy("headline", f"{detail}; README says so", line, *lines)
        if foreign(scores[some[0]]):
            return cannot_tell("headline", f"{detail} ({label}: a comparison?)", *lines)
        if stated > mean and record.submission.origin == "imported":
            return policy("headline", f"{detail}, which is better", *lines)
        return fails("headline", detail, *lines)
    return None


def _some_alone(
    stated: float, some: tuple[str, ...], scores: dict[str, LoggedScore], mean: float
) -> str:
    """What is said of a headline from some of the logs; `mean` is that of all."""
    names = ", ".join(some)
    count = len(scores)
    if len(some) > 1:
        return (
            f"val_bpb {stated} is the mean of {names} alone; that of all {count} logs is {mean:.8f}"
        )
    lowest = min(score.val_bpb for score in scores.values())
    best = "the best of" if scores[some[0]].val_bpb == lowest else "one of"
    return f"val_bpb {stated} is {names} alone, {best} {count} logs; their mean is {mean:.8f}"


def _scores_by_label(record: Record) -> dict[str, dict[str, LoggedScore]]:
    """The last score under each label that several runs print, by log; own runs come first."""
    table: dict[str, dict[str, LoggedScore]] = {}
    for names in (record.chosen, record.logs):
        for name in names:
            for score in record.logs[name].scores_in_order:
                table.setdefault(score.label, {})[name] = score
        several = {label: scores for label, scores in table.items() if len(scores) > 1}
        if any(_some_with_mean(scores, record.headline) for scores in several.values()):
            return several
    return {}


def _some_with_mean(scores: dict[str, LoggedScore], stated: float) -> tuple[str, ...] | None:
    """The fewest logs that have this mean.

    Sets of several logs are tried only where both sides have enough digits to exclude chance.
    """
    exact = decimals(stated) >= TELLING_DECIMALS and len(scores) <= MOST_LOGS
    for count in range(1, len(scores) if exact else 2):
        for names in itertools.combinations(scores, count):
            mean = statistics.fmean(scores[name].val_bpb for name in names)
            precise = all(scores[name].decimals >= TELLING_DECIMALS for name in names)
            if agrees(stated, mean) and (precise or count == 1):
                return names
    return None


def _choice_stated(record: Record) -> Evidence | None:
    """The line of README that calls the headline that of the best seed or run."""
    for number, text in enumerate(record.readme.splitlines(), 1):
        figures = [float(figure) for figure in FIGURE.findall(text)]
        same = any(abs(figure - record.headline) <= LENIENT for figure in figures)
        if same and STATED_CHOICE.search(text):
            return Evidence(file=README_FILE, line=number, text=shorten(text))
    return None


def _mean_of_stated_seeds(record: Record, lines: list[Evidence]) -> Check | None:
    """The headline follows from stated seeds, and the logs that are here agree with theirs."""
    rows = {s: row for s, row in record.submission.seed_results.items() if s.isdecimal()}
    if not rows or any(row.val_bpb is None for row in rows.values()):
        return None
    mean = statistics.fmean(row.val_bpb for row in rows.values())
    logged = {seed: record.by_seed.get(int(seed)) for seed in rows}
    present = {seed: log for seed, log in logged.items() if log is not None}
    if abs(mean - record.headline) > LENIENT or len(present) == len(rows):
        return None
    agree = all(_prints(log, rows[seed].val_bpb) for seed, log in present.items())
    if not present or not agree:
        return None
    detail = (
        f"val_bpb {record.headline} is the mean {mean:.8f} of {len(rows)} stated seeds; "
        f"the logs of {len(present)} of them are here and agree"
    )
    return cannot_tell("headline", detail, *lines)


def _prints(log: Log, bits: float) -> bool:
    """Whether some score of a log is this one."""
    return any(abs(score.val_bpb - bits) <= LENIENT for score in log.scores)


def _last_validation(record: Record, mean: float, lines: list[Evidence]) -> Check | None:
    """The headline is the validation score in training, before the artifact was made."""
    last = {}
    for name, log in record.chosen.items():
        steps = [step for step in log.steps if step.val_bpb is not None]
        if not steps:
            return None
        last[name] = steps[-1]
    in_training = statistics.fmean(step.val_bpb for step in last.values())
    if not agrees(record.headline, in_training):
        return None
    lines += [cite(record.logs[name], step) for name, step in last.items()]
    detail = (
        f"val_bpb {record.headline} is the validation score in training, {in_training:.4f}, "
        f"before the weights were quantised; the artifact scores {mean:.8f}"
    )
    verdict = policy if record.headline >= mean else fails
    return verdict("headline", detail, *lines)


def _mixed_scores(record: Record) -> Check | None:
    """The headline is a mean of scores with different names: nothing tells which ones count."""
    candidates = {name: _distinct(log.scores_in_order) for name, log in record.chosen.items()}
    count = math.prod(map(len, candidates.values()))
    if count == 0 or count > MOST_COMBINATIONS:
        return None
    for combination in itertools.product(*candidates.values()):
        if agrees(record.headline, statistics.fmean(score.val_bpb for score in combination)):
            used = dict(zip(candidates, combination, strict=True))
            labels = ", ".join(f"{name} {score.label}" for name, score in used.items())
            detail = (
                f"val_bpb {record.headline} is the mean of scores that have several names: {labels}"
            )
            lines = [say(record, record.headline_key), *cite_scores(record, used)]
            return cannot_tell("headline", detail, *lines)
    return None


def _distinct(scores: Iterable[LoggedScore]) -> list[LoggedScore]:
    found: list[LoggedScore] = []
    for score in scores:
        if not any(score.same_as(other) for other in found):
            found.append(score)
    return found


def _printed_elsewhere(record: Record) -> Check | None:
    """The figure stands in a log that is read as no score, or in a table beside the logs."""
    place = next(_places(record), None)
    if place is None:
        return None
    detail = f"val_bpb {record.headline} stands in a line that is no log's final score"
    return cannot_tell("headline", detail, say(record, record.headline_key), place)


def _places(record: Record) -> Iterator[Evidence]:
    """Lines other than scores that hold the headline, the last of each file first."""
    for log in record.logs.values():
        for number, text in reversed(log.lines):
            if "bpb" in text.lower() and _holds(text, record.headline):
                yield Evidence(file=log.file, line=number, text=shorten(text))
    if decimals(record.headline) < TELLING_DECIMALS:
        return
    for name, size in record.names.items():
        table = name.lower().endswith(TABLES) and name != record.json_file and size <= LARGEST_TABLE
        if not table:
            continue
        lines = record.files.read(name).decode("utf-8", "replace").splitlines()
        for number, text in enumerate(lines, 1):
            if _holds(text, record.headline):
                yield Evidence(file=name, line=number, text=shorten(text))


def _holds(text: str, headline: float) -> bool:
    return any(agrees(headline, float(figure)) for figure in FIGURE.findall(text))
