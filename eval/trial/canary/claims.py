"""What a script claims: every score of the validation set in the text that it printed.

Each counts, whatever its label, also those printed during training: a loss below the entropy is as
impossible there. Not counted are losses of training data, progress over part of the set,
differences, and numbers that stand in the script's own text and so were not measured.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from eval.papers.logs.lines import STEP, split_lines
from eval.papers.logs.values import NUMBER

MAX_LINE = 2000  # characters; lines that state a score are far shorter
VALUE = rf"[\"']?\s*[:=]\s*(?P<number>{NUMBER}|[+-]?(?:nan|inf))(?![\w.%])"
SCORE = re.compile(rf"(?<![\w.])(?P<prefix>\w*?)(?:val[_ ](?P<kind>loss|bpb)|vl){VALUE}", re.I)
BARE_BPB = re.compile(rf"(?<![\w.])(?P<prefix>\w*?)(?<!val_)(?P<kind>bpb){VALUE}", re.I)
TRAINING_LOSS = re.compile(rf"(?<![\w.])train_loss{VALUE}", re.I)
VALUE_BEGINS = re.compile(r"\S+\s*[:=]\s*[-+.\d]")
# A bare `bpb` is a score where the line says that it is one.
CLOSING = re.compile(r"final|result|exact|done|quantized", re.I)
NO_SCORE = re.compile(
    r"delta|diff|improv|gain|train|target|baseline|sota|prev|reference|expected|goal|threshold"
    r"|leaderboard|published|claimed|probe|running|chunk|progress|\[\s*\d+(?:\.\d+)?%|\[\d+/\d+\]",
    re.I,
)
PLACEHOLDERS = {0.0, -1.0}  # what scripts print where nothing was measured


@dataclass(frozen=True)
class Printed:
    """A number and the digits that it was printed with."""

    value: float
    decimals: int

    @property
    def rounding(self) -> float:
        """Half a unit of the last digit."""
        return 0.5 * 10.0**-self.decimals

    def rounds_to(self, other: "Printed") -> bool:
        """Whether the other one may be this number, printed with fewer digits."""
        fewer = self.decimals >= other.decimals
        return fewer and abs(self.value - other.value) <= 1.01 * other.rounding

    @classmethod
    def of(cls, text: str) -> "Printed":
        mantissa, _, exponent = text.lower().partition("e")
        decimals = len(mantissa.partition(".")[2]) - int(exponent or 0)
        return cls(float(text), decimals)


@dataclass(frozen=True)
class Claim:
    """One score. `loss` as the script calls it, usually nats a token; `bpb` in bits a byte.

    `step` is None after training. `line` counts from 1 in the text of the run."""

    label: str
    line: int
    text: str
    loss: Printed | None
    bpb: Printed | None
    step: int | None = None

    @property
    def has_both(self) -> bool:
        return self.loss is not None and self.bpb is not None

    def repeats(self, other: "Claim") -> bool:
        """Whether this is the other score of the same moment, printed with fewer digits."""
        if self.step != other.step or (self.loss, self.bpb) == (other.loss, other.bpb):
            return False
        pairs = ((self.loss, other.loss), (self.bpb, other.bpb))
        given = [pair for pair in pairs if pair[0] is not None]
        return all(finer is not None and finer.rounds_to(coarse) for coarse, finer in given)


@dataclass(frozen=True)
class Claims:
    """All scores of a run, in order, each once and with the most digits that were printed.

    `training_losses`: what `train_loss` printed. `set_aside`: why a score was not counted, and
    its line."""

    scores: tuple[Claim, ...]
    training_losses: tuple[float, ...]
    set_aside: tuple[str, ...]


def read_claims(text: str, script: str = "") -> Claims:
    """The scores in what a run printed. `script` is the script's own text, unwrapped."""
    scores: dict[tuple[object, ...], Claim] = {}
    training_losses: list[float] = []
    set_aside: dict[str, None] = {}
    code = {line.strip() for line in script.splitlines()}  # scripts print their own source
    for number, line in split_lines(text.encode()):
        if len(line) > MAX_LINE or line.strip() in code:
            continue
        training_losses += [float(match["number"]) for match in TRAINING_LOSS.finditer(line)]
        for claim, numbers in _scores_of(number, line):
            reason = _not_measured(numbers, script)
            if reason is not None:
                set_aside[f"{reason}: {line.strip()[:120]}"] = None
            else:
                scores.setdefault((claim.label, claim.loss, claim.bpb), claim)
    found = list(scores.values())
    distinct = tuple(filter(lambda claim: not _has_a_finer_print(claim, found), found))
    return Claims(distinct, tuple(training_losses), tuple(set_aside))


def _has_a_finer_print(claim: Claim, claims: list[Claim]) -> bool:
    return any(claim.repeats(other) for other in claims)


def _scores_of(number: int, line: str) -> Iterator[tuple[Claim, list[str]]]:
    """(a score, its numbers as printed) for each name under which a line states one."""
    step = STEP.match(line)
    matches = list(SCORE.finditer(line))
    if CLOSING.search(line) or step is not None:
        matches += BARE_BPB.finditer(line)
    by_name: dict[str, dict[str, re.Match[str]]] = {}
    for match in matches:
        kind = (match["kind"] or "loss").lower()
        by_name.setdefault(match["prefix"], {}).setdefault(kind, match)
    for prefix, found in by_name.items():
        head = line[: min(match.start() for match in found.values())]
        called = VALUE_BEGINS.split(head)[0].strip(" :,{\"'")
        name = f"step {step[1]}" if step is not None else called
        label = f"{name} {prefix.strip('_')}".strip() or "score"
        if NO_SCORE.search(prefix if step is not None else f"{head} {prefix}"):
            continue
        printed = {kind: match["number"] for kind, match in found.items()}
        claim = Claim(
            label=label,
            line=number,
            text=line.strip(),
            loss=_printed(printed.get("loss")),
            bpb=_printed(printed.get("bpb")),
            step=int(step[1]) if step else None,
        )
        yield claim, list(printed.values())


def _printed(text: str | None) -> Printed | None:
    return None if text is None else Printed.of(text)


def _not_measured(numbers: list[str], script: str) -> str | None:
    """Why numbers on a line are no measured score; None where they are one."""
    values = [float(text) for text in numbers]
    if any(value != value or abs(value) == float("inf") for value in values):
        return "not finite"
    if set(values) <= PLACEHOLDERS:
        return "a placeholder"
    if all(_stands_in(text, script) for text in numbers):
        return "a number of the script's own text"
    return None


def _stands_in(number: str, script: str) -> bool:
    return re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", script) is not None
