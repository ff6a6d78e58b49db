"""The flow of an audit: opens the record, runs the tests that were chosen, gathers the report."""

import functools
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from eval.errors import UserError
from eval.files import sha256_of
from eval.papers.audits.report import (
    NOT_SELECTED,
    TEST_NAMES,
    AuditReport,
    ScorerRun,
    SeedScore,
    TestResult,
    conclusion,
)
from eval.papers.folder import Record, open_for_trial
from eval.rules import CURRENT, Profile, Rules, load_rules
from eval.text.corpus.dataset import Dataset
from eval.text.language.generator import KneserNey
from eval.text.language.slices import Slices
from eval.trial.audit.budget import judge_clock, judge_sizes, over_the_clock
from eval.trial.audit.collector import Collector
from eval.trial.audit.data import judge_bytes
from eval.trial.audit.evidence import (
    judge_artifact,
    judge_given_artifact,
    judge_headline,
    judge_papers,
    judge_score,
)
from eval.trial.audit.experiments.behaviour import Behaviour, expected_work, failed
from eval.trial.audit.experiments.comparisons import Comparisons
from eval.trial.audit.experiments.experiment import Engine
from eval.trial.audit.experiments.fresh import FreshText
from eval.trial.audit.experiments.long_runs import OfficialAgain
from eval.trial.audit.experiments.material import Material
from eval.trial.audit.isolation import judge_isolation
from eval.trial.audit.progress import Progress
from eval.trial.audit.summaries import SUMMARIES
from eval.trial.runner.claims import (
    Repetition,
    gpus_here,
    machine,
    name_given_artifact,
    other_versions,
    repetition,
    tolerance,
)
from eval.trial.runner.devices import require_device
from eval.trial.runner.python import require_python
from eval.trial.runner.scorer import RunFailed, Scorer
from eval.trial.runner.scores import (
    RunSettings,
    Score,
    denominator,
    make_scorer,
    open_dataset,
    out_of_time,
)
from eval.trial.sandbox.job import WALL_CLOCK
from eval.trial.sandbox.running import choose

BEHAVIOUR = ("future", "normalisation", "canary", "documents", "fresh")
NEED_RUNS = (*BEHAVIOUR, "coverage", "isolation")
STOPPED_BY_HAND = "interrupted"
NO_RUNS = "not needed"  # what the report says instead of a sandbox's mechanism
SMALLEST = 1e-300  # nats; a record may claim that it needs none
MIN_STREAM = 256  # tokens; below, the positions of the behaviour tests would collide


@dataclass(frozen=True)
class Options:
    """What to audit and how.

    Where `random_seed` is None, one is drawn, and the report prints it. `profile` overrides the
    level's numbers. `seconds`: no run begins when so much time has passed. `every_seed`: score
    every artifact at the level quick too."""

    level: str = "quick"
    only: tuple[str, ...] = ()
    dataset: Path | None = None
    fresh: Path | None = None
    seed: int | None = None
    artifact: Path | None = None
    random_seed: int | None = None
    mechanism: str = "auto"
    nproc: int = 1
    wall_seconds: float | None = None
    seconds: float | None = None
    every_seed: bool = False
    device: str = "auto"
    rules: str = CURRENT
    progress: bool = False
    profile: Profile | None = None

    def wants(self, *names: str) -> bool:
        """Whether any of these tests was chosen."""
        return not self.only or any(name in self.only for name in names)

    @property
    def scope(self) -> str:
        """What the report says of the level and of the chosen tests."""
        return f"{self.level}, only {' '.join(self.only)}" if self.only else self.level


def audit_record(folder: Path, options: Options) -> AuditReport:
    """All chosen tests of one record folder.

    Raises UserError for input that cannot be audited at all."""
    return Audit(folder, options).run()


class Stopped(Exception):
    """The audit ends before its last run, for the reason that it says."""


@dataclass(frozen=True)
class Watched:
    """Tells `progress` of the runs of one artifact, and ends the audit when its time is over."""

    name: str
    progress: Progress
    audit: "Audit"

    def begin(self, label: str) -> None:
        """Raises Stopped when the audit's time is over."""
        limit = self.audit.options.seconds
        if limit is not None and self.audit.elapsed() > limit:
            raise Stopped(f"the time of {limit:g} s (--seconds) was over")
        self.progress.begin(f"{self.name}: {label}")

    def finish(self, tokens: int) -> None:
        self.progress.finish(tokens)


class Audit:
    """One audit on its way: the record, the data, and what the tests have found so far."""

    def __init__(self, folder: Path, options: Options):
        self.folder = folder
        self.options = options
        self.rules: Rules = load_rules(options.rules)
        self.profile: Profile = options.profile or self.rules.profile[options.level]
        self.record: Record = open_for_trial(folder, options.artifact, options.seed)
        require_python(self.record.script)
        self.unclaimed: list[str] = name_given_artifact(self.record)
        self.dataset: Dataset = open_dataset(self.record, options.dataset)
        self.fresh = Dataset(options.fresh) if options.fresh else None
        self.random_seed = options.random_seed
        if self.random_seed is None:
            self.random_seed = secrets.randbits(32)
        self.rng = np.random.default_rng(self.random_seed)
        self.collectors = {name: Collector(name) for name in TEST_NAMES}
        self.seconds = dict.fromkeys(TEST_NAMES, 0.0)
        self.scores: list[SeedScore] = []
        self.comparisons: list[Comparisons] = []
        self.stopped = ""
        self.started = time.monotonic()
        self.runs: list[ScorerRun] = []
        self.audited: list[str] = []
        self.mechanism = NO_RUNS
        if options.wants(*NEED_RUNS, "budget", "evidence"):
            self.mechanism = choose(options.mechanism)
            require_device(options.device, self.mechanism)
        self._check_data()

    def _check_data(self) -> None:
        folder = self.dataset.folder
        if len(self.dataset.split("val").tokens) < MIN_STREAM:
            raise UserError(
                f"{folder}: a validation stream of at least {MIN_STREAM} tokens "
                "is needed for an audit"
            )
        tokenizer = self.dataset.manifest.tokenizer.sha256
        if self.fresh and self.fresh.manifest.tokenizer.sha256 != tokenizer:
            raise UserError(
                f"{self.options.fresh}: made with another tokenizer than {folder}; "
                "build it with the record's"
            )

    def run(self) -> AuditReport:
        """Run the chosen tests. Raises UserError where a run's own time limit is too short."""
        started = datetime.now(UTC)
        wants = self.options.wants
        with Progress(self.options.progress) as progress:
            if wants("bytes", "coverage"):
                with self._timed("bytes"):
                    judge_bytes(self.record, self.dataset, self.collectors["bytes"])
            if self.mechanism != NO_RUNS:
                self._until_stopped(progress)
            if wants("budget"):
                with self._timed("budget"):
                    judge_sizes(self.record, self.collectors["budget"])
            if wants("evidence", "budget", "bytes"):
                with self._timed("evidence"):
                    self._evidence()
        tests = [self._result(name) for name in TEST_NAMES]
        submission = self.record.submission
        return AuditReport(
            record=self.folder.name,
            verdict=conclusion(tests),
            claimed_val_bpb=submission.val_bpb if submission else None,
            level=self.options.scope,
            rules_version=self.rules.name,
            random_seed=self.random_seed,
            audited=self.audited,
            code_sha256=sha256_of(self.record.script),
            dataset=self.dataset.manifest.name,
            corpus_version=self.dataset.manifest.version,
            sandbox=self.mechanism,
            environment=self._environment(),
            started=started,
            seconds=round(self.elapsed(), 3),
            stopped=self.stopped,
            scores=self.scores,
            tests=tests,
            runs=self.runs,
        )

    def _environment(self) -> dict[str, str]:
        """Facts of the machine, with the GPUs that the runs saw."""
        seen = gpus_here() if self.options.device != "cpu" else []
        return machine() | {"gpu": ", ".join(seen) or "none"}

    def elapsed(self) -> float:
        """Seconds since the audit was made."""
        return time.monotonic() - self.started

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        clock = time.monotonic()
        yield
        self.seconds[name] += time.monotonic() - clock

    def _evidence(self) -> None:
        judge_papers(self.record, self.collectors)
        if self.record.submission is None and self.record.problem is not None:
            return
        into = self.collectors["evidence"]
        judge_given_artifact(self.unclaimed, into)
        for seed in self.record.artifacts:
            judge_artifact(self.record, seed, into)
        noise = max((compare.noise.mean for compare in self.comparisons), default=0.0)
        limits: list[Repetition] = []
        for score in self.scores:
            relative = noise * score.scored_tokens / max(score.nats, SMALLEST)
            limits.append(repetition(self.record, score.seed, self.rules, relative))
        for score, limit in zip(self.scores, limits, strict=True):
            judge_score(self.record, score, self.dataset, limit, into)
        if self.options.seed is None and self.options.artifact is None:
            judge_headline(self.record, self.scores, self.dataset, self.rules, limits, into)

    def _result(self, name: str) -> TestResult:
        # A run always tells whether it kept the contract.
        told_by_runs = name == "coverage" and self.runs
        if not self.options.wants(name) and not told_by_runs:
            return TestResult(name=name, verdict="NOT RUN", reason=NOT_SELECTED)
        collector = self.collectors[name]
        return collector.result(SUMMARIES[name](collector.figures), self.seconds[name])

    # --- Runs of the scorer ---

    def _until_stopped(self, progress: Progress) -> None:
        """All runs, or those before an interruption or the end of the time.

        Tests that then have not come to their end refute, or they say nothing."""
        try:
            self._all_seeds(progress)
        except (Stopped, KeyboardInterrupt) as error:
            self.stopped = str(error) or STOPPED_BY_HAND
            for name in (*NEED_RUNS, "budget", "evidence"):
                why = f"{self.stopped}, after {len(self.runs)} runs"
                self.collectors[name].leave(why)

    def _seeds(self) -> tuple[list[str], list[str]]:
        """(seeds to score, those of them for the behaviour tests).

        The level quick draws one seed by chance. It scores the others only where it is told to, or
        where no behaviour test is wanted."""
        seeds = list(self.record.artifacts)
        if self.options.level == "full":
            return seeds, seeds
        drawn = [str(self.rng.choice(seeds))]
        every = self.options.every_seed or not self.options.wants(*BEHAVIOUR)
        return (seeds if every else drawn), drawn

    def _all_seeds(self, progress: Progress) -> None:
        """Score the artifacts, and run the behaviour tests on all (full) or on one (quick)."""
        seeds, self.audited = self._seeds()
        n = len(self.dataset.split("val").tokens)
        progress.expect(len(seeds), n * len(seeds))
        slices: Slices | None = None
        generator: KneserNey | None = None
        if self.options.wants(*BEHAVIOUR):
            runs, tokens = expected_work(self.profile, n, self.dataset.vocab_size)
            progress.expect(len(self.audited) * runs, len(self.audited) * tokens)
            slices, generator = self._baseline(progress)
        for seed in seeds:
            label = "" if len(self.record.artifacts) == 1 else f"seed {seed}"
            self._label_findings(label)
            scorer = self._scorer(seed)
            try:
                with self._timed("future"):
                    own_slices = slices if seed in self.audited else None
                    self._run_seed(scorer, seed, own_slices, generator, progress)
            finally:
                judge_isolation(scorer.outcomes, self.mechanism, self.collectors["isolation"])
                self._keep_runs(scorer, label)
                self._label_findings("")

    def _keep_runs(self, scorer: Scorer, label: str) -> None:
        for run in scorer.runs:
            self.runs.append(run.model_copy(update={"label": f"{label} {run.label}".strip()}))

    def _label_findings(self, label: str) -> None:
        for collector in self.collectors.values():
            collector.label = label

    def _scorer(self, seed: str) -> Scorer:
        options = self.options
        settings = RunSettings(
            self.rules,
            self.mechanism,
            self.rng,
            options.nproc,
            options.wall_seconds,
            options.device,
        )
        return make_scorer(self.record, self.record.artifacts[seed], self.dataset, settings)

    def _baseline(self, progress: Progress) -> tuple[Slices, KneserNey]:
        """Control slices and the n-gram model.

        Both follow from the data and the random seed alone, so one audit's are good for the
        next."""
        progress.say("n-gram model of the training text")
        folders = (self.options.dataset or self.dataset.folder, self.options.fresh)
        fresh_sha256 = self.fresh.manifest_sha256 if self.fresh else None
        return baseline(
            folders,
            (self.dataset.manifest_sha256, fresh_sha256),
            self.profile.fresh_tokens,
            self.profile.generator_tokens,
            self.random_seed,
        )

    def _run_seed(
        self,
        scorer: Scorer,
        seed: str,
        slices: Slices | None,
        generator: KneserNey | None,
        progress: Progress,
    ) -> None:
        """All runs of one artifact; one that does not come to its end is a finding.

        Raises UserError where the official run is ended by the referee's own limit, which says
        nothing about the record."""
        try:
            self._one_seed(scorer, seed, slices, generator, progress)
        except RunFailed as error:
            seconds = error.outcome.seconds
            was_official = len(scorer.outcomes) == 1
            too_slow = over_the_clock(self.record, seed, seconds, self.options.nproc)
            if error.outcome.killed == WALL_CLOCK and was_official and not too_slow:
                raise out_of_time(error) from None
            self._failed(error, seed)

    def _failed(self, error: RunFailed, seed: str) -> None:
        """A run that did not end well, which another Python or torch may be the reason of."""
        needed = other_versions(self.record, seed)
        if needed is not None and error.outcome.killed is None:
            for name in NEED_RUNS:
                self.collectors[name].leave(f"{needed}; {error.label} run: {error.outcome.why()}")
            return
        failed(error, self.collectors)
        for name in BEHAVIOUR:
            why = f"the scorer does not run to its end ({error.label})"
            self.collectors[name].skip(why)

    def _one_seed(
        self,
        scorer: Scorer,
        seed: str,
        slices: Slices | None,
        generator: KneserNey | None,
        progress: Progress,
    ) -> None:
        x = self.dataset.split("val").tokens
        material = Material(x, scorer.vocab_size, generator, self.profile, self.rng)

        watch = Watched(f"seed {seed}", progress, self)
        engine = Engine(scorer, self.collectors["coverage"], watch, x)
        compare = Comparisons(self.rules, self.collectors)
        self.comparisons.append(compare)
        behaviour = Behaviour(engine, material, compare)
        nll = behaviour.run_official()
        if nll is None:
            for name in BEHAVIOUR:
                self.collectors[name].skip("the official run gave no usable scores")
            return
        seconds = scorer.outcomes[-1].seconds
        score = self._score(seed, nll, seconds)
        scorer.wall_seconds = max(scorer.wall_seconds, self.rules.limits.wall_factor * seconds)
        if slices is None or generator is None:
            if self._is_off(score):
                engine.run(OfficialAgain(material, compare))
            return
        if self.options.device == "cuda":  # its kernels add in an order of their own
            engine.run(OfficialAgain(material, compare))
        fresh = None
        if self.options.wants("fresh"):
            fresh = FreshText(slices, material, generator, self.rules, self.collectors["fresh"])
        behaviour.run_all(fresh)

    def _is_off(self, score: SeedScore) -> bool:
        """Whether a score is not the claimed one, so that it matters how far reruns differ."""
        claimed = score.claimed_val_bpb
        if claimed is None:
            return False
        limit = tolerance(self.record, score.seed, self.rules)
        return not limit.allows(score.val_bpb, claimed)

    def _score(self, seed: str, nll: np.ndarray, seconds: float) -> SeedScore:
        """The referee's score of one seed; its seconds count for `budget`."""
        split = self.dataset.split("val")
        artifact = self.record.artifacts[seed]
        scored_bytes = denominator(split, self.dataset.table)
        score = Score(float(nll.sum()), len(nll), scored_bytes, seconds)
        claim = self.record.claim(seed)
        reported = SeedScore(
            seed=seed,
            artifact_bytes=artifact.stat().st_size,
            artifact_sha256=sha256_of(artifact),
            val_bpb=score.val_bpb,
            nats=score.nats,
            scored_tokens=score.tokens,
            scored_bytes=score.bytes,
            seconds=score.seconds,
            claimed_val_bpb=claim.val_bpb if claim else None,
        )
        self.scores.append(reported)
        judge_clock(self.record, seed, seconds, self.options.nproc, self.collectors["budget"])
        return reported


@functools.lru_cache(maxsize=2)
def baseline(
    folders: tuple[Path, Path | None],
    hashes: tuple[str, str | None],
    fresh_tokens: int,
    generator_tokens: int,
    random_seed: int,
) -> tuple[Slices, KneserNey]:
    """Slices and n-gram model of a dataset and, if there is one, of a fresh one.

    `hashes` only tells one state of the folders from another."""
    folder, fresh_folder = folders
    dataset = Dataset(folder)
    fresh = Dataset(fresh_folder) if fresh_folder else None
    slices = Slices(dataset, fresh, fresh_tokens, np.random.default_rng((random_seed, 1)))
    stream = slices.training_without_held_out(generator_tokens)
    if stream is None or len(stream) < MIN_STREAM:
        # No training text here. The model may be any text's; the canary stays exact.
        stream = dataset.split("val").tokens
    return slices, KneserNey(stream, dataset.vocab_size)
