"""The audit's report as a typed schema."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from eval.rules import Verdict

SEVERITY = (Verdict.NOT_RUN, Verdict.PASS, Verdict.WARN, Verdict.POLICY, Verdict.INVALID)


# Verdicts of a whole audit. INCOMPLETE stands for PASS and WARN where a test did not run.
CONCLUSIONS = (*SEVERITY, Verdict.INCOMPLETE)
REFUTED = (Verdict.POLICY, Verdict.INVALID)
NOT_SELECTED = "not selected"


def _one_of(allowed: Sequence[Verdict]) -> BeforeValidator:
    def check(value: object) -> object:
        if value not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}, found {value!r}")
        return value

    return BeforeValidator(check)


TestVerdict = Annotated[Verdict, _one_of(SEVERITY)]
AuditVerdict = Annotated[Verdict, _one_of(CONCLUSIONS)]

TEST_NAMES = (
    "future",
    "normalisation",
    "canary",
    "coverage",
    "bytes",
    "isolation",
    "budget",
    "fresh",
    "documents",
    "evidence",
)

# A corpus may have too few documents for these two; the rest always runs.
MAY_LACK_TEXT = ("fresh", "documents")

MEANING = {
    "future": (
        "a score depends on what stands before it, on nothing after it, and on no other stream"
    ),
    "normalisation": (
        "before each token there is one distribution over the vocabulary; it sums to one and "
        "the score is read from it"
    ),
    "canary": (
        "on text with known probabilities g, the score does not beat g by more than luck allows"
    ),
    "coverage": (
        "every target of the full split is scored exactly once, in order, by a finite loss that "
        "is not negative"
    ),
    "bytes": "bits are divided by the bytes of the text, counted by the referee",
    "isolation": (
        "the run needs nothing but code, artifact, stream and the Python environment, and leaves "
        "nothing behind"
    ),
    "budget": "code and artifact fit the cap; training and evaluation fit their clocks",
    "fresh": (
        "the advantage over a plain baseline is the same on validation text as on other text"
    ),
    "documents": (
        "whether state crosses a document boundary; only a rule set with document isolation minds"
    ),
    "evidence": (
        "submission.json, README, logs, code and artifacts say the same, and the referee's own "
        "score agrees"
    ),
}


class Model(BaseModel):
    # Deferred: who only asks for help need not wait for the validators.
    model_config = ConfigDict(extra="forbid", defer_build=True)


class Finding(Model):
    """One violation or remark.

    `where` names file or position, `expected` and `found` the two sides, `rule` what says so.
    """

    verdict: TestVerdict
    where: str
    expected: str
    found: str
    rule: str


class TestResult(Model):
    """One row of the report.

    `figures` are the numbers that the verdict rests on; their names hold the units. `unfinished`
    says what kept the test from its end, empty where nothing did.
    """

    __test__ = False  # pytest: this is no test class

    name: str
    verdict: TestVerdict
    reason: str
    figures: dict[str, float] = Field(default_factory=dict)
    tolerance: str = ""
    tolerance_source: str = ""
    findings: list[Finding] = Field(default_factory=list)
    more_findings: int = 0
    seconds: float = 0.0
    unfinished: str = ""

    @property
    def is_missing(self) -> bool:
        """Whether it should have run and did not: a short corpus may leave two tests no text."""
        if self.verdict != Verdict.NOT_RUN:
            return False
        stopped = bool(self.unfinished) or self.reason == NOT_SELECTED
        return stopped or self.name not in MAY_LACK_TEXT


class SeedScore(Model):
    """The referee's own score of one artifact, beside the claim."""

    seed: str
    artifact_bytes: int
    artifact_sha256: str
    val_bpb: float
    nats: float
    scored_tokens: int
    scored_bytes: int
    seconds: float
    claimed_val_bpb: float | None = None


class ScorerRun(Model):
    label: str
    streams: int
    tokens: int
    probes: int
    seconds: float
    cpu_seconds: float | None
    peak_memory: int


class AuditReport(Model):
    """audit.json.

    `verdict` follows from the tests, see `conclusion`. `random_seed` repeats every random choice
    of the referee. `claimed_val_bpb` is the record's headline.
    """

    format: Literal[1] = 1
    record: str
    verdict: AuditVerdict
    claimed_val_bpb: float | None = None
    level: str
    rules_version: str
    random_seed: int
    audited: list[str] = Field(
        default_factory=list, description="seeds whose artifacts the behaviour tests ran on"
    )
    code_sha256: str = Field(
        "",
        description="of the script that was run; together with the artifact_sha256 of each score "
        "it binds the report to its files",
    )
    dataset: str = ""
    corpus_version: str = ""
    sandbox: str = ""
    environment: dict[str, str] = Field(default_factory=dict)
    started: datetime
    seconds: float = 0.0
    stopped: str = Field("", description="what ended the audit before its last run")
    scores: list[SeedScore] = Field(default_factory=list)
    tests: list[TestResult]
    runs: list[ScorerRun] = Field(default_factory=list)

    def __getitem__(self, name: str) -> TestResult:
        return next(test for test in self.tests if test.name == name)

    @property
    def missing(self) -> list[TestResult]:
        """Tests that should have run and did not."""
        return [test for test in self.tests if test.is_missing]


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst of all verdicts of tests; NOT RUN when nothing ran."""
    return max(verdicts, key=SEVERITY.index, default=Verdict.NOT_RUN)


def conclusion(tests: Sequence[TestResult]) -> Verdict:
    """The verdict of an audit with these tests.

    What one test refutes stays refuted; PASS and WARN are said only where all have run."""
    verdicts: list[Verdict] = []
    for test in tests:
        verdicts.append(test.verdict)
        verdicts += [finding.verdict for finding in test.findings]
    found = worst(verdicts)
    complete = not any(test.is_missing for test in tests)
    return found if complete or found in REFUTED else Verdict.INCOMPLETE
