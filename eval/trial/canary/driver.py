"""Runs one public script on streams of known entropy, by a plan, and reports what came of it."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from eval.trial.canary.schedule import (
    FEWEST_SECONDS,
    Budget,
    Options,
    PlannedRun,
    Spent,
    long_plan,
    long_vocabulary,
    plan_runs,
)
from eval.trial.canary.sources import SOURCES, Source, Streams, draw_streams
from eval.trial.canary.together import HALVES, OTHER_REST, SWAPPED, judge_together
from eval.trial.canary.tokenizers import check_size
from eval.trial.canary.verdict import INVALID, NOT_RUN, Finding, Judgement, judge_run
from eval.trial.canary.world import DATASETS, Corpus, build_world, names_of, shard
from eval.trial.sandbox.job import WALL_CLOCK
from eval.trial.sandbox.running import choose

TRAINING_SHARDS = (1 << 16, 1 << 16, 1 << 16)  # tokens
TRIES_FOR_THE_REST = 1  # more, of a script that stops after some of its scores
PARTS = (HALVES, OTHER_REST, SWAPPED)  # streams that show which targets are scored
AGAIN = "its own time limits and chunks of evaluation, after: a part of the stream seems left out"
MOST_PACKAGES_NAMED = 5  # by what the script printed: advice, no list to follow blindly
CASEOPS_NAMES = ("CASEOPS_ENABLED", "CASEOPS", "USE_CASEOPS")


def try_script(path: Path, options: Options) -> Report:
    """Run the script or the record at `path` by the plan. Raises UserError for bad input."""
    script = open_script(path)
    return _Trial(script, options, plan_runs(script, options)).report()


# --- One script ---


class _Trial:
    """The runs of one script, made one after the other within one budget of time."""

    def __init__(self, script: Script, options: Options, planned: Sequence[PlannedRun]):
        self.script = script
        self.options = options
        self.planned = planned
        self.mechanism = choose(options.mechanism)
        self.started = time.monotonic()
        given = options.given.get("VOCAB_SIZE", "")
        self.vocab_size = int(given) if given.isdecimal() else script.vocab_size
        self.plan = Plan(
            script.knobs,
            script.own.variables,
            options.given,
            self._place_of_the_data(self.vocab_size),
        )
        self.budget = Budget.of(planned, options)
        self.runs: list[RunReport] = []
        self.made: dict[str, _Made] = {}  # the last run of each source
        self.left_out: list[str] = []

    def report(self) -> Report:
        obstacle = self._obstacle()
        if obstacle is not None:
            self.runs.append(_not_started(self.planned[0], *obstacle))
        for run in self.planned if obstacle is None else ():
            reason = self._reason_to_leave_out(run)
            if reason is None:
                self.runs.append(self._make(run))
            else:
                self.left_out.append(f"{run.name}: {reason}")
        together = [FindingLine.of(finding) for finding in self._together()]
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

    def _place_of_the_data(self, vocab_size: int) -> dict[str, str]:
        """DATA_DIR of scripts that mean one data set by it; elsewhere it is the folder of all."""
        own = self.script.knobs.default("DATA_DIR") or ""
        if "datasets/" not in own:
            return {}
        return {"DATA_DIR": f"{DATASETS}/{names_of(vocab_size)[0]}"}

    # --- Time ---

    @property
    def _seconds_left(self) -> float:
        return self.budget.seconds - (time.monotonic() - self.started)

    @property
    def _spent(self) -> list[Spent]:
        return [
            Spent(made.source, made.targets, made.seconds, made.verdict != NOT_RUN)
            for made in self.runs
        ]

    def _reason_to_leave_out(self, run: PlannedRun) -> str | None:
        """Why this run is not made; None where it is."""
        if not self.runs:
            return None
        last = self.runs[-1]
        if last.verdict == INVALID and not self.options.every:
            return "an earlier run refutes the script (--all goes on)"
        failed = [made for made in self.runs if made.verdict == NOT_RUN and not made.scores]
        # A script may fail with several ranks alone, so that one more run is made.
        if failed == self.runs and (len(failed) > 1 or run.world_size == failed[0].world_size):
            return "no run came to a score"
        if run.is_long and last.source == run.source:
            if last.verdict == INVALID:
                return "a shorter stream refutes the script"
            if last.verdict == NOT_RUN:
                return "a shorter stream did not come to its end"
        needed = self.budget.needed(run, self._spent)
        if self._seconds_left < needed:
            return f"no time left (--seconds gives more; a run takes about {needed:.0f} s)"
        return None

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
            if made.done or self._seconds_left < FEWEST_SECONDS:
                break
            if best.scored and len(plan.reasons) >= TRIES_FOR_THE_REST:
                break
            plan = retry(plan, made.failure) or self._with_its_own_vocabulary(plan, made)
        if best.done and not run.is_long:
            self.plan = best.plan  # what worked once is where the next run begins
        self.made[run.source] = best
        report = self._run_report(run, source, best)
        self.options.say(f"{run.name}: {report.verdict}, {best.run.seconds:.0f} s")
        return report

    def _plan_for(self, run: PlannedRun, source: Source) -> Plan:
        tokens = run.targets or self.options.tokens or source.tokens - 1
        if not run.is_long:
            return replace(self.plan, tokens=tokens, reasons=())
        plan = long_plan(self.plan, tokens)
        smaller = long_vocabulary(self.script, self.options.given)
        return plan if smaller is None else self._with_vocabulary(plan, smaller)

    def _with_vocabulary(self, plan: Plan, size: int) -> Plan:
        fitted = self._place_of_the_data(size)
        if size != self.vocab_size:
            fitted["VOCAB_SIZE"] = str(size)
        return replace(plan, fitted=fitted)

    def _with_its_own_vocabulary(self, plan: Plan, made: "_Made") -> Plan | None:
        """The first plan of a long run that failed with a smaller vocabulary, but for that."""
        if "VOCAB_SIZE" not in plan.fitted or made.run.outcome.killed:
            return None
        first = self._with_vocabulary(long_plan(self.plan, plan.tokens), self.vocab_size)
        reason = f"its own vocabulary, after: {made.run.stopped_by or 'no score'}"
        return replace(first, reasons=(*plan.reasons, reason))

    def _launch(self, run: PlannedRun, source: Source, plan: Plan) -> "_Made":
        vocab_size = int(plan.fitted.get("VOCAB_SIZE", self.vocab_size))
        tokenizer = source.tokenizer(vocab_size)
        streams = _streams(source, self.options.seed, vocab_size, plan.targets + 1)
        known = streams.validation
        corpus = Corpus(
            vocab_size,
            known.tokens,
            streams.training,
            tokenizer.byte_counts(known.tokens),
            tokenizer.model,
            tokenizer.vocabulary,
        )
        world = build_world(corpus, self.script.for_the_run, self._reads_caseops(plan))
        longest = self.budget.longest(run, self._seconds_left, self._spent)
        call = Call(
            script=self.script.name,
            arguments=(*self.script.own.arguments, *plan.arguments),
            variables=plan.variables,
            world_size=plan.ranks or run.world_size,
            python=self.options.python,
            device=self.options.device,
            limits=replace(LIMITS, wall_seconds=longest),
        )
        ran = launch(world, call, self.mechanism)
        judgement = judge_run(
            ran.text, known, source, tokenizer, self.script.own_words, self.options.device
        )
        made = _Made(plan, ran, judgement)
        if self.options.keep is not None:
            length = "" if run.targets is None else f"-{run.targets}"
            _keep(self.options.keep / f"{run.source}-{call.world_size}{length}", made, streams)
        return made

    def _reads_caseops(self, plan: Plan) -> bool:
        """Whether the run reads the data set that has the bytes of each token beside it."""
        own = {**plan.own, **plan.given}
        values = [own.get(name) or self.script.knobs.default(name) for name in CASEOPS_NAMES]
        return "1" in values

    # --- All runs ---

    def _together(self) -> list[Finding]:
        """What the runs show together.

        Where the referee's own small settings may be why a part is not scored, runs are made
        again without them, unless the script is refuted anyway."""
        refuted = any(made.verdict == INVALID for made in self.runs)
        if not refuted and any(map(_refutes_coverage, judge_together(self._judgements))):
            for run in self.planned:
                if run.source in PARTS and run.source in self._shortened:
                    self._make_with_all_of_the_evaluation(run)
        return judge_together(self._judgements, self._shortened)

    @property
    def _judgements(self) -> dict[str, Judgement]:
        return {source: made.judgement for source, made in self.made.items()}

    @property
    def _shortened(self) -> set[str]:
        """Sources whose last run did not score all that the script's own settings would."""
        return {source for source, made in self.made.items() if made.shortened}

    def _make_with_all_of_the_evaluation(self, run: PlannedRun) -> None:
        """One more run, without the small settings that may keep a script from the whole stream.

        It takes the place of the other where it comes to its end."""
        earlier = self.made[run.source]
        needed = max(FEWEST_SECONDS, earlier.run.seconds)
        if self._seconds_left < needed:
            self.left_out.append(f"{run.name} with all of its own evaluation: no time left")
            return
        self.options.say(f"{run.name}: again, with all of its own evaluation")
        source = SOURCES[run.source]
        plan = replace(earlier.plan.with_all_of_the_evaluation, reasons=(AGAIN,))
        made = self._launch(run, source, plan)
        self.runs.append(self._run_report(run, source, made))
        if made.done:
            self.made[run.source] = made

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
            world_size=made.plan.ranks or run.world_size,
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
    def shortened(self) -> bool:
        """Whether the referee may be why a part of the stream was not scored."""
        clock = self.plan.shortest_clock
        rung = clock is not None and self.run.seconds >= clock
        return rung or not self.run.ok or self.plan.shortened

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
        if "SyntaxError" in (self.run.stopped_by or ""):
            here = "{}.{}".format(*sys.version_info[:2])
            return f"--python with a Python newer than {here}, if the grammar is that of one"
        if self.run.ok:
            return "a line with val_loss or val_bpb: the script printed none"
        return "other settings (--env NAME=VALUE), or a machine with a GPU (--device cuda)"


def _refutes_coverage(finding: Finding) -> bool:
    return (finding.theme, finding.verdict) == ("coverage", INVALID)


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
