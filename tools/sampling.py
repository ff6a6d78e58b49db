"""Picking tokens from a model's distribution, one after the other."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tools.models import NextToken


def sample(
    logits_V: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator
) -> int:
    """One token id, from logits or log-probabilities [V].

    temperature 0 is greedy; top_k 0 and top_p 1 keep all; top_p keeps the smallest set with that
    probability (Holtzman et al. 2020).
    """
    if temperature < 1e-6:  # greedy to double precision, and no division by 0
        return int(logits_V.argmax())
    p = torch.softmax(logits_V.double() / temperature, dim=-1)
    p, order = p.sort(descending=True, stable=True)
    probability_before = p.cumsum(0) - p
    p = p * (probability_before < top_p)
    kept = p[: top_k or None].cpu()
    return int(order[torch.multinomial(kept, 1, generator=generator).item()])


def continue_tokens(
    model: NextToken, prompt: list[int], max_new: int, pick: Callable[[Tensor], int]
) -> Iterator[int]:
    """Yields max_new token ids, each picked from the model's view of all before it."""
    tokens = list(prompt)
    for _ in range(max_new):
        tokens.append(pick(model.next_logits(tokens)))
        yield tokens[-1]
