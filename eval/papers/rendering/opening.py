"""How a report of an audit begins: claim, the referee's score, verdict, and the strongest evidence.

Plain sentences, made from the report's own figures and findings.
"""

import math
from collections.abc import Callable, Sequence

from eval.papers.audits.report import REFUTED, AuditReport, Finding, SeedScore, TestResult
from eval.rules import Verdict

MOST_EVIDENCE = 3  # sentences
AS_CLAIMED = 5e-6  # bits per byte, half of the last digit that the claim's sentence shows
WORDS = {
    Verdict.PASS: "every test of the level ran, and none found a fault",
    Verdict.WARN: "every test of the level ran; no rule is broken, but a reviewer should read on",
    Verdict.POLICY: "a valid probability, but against a choice of the rule set",
    Verdict.INVALID: "refuted",
}
Figures = dict[str, float]


def claim_sentence(report: AuditReport) -> str:
    """What the record says of itself."""
    if report.claimed_val_bpb is not None:
        return f"The record claims {report.claimed_val_bpb:.5f} bits per byte."
    claims = [score for score in report.scores if score.claimed_val_bpb is not None]
    if not claims:
        return "The record makes no claim that the referee can read."
    told = ", ".join(f"{score.claimed_val_bpb:.5f} (seed {score.seed})" for score in claims)
    return f"The record claims {told} bits per byte."


def score_sentence(report: AuditReport) -> str:
    """What the referee found when it ran the artifacts itself."""
    if not report.scores:
        return "The referee has no score of its own."
    told = ", ".join(map(_score, report.scores))
    return f"The referee's own runs score {told}."


def _score(score: SeedScore) -> str:
    found = f"{score.val_bpb:.8f} for seed {score.seed}"
    if score.claimed_val_bpb is None:
        return found
    off = score.val_bpb - score.claimed_val_bpb
    told = "as claimed" if abs(off) < AS_CLAIMED else f"{off:+.2g} beside the claim"
    return f"{found} ({told})"


def verdict_sentence(report: AuditReport) -> str:
    """The verdict, and what it means here."""
    if report.verdict != Verdict.INCOMPLETE:
        return f"{report.verdict}: {WORDS.get(report.verdict, 'nothing ran')}."
    missing = ", ".join(test.name for test in report.missing)
    why = report.stopped or report.missing[0].reason
    return f"INCOMPLETE: nothing is refuted, but not every test ran ({missing}: {why})."


def strongest(report: AuditReport) -> list[str]:
    """At most three sentences: what refutes the record, else what speaks for it."""
    if report.verdict in (*REFUTED, Verdict.WARN):
        return _against(report)[:MOST_EVIDENCE]
    told: list[str] = []
    for name, sentence in FOR.items():
        test = next((test for test in report.tests if test.name == name), None)
        if test is not None and test.verdict == Verdict.PASS:
            told.append(sentence(test.figures))
    return told[:MOST_EVIDENCE]


def _against(report: AuditReport) -> list[str]:
    """Findings of the report's verdict: the first one of each test, then the others."""
    first: list[str] = []
    others: list[str] = []
    for test in report.tests:
        heavy = [finding for finding in test.findings if finding.verdict == report.verdict]
        told = [_finding(test, finding) for finding in heavy]
        first += told[:1]
        others += told[1:]
    return first + others


def _finding(test: TestResult, finding: Finding) -> str:
    return (
        f"{test.name}, {finding.where}: the referee expected {finding.expected} "
        f"and found {finding.found}."
    )


# --- What speaks for a record ---


def _future(f: Figures) -> str:
    moved = f.get("largest_change_before_a_changed_token_nats", 0.0)
    pairs = f.get("pairs_compared", 0.0)
    return (
        f"Other text behind a secret position moved no earlier score by more than {moved:.2g} "
        f"nats, in full-length streams and in {pairs:,.0f} pairs of short ones."
    )


def _normalisation(f: Figures) -> str:
    rows = f.get("rows_checked", 0.0)
    low = f.get("smallest_sum", 1.0)
    high = f.get("largest_sum", 1.0)
    return (
        f"{rows:,.0f} next-token distributions sum to between {low:.6f} and {high:.6f}, "
        "and the scores are the ones that they give."
    )


def _canary(f: Figures) -> str:
    tokens = f.get("sampled_tokens", 0.0) + f.get("burst_sampled_tokens", 0.0)
    bits = max(f.get("evidence_bits", 0.0), f.get("burst_evidence_bits", -math.inf))
    beat = (
        f"beat chance by {bits:.1f} bits" if bits > 0 else f"do not beat chance ({bits:.1f} bits)"
    )
    return (
        f"On {tokens:,.0f} tokens with known probabilities the scores {beat}; "
        "40 bits would refute them."
    )


def _fresh(f: Figures) -> str:
    excess = f.get("excess_over_training_bpb", 0.0)
    return (
        "Against a plain n-gram model the record is no better on the validation text than on "
        f"text that it was trained on ({excess:+.4f} bits per byte)."
    )


def _evidence(f: Figures) -> str:
    off = f.get("largest_difference_from_claimed_bpb", 0.0)
    return f"The papers agree, and the claim repeats to {off:.1g} bits per byte."


FOR: dict[str, Callable[[Figures], str]] = {
    "future": _future,
    "normalisation": _normalisation,
    "canary": _canary,
    "fresh": _fresh,
    "evidence": _evidence,
}


def opening(report: AuditReport) -> Sequence[str]:
    """Claim, score and verdict, one sentence each."""
    return claim_sentence(report), score_sentence(report), verdict_sentence(report)
