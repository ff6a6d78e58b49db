"""The reason that the report gives for a test that passed: one line of its figures."""

from collections.abc import Callable

Figures = dict[str, float]


def _shown(figures: Figures, name: str, form: str = ".3g") -> str:
    return format(figures[name], form) if name in figures else "nothing"


def _future(f: Figures) -> str:
    moved = _shown(f, "largest_change_before_a_changed_token_nats")
    pairs = _shown(f, "pairs_compared", ".0f")
    return f"earlier scores moved by at most {moved} nats; {pairs} pairs of short streams"


def _normalisation(f: Figures) -> str:
    rows = _shown(f, "rows_checked", ".0f")
    sums = f"{_shown(f, 'smallest_sum', '.6f')}..{_shown(f, 'largest_sum', '.6f')}"
    off = _shown(f, "largest_substitution_error_nats")
    return f"{rows} rows sum to {sums}; substituted tokens within {off} nats of their row"


def _canary(f: Figures) -> str:
    bits = _shown(f, "evidence_bits", ".1f")
    tokens = _shown(f, "sampled_tokens", ",.0f")
    inside = _shown(f, "burst_evidence_bits", ".1f")
    bursts = _shown(f, "burst_sampled_tokens", ",.0f")
    return (
        f"{bits} bits of evidence on {tokens} sampled tokens, "
        f"{inside} on {bursts} in bursts inside the real stream"
    )


def _coverage(f: Figures) -> str:
    return "every run gave one finite loss for every target"


def _bytes(f: Figures) -> str:
    decoded = _shown(f, "decoded_bytes", ",.0f")
    return f"{decoded} decoded bytes, as table, manifest and claim say"


def _isolation(f: Figures) -> str:
    return "no attempt to leave the sandbox was seen and nothing was left behind"


def _budget(f: Figures) -> str:
    code = _shown(f, "code_bytes", ",.0f")
    artifact = _shown(f, "artifact_bytes", ",.0f")
    seconds = _shown(f, "eval_seconds_by_the_referee", ".1f")
    return f"code {code} + artifact {artifact} bytes; evaluation {seconds} s by the referee's clock"


def _fresh(f: Figures) -> str:
    excess = _shown(f, "excess_over_training_bpb", "+.4f")
    gain = _shown(f, "gain_from_the_opening_bpb", "+.4f")
    return f"excess advantage over training text {excess} bpb, gain from the opening {gain} bpb"


def _documents(f: Figures) -> str:
    effect = _shown(f, "largest_effect_across_a_document_border_nats")
    return f"one document moves the next one's scores by up to {effect} nats; allowed here"


def _evidence(f: Figures) -> str:
    difference = _shown(f, "largest_difference_from_claimed_bpb", ".2g")
    return f"papers agree; the referee's score is within {difference} bpb of the claim"


SUMMARIES: dict[str, Callable[[Figures], str]] = {
    "future": _future,
    "normalisation": _normalisation,
    "canary": _canary,
    "coverage": _coverage,
    "bytes": _bytes,
    "isolation": _isolation,
    "budget": _budget,
    "fresh": _fresh,
    "documents": _documents,
    "evidence": _evidence,
}
