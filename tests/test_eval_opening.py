"""How a report begins: what is claimed, what was found, what follows, and the best reasons."""

from datetime import UTC, datetime

from eval.papers.audits.report import (
    TEST_NAMES,
    AuditReport,
    Finding,
    SeedScore,
    TestResult,
    conclusion,
)
from eval.papers.rendering.audits import to_markdown, to_terminal
from eval.papers.rendering.opening import opening, strongest
from eval.rules import Verdict


def report(**verdicts: str) -> AuditReport:
    """Every test passes but those that are named; what refutes has two findings."""
    tests: list[TestResult] = []
    for name in TEST_NAMES:
        verdict = Verdict(verdicts.get(name, "PASS"))
        test = TestResult(name=name, verdict=verdict, reason="not selected")
        if verdict in (Verdict.WARN, Verdict.INVALID):
            sides = {"expected": "a sum of 1", "found": "2", "rule": "sums"}
            test.findings = [
                Finding(verdict=verdict, where=f"{name} {k}", **sides) for k in range(2)
            ]
        tests.append(test)
    score = SeedScore(
        seed="42",
        artifact_bytes=1,
        artifact_sha256="0" * 64,
        val_bpb=1.25,
        nats=1.0,
        scored_tokens=1,
        scored_bytes=1,
        seconds=1.0,
        claimed_val_bpb=1.24,
    )
    return AuditReport(
        record="r",
        verdict=conclusion(tests),
        level="quick",
        rules_version="2026-12",
        random_seed=1,
        claimed_val_bpb=1.24,
        started=datetime(2026, 11, 30, tzinfo=UTC),
        scores=[score],
        tests=tests,
    )


def test_a_sound_record_is_told_by_what_speaks_for_it():
    sound = report()
    claim, score, verdict = opening(sound)
    assert claim == "The record claims 1.24000 bits per byte."
    assert "1.25000000 for seed 42 (+0.01 beside the claim)" in score
    assert verdict.startswith("PASS: every test of the level ran")
    assert len(strongest(sound)) == 3 and "40 bits would refute" in strongest(sound)[2]


def test_a_refuted_record_is_told_by_one_finding_of_each_test_first():
    told = strongest(report(normalisation="INVALID", canary="INVALID", bytes="WARN"))
    where = [sentence.partition(":")[0] for sentence in told]
    assert where[:2] == ["normalisation, normalisation 0", "canary, canary 0"]
    assert where[2] == "normalisation, normalisation 1"


def test_what_is_missing_stands_beside_incomplete_and_never_hides_a_refutation():
    cut = report(canary="NOT RUN", fresh="NOT RUN")
    assert cut.verdict == "INCOMPLETE"
    assert "(canary, fresh: not selected)" in opening(cut)[2]
    assert report(canary="NOT RUN", future="INVALID").verdict == "INVALID"
    assert report(canary="NOT RUN", bytes="WARN").verdict == "INCOMPLETE"


def test_both_papers_begin_with_it():
    sound = report()
    lines = to_terminal(sound).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["record", "claim", "score", "verdict"]
    title, first, *_ = to_markdown(sound).split("\n\n")
    assert title.endswith(": PASS") and first == " ".join(opening(sound))
