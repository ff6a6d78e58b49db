"""One line for each test that passed."""

from collections.abc import Callable


def _figure(figures: dict[str, float], name: str, form: str = ".3g") -> str:
    return format(figures[name], form) if name in figures else "nothing"


SUMMARIES: dict[str, Callable[[dict[str, float]], str]] = {
    "future": lambda f: (
        f"earlier scores moved by at most {_figure(f, 'largest_change_before_a_changed_token_nats')} nats; "
        f"{_figure(f, 'pairs_compared', '.0f')} pairs of short streams"
    ),
    "normalisation": lambda f: (
        f"{_figure(f, 'rows_checked', '.0f')} rows sum to {_figure(f, 'smallest_sum', '.6f')}..{_figure(f, 'largest_sum', '.6f')}; "
        f"substituted tokens within {_figure(f, 'largest_substitution_error_nats')} nats of their row"
    ),
    "canary": lambda f: (
        f"{_figure(f, 'evidence_bits', '.1f')} bits of evidence on {_figure(f, 'sampled_tokens', ',.0f')} sampled tokens"
    ),
    "coverage": lambda f: "every run gave one finite loss for every target",
    "bytes": lambda f: (
        f"{_figure(f, 'decoded_bytes', ',.0f')} decoded bytes, as table, manifest and claim say"
    ),
    "isolation": lambda f: "no attempt to leave the sandbox was seen and nothing was left behind",
    "budget": lambda f: (
        f"code {_figure(f, 'code_bytes', ',.0f')} + artifact {_figure(f, 'artifact_bytes', ',.0f')} bytes; evaluation "
        f"{_figure(f, 'eval_seconds_by_the_referee', '.1f')} s by the referee's clock"
    ),
    "fresh": lambda f: (
        f"excess advantage over training text {_figure(f, 'excess_over_training_bpb', '+.4f')} bpb, "
        f"gain from the opening {_figure(f, 'gain_from_the_opening_bpb', '+.4f')} bpb"
    ),
    "documents": lambda f: (
        f"one document moves the next one's scores by up to {_figure(f, 'largest_effect_across_a_document_border_nats')} nats; allowed here"
    ),
    "evidence": lambda f: (
        f"papers agree; the referee's score is within {_figure(f, 'largest_difference_from_claimed_bpb', '.2g')} bpb of the claim"
    ),
}
