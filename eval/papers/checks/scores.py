"""Checks of the loss beside the headline, and of the quotients of native result lines."""

import math
import statistics
from collections.abc import Iterator

from eval.papers.checks.report import (
    Check,
    Severity,
    agrees,
    cannot_tell,
    cite,
    cite_scores,
    fails,
    passes,
    say,
)
from eval.papers.folder import LENIENT, Record
from eval.papers.logs.choice import common_scores
from eval.papers.logs.log import Log, LoggedScore

SAME_BPB = 5.1e-9  # bits per byte: equal to 8 decimals
# Quotients of a result line are printed with 8 decimals, its nats with 6. Divided by the count of
# a real split, the latter is far below the 8th decimal.
QUOTIENT_ERROR = 1.1e-8
NATS_ERROR = 1e-6
LN2 = math.log(2)
# Bits per byte by which the loss of a headline may differ from the headline at the logs' ratio.
SAME_BY_RATIO = 5e-4


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
    lines = [say(record, "val_loss"), *cite_scores(record, paired)]
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
    lines = [say(record, "val_loss"), *cite_scores(record, scores)]
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
