"""What a script claims: every score of the validation set in the text that it printed.

Each counts, whatever its label, also those printed during training: a loss below the entropy is as
impossible there. Not counted are losses of training data, progress over part of the set,
differences, values quoted from elsewhere, and numbers that stand in the script's own text and so
were not measured. What is not counted is named, with the reason.
"""

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from operator import attrgetter

from eval.papers.logs.lines import STEP, split_lines
from eval.papers.logs.values import NUMBER

MAX_LINE = 2000  # characters; lines that state a score are far shorter
LONGEST_TEXT = 300  # characters kept of a line
LONGEST_QUOTE = 120  # characters shown of a line that is set aside
MOST_SCORES = 2000  # of one run that are judged
MOST_SET_ASIDE = 20  # kinds of lines that are named
MOST_DECIMALS = 100
VALUE = rf"[\"']?\s*[:=]\s*(?P<number>{NUMBER}|[+-]?(?:nan|inf))(?![\w.%])"
PREFIX = r"(?<![\w.])(?P<prefix>(?:\w*_)?)"  # a word of its own, or words before a `_`
OF_VALIDATION = r"(?:e?val|valid|validation)[_ ]"
SCORE = re.compile(rf"{PREFIX}(?:{OF_VALIDATION}(?P<kind>loss|bpb)|vl){VALUE}", re.I)
BARE_BPB = re.compile(rf"{PREFIX}(?P<kind>bpb){VALUE}", re.I)
TRAINING_LOSS = re.compile(rf"(?<![\w.])train_loss{VALUE}", re.I)
HAS_A_NAME = re.compile(r"bpb|loss|vl", re.I)  # for speed alone
VALUE_BEGINS = re.compile(r"(?<!\S)\S+\s*[:=]\s*[-+.\d]")
PAIR = re.compile(r"(?<!\S)[^\s:=]+[:=]\s*[-+.\d]\S*")
WORD = re.compile(r"[a-z]+")
NUMERAL = re.compile(NUMBER)
# A bare `bpb` is a score where the line says so, or the record itself: it may be of training, or of
# text that a script has already scored and adapted to.
CLOSING = {"final", "result", "results", "exact", "done", "quantized"}
PROGRESS = re.compile(
    r"\[\s*\d+(?:\.\d+)?%|\[\d+/\d+\]|\bchunk\b\W{0,3}\d"
    r"|\d/\d+\s+(?:windows?|chunks?|batch(?:es)?|docs?|documents|seqs?|sequences|tokens)\b",
    re.I,
)
OTHER_QUANTITIES = {"delta", "diff", "difference", "gain", "improvement", "improved", "improves"}
QUOTED = {"baseline", "claimed", "expected", "goal", "leaderboard", "prev", "previous"}
QUOTED |= {"published", "reference", "sota", "target", "threshold"}
PLACES = {"chunk", "chunks", "probe", "progress"}  # in names of values: `chunk_idx=3`
LENGTHS = {"tokens", "size", "len", "count"}  # but for these
PARTIAL = {"train", "training", "probe", "running", "chunk", "progress"}  # but for closing lines
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
    """The scores of a run, in order, each once and with the most digits that were printed.

    `training_losses`: what `train_loss` printed. `set_aside`: why a score was not counted, and
    its line. `left_out`: scores too many to be judged; the lowest and the last ones are kept."""

    scores: tuple[Claim, ...]
    training_losses: tuple[float, ...]
    set_aside: tuple[str, ...]
    left_out: int = 0


def read_claims(text: str, script: str = "", results: Collection[str] = ()) -> Claims:
    """The scores in what a run printed. `script` is the script's own text, unwrapped.

    `results`: labels, without their numbers, under which the record's log states its score."""
    reader = _Reader(script, results)
    for number, line in split_lines(text.encode()):
        reader.read(number, line)
    return reader.claims()


class _Reader:
    """Takes the lines of a run one by one; its time grows with their number alone."""

    def __init__(self, script: str, results: Collection[str]):
        self.results = results
        self.code = {line.strip() for line in script.splitlines()}  # scripts print their own source
        self.numerals = {text.lstrip("+-") for text in NUMERAL.findall(script)}
        self.scores: dict[tuple[object, ...], Claim] = {}
        self.bare: defaultdict[str, list[Claim]] = defaultdict(list)
        self.training_losses: list[float] = []
        self.aside: dict[tuple[str, str], list[object]] = {}

    def read(self, number: int, line: str) -> None:
        if HAS_A_NAME.search(line) is None or line.strip() in self.code:
            return
        if len(line) > MAX_LINE:
            for match in SCORE.finditer(line):
                self._set_aside(f"in a line of over {MAX_LINE:,} characters", match[0])
            return
        self.training_losses += [float(match["number"]) for match in TRAINING_LOSS.finditer(line)]
        for named in scores_of(line):
            self._take(number, line, named)

    def _take(self, number: int, line: str, named: "Named") -> None:
        reason = named.no_score() or self._not_measured(named.values)
        if reason is not None:
            self._set_aside(reason, line)
            return
        claim = Claim(
            label=named.label,
            line=number,
            text=line.strip()[:LONGEST_TEXT],
            loss=_printed(named.numbers.get("loss")),
            bpb=_printed(named.numbers.get("bpb")),
            step=named.step,
        )
        if named.is_bare:
            self.bare[shape(claim.label)].append(claim)
        else:
            self._keep(claim)

    def _keep(self, claim: Claim) -> None:
        self.scores.setdefault((claim.label, claim.loss, claim.bpb), claim)

    def _set_aside(self, reason: str, line: str) -> None:
        """Lines that differ in their numbers alone are named once."""
        entry = self.aside.setdefault((reason, shape(line)), [line.strip()[:LONGEST_QUOTE], 0])
        entry[1] += 1

    def _not_measured(self, numbers: list[str]) -> str | None:
        """Why numbers on a line are no measured score; None where they are one."""
        if not all(map(is_finite, numbers)):
            return "not finite"
        if {float(text) for text in numbers} <= PLACEHOLDERS:
            return "a placeholder"
        if all(text.lstrip("+-") in self.numerals for text in numbers):
            return "a number of the script's own text"
        if all(text.lstrip("+-").isdecimal() for text in numbers):
            return "a whole number"
        return None

    def claims(self) -> Claims:
        for label, alike in self.bare.items():
            if label in self.results:
                self._keep(alike.pop())  # what stands above it may be progress
            for claim in alike:
                self._set_aside("a bpb that nothing calls a result", claim.text)
        found = sorted(self.scores.values(), key=attrgetter("line"))
        kept = _lowest_and_last(found)
        return Claims(
            scores=tuple(_with_most_digits(kept)),
            training_losses=tuple(self.training_losses),
            set_aside=tuple(self._said_aside()),
            left_out=len(found) - len(kept),
        )

    def _said_aside(self) -> Iterator[str]:
        entries = list(self.aside.items())
        for (reason, _), (line, count) in entries[:MOST_SET_ASIDE]:
            more = f" (and {count - 1:,} more alike)" if count > 1 else ""
            yield f"{reason}: {line}{more}"
        if len(entries) > MOST_SET_ASIDE:
            yield f"and {len(entries) - MOST_SET_ASIDE:,} more kinds of lines"


def shape(line: str) -> str:
    """A line or a label without its numbers."""
    return NUMERAL.sub("#", line.strip()[:LONGEST_TEXT])


def is_finite(text: str) -> bool:
    """Also not so small or large that its last digit means nothing."""
    value = float(text)
    return abs(value) < float("inf") and abs(Printed.of(text).decimals) <= MOST_DECIMALS


def _printed(text: str | None) -> Printed | None:
    return None if text is None else Printed.of(text)


# --- Names on a line ---


@dataclass(frozen=True)
class Named:
    """What a line states under one name. `numbers` by kind, loss or bpb, as printed.

    `head` is the line before the first of them; `is_bare`: a bpb that nothing calls a score."""

    prefix: str
    head: str
    numbers: dict[str, str]
    step: int | None
    is_bare: bool

    @property
    def values(self) -> list[str]:
        return list(self.numbers.values())

    @property
    def label(self) -> str:
        called = VALUE_BEGINS.split(self.head)[0].strip(" :,{\"'")
        name = called if self.step is None else f"step {self.step}"
        return f"{name} {self.prefix.strip('_')}".strip() or "score"

    def no_score(self) -> str | None:
        """Why the line itself says that this is no score of the set; None where it does not."""
        own = WORD.findall(self.prefix.lower())
        head = "" if self.step is not None else self.head.lower()
        around = WORD.findall(PAIR.sub(" ", head))
        is_closing = bool(CLOSING & set(around))
        if PROGRESS.search(head) or (not is_closing and _names_a_place(head)):
            return "progress over part of the set"
        excluding = OTHER_QUANTITIES | QUOTED
        if not is_closing:
            excluding = excluding | PARTIAL
        for word in (*own, *around):
            if word in excluding or (word in own and word in PARTIAL):
                return f"the line calls it `{word}`"
        return None


def _names_a_place(head: str) -> bool:
    """Whether some value before a score says how far a script has come."""
    names = [set(WORD.findall(pair)) for pair in PAIR.findall(head)]
    return any(name & PLACES and not name & LENGTHS for name in names)


def scores_of(line: str) -> Iterator[Named]:
    """Each name under which a line states a score, or what looks like one."""
    step = STEP.match(line)
    is_closing = step is not None or bool(CLOSING & set(WORD.findall(line.lower())))
    matches = list(SCORE.finditer(line))
    ends = {match.end() for match in matches}
    matches += [match for match in BARE_BPB.finditer(line) if match.end() not in ends]
    by_name: dict[tuple[str, bool], dict[str, re.Match[str]]] = {}
    for match in matches:
        kind = (match["kind"] or "loss").lower()
        is_bare = match.re is BARE_BPB and not is_closing
        by_name.setdefault((match["prefix"], is_bare), {}).setdefault(kind, match)
    for (prefix, is_bare), found in by_name.items():
        yield Named(
            prefix=prefix,
            head=line[: min(match.start() for match in found.values())],
            numbers={kind: match["number"] for kind, match in found.items()},
            step=int(step[1]) if step else None,
            is_bare=is_bare,
        )


# --- Many scores ---

_loss = attrgetter("loss.value")
_bpb = attrgetter("bpb.value")


def _lowest_and_last(claims: list[Claim]) -> list[Claim]:
    """At most MOST_SCORES of them, in order: those that refute most, and those that end a run."""
    if len(claims) <= MOST_SCORES:
        return claims
    quarter = MOST_SCORES // 4
    with_loss = [claim for claim in claims if claim.loss is not None]
    with_bpb = [claim for claim in claims if claim.bpb is not None]
    kept = {
        *sorted(with_loss, key=_loss)[:quarter],
        *sorted(with_bpb, key=_bpb)[:quarter],
        *claims[-2 * quarter :],
    }
    return [claim for claim in claims if claim in kept]


def _with_most_digits(claims: list[Claim]) -> Iterator[Claim]:
    """Without those that are another one of the same moment, printed with fewer digits."""
    numbers = {(claim.step, claim.loss, claim.bpb): claim for claim in claims}
    moments: defaultdict[int | None, list[Claim]] = defaultdict(list)
    for claim in numbers.values():
        moments[claim.step].append(claim)
    coarse: set[tuple[object, ...]] = set()
    for alike in moments.values():
        by_loss = sorted((one for one in alike if one.loss is not None), key=_loss)
        by_bpb = sorted((one for one in alike if one.bpb is not None), key=_bpb)
        for claim in alike:
            windows = []
            if claim.loss is not None:
                windows.append(_near(by_loss, claim.loss, _loss))
            if claim.bpb is not None:
                windows.append(_near(by_bpb, claim.bpb, _bpb))
            near = min(windows, key=len)
            if any(claim.repeats(other) for other in near):
                coarse.add((claim.step, claim.loss, claim.bpb))
    for claim in claims:
        if (claim.step, claim.loss, claim.bpb) not in coarse:
            yield claim


def _near(ordered: list[Claim], printed: Printed, value: attrgetter) -> list[Claim]:
    """Those of a list in order whose number may be the printed one."""
    first = bisect_left(ordered, printed.value - 1.01 * printed.rounding, key=value)
    last = bisect_right(ordered, printed.value + 1.01 * printed.rounding, key=value)
    return ordered[first:last]
