"""Which runs of a script are made, in what order, on how many tokens and in what time."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from eval.errors import UserError
from eval.trial.canary.finding import Script
from eval.trial.canary.plan import REMEDIES, Plan
from eval.trial.canary.sources import LONG_TARGETS, SOURCES
from eval.trial.canary.table import Sizes, as_number

SECONDS = 180.0
LONG_SECONDS = 600.0  # where a script counts in hashed tables
SHARE_OF_A_RUN = 0.5  # of the time of the usual runs, at most
SHARE_OF_THE_USUAL = 0.3  # of all the time, where long runs are planned too
SHARE_OF_THE_LONG = 0.6  # of what is left, for each try of the first long run
SLOWER = 1.1  # a stream of twice as many tokens may take so much longer than twice the time
FEWEST_SECONDS = 10.0  # below these no run is started

LONG = "long"
LONG_RANKS = 2  # some caches are on only where there are several ranks
# Half as many targets as a table has buckets are enough that many collide.
USUAL_BUCKETS = 1 << 22
FEWEST_LONG_TARGETS = 1 << 17
FIRST_LONG_TARGETS = 1 << 20  # tried before any longer stream
# At the scale of hashed tables nothing but the number of tokens matters.
LONG_SIZES = Sizes(
    layers=2,
    width=32,
    side_width=8,
    sequence=128,
    stride=96,
    least_stride=96,  # each target is scored 1.33 times, and not twice or more
    train_batch=1024,  # the contest's scripts cut it into 8 parts of whole sequences
    validation_batch=1 << 15,  # larger ones take longer: their memory is asked for anew each time
    sequences=32,
    steps=2,
    adaptation_steps=1,
    adaptation_epochs=0,
    adaptation_sequences=32,
    calibration=1,
    evaluation_seconds=600,
)
LONG_VOCABULARY = 1024  # the contest's smallest: logits are most of the work
# One of each must a script read, so that another vocabulary reaches all of it.
NAMES_OF_DATA = ({"DATA_PATH", "DATA_DIR"}, {"TOKENIZER_PATH", "DATA_DIR"})

# Words of counts of contexts; `engram` is a learned table of embeddings.
COUNTS = re.compile(
    r"(?<!e)n[-_]?gram|(?:four|five|six|seven|\d)[-_]?gram|gram_?table|ctx_?(?:count|hash|table)"
)
HASHES = re.compile(r"hash|bucket")
# Their sizes; tables of embeddings beside the network's own have names of their own.
BUCKETS = re.compile(
    r"(?!BIGRAM|TRIGRAM|ENGRAM)\w*(?:BUCKETS?|NUM_BUCKETS|HASH_SIZE|TABLE_SIZE|HASH_TABLE)"
)
BUCKET_BITS = re.compile(r"(?!BIGRAM|TRIGRAM|ENGRAM)\w*(?:HASH|BUCKETS?|TABLE)_BITS")
MOST_BUCKET_BITS = 40


@dataclass(frozen=True)
class PlannedRun:
    """A source of tokens, by name, the number of ranks, and the targets.

    None for those of the source or of the user."""

    source: str
    world_size: int
    targets: int | None = None

    @property
    def name(self) -> str:
        length = "" if self.targets is None else f" with {self.targets:,} targets"
        return f"{self.source}{length}, {self.world_size} rank{'s' if self.world_size > 1 else ''}"

    @property
    def is_long(self) -> bool:
        return self.source == LONG


# What tells most comes first: time may end.
USUAL_RUNS = (
    PlannedRun("uniform", 2),
    PlannedRun("text", 1),
    PlannedRun("documents", 1),
    PlannedRun("halves", 1),
    PlannedRun("halves-other-rest", 1),
    PlannedRun("alphabet", 1),
    PlannedRun("halves-swapped", 1),
    PlannedRun("uniform", 1),
)


def silent(text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Options:
    """What the user wants.

    Empty `sources` and `world_sizes` mean the usual plan. `given` are settings that count before
    all others. `seconds` bounds everything, None for the usual time. `tokens` is the length of a
    stream, None for that of the source. `every`: go on after a refutation. `keep`: a folder for
    what was printed and read. `say` is told what happens.
    """

    sources: tuple[str, ...] = ()
    world_sizes: tuple[int, ...] = ()
    given: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    tokens: int | None = None
    every: bool = False
    python: Path | None = None
    device: str = "cpu"
    keep: Path | None = None
    mechanism: str = "auto"
    seed: int = 0
    say: Callable[[str], None] = silent


# --- The runs ---


def plan_runs(script: Script, options: Options) -> tuple[PlannedRun, ...]:
    """The runs to make, in order.

    Raises UserError for a source that there is not, and for no number of ranks.
    """
    unknown = [name for name in options.sources if name not in SOURCES]
    if unknown:
        raise UserError(
            f"--sources: expected names of {', '.join(SOURCES)}; found {', '.join(unknown)}"
        )
    if any(ranks < 1 for ranks in options.world_sizes):
        raise UserError("--world-sizes: expected numbers from 1; name how many ranks to start")
    if options.sources:
        chosen = [_runs_of(source, script, options) for source in options.sources]
        return tuple(itertools.chain.from_iterable(chosen))
    runs = list(USUAL_RUNS)
    if options.world_sizes:
        names = dict.fromkeys(run.source for run in USUAL_RUNS)
        runs = list(itertools.starmap(PlannedRun, itertools.product(names, options.world_sizes)))
    if not counts_in_tables(script):
        return tuple(runs)
    ranks = max(options.world_sizes, default=LONG_RANKS)
    return (runs[0], *long_runs(script, options, ranks), *runs[1:])


def _runs_of(source: str, script: Script, options: Options) -> list[PlannedRun]:
    """The runs of a source that the user named."""
    if source == LONG:
        sizes = options.world_sizes or (LONG_RANKS,)
        runs = [long_runs(script, options, ranks) for ranks in sizes]
        return list(itertools.chain.from_iterable(runs))
    return [PlannedRun(source, ranks) for ranks in options.world_sizes or (1,)]


def long_runs(script: Script, options: Options, ranks: int) -> list[PlannedRun]:
    """The long runs: of a part of the stream first, where the whole is longer."""
    if options.tokens is not None:
        return [PlannedRun(LONG, ranks)]
    whole = long_targets(buckets_of(script, options.given), ranks)
    lengths = dict.fromkeys((min(FIRST_LONG_TARGETS, whole), whole))
    return [PlannedRun(LONG, ranks, targets) for targets in lengths]


def counts_in_tables(script: Script) -> bool:
    """Whether a script may count contexts in hashed tables, by the words of its text.

    It only decides whether a long stream is worth the time."""
    text = script.text.lower()
    return HASHES.search(text) is not None and COUNTS.search(text) is not None


def buckets_of(script: Script, given: Mapping[str, str]) -> int | None:
    """The most buckets that a setting or a constant of the script names, None where none does."""
    knobs = script.knobs
    names = [*knobs.variables, *knobs.options, *knobs.constants, *given]
    found = []
    for name in names:
        value = given.get(name) or script.own.variables.get(name) or knobs.default(name)
        number = as_number(value)
        if number is None or number < 1:
            continue
        if BUCKETS.fullmatch(name):
            found.append(int(min(number, 2.0**MOST_BUCKET_BITS)))
        elif BUCKET_BITS.fullmatch(name):
            found.append(1 << int(min(number, MOST_BUCKET_BITS)))
    return max(found, default=None)


def long_targets(buckets: int | None, ranks: int) -> int:
    """Targets of the long stream for a table of so many buckets, at most those of its source.

    Each rank fills a table of its own with its share of the stream."""
    half = (buckets or USUAL_BUCKETS) // 2
    return min(max(half * ranks, FEWEST_LONG_TARGETS), LONG_TARGETS)


# --- Settings of the long stream ---


def long_plan(plan: Plan, tokens: int) -> Plan:
    """The plan for `tokens` targets, with what the usual runs of the script turned out to need.

    Sizes that helped them come back over the small ones. What was done for want of time is
    forgotten: the long run may need it itself."""
    kept = [r for r in REMEDIES if r.name in plan.remedies and r.shorter == 1]
    sizes = LONG_SIZES
    for remedy in kept:
        sizes = replace(sizes, **remedy.sizes)
    names = tuple(remedy.name for remedy in kept)
    return replace(plan, sizes=sizes, tokens=tokens, shorter=1, remedies=names, reasons=())


def long_vocabulary(script: Script, given: Mapping[str, str]) -> int | None:
    """A smaller vocabulary for the long stream; None where the script cannot be given one."""
    variables = script.knobs.variables
    settable = "VOCAB_SIZE" in variables and "VOCAB_SIZE" not in given
    told = all(names & variables.keys() for names in NAMES_OF_DATA)
    smaller = script.vocab_size > LONG_VOCABULARY
    return LONG_VOCABULARY if settable and told and smaller else None


# --- Time ---


@dataclass(frozen=True)
class Spent:
    """One run that was made: its source, targets and seconds, and whether it ended well."""

    source: str
    targets: int
    seconds: float
    ended_well: bool


@dataclass(frozen=True)
class Budget:
    """Seconds for all runs of a script, and of these for the usual ones where it comes to them."""

    seconds: float
    usual: float

    @classmethod
    def of(cls, runs: Sequence[PlannedRun], options: Options) -> "Budget":
        has_long = any(run.is_long for run in runs)
        default = LONG_SECONDS if has_long else SECONDS
        seconds = default if options.seconds is None else options.seconds
        beside_long = max(min(seconds, SECONDS), SHARE_OF_THE_USUAL * seconds)
        return cls(seconds, beside_long if has_long else seconds)

    def longest(self, run: PlannedRun, left: float, made: Sequence[Spent]) -> float:
        """Seconds that a try of a run may take of those `left`, so that others can follow."""
        if not run.is_long:
            return max(1.0, min(left, SHARE_OF_A_RUN * self.usual))
        ended = any(spent.ended_well for spent in _long(made))
        return max(1.0, left if ended else SHARE_OF_THE_LONG * left)

    def needed(self, run: PlannedRun, made: Sequence[Spent]) -> float:
        """Seconds that must be left so that a run is worth its start, by those that were made."""
        long = list(_long(made))
        if not run.is_long:
            usual = [spent.seconds for spent in made if spent not in long]
            return max(FEWEST_SECONDS, *usual, 0.0)
        if not long or run.targets is None:
            return FEWEST_SECONDS
        last = long[-1]
        return max(FEWEST_SECONDS, SLOWER * last.seconds * run.targets / last.targets)


def _long(made: Sequence[Spent]) -> Iterator[Spent]:
    return (spent for spent in made if spent.source == LONG)
