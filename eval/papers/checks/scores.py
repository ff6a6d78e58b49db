"""Checks of the headline score against the logs."""

import math
import statistics
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
)
from eval.papers.folder import Record
from eval.papers.logs.log import Log, LoggedScore

SAME_BPB = 5.1e-9  # bits per byte: equal to 8 decimals
# Quotients of a result line are printed with 8 decimals, its nats with 6. Divided by the count of
# a real split, the latter is far below the 8th decimal.
QUOTIENT_ERROR = 1.1e-8
NATS_ERROR = 1e-6
LN2 = math.log(2)


def check_headline(record: Record) -> Iterator[Check]:
    """The headline is the mean over the stated seeds, else over all logs.

    To the last digit stated, or at least to 4 decimals.
    """
    scores = record.final_scores()
    if record.submission is None or not scores:
        yield cannot_tell("headline", "no submission.json or no log with a final score")
        return
    seeds = record.submission.seeds
    of_stated_seeds = {n: score for n, score in scores.items() if record.logs[n].seed in seeds}
    chosen = of_stated_seeds or scores
    unclear = _several_results(record, list(chosen))
    yield unclear or _check_mean(record, scores, chosen)


def _several_results(record: Record, names: list[str]) -> Check | None:
    """CANNOT-TELL where logs print several scores and the headline may be the mean of some."""
    stated = record.submission.val_bpb
    candidates = {name: record.logs[name].candidates for name in names}
    several = {name: found for name, found in candidates.items() if len(found) > 1}
    if not several or not _within(stated, list(candidates.values())):
        return None
    choices = []
    for name, found in several.items():
        figures = ", ".join(f"{score.val_bpb:.8f}" for score in found)
        choices.append(f"{name} {figures}")
    lines = [say(record, "val_bpb")]
    for name, found in candidates.items():
        lines += [cite(record.logs[name], score) for score in found]
    detail = (
        f"val_bpb {stated}: a log prints several scores that could be its result: "
        f"{'; '.join(choices)}"
    )
    return cannot_tell("headline", detail, *lines)


def _within(stated: float, candidates: list[list[LoggedScore]]) -> bool:
    """Whether some choice among the logs' candidates could have this mean."""
    lowest = []
    highest = []
    for found in candidates:
        figures = [score.val_bpb for score in found]
        lowest.append(min(figures))
        highest.append(max(figures))
    low = statistics.fmean(lowest)
    high = statistics.fmean(highest)
    return low <= stated <= high or agrees(stated, low) or agrees(stated, high)


def _check_mean(
    record: Record, scores: dict[str, LoggedScore], chosen: dict[str, LoggedScore]
) -> Check:
    """The headline against the mean of the chosen logs, and against each log alone."""
    stated = record.submission.val_bpb
    mean = statistics.fmean(score.val_bpb for score in chosen.values())
    lines = [say(record, "val_bpb"), *_cite_all(record, scores)]
    if agrees(stated, mean):
        several = len(chosen) > 1
        what = f"mean of {len(chosen)} logs, {mean:.8f}" if several else "the log's final score"
        return passes("headline", f"val_bpb {stated} is {what}", *lines)
    matching = [name for name, score in scores.items() if agrees(stated, score.val_bpb)]
    if matching:
        best = min(scores, key=lambda name: scores[name].val_bpb)
        choice = "the best of " if best in matching else "one of "
        detail = (
            f"val_bpb {stated} is {matching[0]} alone, {choice}{len(scores)} logs; "
            f"their mean is {mean:.8f}"
        )
        return fails("headline", detail, *lines)
    if round(stated, 4) == round(mean, 4) and record.submission.origin == "imported":
        detail = (
            f"val_bpb {stated} is the mean {mean:.8f} to 4 decimals; "
            "the further ones come from rounded parts"
        )
        return passes("headline", detail, *lines)
    detail = f"val_bpb {stated} is neither the mean {mean:.8f} nor any log's final score"
    return fails("headline", detail, *lines)


def _cite_all(record: Record, scores: dict[str, LoggedScore]) -> list[Evidence]:
    return [cite(record.logs[name], score) for name, score in scores.items()]


def check_headline_loss(record: Record) -> Iterator[Check]:
    """The stated loss belongs to the same score as the stated bpb."""
    scores = record.final_scores()
    if record.submission is None:
        yield cannot_tell("val_loss", "no submission.json")
        return
    if record.submission.val_loss is None or not scores:
        yield cannot_tell("val_loss", "submission.json states no val_loss")
        return
    unclear = ambiguous_log(record)
    if unclear:
        detail = f"{unclear} prints several scores that could be its result"
        yield cannot_tell("val_loss", detail, say(record, "val_loss"))
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
    if agrees(stated, mean):
        several = len(losses) > 1
        what = f"is the mean of the final losses, {mean:.8f}" if several else "as logged"
        return passes("val_loss", f"{stated} {what}", *lines)
    if any(agrees(stated, loss) for loss in losses):
        detail = f"{stated} is one seed's loss; the mean of the final losses is {mean:.8f}"
    else:
        detail = f"{stated}, but the logs' final losses average {mean:.8f}"
    return fails("val_loss", detail, *lines)


def _loss_without_score(record: Record, scores: dict[str, LoggedScore]) -> Check:
    """What the stated loss means in bits per byte, by all scores that are printed with both."""
    stated = record.submission.val_loss
    ratios = []
    for log in record.logs.values():
        printed = [s for s in log.scores if s.val_loss is not None and s.val_bpb > 0]
        ratios += [score.val_loss / score.val_bpb for score in printed]
    ratio = statistics.median(ratios) if ratios else None
    implied = ""
    if ratio:
        implied = f"; at these logs' {ratio:.5f} nats per bpb it means {stated / ratio:.5f} bpb"
    detail = (
        f"{stated} is printed beside no final score{implied}, "
        f"the headline says {record.submission.val_bpb}"
    )
    return fails("val_loss", detail, say(record, "val_loss"), *_cite_all(record, scores))


def ambiguous_log(record: Record) -> str | None:
    """The first log that does not say which of its scores is the result."""
    for name, log in record.logs.items():
        if log.ambiguous:
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
