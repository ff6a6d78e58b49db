"""Checks of training and evaluation time against the track's limits."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from eval.papers.checks.report import Check, Evidence, cannot_tell, cite, fails, passes, shorten
from eval.papers.folder import Record
from eval.papers.logs.log import Log, Phase
from eval.papers.logs.proof import other_machine
from eval.papers.submission.schema import TRACKS, Track


@dataclass(frozen=True)
class Clock:
    """One of the two clocks of a track. All times in seconds.

    `fact` is the log's own reading. Phases of `stage` lie outside it; whether they count is a
    rule, not a measurement. A run may exceed the limit by `slack`.
    """

    name: str
    fact: str
    stage: str
    limit: Callable[[Track], float | None]
    slack: Callable[[Log], float]
    slack_text: str


def _one_step(log: Log) -> float:
    steps = log.number("result.steps")
    return log.number("result.train_s") / steps if steps else 0.0


TRAINING = Clock(
    name="train_time",
    fact="result.train_s",
    stage="export",
    limit=lambda track: track.train_seconds,
    slack=_one_step,
    slack_text=" + one step",
)
EVALUATION = Clock(
    name="eval_time",
    fact="result.eval_s",
    stage="eval",
    limit=lambda track: track.eval_seconds,
    slack=lambda log: 0.0,
    slack_text="",
)


def check_training_time(record: Record) -> Iterator[Check]:
    yield from _check_clock(record, TRAINING)


def check_eval_time(record: Record) -> Iterator[Check]:
    yield from _check_clock(record, EVALUATION)


def _check_clock(record: Record, clock: Clock) -> Iterator[Check]:
    """Each log's own clock against the limit, and what the log times outside that clock."""
    if record.track_name is None:
        yield cannot_tell(clock.name, "no track stated, so no limit is known")
        return
    track = TRACKS.get(record.track_name)
    limit = clock.limit(track) if track else None
    if limit is None:
        yield passes(clock.name, f"{record.track_name} has no limit")
        return
    complaints = {name: _complaint(clock, limit, log) for name, log in record.logs.items()}
    yield from (complaint for complaint in complaints.values() if complaint is not None)
    if any(complaints.values()):
        return
    times = ", ".join(f"{log.number(clock.fact):.1f}" for log in record.logs.values())
    lines = [cite(log, log.facts[clock.fact]) for log in record.logs.values()]
    detail = f"{times} s of {limit:.0f} s, other timed phases included"
    yield passes(clock.name, detail, *lines)


def _complaint(clock: Clock, limit: float, log: Log) -> Check | None:
    """What is wrong or unclear about a log's clock; None where it keeps the limit."""
    file = log.path.name
    spent = log.number(clock.fact)
    if spent is None:
        return cannot_tell(clock.name, f"{file} states none")
    line = cite(log, log.facts[clock.fact])
    allowed = limit + clock.slack(log)
    on_clock = f"{file}: {spent:.1f} s of {limit:.0f} s"
    if spent > allowed:
        detail = f"{file}: {spent:.3f} s, limit {limit:.0f} s{clock.slack_text}"
        return fails(clock.name, detail, line)
    if clock is TRAINING and log.resumes:
        detail = (
            f"{on_clock}, but interrupted and resumed at step {_resumed_steps(log)}: "
            "its clock leaves out the work that was lost"
        )
        resumes = [cite(log, resume) for resume in log.resumes]
        return cannot_tell(clock.name, detail, line, *resumes)
    outside = _outside(clock, log)
    total = spent + sum(phase.seconds for phase in outside)
    if total > allowed:
        detail = (
            f"{on_clock} on its clock, {total:.1f} s with the phases that it leaves out; "
            "what counts is a rule"
        )
        phases = [
            Evidence(file=file, line=phase.line, text=shorten(phase.text)) for phase in outside
        ]
        return cannot_tell(clock.name, detail, line, *phases)
    return None


def _outside(clock: Clock, log: Log) -> list[Phase]:
    """Phases that the clock leaves out.

    Validation between training and export changes no weights. The final score's own time is the
    evaluation clock itself.
    """
    if clock is TRAINING:
        excepted = {score.line for score in log.scores}
    else:
        excepted = {log.facts[clock.fact].line}
    return [p for p in log.phases if p.stage == clock.stage and p.line not in excepted]


def _resumed_steps(log: Log) -> str:
    """`300 (torch 2.14.0 after 2.13.0), 400`: each step, and how the machine had changed."""
    steps = []
    for resume in log.resumes:
        changes = [f"({change})" for change in other_machine(log, resume)]
        steps.append(" ".join([resume.value, *changes]))
    return ", ".join(steps)
