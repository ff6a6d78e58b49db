"""Checks of the headline score against the logs."""

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
    fails,
    passes,
    policy,
    say,
    shorten,
)
from eval.papers.folder import LENIENT, README_FILE, Record
from eval.papers.logs.choice import FOREIGN_LABEL, common_scores, foreign, unquantised
from eval.papers.logs.log import Log, LoggedScore
from eval.papers.logs.values import decimals

SAME_BPB = 5.1e-9  # bits per byte: equal to 8 decimals
# Quotients of a result line are printed with 8 decimals, its nats with 6. Divided by the count of
# a real split, the latter is far below the 8th decimal.
QUOTIENT_ERROR = 1.1e-8
NATS_ERROR = 1e-6
LN2 = math.log(2)
MOST_COMBINATIONS = 20_000  # of one score of each log, that are held against the headline
# Bits per byte by which the loss of a headline may differ from the headline at the logs' ratio.
SAME_BY_RATIO = 5e-4
FIGURE = re.compile(r"(?<![\d.])\d\.\d{4,10}(?!\d)")
STATED_CHOICE = re.compile(r"\b(?:best|lowest|single)[ -](?:seed|run|of)\b", re.IGNORECASE)
TELLING_DECIMALS = 6  # with fewer, some mean of some logs agrees with any headline
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
    lines = _cite_all(record, scores)
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
    lines = [say(record, record.headline_key), *_cite_all(record, scores)]
    what = f"mean of {len(scores)} logs, {mean:.8f}" if len(scores) > 1 else "the log's final score"
    detail = f"val_bpb {stated} is {what} ({choice.label or 'unlabelled'})"
    if foreign(sample):
        return cannot_tell("headline", f"{detail}: a comparison, or a choice among scores", *lines)
    if unquantised(sample):
        return _unquantised_headline(record, detail, lines)
    if choice.siblings and choice.by_readme:
        return _headline_of_choice(record, lines)
    if not agrees(stated, mean):
        detail += "; the further decimals come from rounded parts"
    if record.naming:
        lines.append(_naming_line(record))
    return passes("headline", detail, *lines)


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
    lines += _cite_all(record, shipped)
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
    lines = [say(record, record.headline_key), *_cite_all(record, scores)]
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
        if FOREIGN_LABEL.search(label):
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
    """The last score under each label that several logs print, by log."""
    table: dict[str, dict[str, LoggedScore]] = {}
    for name, log in record.logs.items():
        for score in log.scores_in_order:
            table.setdefault(score.label, {})[name] = score
    return {label: scores for label, scores in table.items() if len(scores) > 1}


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
    agreeing = [
        seed
        for seed, log in present.items()
        if any(abs(score.val_bpb - rows[seed].val_bpb) <= LENIENT for score in log.scores)
    ]
    if abs(mean - record.headline) > LENIENT or len(present) == len(rows):
        return None
    if not present or len(agreeing) < len(present):
        return None
    detail = (
        f"val_bpb {record.headline} is the mean {mean:.8f} of {len(rows)} stated seeds; "
        f"the logs of {len(present)} of them are here and agree"
    )
    return cannot_tell("headline", detail, *lines)


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
    return fails("headline", detail, *lines)


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
            lines = [say(record, record.headline_key), *_cite_all(record, used)]
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


def _cite_all(record: Record, scores: dict[str, LoggedScore]) -> list[Evidence]:
    return [cite(record.logs[name], score) for name, score in scores.items()]


# --- The loss beside the headline ---


def check_headline_loss(record: Record) -> Iterator[Check]:
    """The stated loss belongs to the same score as the stated bpb."""
    scores = record.final_scores()
    if record.submission is None:
        yield cannot_tell("val_loss", "no submission.json", severity=Severity.EXPLAIN)
        return
    stated = record.submission.val_loss
    if stated is None or not scores:
        missing = "submission.json states no val_loss" if scores else "no log with a final score"
        yield cannot_tell("val_loss", missing, severity=Severity.NOTE)
        return
    own = _log_of_both(record)
    if own is not None and len(scores) > 1:
        yield passes("val_loss", f"{stated} is of {own}, whose score the headline is")
        return
    unclear = ambiguous_log(record)
    if unclear:
        detail = f"{unclear} prints several scores that could be its result"
        yield cannot_tell("val_loss", detail, say(record, "val_loss"), severity=Severity.EXPLAIN)
        return
    paired = {name: partner_loss(record.logs[name], score) for name, score in scores.items()}
    if None in paired.values():
        yield _loss_without_score(record, scores)
    else:
        yield _check_mean_loss(record, paired)


def _check_mean_loss(record: Record, paired: dict[str, LoggedScore]) -> Check:
    stated = record.submission.val_loss
    lines = [say(record, "val_loss"), *_cite_all(record, paired)]
    losses = [score.val_loss for score in paired.values()]
    mean = statistics.fmean(losses)
    imported = record.submission.origin == "imported"
    if agrees(stated, mean) or (imported and abs(stated - mean) <= LENIENT):
        several = len(losses) > 1
        what = f"is the mean of the final losses, {mean:.8f}" if several else "as logged"
        return passes("val_loss", f"{stated} {what}", *lines)
    detail = f"{stated}, but the logs' final losses average {mean:.8f}"
    bits = statistics.fmean(score.val_bpb for score in paired.values())
    if any(agrees(stated, loss) for loss in losses):
        detail = f"{stated} is one seed's loss; the mean of the final losses is {mean:.8f}"
    elif abs(stated - bits) <= LENIENT:
        detail = f"{stated} is the mean of the bits per byte, not a loss"
    else:
        label = _label_with_loss(record, stated)
        if label is not None:
            detail = f"{stated} is the loss of {label}; that of the headline is {mean:.8f}"
    return fails("val_loss", detail, *lines, severity=Severity.EXPLAIN)


def _log_of_both(record: Record) -> str | None:
    """A log that prints the stated loss with the headline: whether that one counts is another
    question.
    """
    stated = record.submission.val_loss
    if record.headline is None:
        return None
    for name, log in record.logs.items():
        for score in log.scores:
            partner = partner_loss(log, score)
            same = partner is not None and agrees(stated, partner.val_loss)
            if same and agrees(record.headline, score.val_bpb):
                return name
    return None


def _label_with_loss(record: Record, stated: float) -> str | None:
    """The name under which all logs print losses with that mean."""
    for label, scores in common_scores(list(record.chosen.values())):
        losses = [score.val_loss for score in scores]
        if None not in losses and abs(statistics.fmean(losses) - stated) <= LENIENT:
            return label
    return None


def _loss_without_score(record: Record, scores: dict[str, LoggedScore]) -> Check:
    """What the stated loss means in bits per byte, by all scores that are printed with both."""
    stated = record.submission.val_loss
    ratios = []
    for log in record.chosen.values():
        printed = [s for s in log.scores if s.val_loss is not None and s.val_bpb > 0]
        ratios += [score.val_loss / score.val_bpb for score in printed]
    lines = [say(record, "val_loss"), *_cite_all(record, scores)]
    if not ratios or record.headline is None:
        detail = f"{stated} is printed beside no final score"
        return cannot_tell("val_loss", detail, *lines, severity=Severity.EXPLAIN)
    ratio = statistics.median(ratios)
    bits = stated / ratio
    implied = f"at these logs' {ratio:.5f} nats per bpb it means {bits:.5f} bpb"
    if abs(bits - record.headline) <= SAME_BY_RATIO:
        return passes("val_loss", f"{stated} is in no log; {implied}, as the headline", *lines)
    detail = (
        f"{stated} is printed beside no final score; {implied}, the headline says {record.headline}"
    )
    return fails("val_loss", detail, *lines)


def ambiguous_log(record: Record) -> str | None:
    """The first of the record's logs that does not say which of its scores is the result."""
    for name, log in record.chosen.items():
        if log.final is not None and record.score(log) is None:
            return name
    return None


def partner_loss(log: Log, final: LoggedScore) -> LoggedScore | None:
    """The score line with a loss that belongs to the final bpb.

    It is the final one itself, or its twin with the same bpb to 8 decimals.
    """
    if final.val_loss is not None:
        return final
    for score in log.scores:
        if score.val_loss is not None and abs(score.val_bpb - final.val_bpb) < SAME_BPB:
            return score
    return None


def check_arithmetic(record: Record) -> Iterator[Check]:
    """The quotients of native result lines follow from their parts.

    And as many targets were scored as the data has.
    """
    native = {}
    for name, log in record.logs.items():
        if log.native and "result.nats" in log.facts:
            native[name] = log
    complaints = [_arithmetic_complaint(name, log) for name, log in native.items()]
    yield from (complaint for complaint in complaints if complaint is not None)
    if native and len(native) == len(record.logs) and not any(complaints):
        yield passes(
            "arithmetic",
            "loss and bpb follow from nats, tokens and bytes; every target of the split is scored",
            *(cite(log, log.facts["result.nats"]) for log in native.values()),
        )


def _arithmetic_complaint(name: str, log: Log) -> Check | None:
    line = cite(log, log.facts["result.nats"])
    nats = log.number("result.nats")
    tokens = log.integer("result.scored_tokens")
    size = log.integer("result.scored_bytes")
    stated_loss = log.number("result.val_loss")
    stated_bpb = log.number("result.val_bpb")
    if not tokens or not size or None in (nats, stated_loss, stated_bpb):
        detail = f"{name}: the result line lacks a number that can be held against the others"
        return fails("arithmetic", detail, line)
    loss = nats / tokens
    if abs(loss - stated_loss) > QUOTIENT_ERROR + NATS_ERROR / tokens:
        return fails("arithmetic", f"{name}: nats / scored_tokens is {loss:.8f}", line)
    bpb = nats / LN2 / size
    if abs(bpb - stated_bpb) > QUOTIENT_ERROR + NATS_ERROR / size:
        return fails("arithmetic", f"{name}: nats / ln 2 / scored_bytes is {bpb:.8f}", line)
    promised = log.integer("data.val_tokens")
    if promised is not None and tokens != promised - 1:
        detail = (
            f"{name}: {tokens:,} targets scored, the validation stream of {promised:,} tokens "
            f"has {promised - 1:,}"
        )
        return fails("coverage", detail, line, cite(log, log.facts["data.val_tokens"]))
    return None
