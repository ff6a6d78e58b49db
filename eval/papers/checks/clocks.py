"""Checks of training and evaluation time against the track's limits."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from eval.papers.checks.report import (
    Check,
    Evidence,
    cannot_tell,
    cite,
    fails,
    passes,
    policy,
    shorten,
)
from eval.papers.folder import Record
from eval.papers.logs.log import Fact, Log, LoggedScore, Phase, Step
from eval.papers.logs.proof import other_machine
from eval.papers.submission.schema import TRACKS, Track

# Seconds that a clock may show beyond its limit: it is read when the host notices.
TOLERANCE = 1.0
LONGEST_STEP = 6.0  # seconds; a longer one is no excuse for a run that goes on
# Two readings of one phase: a script may time it inside and outside a function.
SAME_PHASE = 1.0  # seconds
SAME_SHARE = 0.005
COMMON_WORDS = {"final", "exact", "eval", "time", "elapsed", "done", "val", "loss", "bpb", "int"}
TOTAL_CLOCKS = ("total_eval_time", "total_eval_seconds")
# Names of phases that tell a time of evaluation and nothing else.
EVAL_CLOCKS = (*TOTAL_CLOCKS, "final_eval_time", "final_eval_seconds", "eval_time", "eval_seconds")
SAME_BPB = 5.1e-5  # bits per byte: equal to the 4 decimals that every script prints


@dataclass(frozen=True)
class Reading:
    """What a log's own clock shows, in seconds, and the line that does.

    `whole`: by its name and length it holds every phase of its kind.
    """

    seconds: float
    source: Fact | LoggedScore | Step
    whole: bool = False


@dataclass(frozen=True)
class Clock:
    """One of the two clocks of a track. All times in seconds.

    `read` finds the log's own reading. Phases of `stage` lie outside it; whether they count is a
    rule, not a measurement. A run may exceed the limit by `slack`.
    """

    name: str
    read: Callable[[Record, Log], Reading | None]
    stage: str
    limit: Callable[[Track], float | None]
    slack: Callable[[Log], float]


def _training(record: Record, log: Log) -> Reading | None:
    """The stated training time; in a public log that of a later step, if it is longer."""
    found = []
    spent = log.number("result.train_s")
    if spent is not None:
        found.append(Reading(spent, log.facts["result.train_s"]))
    if spent is None or not log.native:
        timed = [step for step in log.steps if step.train_s is not None]
        found += [Reading(step.train_s, step) for step in timed]
    return max(found, key=lambda reading: reading.seconds, default=None)


def _evaluation(record: Record, log: Log) -> Reading | None:
    """The time of the record's score, or that of all evaluations where it is longer.

    What a log calls its total may be the score's own time again, without other phases.
    """
    score = record.score(log)
    own = _score_time(log, score)
    lone = [phase for phase in log.phases if phase.name in EVAL_CLOCKS]
    if own is None and lone:
        line = score.line if score is not None else lone[-1].line
        nearest = min(lone, key=lambda phase: abs(phase.line - line))
        own = _reading_of(nearest)
    if own is None:
        return None
    totals = [phase for phase in lone if phase.name in TOTAL_CLOCKS]
    longest = max(totals, key=lambda phase: phase.seconds, default=None)
    if longest is None or longest.seconds <= own.seconds + SAME_PHASE:
        return own
    return replace(_reading_of(longest), whole=True)


def _reading_of(phase: Phase) -> Reading:
    return Reading(phase.seconds, Fact(f"{phase.seconds:g}", phase.line, phase.text))


def _score_time(log: Log, score: LoggedScore | None) -> Reading | None:
    """The time of a score, by its own line or by another with the same bpb."""
    if score is not None and not log.native:
        for other in reversed(log.scores_in_order):
            same = abs(other.val_bpb - score.val_bpb) < SAME_BPB
            if same and other.eval_s is not None:
                return Reading(other.eval_s, other)
    spent = log.number("result.eval_s")
    fact = log.facts.get("result.eval_s")
    return None if spent is None or fact is None else Reading(spent, fact)


def _one_step(log: Log) -> float:
    """A run ends with the step in which its time is up."""
    steps = log.number("result.steps")
    spent = log.number("result.train_s")
    return spent / steps if steps and spent else 0.0


TRAINING = Clock(
    name="train_time",
    read=_training,
    stage="export",
    limit=lambda track: track.train_seconds,
    slack=lambda log: max(TOLERANCE, min(_one_step(log), LONGEST_STEP)),
)
EVALUATION = Clock(
    name="eval_time",
    read=_evaluation,
    stage="eval",
    limit=lambda track: track.eval_seconds,
    slack=lambda log: TOLERANCE,
)


def check_training_time(record: Record) -> Iterator[Check]:
    yield from _check_clock(record, TRAINING)


def check_eval_time(record: Record) -> Iterator[Check]:
    yield from _check_clock(record, EVALUATION)


def _check_clock(record: Record, clock: Clock) -> Iterator[Check]:
    """Each own log's clock against the limit, and what the log times outside that clock."""
    track = TRACKS.get(record.track_name)
    if track is None:
        yield cannot_tell(clock.name, "no known track, so no limit is known")
        return
    limit = clock.limit(track)
    if limit is None:
        yield passes(clock.name, f"{record.track_name} has no limit")
        return
    if not record.chosen:
        yield cannot_tell(clock.name, "no log states a time")
        return
    found = {name: clock.read(record, log) for name, log in record.chosen.items()}
    silent = [name for name, reading in found.items() if reading is None]
    readings = {name: reading for name, reading in found.items() if reading is not None}
    if silent:
        yield cannot_tell(clock.name, f"none stated by {', '.join(silent)}")
    complaints = []
    for name, reading in readings.items():
        complaints.append(_complaint(clock, limit, name, record.chosen[name], reading))
    yield from (complaint for complaint in complaints if complaint is not None)
    if silent or any(complaints):
        return
    longest = max(reading.seconds for reading in readings.values())
    several = len(readings) > 1
    time = f"at most {longest:.1f}" if several else f"{longest:.1f}"
    logs = f" in {len(readings)} logs" if several else ""
    lines = [cite(record.chosen[name], reading.source) for name, reading in readings.items()]
    detail = f"{time} s of {limit:.0f} s{logs}"
    yield passes(clock.name, detail, *lines)


def _complaint(clock: Clock, limit: float, name: str, log: Log, reading: Reading) -> Check | None:
    """What is wrong or unclear about a log's clock; None where it keeps the limit."""
    spent = reading.seconds
    line = cite(log, reading.source)
    slack = clock.slack(log)
    allowed = limit + slack
    on_clock = f"{name}: {spent:.1f} s of {limit:.0f} s"
    if spent > allowed:
        detail = f"{name}: {spent:.3f} s, limit {limit:.0f} s + {slack:.3g} s"
        return fails(clock.name, detail, line)
    if clock is TRAINING and log.resumes:
        detail = (
            f"{on_clock}, but interrupted and resumed at step {_resumed_steps(log)}: "
            "its clock leaves out the work that was lost"
        )
        resumes = [cite(log, resume) for resume in log.resumes]
        return cannot_tell(clock.name, detail, line, *resumes)
    outside = _outside(clock, log, reading)
    total = spent + sum(phase.seconds for phase in outside)
    if total > allowed:
        detail = (
            f"{on_clock} on its clock, {total:.1f} s with the phases that it leaves out; "
            "what counts is a rule"
        )
        phases = [
            Evidence(file=line.file, line=phase.line, text=shorten(phase.text)) for phase in outside
        ]
        return policy(clock.name, detail, line, *phases)
    return None


def _outside(clock: Clock, log: Log, reading: Reading) -> list[Phase]:
    """Phases that the clock leaves out, each once.

    Validation between training and export changes no weights. The final score's own time is the
    evaluation clock itself.
    """
    if reading.whole:
        return []
    scored = {score.line for score in log.scores} if clock is TRAINING else set()
    phases = [p for p in log.phases if p.stage == clock.stage and p.line not in scored]
    counted = [Phase("", reading.seconds, clock.stage, reading.source.line, reading.source.text)]
    outside: list[Phase] = []
    for phase in phases:
        known = [*counted, *outside] if clock is EVALUATION else outside
        if not any(_is_same(phase, other) for other in known):
            outside.append(phase)
    return outside


def _is_same(phase: Phase, other: Phase) -> bool:
    """Whether two lines time one phase: as long, and with a word in common that names it.

    A line that only says `eval_time` names none.
    """
    near = abs(phase.seconds - other.seconds) <= max(SAME_PHASE, SAME_SHARE * other.seconds)
    nameless = phase.name in EVAL_CLOCKS or other.name in EVAL_CLOCKS
    return phase.line == other.line or (near and (nameless or bool(_words(phase) & _words(other))))


def _words(phase: Phase) -> set[str]:
    return set(re.findall(r"[a-z]{3,}", phase.text.lower())) - COMMON_WORDS


def _resumed_steps(log: Log) -> str:
    """`300 (torch 2.14.0 after 2.13.0), 400`: each step, and how the machine had changed."""
    steps = []
    for resume in log.resumes:
        changes = [f"({change})" for change in other_machine(log, resume)]
        steps.append(" ".join([resume.value, *changes]))
    return ", ".join(steps)
