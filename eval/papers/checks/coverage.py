"""Checks of the text that was scored: all of it, once, and counted in its own bytes."""

from collections.abc import Iterator

from eval.papers.checks.report import Check, cannot_tell, cite, fails, passes, say
from eval.papers.checks.scores import partner_loss
from eval.papers.folder import Record
from eval.papers.logs.log import Log
from eval.text.corpus.exports import check_fineweb_bytes


def check_implied_bytes(record: Record) -> Iterator[Check]:
    """Does the denominator of the score belong to the text that was scored?

    From the papers alone: bytes = tokens · val_loss / val_bpb / ln 2.
    """
    for name, log in record.logs.items():
        scored = log.integer("result.scored_bytes")
        if scored is None or "data.val_bytes" not in log.facts:
            yield _from_published_sizes(record, log)
            continue
        size = log.integer("data.val_bytes")
        facts = ("result.scored_bytes", "data.val_bytes")
        lines = [cite(log, log.facts[fact]) for fact in facts]
        verdict = passes if scored == size else fails
        detail = f"{name}: {scored:,} bytes in the denominator, the split has {size:,}"
        yield verdict("implied_bytes", detail, *lines)


def _from_published_sizes(record: Record, log: Log) -> Check:
    """The implied bytes against those of the published export with as many tokens."""
    name = log.path.name
    tokens = log.integer("data.val_tokens")
    if tokens is None:
        return cannot_tell("implied_bytes", f"{name}: no validation token count in the log")
    if log.ambiguous:
        return cannot_tell("implied_bytes", f"{name}: several scores could be its result")
    evidence = [cite(log, log.facts["data.val_tokens"])]
    final = partner_loss(log, log.final) if log.final else None
    if final and final.val_bpb > 0:
        loss = final.val_loss
        bpb = final.val_bpb
        evidence.append(cite(log, final))
    elif record.submission and record.submission.val_loss:
        loss = record.submission.val_loss
        bpb = record.submission.val_bpb
        evidence += [say(record, "val_loss"), say(record, "val_bpb")]
    else:
        detail = f"{name}: no loss is given beside the final bpb"
        return cannot_tell("implied_bytes", detail, *evidence)
    export, implied, complaint = check_fineweb_bytes(tokens, loss, bpb)
    if complaint is None:
        label = export.label if export else "the whole split"
        size = f"{implied / 1e6:.3f} MB"
        detail = f"{name}: {size} from {loss} nats and {bpb} bpb, as {label} has"
        return passes("implied_bytes", detail, *evidence)
    if export is None:
        return cannot_tell("implied_bytes", f"{name}: {complaint}", *evidence)
    detail = f"{name}: {complaint}, if loss and bpb are of one score at all"
    return fails("implied_bytes", detail, *evidence)
