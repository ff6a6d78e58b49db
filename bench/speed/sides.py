"""The sides of the comparison: what each of them computes, and in which precision."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import train_gpt as tg
from bench import plain

PLAIN = "plain"
OURS_IN_FLOAT32 = "ours in float32"
OURS = "ours"
TRAINING_SIDES = (PLAIN, OURS_IN_FLOAT32, OURS)
SCORING_SIDES = (PLAIN, OURS)

MicroBatches = list[tuple[Tensor, Tensor]]


def train_dtype(side: str, ranks: tg.Ranks) -> torch.dtype:
    """Of a side's products in training.

    The plain side computes in float32 on a CPU and in bfloat16 on a GPU, as scoring does.
    """
    if side == PLAIN:
        return ranks.score_dtype
    if side == OURS_IN_FLOAT32:
        return torch.float32
    return ranks.train_dtype


@dataclass
class Trainer:
    """One side's pieces of a training step, called in this order."""

    forward_and_backward: Callable[[MicroBatches], Tensor]  # the mean loss, nats
    optimizers: tg.Optimizers | plain.PlainOptimizers
    average: tg.Average | plain.PlainAverage
    loader: tg.Loader


def plain_trainer(stream: tg.TokenStream, cfg: tg.Config, ranks: tg.Ranks) -> Trainer:
    """The whole batch in one pass."""
    whole_batch = cfg.with_settings(micro_batch_tokens=cfg.training.train_batch_tokens)
    loader = tg.Loader(stream, whole_batch, ranks)
    model = plain.PlainGPT(cfg.model).to(ranks.device)
    return Trainer(
        lambda batch: plain.plain_step(model, batch, ranks.train_dtype),
        plain.PlainOptimizers(model, cfg.training),
        plain.PlainAverage(model, cfg.training),
        loader,
    )


def our_trainer(stream: tg.TokenStream, cfg: tg.Config, ranks: tg.Ranks) -> Trainer:
    """As train_gpt.py trains."""
    loader = tg.Loader(stream, cfg, ranks)
    model = tg.GPT(cfg.model).to(ranks.device)
    compute = tg.compile_model(model, cfg.training, ranks)
    optimizers = tg.Optimizers(model, cfg.training, ranks)
    return Trainer(
        lambda batch: tg.training_step(compute, batch, optimizers.params, ranks),
        optimizers,
        tg.Average(model, cfg.training),
        loader,
    )


def make_trainer(side: str, stream: tg.TokenStream, cfg: tg.Config, ranks: tg.Ranks) -> Trainer:
    """Computes in the side's own precision, whatever `ranks` says."""
    ranks = dataclasses.replace(ranks, train_dtype=train_dtype(side, ranks))
    make = plain_trainer if side == PLAIN else our_trainer
    return make(stream, cfg, ranks)


def awake_model(kind: type[tg.GPT], cfg: tg.Config, ranks: tg.Ranks) -> tg.GPT:
    """Zero-initialised projections would make all positions alike, so every weight has noise."""
    model = kind(cfg.model).to(ranks.device).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.add_(torch.randn(p.shape, generator=generator).to(p.device) * 0.02)
    return model


def make_scorer(side: str, cfg: tg.Config, ranks: tg.Ranks) -> Callable[[np.ndarray], float]:
    """Stream -> nats of all its targets, by the model alone."""
    if side == PLAIN:
        plain_model = awake_model(plain.PlainGPT, cfg, ranks)

        def plain_nats(stream: np.ndarray) -> float:
            return float(plain.plain_scores(plain_model, stream, cfg.scoring, ranks).sum())

        return plain_nats
    model = awake_model(tg.GPT, cfg, ranks)

    def nats(stream: np.ndarray) -> float:
        return tg.score_streams(model, [stream], cfg.scoring, ranks)[0].nll.sum().item()

    return nats
