"""Checks of the headline score against the logs."""

import math
import statistics
from collections.abc import Iterable

from eval.papers.checks.report import Check, agrees, cannot_tell, cite, fails, passes, say
from eval.papers.folder import Record
from eval.papers.logs.log import Log, LoggedScore


def check_headline(record: Record) -> Iterable[Check]:
    """The headline is the mean over the stated seeds, else over all logs: to the last digit stated, or at least to 4 decimals."""
    scores = record.final_scores()
    if record.submission is None or not scores:
        yield cannot_tell("headline", "no submission.json or no log with a final score")
        return
    stated = record.submission.val_bpb
    chosen = {
        name: s for name, s in scores.items() if record.logs[name].seed in record.submission.seeds
    } or scores
    mean = statistics.fmean(score.val_bpb for score in chosen.values())
    lines = [
        say(record, "val_bpb"),
        *(cite(record.logs[name], score) for name, score in scores.items()),
    ]
    candidates = {name: record.logs[name].candidates for name in chosen}
    if any(len(found) > 1 for found in candidates.values()) and _within(
        stated, candidates.values()
    ):
        several = "; ".join(
            f"{name} {', '.join(f'{s.val_bpb:.8f}' for s in found)}"
            for name, found in candidates.items()
            if len(found) > 1
        )
        every = [
            cite(record.logs[name], score) for name, found in candidates.items() for score in found
        ]
        yield cannot_tell(
            "headline",
            f"val_bpb {stated}: a log prints several scores that could be its result: {several}",
            lines[0],
            *every,
        )
        return
    if agrees(stated, mean):
        what = (
            f"mean of {len(chosen)} logs, {mean:.8f}"
            if len(chosen) > 1
            else "the log's final score"
        )
        yield passes("headline", f"val_bpb {stated} is {what}", *lines)
        return
    matching = [name for name, score in scores.items() if agrees(stated, score.val_bpb)]
    if matching:
        best = min(scores, key=lambda name: scores[name].val_bpb)
        choice = "the best of " if best in matching else "one of "
        detail = f"val_bpb {stated} is {matching[0]} alone, {choice}{len(scores)} logs; their mean is {mean:.8f}"
        yield fails("headline", detail, *lines)
    elif round(stated, 4) == round(mean, 4) and record.submission.origin == "imported":
        yield passes(
            "headline",
            f"val_bpb {stated} is the mean {mean:.8f} to 4 decimals; the further ones come from rounded parts",
            *lines,
        )
    else:
        yield fails(
            "headline",
            f"val_bpb {stated} is neither the mean {mean:.8f} nor any log's final score",
            *lines,
        )


def _within(stated: float, candidates: Iterable[list[LoggedScore]]) -> bool:
    """Whether some choice among the logs' candidates could have this mean."""
    low, high = (
        statistics.fmean(end(score.val_bpb for score in found) for found in candidates)
        for end in (min, max)
    )
    return low <= stated <= high or agrees(stated, low) or agrees(stated, high)


def check_headline_loss(record: Record) -> Iterable[Check]:
    """The stated loss belongs to the same score as the stated bpb."""
    stated = record.submission.val_loss if record.submission else None
    scores = record.final_scores()
    if stated is None or not scores:
        yield cannot_tell(
            "val_loss",
            "submission.json states no val_loss" if record.submission else "no submission.json",
        )
        return
    if unclear := ambiguous_log(record):
        yield cannot_tell(
            "val_loss",
            f"{unclear} prints several scores that could be its result",
            say(record, "val_loss"),
        )
        return
    paired = {name: partner_loss(record.logs[name], score) for name, score in scores.items()}
    evidence = [say(record, "val_loss")]
    if None not in paired.values():
        evidence += [cite(record.logs[name], score) for name, score in paired.items()]
        losses = [score.val_loss for score in paired.values()]
        mean = statistics.fmean(losses)
        if agrees(stated, mean):
            yield passes(
                "val_loss",
                f"{stated} is the mean of the final losses, {mean:.8f}"
                if len(losses) > 1
                else f"{stated} as logged",
                *evidence,
            )
        elif any(agrees(stated, loss) for loss in losses):
            yield fails(
                "val_loss",
                f"{stated} is one seed's loss; the mean of the final losses is {mean:.8f}",
                *evidence,
            )
        else:
            yield fails(
                "val_loss", f"{stated}, but the logs' final losses average {mean:.8f}", *evidence
            )
        return
    printed = [
        s
        for log in record.logs.values()
        for s in log.scores
        if s.val_loss is not None and s.val_bpb > 0
    ]
    evidence += [cite(record.logs[name], score) for name, score in scores.items()]
    ratio = statistics.median(s.val_loss / s.val_bpb for s in printed) if printed else None
    implied = (
        f"; at these logs' {ratio:.5f} nats per bpb it means {stated / ratio:.5f} bpb"
        if ratio
        else ""
    )
    yield fails(
        "val_loss",
        f"{stated} is printed beside no final score{implied}, the headline says {record.submission.val_bpb}",
        *evidence,
    )


def ambiguous_log(record: Record) -> str | None:
    """The first log that does not say which of its scores is the result."""
    return next((name for name, log in record.logs.items() if log.ambiguous), None)


def partner_loss(log: Log, final: LoggedScore) -> LoggedScore | None:
    """The score line with a loss that belongs to the final bpb: itself, or its twin with the same bpb to 8 decimals."""
    if final.val_loss is not None:
        return final
    return next(
        (
            s
            for s in log.scores
            if s.val_loss is not None and abs(s.val_bpb - final.val_bpb) < 5.1e-9
        ),
        None,
    )


def check_arithmetic(record: Record) -> Iterable[Check]:
    """Native result lines: the quotients follow from their parts, and as many targets and bytes were scored as the data has."""
    good = []
    for name, log in record.logs.items():
        if not log.native or "result.nats" not in log.facts:
            continue
        nats, tokens, size = (
            log.number("result.nats"),
            log.integer("result.scored_tokens"),
            log.integer("result.scored_bytes"),
        )
        line = cite(log, log.facts["result.nats"])
        # 6 decimals of nats: the quotients are good to 5e-7 / tokens, far below the 8th decimal for any real split.
        if abs(nats / tokens - log.number("result.val_loss")) > 1.1e-8 + 1e-6 / tokens:
            yield fails("arithmetic", f"{name}: nats / scored_tokens is {nats / tokens:.8f}", line)
        elif abs(nats / math.log(2) / size - log.number("result.val_bpb")) > 1.1e-8 + 1e-6 / size:
            yield fails(
                "arithmetic",
                f"{name}: nats / ln 2 / scored_bytes is {nats / math.log(2) / size:.8f}",
                line,
            )
        elif (promised := log.integer("data.val_tokens")) is not None and tokens != promised - 1:
            detail = f"{name}: {tokens:,} targets scored, the validation stream of {promised:,} tokens has {promised - 1:,}"
            yield fails("coverage", detail, line, cite(log, log.facts["data.val_tokens"]))
        else:
            good.append(line)
    if good and len(good) == len(record.logs):
        yield passes(
            "arithmetic",
            "loss and bpb follow from nats, tokens and bytes; every target of the split is scored",
            *good,
        )
