"""What a log holds: facts, steps, scores and phases, each with the line that states it."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from eval.papers.logs.sizes import Sizes, sizes_of
from eval.papers.logs.values import integer_of, number_of, same_value

# Counts by the smallest value that each can have.
SMALLEST_COUNT = {
    "data.val_tokens": 1,
    "data.val_bytes": 1,
    "data.train_tokens": 1,
    "data.train_files": 1,
    "env.world_size": 1,
    "env.cores": 1,
    "env.gpus": 0,
    "model.parameters": 0,
    "artifact.bytes": 0,
    "result.scored_tokens": 1,
    "result.scored_bytes": 1,
    "result.steps": 0,
    "result.seed": 0,
    "result.artifact_bytes": 0,
    "result.code_bytes": 0,
    "result.code_bytes_packed": 0,
    "result.bytes_total": 0,
}
# Finite numbers from 0.
MEASURES = {
    "result.val_loss",
    "result.val_bpb",
    "result.nats",
    "result.train_s",
    "result.eval_s",
    "neural.val_loss",
    "neural.val_bpb",
    "final.pre_quant_val_loss",
    "final.pre_quant_val_bpb",
    "config.max_wallclock_seconds",
}
# How the contest's scripts name the score of the artifact.
RESULT_LABEL = re.compile(r"final|quantized|result")


@dataclass(frozen=True)
class Fact:
    """A value and the line that states it (1-based; text without colour codes)."""

    value: str
    line: int
    text: str


class Step(NamedTuple):
    """One training-log point.

    Losses in nats per token, bpb in bits per byte, time in seconds since the clock started.
    """

    step: int
    of: int
    line: int
    text: str
    train_loss: float | None = None
    val_loss: float | None = None
    val_bpb: float | None = None
    train_s: float | None = None

    @property
    def losses(self) -> tuple[float | None, float | None]:
        """(training loss, validation loss) in nats per token."""
        return self.train_loss, self.val_loss


@dataclass(frozen=True)
class LoggedScore:
    """A score of the whole set, printed after training. `label` is what the script calls it.

    `val_bpb` in bits per byte, printed with `decimals` digits; `val_loss` in nats per token;
    `eval_s` in seconds. `stage` is `train` before the training clock stops, `export` before the
    artifact's size is printed and `eval` after it.
    """

    label: str
    val_bpb: float
    val_loss: float | None
    eval_s: float | None
    decimals: int
    line: int
    text: str
    stage: str = "eval"

    @property
    def named_result(self) -> bool:
        return RESULT_LABEL.match(self.label) is not None

    @property
    def measured(self) -> bool:
        """Whether it is named a result or printed with a loss or a time."""
        return self.named_result or self.val_loss is not None or self.eval_s is not None

    def same_as(self, other: "LoggedScore") -> bool:
        """Whether both bpb are equal to the digits that both print."""
        shared = min(self.decimals, other.decimals)
        return abs(self.val_bpb - other.val_bpb) <= 0.51 * 10.0**-shared


@dataclass(frozen=True)
class Phase:
    """A timed phase outside the training clock.

    Stage `export` lies before the artifact's size is printed, `eval` after it.
    """

    name: str
    seconds: float
    stage: str
    line: int
    text: str


@dataclass
class Log:
    """A run as its log tells it. Facts are kept by name, for example `result.val_bpb`.

    `path` is where the log was read from and `file` its name in the record's folder; `run` counts
    the runs that wrote into this file, from 1. `source` is the script that the log prints:
    byte for byte in a native log, as far as a public one shows it. `source_line` is the line
    where it begins. `lines` are the clean lines of a public log that are neither source nor
    steps. `resumes` are the places where an interrupted run continued from a checkpoint; the
    value is its step. `problems` lists all damage, `doubts` what a public log states twice and
    differently.
    """

    path: Path
    sha256: str
    native: bool = False
    file: str = ""
    run: int = 1
    source: bytes | None = None
    source_line: int | None = None
    facts: dict[str, Fact] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    scores: list[LoggedScore] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    resumes: list[Fact] = field(default_factory=list)
    lines: list[tuple[int, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The file's name, and which run of it this is."""
        return self.file if self.run == 1 else f"{self.file}#{self.run}"

    @cached_property
    def sizes(self) -> Sizes:
        """Every size that a public log prints, with its label."""
        return sizes_of(self.lines)

    @cached_property
    def printed(self) -> str:
        """The text of `lines`: quicker to search for a word than one line after another."""
        return "\n".join(text for _, text in self.lines)

    def text(self, name: str) -> str | None:
        """Value of a fact; the log's `none` reads as None."""
        fact = self.facts.get(name)
        return None if fact is None or fact.value == "none" else fact.value

    def number(self, name: str) -> float | None:
        return number_of(self.text(name))

    def integer(self, name: str) -> int | None:
        return integer_of(self.text(name))

    @property
    def seed(self) -> int | None:
        return self.integer("result.seed")

    @property
    def shows_a_run(self) -> bool:
        """Whether it holds anything that a run prints."""
        return self.native or bool(self.steps or self.scores)

    @property
    def scores_in_order(self) -> list[LoggedScore]:
        return sorted(self.scores, key=lambda score: score.line)

    @property
    def final(self) -> LoggedScore | None:
        """The score that the log ends on.

        It is the last one named a result or printed with a loss or a time, else the last val_bpb.
        """
        measured = [score for score in self.scores_in_order if score.measured]
        closing = measured or self.scores_in_order
        return closing[-1] if closing else None

    @property
    def candidates(self) -> list[LoggedScore]:
        """The last score named a result, and the later ones that differ from it.

        Later scores may be a comparison, a minimum or another kind of scoring. Where there are
        two or more candidates, the log does not say which one is its result.
        """
        scores = self.scores_in_order
        if not scores:
            return []
        named = [i for i, score in enumerate(scores) if score.named_result]
        start = named[-1] if named else scores.index(self.final)
        found: list[LoggedScore] = []
        for score in scores[start:]:
            if not any(score.same_as(other) for other in found):
                found.append(score)
        return found

    @property
    def ambiguous(self) -> bool:
        return len(self.candidates) > 1

    def state(self, name: str, value: str, line: int, text: str) -> None:
        """Keep a fact. Checks may rely on numbers being numbers.

        An implausible value becomes a problem of the log, and so does a second and different one
        in a native log; public scripts print settings of several phases under one name.
        """
        complaint = _implausible(name, value)
        if complaint is not None:
            self.problems.append(f"line {line}: {name} is {complaint}, found {value[:40]!r}")
            return
        known = self.facts.setdefault(name, Fact(value, line, text))
        if not same_value(known.value, value):
            complaints = self.problems if self.native else self.doubts
            complaints.append(
                f"line {line} says {name} = {value}, line {known.line} says {known.value}"
            )


def _implausible(name: str, value: str) -> str | None:
    """Why a value cannot be what its name says; None when it can.

    `none` is how a log says that there is no such count.
    """
    smallest = SMALLEST_COUNT.get(name)
    if smallest is not None and value != "none":
        count = integer_of(value)
        if count is None or count < smallest:
            return f"no integer from {smallest}"
    if name in MEASURES:
        measure = number_of(value)
        if measure is None or measure < 0:
            return "no number from 0"
    return None
