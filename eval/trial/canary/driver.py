"""Runs one public script on streams of known entropy, by a plan, and reports what came of it."""

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from eval.errors import UserError
from eval.trial.canary.finding import Script, open_script
from eval.trial.canary.launch import LIMITS, Call, ScriptRun, launch
from eval.trial.canary.plan import OUT_OF_MEMORY, OUT_OF_TIME, Plan, retry
from eval.trial.canary.report import (
    FindingLine,
    Report,
    RunReport,
    SettingLine,
    outcome_of,
    verdict_of,
)
from eval.trial.canary.sources import SOURCES, Source, Streams, draw_streams
from eval.trial.canary.table import Sizes
from eval.trial.canary.together import judge_together
from eval.trial.canary.tokenizers import check_size
from eval.trial.canary.verdict import INVALID, NOT_RUN, Judgement, judge_run
from eval.trial.canary.world import DATASETS, Corpus, build_world, names_of, shard
from eval.trial.sandbox.job import WALL_CLOCK
from eval.trial.sandbox.running import choose

SECONDS = 180.0
LONG_SECONDS = 600.0
TRAINING_SHARDS = (1 << 16, 1 << 16, 1 << 16)  # tokens
SHARE_OF_A_RUN = 0.5  # of all the time, at most
TRIES_FOR_THE_REST = 1  # more, of a script that stops after some of its scores
FEWEST_SECONDS = 10.0  # below these no run is started
MOST_PACKAGES_NAMED = 5  # by what the script printed: advice, no list to follow blindly
CASEOPS_NAMES = ("CASEOPS_ENABLED", "CASEOPS", "USE_CASEOPS")
# At the scale of hashed tables nothing but the number of tokens matters.
LONG_SIZES = Sizes(
    layers=2,
    width=32,
    side_width=8,
    sequence=64,
    stride=32,
    train_batch=512,
    validation_batch=1 << 15,  # larger ones take longer: their memory is asked for anew each time
    sequences=64,
    steps=2,
    adaptation_steps=1,
    adaptation_epochs=0,
    adaptation_sequences=64,
    calibration=1,
    evaluation_seconds=600,
)


@dataclass(frozen=True)
class PlannedRun:
    """A source of tokens, by name, and the number of ranks."""

    source: str
    world_size: int

    @property
    def name(self) -> str:
        return f"{self.source}, {self.world_size} rank{'s' if self.world_size > 1 else ''}"


# What tells most comes first: time may end. Some caches are on only where there are several ranks.
USUAL_RUNS = (
    PlannedRun("uniform", 2),
    PlannedRun("text", 1),
    PlannedRun("documents", 1),
    PlannedRun("halves", 1),
    PlannedRun("halves-other-rest", 1),
    PlannedRun("alphabet", 1),
    PlannedRun("halves-swapped", 1),
    PlannedRun("documents-swapped", 1),
    PlannedRun("uniform", 1),
)
LONG_RUN = PlannedRun("long", 2)  # of scripts that count in hashed tables
LONG_TARGETS = 1 << 21  # half as many as the usual table has buckets: enough that many collide


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
        sizes = options.world_sizes or (1,)
        return tuple(itertools.starmap(PlannedRun, itertools.product(options.sources, sizes)))
    runs = USUAL_RUNS
    if options.world_sizes:
        names = list(dict.fromkeys(run.source for run in USUAL_RUNS))
        pairs = itertools.product(names, options.world_sizes)
        runs = tuple(itertools.starmap(PlannedRun, pairs))
    return (*runs, LONG_RUN) if counts_in_tables(script) else runs


def counts_in_tables(script: Script) -> bool:
    """Whether a script may count contexts in hashed tables, by the words of its text.

    It only decides whether a long stream is worth the time."""
    text = script.text.lower()
    hashes = "hash" in text or "bucket" in text
    return hashes and any(word in text for word in ("ngram", "n_gram", "n-gram", "ctx_count"))


def try_script(path: Path, options: Options) -> Report:
    """Run the script or the record at `path` by the plan. Raises UserError for bad input."""
    script = open_script(path)
    runs = plan_runs(script, options)
    return _Trial(script, options, choose(options.mechanism)).report(runs)


# --- One script ---


class _Trial:
    """The runs of one script, made one after the other within one budget of time."""

    def __init__(self, script: Script, options: Options, mechanism: str):
        self.script = script
        self.options = options
        self.mechanism = mechanism
        self.started = time.monotonic()
        self.vocab_size = self._vocab_size()
        given = {**self._place_of_the_data(), **options.given}
        self.plan = Plan(script.knobs, script.own.variables, given)
        self.runs: list[RunReport] = []
        self.judgements: dict[str, Judgement] = {}
        self.left_out: list[str] = []

    def report(self, planned: Sequence[PlannedRun]) -> Report:
        obstacle = self._obstacle()
        if obstacle is not None:
            self.runs.append(_not_started(planned[0], *obstacle))
            planned = ()
        for run in planned:
            reason = self._reason_to_leave_out(run)
            if reason is None:
                self.runs.append(self._make(run))
            else:
                self.left_out.append(f"{run.name}: {reason}")
        together = [FindingLine.of(finding) for finding in judge_together(self.judgements)]
        return Report(
            script=self.script.name,
            verdict=verdict_of(self.runs, together),
            device=self.options.device,
            seconds=time.monotonic() - self.started,
            runs=self.runs,
            findings=together,
            left_out=self.left_out,
            fixed=list(self.plan.fixed),
            notes=list(self._notes()),
        )

    def _vocab_size(self) -> int:
        given = self.options.given.get("VOCAB_SIZE", "")
        return int(given) if given.isdecimal() else self.script.vocab_size

    def _place_of_the_data(self) -> dict[str, str]:
        """DATA_DIR of scripts that mean one data set by it; elsewhere it is the folder of all."""
        own = self.script.knobs.default("DATA_DIR") or ""
        if "datasets/" not in own:
            return {}
        return {"DATA_DIR": f"{DATASETS}/{names_of(self.vocab_size)[0]}"}

    # --- Time ---

    def _seconds_left(self, run: PlannedRun) -> float:
        usual = LONG_SECONDS if run.source == LONG_RUN.source else SECONDS
        budget = self.options.seconds if self.options.seconds is not None else usual
        return budget - (time.monotonic() - self.started)

    def _reason_to_leave_out(self, run: PlannedRun) -> str | None:
        """Why this run is not made; None where it is."""
        if not self.runs:
            return None
        if self.runs[-1].verdict == INVALID and not self.options.every:
            return "an earlier run refutes the script (--all goes on)"
        failed = [made for made in self.runs if made.verdict == NOT_RUN and not made.scores]
        # A script may fail with several ranks alone, so that one more run is made.
        if failed == self.runs and (len(failed) > 1 or run.world_size == failed[0].world_size):
            return "no run came to a score"
        needed = max(FEWEST_SECONDS, self._seconds_of_a_run(run))
        if self._seconds_left(run) < needed:
            return f"no time left (--seconds gives more; a run takes about {needed:.0f} s)"
        return None

    def _longest(self, run: PlannedRun) -> float:
        """Seconds that a run may take: not all that is left, so that a smaller one can follow."""
        left = self._seconds_left(run)
        if run.source == LONG_RUN.source:
            return max(1.0, left)
        budget = self.options.seconds if self.options.seconds is not None else SECONDS
        return max(1.0, min(left, SHARE_OF_A_RUN * budget))

    def _seconds_of_a_run(self, run: PlannedRun) -> float:
        """About what a run of this length takes, by those that were made."""
        if run.source == LONG_RUN.source:
            return FEWEST_SECONDS
        return max((made.seconds for made in self.runs), default=0.0)

    # --- One run ---

    def _make(self, run: PlannedRun) -> RunReport:
        """Run the script, with other settings where it fails on them, and judge what it printed."""
        source = SOURCES[run.source]
        plan = self._plan_for(run, source)
        best: _Made | None = None
        while plan is not None:
            self.options.say(f"{run.name}: try {len(plan.reasons) + 1}")
            made = self._launch(run, source, plan)
            best = made if best is None or made.better_than(best) else best
            if made.done or self._seconds_left(run) < FEWEST_SECONDS:
                break
            if best.scored and len(plan.reasons) >= TRIES_FOR_THE_REST:
                break
            plan = retry(plan, made.failure)
        if best.done and run.source != LONG_RUN.source:
            self.plan = best.plan  # what worked once is where the next run begins
        self.judgements[run.source] = best.judgement
        report = self._run_report(run, source, best)
        self.options.say(f"{run.name}: {report.verdict}, {best.run.seconds:.0f} s")
        return report

    def _plan_for(self, run: PlannedRun, source: Source) -> Plan:
        if run.source == LONG_RUN.source:
            tokens = self.options.tokens or LONG_TARGETS
            return replace(self.plan, sizes=LONG_SIZES, tokens=tokens, shorter=1, reasons=())
        return replace(self.plan, tokens=self.options.tokens or source.tokens - 1, reasons=())

    def _launch(self, run: PlannedRun, source: Source, plan: Plan) -> "_Made":
        tokenizer = source.tokenizer(self.vocab_size)
        streams = _streams(source, self.options.seed, self.vocab_size, plan.targets + 1)
        known = streams.validation
        corpus = Corpus(
            self.vocab_size,
            known.tokens,
            streams.training,
            tokenizer.byte_counts(known.tokens),
            tokenizer.model,
            tokenizer.vocabulary,
        )
        world = build_world(corpus, self.script.for_the_run, self._reads_caseops(plan))
        call = Call(
            script=self.script.name,
            arguments=(*self.script.own.arguments, *plan.arguments),
            variables=plan.variables,
            world_size=run.world_size,
            python=self.options.python,
            device=self.options.device,
            limits=replace(LIMITS, wall_seconds=self._longest(run)),
        )
        ran = launch(world, call, self.mechanism)
        judgement = judge_run(
            ran.text, known, source, tokenizer, self.script.text, self.options.device
        )
        made = _Made(plan, ran, judgement)
        if self.options.keep is not None:
            _keep(self.options.keep / f"{run.source}-{run.world_size}", made, streams)
        return made

    def _reads_caseops(self, plan: Plan) -> bool:
        """Whether the run reads the data set that has the bytes of each token beside it."""
        own = {**plan.own, **plan.given}
        values = [own.get(name) or self.script.knobs.default(name) for name in CASEOPS_NAMES]
        return "1" in values

    # --- Words ---

    def _obstacle(self) -> tuple[str, str] | None:
        """Why the script cannot even be started, and what would help; None where it can."""
        needed = self.script.python_needed
        chosen = self.options.python is not None
        if needed is not None and not chosen and needed > sys.version_info[:2]:
            wanted = "{}.{}".format(*needed)
            here = "{}.{}".format(*sys.version_info[:2])
            return (
                f"the script's grammar is that of Python {wanted}, here runs {here}",
                f"pass --python with a Python {wanted} that has torch and numpy",
            )
        try:
            check_size(self.vocab_size)
        except UserError as error:
            what, _, advice = str(error).partition("; ")
            return what, advice
        return None

    def _run_report(self, run: PlannedRun, source: Source, made: "_Made") -> RunReport:
        return RunReport(
            why=source.why,
            world_size=run.world_size,
            targets=made.plan.targets,
            seconds=made.run.seconds,
            settings=[
                SettingLine(name=s.name, value=s.value, own=s.own, origin=s.origin)
                for s in made.plan.settings
            ],
            tries=list(made.plan.reasons),
            attempts=list(made.run.attempts),
            stopped_by=made.run.stopped_by,
            help=made.help(self.plan.fixed),
            **outcome_of(made.judgement, made.run.ok),
        )

    def _notes(self) -> Iterator[str]:
        unwrapped = self.script.unwrapped
        if unwrapped.layers:
            yield f"the script was packed as {' of '.join(unwrapped.layers)}"
        if unwrapped.problem is not None:
            yield f"the script could not be read to its end: {unwrapped.problem}"
        if self.script.own.sources:
            yield f"own settings from {', '.join(self.script.own.sources)}"
        if self.mechanism == "none":
            yield "no sandbox: the script could read and write whatever the referee can"


def _not_started(run: PlannedRun, stopped_by: str, advice: str) -> RunReport:
    return RunReport(
        source=run.source,
        why=SOURCES[run.source].why,
        world_size=run.world_size,
        targets=0,
        verdict=NOT_RUN,
        seconds=0.0,
        stopped_by=stopped_by,
        help=advice,
    )


@dataclass(frozen=True)
class _Made:
    """One run of the script as it was made."""

    plan: Plan
    run: ScriptRun
    judgement: Judgement

    @property
    def done(self) -> bool:
        """Whether it ended well and printed a score, or is refuted already."""
        return self.judgement.verdict == INVALID or (self.run.ok and self.scored)

    @property
    def scored(self) -> bool:
        return self.judgement.verdict != NOT_RUN

    def better_than(self, other: "_Made") -> bool:
        return (self.done, self.scored) > (other.done, other.scored)

    @property
    def failure(self) -> str:
        """The text from which another choice is made."""
        killed = self.run.outcome.killed or ""
        if killed == WALL_CLOCK:
            return OUT_OF_TIME
        if "memory" in killed:
            return OUT_OF_MEMORY
        return f"{self.run.outcome.stderr}\n{self.run.stopped_by or ''}"

    def help(self, fixed: Sequence[str]) -> str | None:
        """What would help a run that did not end well, or that printed no score."""
        if self.done:
            return None
        if self.run.missing:
            asked = ", ".join(self.run.missing[:MOST_PACKAGES_NAMED])
            return f"it asked for the package {asked}; install it, or pass --python with one"
        if self.run.outcome.killed == WALL_CLOCK:
            sizes = f"; the script holds {', '.join(fixed)} as constants" if fixed else ""
            return f"more time (--seconds), or smaller settings (--env NAME=VALUE){sizes}"
        if self.run.ok:
            return "a line with val_loss or val_bpb: the script printed none"
        return "other settings (--env NAME=VALUE), or a machine with a GPU (--device cuda)"


@lru_cache(maxsize=4)
def _streams(source: Source, seed: int, vocab_size: int, tokens: int) -> Streams:
    return draw_streams(source, seed, vocab_size, tokens, TRAINING_SHARDS)


def _keep(folder: Path, made: _Made, streams: Streams) -> None:
    """Write what a run printed, its settings and the stream that it read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "printed.txt").write_text(made.run.text, encoding="utf-8", errors="replace")
    settings = (f"{setting.name}={setting.value}\n" for setting in made.plan.settings)
    (folder / "settings.env").write_text("".join(settings), encoding="utf-8")
    (folder / "fineweb_val_000000.bin").write_bytes(shard(streams.validation.tokens))
