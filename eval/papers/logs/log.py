"""What a log holds: facts, steps, scores and phases, each with the line that states it."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from eval.papers.logs.values import integer_of, number_of

# Smallest value that each count can have.
COUNTS = dict.fromkeys(
    (
        "data.val_tokens",
        "data.val_bytes",
        "data.train_tokens",
        "result.scored_tokens",
        "result.scored_bytes",
    ),
    1,
)

COUNTS |= dict.fromkeys(("data.train_files", "env.world_size", "env.cores"), 1)

COUNTS |= dict.fromkeys(
    (
        "result.steps",
        "result.seed",
        "result.artifact_bytes",
        "result.code_bytes",
        "result.bytes_total",
        "artifact.bytes",
    ),
    0,
)

COUNTS |= dict.fromkeys(("result.code_bytes_packed", "model.parameters", "env.gpus"), 0)

MEASURES = {
    f"{head}{name}"
    for head in ("result.", "neural.", "final.pre_quant_")
    for name in ("val_loss", "val_bpb")
}

MEASURES |= {"result.nats", "result.train_s", "result.eval_s", "config.max_wallclock_seconds"}


@dataclass(frozen=True)
class Fact:
    """A value and the line that states it (1-based; text without colour codes)."""

    value: str
    line: int
    text: str


@dataclass(frozen=True)
class Step:
    """One training-log point. Losses in nats per token, bpb in bits per byte, time in seconds since the clock started."""

    step: int
    of: int
    line: int
    text: str
    train_loss: float | None = None
    val_loss: float | None = None
    val_bpb: float | None = None
    train_s: float | None = None


@dataclass(frozen=True)
class LoggedScore:
    """A whole-set score printed after training. `label` is what the script calls it."""

    label: str
    val_bpb: float
    val_loss: float | None
    eval_s: float | None
    decimals: int
    line: int
    text: str

    @property
    def named_result(self) -> bool:
        return RESULT_LABEL.match(self.label) is not None

    def same_as(self, other: "LoggedScore") -> bool:
        """Equal bpb to the digits that both print."""
        return abs(self.val_bpb - other.val_bpb) <= 0.51 * 10.0 ** -min(
            self.decimals, other.decimals
        )


@dataclass(frozen=True)
class Phase:
    """A timed phase outside the training clock. Stage `export` lies before the artifact's size is printed, `eval` after it."""

    name: str
    seconds: float
    stage: str
    line: int
    text: str


@dataclass
class Log:
    path: Path
    sha256: str
    native: bool = False
    source: bytes | None = None
    facts: dict[str, Fact] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    scores: list[LoggedScore] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    resumes: list[Fact] = field(
        default_factory=list
    )  # where an interrupted run went on from a checkpoint; the value is its step
    problems: list[str] = field(default_factory=list)

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
    def final(self) -> LoggedScore | None:
        """The score that the log ends on: the last one named a result or printed with a loss or a time, else the last val_bpb."""
        scores = sorted(self.scores, key=lambda score: score.line)
        measured = [
            s for s in scores if s.named_result or s.val_loss is not None or s.eval_s is not None
        ]
        return (measured or scores or [None])[-1]

    @property
    def candidates(self) -> list[LoggedScore]:
        """The last score named a result and the later ones that differ from it (a comparison, a minimum, one more kind of scoring). Where
        there are two or more, the log does not say which one is its result."""
        scores = sorted(self.scores, key=lambda score: score.line)
        start = next((i for i in reversed(range(len(scores))) if scores[i].named_result), None)
        if start is None:
            start = scores.index(self.final) if scores else 0
        found = scores[start : start + 1]
        for score in scores[start + 1 :]:
            if not any(score.same_as(other) for other in found):
                found.append(score)
        return found

    @property
    def ambiguous(self) -> bool:
        return len(self.candidates) > 1

    def state(self, name: str, value: str, line: int, text: str) -> None:
        """Keep a fact; checks may rely on numbers being numbers. A second, different value for it is a contradiction."""
        if (complaint := _implausible(name, value)) is not None:
            self.problems.append(f"line {line}: {name} is {complaint}, found {value[:40]!r}")
            return
        known = self.facts.setdefault(name, Fact(value, line, text))
        if known.value != value:
            self.problems.append(
                f"line {line} says {name} = {value}, line {known.line} says {known.value}"
            )


def _implausible(name: str, value: str) -> str | None:
    """Why a value cannot be what its name says, None when it can. `none` is how a log says that there is no such thing."""
    if name in COUNTS:
        count = integer_of(value)
        return (
            f"no integer from {COUNTS[name]}"
            if value != "none" and (count is None or count < COUNTS[name])
            else None
        )
    if name in MEASURES:
        measure = number_of(value)
        return "no number from 0" if measure is None or measure < 0 else None
    return None


RESULT_LABEL = re.compile(
    r"final|quantized|result"
)  # how the contest's scripts name the score of the artifact
