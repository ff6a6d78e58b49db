"""`python -m eval audit`: a black-box audit of a record. No verdict rests on reading the submission's source.

Every test of the report can be chosen by name (--only); --quick takes a few minutes on two cores for a docs-track record, --full tests every
seed with many more positions. The report goes to the terminal and, as audit.json and AUDIT.md, into the record folder or --out. Exit code
0 for PASS and WARN, 1 for POLICY and INVALID and where a chosen test could not run, 2 for bad input."""

import argparse
import functools
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from eval import report as reports
from eval import sandbox
from eval.behaviour import Behaviour, failed
from eval.bytes import check_fineweb_bytes
from eval.dataset import Dataset
from eval.errors import UserError
from eval.fresh import FreshSlices
from eval.generator import KneserNey
from eval.record import (
    GIVEN,
    RecordFolder,
    machine,
    open_dataset,
    open_record,
    sha256_of,
    tolerance,
)
from eval.report import TEST_NAMES, AuditReport, Collector, Run, SeedScore, TestResult
from eval.rules import CURRENT, Profile, Rules, load_rules
from eval.runner import RunFailed, Scorer
from eval.sandbox import WALL_CLOCK
from eval.schema import allowed_difference
from eval.score import (
    Score,
    add_run_options,
    denominator,
    make_scorer,
    name_given_artifact,
    other_artifact,
    other_hardware,
    out_of_time,
)

BEHAVIOUR = ("future", "normalisation", "canary", "documents", "fresh")
NEED_RUNS = (*BEHAVIOUR, "coverage", "isolation")
MIN_STREAM = 256  # tokens; below, the positions of the behaviour tests would collide
EVIDENCE_ELSEWHERE = {
    "size": "budget",
    "bytes": "budget",
    "cap": "budget",
    "train_time": "budget",
    "eval_time": "budget",
    "implied_bytes": "bytes",
}


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


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "audit", help="test a record by its behaviour", description=__doc__, allow_abbrev=False
    )
    add_run_options(parser)
    level = parser.add_mutually_exclusive_group()
    level.add_argument(
        "--quick", dest="level", action="store_const", const="quick", help="a few minutes (default)"
    )
    level.add_argument(
        "--full",
        dest="level",
        action="store_const",
        const="full",
        help="every seed, more runs, more positions",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=TEST_NAMES,
        default=[],
        metavar="NAME",
        help=f"tests to run: {', '.join(TEST_NAMES)}",
    )
    parser.add_argument(
        "--fresh",
        type=Path,
        metavar="DIR",
        help="dataset folder of documents outside both splits, same tokenizer",
    )
    parser.add_argument(
        "--random-seed", type=int, metavar="N", help="repeat the choices of an earlier audit"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where audit.json and AUDIT.md go (default: the record folder)",
    )
    parser.set_defaults(run=run, level="quick")


def run(args: argparse.Namespace) -> int:
    options = Options(
        level=args.level,
        only=tuple(args.only),
        dataset=args.dataset,
        fresh=args.fresh,
        seed=args.seed,
        artifact=args.artifact,
        random_seed=args.random_seed,
        mechanism="none" if args.no_sandbox else "auto",
        nproc=args.nproc,
        wall_seconds=args.wall_seconds,
        rules=args.rules,
        progress=True,
    )
    result = audit_record(args.record, options)
    print(reports.to_terminal(result))
    reports.write(result, args.out or args.record)
    print(f"written   {(args.out or args.record) / 'AUDIT.md'}")
    return int(result.verdict in ("POLICY", "INVALID") or bool(not_run(result, options.only)))


def not_run(result: AuditReport, only: Sequence[str]) -> list[str]:
    """Chosen tests that say nothing. `documents` may: a split of few documents has no borders to test, and the rule set asks for none."""
    return [
        t.name
        for t in result.tests
        if t.verdict == "NOT RUN" and (t.name in only if only else t.name != "documents")
    ]


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
        self.record: RecordFolder = open_record(
            self.folder, self.options.artifact, self.options.seed
        )
        self.unclaimed: list[str] = name_given_artifact(self.record)
        self.dataset: Dataset = open_dataset(self.record, self.options.dataset)
        self.fresh = Dataset(self.options.fresh) if self.options.fresh else None
        self.random_seed = (
            secrets.randbits(32) if self.options.random_seed is None else self.options.random_seed
        )
        self.rng = np.random.default_rng(self.random_seed)
        self.collectors = {name: Collector(name) for name in TEST_NAMES}
        self.scores: list[SeedScore] = []
        self.runs: list[Run] = []
        self.audited: list[str] = []
        self.mechanism = (
            sandbox.choose(self.options.mechanism)
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
            verdict=reports.worst([t.verdict for t in tests]),
            level=self.options.level
            if not self.options.only
            else f"{self.options.level}, only {' '.join(self.options.only)}",
            rules_version=self.rules.name,
            random_seed=self.random_seed,
            audited=self.audited,
            code_sha256=sha256_of(self.record.code),
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
                    and not self._over_the_clock(seed, error.outcome.seconds)
                ):
                    raise out_of_time(error) from None
                failed(error, self.collectors)
                for name in BEHAVIOUR:
                    self.collectors[name].skip(
                        f"the scorer does not run to its end ({error.args[0].split(':')[0]})"
                    )
            self._isolation(scorer)
            self.seconds["future"] = self.seconds.get("future", 0.0) + time.monotonic() - clock
            self.runs += [
                Run(
                    label=f"{label} {r.label}".strip(),
                    **{k: v for k, v in vars(r).items() if k != "label"},
                )
                for r in scorer.runs
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
        self._clock(seed, score.seconds)
        into = self.collectors["evidence"]
        for name, found, stated in other_artifact(self.record, seed):
            into.add(
                "INVALID",
                f"{name} of seed {seed}",
                stated,
                found,
                "the audited artifact is the claimed one",
            )
        if claim is None:
            into.skip(
                "no claim to compare with" if self.record.problem is None else self.record.problem
            )
            return
        limit, why = tolerance(self.record, seed, self.rules)
        into.ran_check()
        into.tolerance = f"{limit:g} of val_bpb"
        into.tolerance_source = f"{why}; the two values are the rule set's, see its comments"
        difference = abs(score.val_bpb - claim.val_bpb)
        into.figure("largest_difference_from_claimed_bpb", difference)
        data = self.record.submission.data if self.record.submission else None
        if data is not None and data.version != self.dataset.manifest.version:
            into.skip("scored on another corpus version than claimed, so not compared")
        elif difference > allowed_difference(claim.val_bpb, limit):
            into.add(
                "INVALID",
                f"val_bpb of seed {seed}",
                f"{claim.val_bpb:.8f} ± {limit * claim.val_bpb:.1e} ({why})",
                f"{score.val_bpb:.8f}",
                "the claim repeats",
            )

    def _isolation(self, scorer: Scorer) -> None:
        into = self.collectors["isolation"]
        into.tolerance = "no attempt"
        into.tolerance_source = (
            "in the sandbox outside paths do not exist and there is no network, whoever asks; attempts are told by an audit hook in each Python "
            "interpreter, which does not see what native code does by itself, nor a mere look whether a path exists"
        )
        if self.mechanism == "none":
            into.skip(
                "no sandbox (--no-sandbox): nothing was contained, what is listed was seen by the audit hook alone"
            )
        kinds = {
            "outside": "opens nothing outside code, artifact, streams and the Python environment",
            "absent": "opens nothing below the temporary folder that it did not put there",
            "write": "writes nothing outside /out and the temporary folder",
            "network": "asks for no network",
            "environment": "reads no text of the Python environment",
        }
        for outcome in scorer.outcomes:
            into.ran_check(0 if self.mechanism == "none" else 1)
            for problem in outcome.problems:
                into.add(
                    "INVALID",
                    "sandbox",
                    "a run that ends by itself and leaves its outputs only",
                    problem,
                    "the sandbox's limits",
                )
        for kind, rule in kinds.items():
            seen = sorted({what for outcome in scorer.outcomes for what in outcome.seen[kind]})
            into.figure(f"{kind}_events", len(seen), lambda a, b: a + b)
            for what in seen:
                into.add(
                    "WARN" if kind in ("absent", "environment") else "INVALID",
                    kind,
                    "no attempt",
                    what,
                    rule,
                )
        programs = sorted({what for outcome in scorer.outcomes for what in outcome.seen["program"]})
        into.figure("program_events", len(programs), lambda a, b: a + b)
        into.figure(
            "peak_memory_mib", max((o.peak_memory for o in scorer.outcomes), default=0) / 2**20
        )

    # --- Files ---

    def _bytes(self) -> None:
        """Tokens decoded by the referee's own reader against byte table, manifest, claim and the contest's constants."""
        into, data, table = self.collectors["bytes"], self.dataset, self.dataset.table
        split = data.split("val")
        into.ran_check()
        for complaint in split.complaints + data.tokenizer_complaints:
            into.add(
                "INVALID",
                data.folder.name,
                "the data that the manifest describes",
                complaint,
                "shards and tokenizer are bound by sha256",
            )
        decoded, counted = (
            table.decoded_bytes(split.tokens),
            int(table.table_bytes(split.tokens).sum()),
        )
        source = split.stated.source_bytes
        into.figure("decoded_bytes", decoded)
        into.figure("byte_table_bytes", counted)
        if source is not None:
            into.figure("source_bytes_of_the_manifest", source)
        if split.sidecar is not None:
            into.figure("sidecar_bytes", int(split.sidecar.sum()))
            if split.sidecar_complaint:
                into.add(
                    "INVALID",
                    f"{data.folder.name}: byte sidecar",
                    f"{source:,} source bytes"
                    if source is not None
                    else "source_bytes in the manifest",
                    f"{int(split.sidecar.sum()):,}",
                    "the sidecar keeps the bytes of the original text",
                )
        elif table.lossy:
            into.skip(
                f"the tokenizer {', '.join(table.lossy)}: the contest divides by the byte table"
            )
        elif source is not None and source != decoded:
            into.add(
                "INVALID",
                f"{data.folder.name}: source_bytes",
                f"{decoded:,} as decoded",
                f"{source:,} in the manifest",
                "lossless text comes back byte for byte",
            )
        if not table.lossy and decoded != counted:
            into.add(
                "INVALID",
                "byte table",
                f"{decoded:,} decoded bytes",
                f"{counted:,}",
                "the table sums to the decoded text",
            )
        if len(split.spans) != split.stated.documents:
            into.add(
                "INVALID",
                f"{data.folder.name}: documents",
                f"{split.stated.documents:,} as the manifest says",
                f"{len(split.spans):,}",
                "every document begins with BOS",
            )
        if (
            not table.lossy
            and split.sidecar is None
            and data.manifest.version_rule == "documents"
            and not split.complaints
            and data.has("train")
        ):
            found = data.decoded_version()
            if found != data.manifest.version:
                into.add(
                    "INVALID",
                    f"{data.folder.name}: version",
                    f"{data.manifest.version[:16]}…",
                    f"{found[:16]}… from the decoded documents",
                    "the version is a hash of the text",
                )
        self._claimed_data(into, denominator(split, table), len(split.tokens))

    def _claimed_data(self, into: Collector, scored_bytes: int, tokens: int) -> None:
        submission = self.record.submission
        if submission is None:
            into.skip("no submission.json to compare with")
            return
        if submission.data is not None:
            stated, here = submission.data, self.dataset.manifest
            if stated.version != here.version:
                into.add(
                    "WARN",
                    "corpus version",
                    f"{stated.version[:16]}… as the record says",
                    f"{here.version[:16]}… in {self.dataset.folder.name}",
                    "scores of different texts are not compared",
                )
                return
            pairs = {
                "tokenizer_sha256": (here.tokenizer.sha256, stated.tokenizer_sha256),
                "val_tokens": (tokens, stated.val_tokens),
                "val_bytes": (scored_bytes, stated.val_bytes),
            }
            for name, (found, claimed) in pairs.items():
                if found != claimed:
                    into.add(
                        "INVALID",
                        f"submission.json: {name}",
                        f"{found}",
                        f"{claimed}",
                        "the record was scored on this data",
                    )
        for seed, claim in submission.seed_results.items():
            if claim.scored_bytes is not None and claim.scored_bytes != scored_bytes:
                into.add(
                    "INVALID",
                    f"scored_bytes of seed {seed}",
                    f"{scored_bytes:,}",
                    f"{claim.scored_bytes:,}",
                    "the referee counts bytes",
                )
            if "fineweb" in self.dataset.manifest.corpus and claim.val_loss and claim.scored_tokens:
                _, implied, complaint = check_fineweb_bytes(
                    claim.scored_tokens, claim.val_loss, claim.val_bpb
                )
                into.figure("implied_bytes", implied)
                if complaint:
                    into.add(
                        "INVALID",
                        f"val_loss and val_bpb of seed {seed}",
                        "the bytes of the published split",
                        complaint,
                        "VALIDITY 2.2",
                    )

    def _clock(self, seed: str, seconds: float) -> None:
        """Seconds of the official run against the track's clock, which binds where the hardware is that of the claim."""
        into, track = self.collectors["budget"], self.record.track
        into.ran_check()
        into.figure("eval_seconds_by_the_referee", seconds)
        cap = track.eval_seconds if track else None
        if cap is None:
            return
        differs = other_hardware(self.record, seed, self.options.nproc)
        if seconds > cap:
            verdict, why = (
                ("INVALID", "") if differs is None else ("WARN", f"; not comparable: {differs}")
            )
            into.add(
                verdict,
                "evaluation",
                f"at most {cap:g} s from start to end of the process",
                f"{seconds:.1f} s{why}",
                "evaluation budget of the track",
            )
        elif differs is not None:
            into.skip(f"the track's clock, {differs}")

    def _over_the_clock(self, seed: str, seconds: float) -> bool:
        track = self.record.track
        limited = (
            track is not None
            and track.eval_seconds is not None
            and other_hardware(self.record, seed, self.options.nproc) is None
        )
        return limited and seconds > track.eval_seconds

    def _budget(self) -> None:
        """Sizes on disk; what is counted is what a run gets to see, so an uncounted file that it needs shows as a failed run."""
        into, track = self.collectors["budget"], self.record.track
        code = self.record.code.stat().st_size
        cap = track.bytes_cap if track else 16_000_000
        into.ran_check()
        into.figure("code_bytes", code)
        for seed, artifact in self.record.artifacts.items():
            size = artifact.stat().st_size
            into.figure("artifact_bytes", size)
            if code + size > cap:
                into.add(
                    "INVALID",
                    f"seed {seed}",
                    f"code + artifact at most {cap:,} bytes",
                    f"{code:,} + {size:,} = {code + size:,}",
                    "cap of the track",
                )
            if track and track.artifact_cap and size > track.artifact_cap and seed != GIVEN:
                into.add(
                    "INVALID",
                    artifact.name,
                    f"at most {track.artifact_cap:,} bytes in git",
                    f"{size:,}",
                    "cap for committed artifacts",
                )

    def _evidence(self) -> None:
        """The papers, by `python -m eval check`, whose failed checks count here; sizes and clocks of the log count as budget."""
        from eval import check  # here, so that scoring needs no plotting library

        if self.record.submission is None and self.record.problem is not None:
            self.collectors["evidence"].ran_check()
            self.collectors["evidence"].add(
                "INVALID",
                "submission.json",
                "a record that states its results",
                self.record.problem,
                "evidence",
            )
            return
        for outcome in check.check_folder(self.folder).checks:
            into = self.collectors[EVIDENCE_ELSEWHERE.get(outcome.name, "evidence")]
            into.ran_check()
            if outcome.verdict is check.Verdict.FAIL:
                proof = f" [{outcome.evidence[0]}]" if outcome.evidence else ""
                into.add(
                    "INVALID",
                    f"check {outcome.name}",
                    "agreement",
                    outcome.detail + proof,
                    "submission.json, README, logs, code and artifacts agree",
                )
        self._headline()

    def _headline(self) -> None:
        submission, into = self.record.submission, self.collectors["evidence"]
        for complaint in self.unclaimed:
            into.add(
                "INVALID",
                "artifact",
                "one of the claimed artifacts",
                complaint,
                "the audited artifact is the claimed one",
            )
        if submission is None or self.options.seed is not None or self.options.artifact is not None:
            return
        if (
            self.rules.policy.require_all_seeds
            and self.record.missing
            and self.record.track
            and self.record.track.commits_artifacts
        ):
            into.add(
                "INVALID",
                "artifacts",
                f"one for each claimed seed {submission.seeds}",
                f"none for {', '.join(self.record.missing)}",
                "all seeds are counted",
            )
        same_text = (
            submission.data is None or submission.data.version == self.dataset.manifest.version
        )  # `_score` has said so where it is not
        if (
            same_text
            and self.scores
            and not self.record.missing
            and len(self.scores) == len(submission.seeds)
        ):
            mean = float(np.mean([s.val_bpb for s in self.scores]))
            limit = max(tolerance(self.record, s.seed, self.rules)[0] for s in self.scores)
            if abs(mean - submission.val_bpb) > allowed_difference(submission.val_bpb, limit):
                into.add(
                    "INVALID",
                    "headline val_bpb",
                    f"{mean:.8f}, the mean over {len(self.scores)} seeds",
                    f"{submission.val_bpb:.8f}",
                    "all seeds are counted",
                )


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


def _number(figures: dict[str, float], name: str, form: str = ".3g") -> str:
    return format(figures[name], form) if name in figures else "nothing"


SUMMARIES: dict[str, Callable[[dict[str, float]], str]] = {
    "future": lambda f: (
        f"earlier scores moved by at most {_number(f, 'largest_change_before_a_changed_token_nats')} nats; "
        f"{_number(f, 'pairs_compared', '.0f')} pairs of short streams"
    ),
    "normalisation": lambda f: (
        f"{_number(f, 'rows_checked', '.0f')} rows sum to {_number(f, 'smallest_sum', '.6f')}..{_number(f, 'largest_sum', '.6f')}; "
        f"substituted tokens within {_number(f, 'largest_substitution_error_nats')} nats of their row"
    ),
    "canary": lambda f: (
        f"{_number(f, 'evidence_bits', '.1f')} bits of evidence on {_number(f, 'sampled_tokens', ',.0f')} sampled tokens"
    ),
    "coverage": lambda f: "every run gave one finite loss for every target",
    "bytes": lambda f: (
        f"{_number(f, 'decoded_bytes', ',.0f')} decoded bytes, as table, manifest and claim say"
    ),
    "isolation": lambda f: "no attempt to leave the sandbox was seen and nothing was left behind",
    "budget": lambda f: (
        f"code {_number(f, 'code_bytes', ',.0f')} + artifact {_number(f, 'artifact_bytes', ',.0f')} bytes; evaluation "
        f"{_number(f, 'eval_seconds_by_the_referee', '.1f')} s by the referee's clock"
    ),
    "fresh": lambda f: (
        f"excess advantage over training text {_number(f, 'excess_over_training_bpb', '+.4f')} bpb, "
        f"gain from the opening {_number(f, 'gain_from_the_opening_bpb', '+.4f')} bpb"
    ),
    "documents": lambda f: (
        f"one document moves the next one's scores by up to {_number(f, 'largest_effect_across_a_document_border_nats')} nats; allowed here"
    ),
    "evidence": lambda f: (
        f"papers agree; the referee's score is within {_number(f, 'largest_difference_from_claimed_bpb', '.2g')} bpb of the claim"
    ),
}


class Progress:
    """One bar over the runs of the scorer, on stderr; silent when not wanted."""

    def __init__(self, shown: bool):
        self.bar = tqdm(total=0, unit="run", disable=not shown, leave=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def expect(self, runs: int) -> None:
        self.bar.total = (self.bar.total or 0) + runs
        self.bar.refresh()

    def say(self, what: str) -> None:
        self.bar.set_description(what)

    def step(self, what: str) -> None:
        self.bar.set_description(what)
        self.bar.update(1)
