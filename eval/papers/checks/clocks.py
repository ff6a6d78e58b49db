"""Checks of training and evaluation time against the track's limits."""

from collections.abc import Callable, Iterable

from eval.papers.checks.report import Check, Evidence, cannot_tell, cite, fails, passes, shorten
from eval.papers.folder import Record
from eval.papers.logs.log import Log
from eval.papers.logs.proof import other_machine
from eval.papers.submission.schema import TRACKS


def check_training_time(record: Record) -> Iterable[Check]:
    yield from _check_clock(
        record, "train_time", "train_seconds", "result.train_s", "export", _one_step
    )


def check_eval_time(record: Record) -> Iterable[Check]:
    yield from _check_clock(
        record, "eval_time", "eval_seconds", "result.eval_s", "eval", lambda log: 0.0
    )


def _one_step(log: Log) -> float:
    steps = log.number("result.steps")
    return log.number("result.train_s") / steps if steps else 0.0


def _check_clock(
    record: Record, name: str, budget: str, fact: str, stage: str, slack: Callable[[Log], float]
) -> Iterable[Check]:
    """The log's own clock against the limit, and what the log times outside that clock: whether that counts is a rule, not a measurement."""
    limit = getattr(TRACKS[record.track_name], budget) if record.track_name in TRACKS else None
    if record.track_name is None:
        yield cannot_tell(name, "no track stated, so no limit is known")
        return
    if limit is None:
        yield passes(name, f"{record.track_name} has no limit")
        return
    fine, evidence = [], []
    for file, log in record.logs.items():
        spent = log.number(fact)
        if spent is None:
            yield cannot_tell(name, f"{file} states none")
            continue
        line = cite(log, log.facts[fact])
        # Validation between training and export changes no weights; the final score's own time is the evaluation clock itself.
        validations = {score.line for score in log.scores}
        inside = validations if stage == "export" else {log.facts[fact].line}
        outside = [p for p in log.phases if p.stage == stage and p.line not in inside]
        total = spent + sum(p.seconds for p in outside)
        if spent > limit + slack(log):
            yield fails(
                name,
                f"{file}: {spent:.3f} s, limit {limit:.0f} s"
                + (" + one step" if stage == "export" else ""),
                line,
            )
        elif stage == "export" and log.resumes:
            steps = ", ".join(
                " ".join([resume.value, *(f"({change})" for change in other_machine(log, resume))])
                for resume in log.resumes
            )
            detail = f"{file}: {spent:.1f} s of {limit:.0f} s, but interrupted and resumed at step {steps}: its clock leaves out the work that was lost"
            yield cannot_tell(name, detail, line, *(cite(log, resume) for resume in log.resumes))
        elif total > limit + slack(log):
            detail = f"{file}: {spent:.1f} s of {limit:.0f} s on its clock, {total:.1f} s with the phases that it leaves out; what counts is a rule"
            yield cannot_tell(
                name,
                detail,
                line,
                *(Evidence(file=file, line=p.line, text=shorten(p.text)) for p in outside),
            )
        else:
            fine.append(f"{spent:.1f}")
            evidence.append(line)
    if len(fine) == len(record.logs):
        yield passes(
            name, f"{', '.join(fine)} s of {limit:.0f} s, other timed phases included", *evidence
        )
