"""The flow of an audit: opens the record, runs the tests that were chosen, gathers the report."""

import functools
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from eval.errors import UserError
from eval.files import sha256_of
from eval.papers.audits.report import (
    TEST_NAMES,
    AuditReport,
    ScorerRun,
    SeedScore,
    TestResult,
    worst,
)
from eval.papers.folder import Record, open_for_trial
from eval.rules import CURRENT, Profile, Rules, load_rules
from eval.text.corpus.dataset import Dataset
from eval.text.language.generator import KneserNey
from eval.trial.audit.budget import judge_clock, judge_sizes, over_the_clock
from eval.trial.audit.collector import Collector
from eval.trial.audit.data import judge_bytes
from eval.trial.audit.evidence import (
    judge_given_artifact,
    judge_headline,
    judge_papers,
    judge_score,
)
from eval.trial.audit.experiments.behaviour import Behaviour, failed
from eval.trial.audit.experiments.fresh import FreshSlices
from eval.trial.audit.isolation import judge_isolation
from eval.trial.audit.progress import Progress
from eval.trial.audit.summaries import SUMMARIES
from eval.trial.runner.claims import (
    machine,
    name_given_artifact,
)
from eval.trial.runner.scorer import RunFailed, Scorer
from eval.trial.runner.scores import Score, denominator, make_scorer, open_dataset, out_of_time
from eval.trial.sandbox.job import WALL_CLOCK
from eval.trial.sandbox.running import choose

BEHAVIOUR = ("future", "normalisation", "canary", "documents", "fresh")
NEED_RUNS = (*BEHAVIOUR, "coverage", "isolation")
MIN_STREAM = 256  # tokens; below, the positions of the behaviour tests would collide


@dataclass(frozen=True)
class Options:
    """What to audit and how. `random_seed` None draws one, which the report prints; `profile` overrides the level's numbers."""

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
    rules: str = CURRENT
    progress: bool = False
    profile: Profile | None = None


def audit_record(folder: Path, options: Options) -> AuditReport:
    """All chosen tests of one record folder. Raises UserError for input that cannot be audited at all."""
    return Audit(folder, options).run()


@dataclass
class Audit:
    folder: Path
    options: Options
    collectors: dict[str, Collector] = field(init=False)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rules: Rules = load_rules(self.options.rules)
        self.profile = self.options.profile or self.rules.profile[self.options.level]
        self.record: Record = open_for_trial(self.folder, self.options.artifact, self.options.seed)
        self.unclaimed: list[str] = name_given_artifact(self.record)
        self.dataset: Dataset = open_dataset(self.record, self.options.dataset)
        self.fresh = Dataset(self.options.fresh) if self.options.fresh else None
        self.random_seed = (
            secrets.randbits(32) if self.options.random_seed is None else self.options.random_seed
        )
        self.rng = np.random.default_rng(self.random_seed)
        self.collectors = {name: Collector(name) for name in TEST_NAMES}
        self.scores: list[SeedScore] = []
        self.runs: list[ScorerRun] = []
        self.audited: list[str] = []
        self.mechanism = (
            choose(self.options.mechanism)
            if self.wants(*NEED_RUNS, "budget", "evidence")
            else "not needed"
        )
        if len(self.dataset.split("val").tokens) < MIN_STREAM:
            raise UserError(
                f"{self.dataset.folder}: a validation stream of at least {MIN_STREAM} tokens is needed for an audit"
            )
        if (
            self.fresh
            and self.fresh.manifest.tokenizer.sha256 != self.dataset.manifest.tokenizer.sha256
        ):
            raise UserError(
                f"{self.options.fresh}: made with another tokenizer than {self.dataset.folder}; build it with the record's"
            )

    def wants(self, *names: str) -> bool:
        return not self.options.only or any(name in self.options.only for name in names)

    def run(self) -> AuditReport:
        started, clock = datetime.now(UTC), time.monotonic()
        with Progress(self.options.progress) as progress:
            if self.wants("bytes", "coverage"):
                self._timed("bytes", self._bytes)
            if self.mechanism != "not needed":
                self._all_seeds(progress)
            if self.wants("budget"):
                self._timed("budget", self._budget)
            if self.wants("evidence", "budget", "bytes"):
                self._timed("evidence", self._evidence)
        tests = [self._result(name) for name in TEST_NAMES]
        return AuditReport(
            record=self.folder.name,
            verdict=worst([t.verdict for t in tests]),
            level=self.options.level
            if not self.options.only
            else f"{self.options.level}, only {' '.join(self.options.only)}",
            rules_version=self.rules.name,
            random_seed=self.random_seed,
            audited=self.audited,
            code_sha256=sha256_of(self.record.script),
            dataset=self.dataset.manifest.name,
            corpus_version=self.dataset.manifest.version,
            sandbox=self.mechanism,
            environment=machine(),
            started=started,
            seconds=round(time.monotonic() - clock, 3),
            scores=self.scores,
            tests=tests,
            runs=self.runs,
        )

    def _bytes(self) -> None:
        judge_bytes(self.record, self.dataset, self.collectors["bytes"])

    def _budget(self) -> None:
        judge_sizes(self.record, self.collectors["budget"])

    def _evidence(self) -> None:
        judge_papers(self.record, self.collectors)
        if self.record.submission is None and self.record.problem is not None:
            return
        into = self.collectors["evidence"]
        judge_given_artifact(self.unclaimed, into)
        if self.options.seed is None and self.options.artifact is None:
            judge_headline(self.record, self.scores, self.dataset, self.rules, into)

    def _timed(self, name: str, work: Callable[[], None]) -> None:
        clock = time.monotonic()
        work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - clock

    def _result(self, name: str) -> TestResult:
        if not self.wants(name) and not (
            name == "coverage" and self.runs
        ):  # a run always tells whether it kept the contract
            return TestResult(name=name, verdict="NOT RUN", reason="not selected")
        return self.collectors[name].result(
            SUMMARIES[name](self.collectors[name].figures), self.seconds.get(name, 0.0)
        )

    # --- Runs of the scorer ---

    def _all_seeds(self, progress: "Progress") -> None:
        """Score every artifact; behaviour tests on all of them (full) or on one drawn by chance (quick)."""
        seeds = list(self.record.artifacts)
        chosen = seeds if self.options.level == "full" else [str(self.rng.choice(seeds))]
        self.audited = chosen
        behaviour = self.wants(*BEHAVIOUR)
        progress.expect(
            len(seeds)
            + (
                len(chosen) * (4 + self.profile.tail_cut + self.profile.late_splices)
                if behaviour
                else 0
            )
        )
        slices, generator = self._baseline(progress) if behaviour else (None, None)
        for seed in seeds:
            label = "" if len(seeds) == 1 else f"seed {seed}"
            for collector in self.collectors.values():
                collector.label = label
            scorer = make_scorer(
                self.record,
                self.record.artifacts[seed],
                self.dataset,
                self.rules,
                self.mechanism,
                self.options.nproc,
                self.rng,
                self.options.wall_seconds,
            )
            clock = time.monotonic()
            try:
                self._one_seed(
                    scorer, seed, slices if seed in chosen else None, generator, progress
                )
            except RunFailed as error:
                if (
                    error.outcome.killed == WALL_CLOCK
                    and len(scorer.outcomes) == 1
                    and not over_the_clock(
                        self.record, seed, error.outcome.seconds, self.options.nproc
                    )
                ):
                    raise out_of_time(error) from None
                failed(error, self.collectors)
                for name in BEHAVIOUR:
                    self.collectors[name].skip(
                        f"the scorer does not run to its end ({error.args[0].split(':')[0]})"
                    )
            judge_isolation(scorer.outcomes, self.mechanism, self.collectors["isolation"])
            self.seconds["future"] = self.seconds.get("future", 0.0) + time.monotonic() - clock
            self.runs += [
                one.model_copy(update={"label": f"{label} {one.label}".strip()})
                for one in scorer.runs
            ]
        for collector in self.collectors.values():
            collector.label = ""

    def _baseline(self, progress: "Progress") -> tuple[FreshSlices, KneserNey]:
        """Control slices and the n-gram model; both follow from the data and the random seed alone, so one audit's are good for the next."""
        progress.say("n-gram model of the training text")
        folders = (self.options.dataset or self.dataset.folder, self.options.fresh)
        hashes = (self.dataset.manifest_sha256, self.fresh.manifest_sha256 if self.fresh else None)
        return baseline(
            folders,
            hashes,
            self.profile.fresh_tokens,
            self.profile.generator_tokens,
            self.random_seed,
        )

    def _one_seed(
        self,
        scorer: Scorer,
        seed: str,
        slices: FreshSlices | None,
        generator: KneserNey | None,
        progress: "Progress",
    ) -> None:
        x = self.dataset.split("val").tokens
        behaviour = Behaviour(
            scorer, x, generator, self.profile, self.rules, self.rng, self.collectors
        )
        progress.step(f"seed {seed}: official")
        nll = behaviour.run_official()
        if nll is None:
            for name in BEHAVIOUR:
                self.collectors[name].skip("the official run gave no usable scores")
            return
        self._score(seed, nll, scorer)
        scorer.wall_seconds = max(
            scorer.wall_seconds, self.rules.limits.wall_factor * scorer.outcomes[-1].seconds
        )
        if slices is None or generator is None:
            return
        if self.wants("fresh"):
            behaviour.extra_streams, behaviour.control = slices.streams(), slices.control()
        behaviour.run_all(lambda name: progress.step(f"seed {seed}: {name}"))
        if self.wants("fresh"):
            slices.judge(
                nll,
                behaviour.extra_scored,
                behaviour.control_scored,
                generator,
                self.rules,
                self.collectors["fresh"],
            )

    def _score(self, seed: str, nll: np.ndarray, scorer: Scorer) -> None:
        """The referee's score of one seed against the claim (test `evidence`) and the clock (test `budget`)."""
        split, artifact = self.dataset.split("val"), self.record.artifacts[seed]
        score = Score(
            float(nll.sum()),
            len(nll),
            denominator(split, self.dataset.table),
            scorer.outcomes[-1].seconds,
        )
        claim = self.record.claim(seed)
        self.scores.append(
            SeedScore(
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
        )
        judge_clock(self.record, seed, score.seconds, self.options.nproc, self.collectors["budget"])
        judge_score(
            self.record, self.scores[-1], self.dataset, self.rules, self.collectors["evidence"]
        )

    # --- Files ---


@functools.lru_cache(maxsize=2)
def baseline(
    folders: tuple[Path, Path | None],
    hashes: tuple[str, str | None],
    fresh_tokens: int,
    generator_tokens: int,
    random_seed: int,
) -> tuple[FreshSlices, KneserNey]:
    """`hashes` only tells one state of the folders from another."""
    dataset, fresh = Dataset(folders[0]), Dataset(folders[1]) if folders[1] else None
    slices = FreshSlices(dataset, fresh, fresh_tokens, np.random.default_rng((random_seed, 1)))
    stream = slices.training_without_held_out(generator_tokens)
    if stream is None or len(stream) < MIN_STREAM:
        stream = dataset.split(
            "val"
        ).tokens  # no training text here: g may be any text's model, the canary stays exact
    return slices, KneserNey(stream, dataset.vocab_size)
