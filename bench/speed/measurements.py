"""What is measured of one side, in a process of its own."""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import train_gpt as tg
from bench import plain
from bench.machine import peak_memory
from bench.speed.sides import Trainer, make_scorer, make_trainer

PIECES = ("forward and backward", "optimizer", "averaging")
FIRST_STEPS = 2  # they compile and call everything for the first time
# dense, by the data sheets
PEAK_BF16_FLOPS = {
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
}


def synthetic_stream(vocab_size: int, length: int) -> np.ndarray:
    """uint16 [length]: ids by Zipf's law with a BOS now and then.

    Speed does not depend on what the tokens say.
    """
    rng = np.random.default_rng(0)
    p = 1 / np.arange(1, vocab_size - 1)
    tokens = rng.choice(np.arange(2, vocab_size), length, p=p / p.sum()).astype(np.uint16)
    tokens[::400] = tg.BOS_ID
    return tokens


def timed(ranks: tg.Ranks, action: Callable, *arguments: Any) -> tuple[float, Any]:
    """Seconds until the device has done it, and its result."""
    started = ranks.clock()
    result = action(*arguments)
    return ranks.clock() - started, result


def peak_flops(ranks: tg.Ranks, dtype: torch.dtype) -> float:
    """The data sheet's for bfloat16 on a known GPU, else what a large product reaches here."""
    if ranks.on_gpu and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(ranks.device)
        if name in PEAK_BF16_FLOPS:
            return PEAK_BF16_FLOPS[name]
    n = 8192 if ranks.on_gpu else 1536
    a = torch.randn(n, n, device=ranks.device, dtype=dtype)
    best = min(timed(ranks, torch.matmul, a, a)[0] for _ in range(5))
    return 2 * n**3 / best


class PieceTimes:
    """Seconds of each piece of a step, each waited for."""

    def __init__(self) -> None:
        self.first_steps = 0.0
        self.seconds: dict[str, list[float]] = {piece: [] for piece in PIECES}
        self.losses: list[float] = []

    def measure(self, step: int, trainer: Trainer, ranks: tg.Ranks) -> None:
        batch = trainer.loader.next()
        compute, loss = timed(ranks, trainer.forward_and_backward, batch)
        optimize, _ = timed(ranks, trainer.optimizers.step, step, 1.0)
        average, _ = timed(ranks, trainer.average.update, False)
        self.losses.append(loss.item())
        if step < FIRST_STEPS:
            self.first_steps += compute + optimize + average
            return
        for piece, seconds in zip(PIECES, (compute, optimize, average), strict=True):
            self.seconds[piece].append(seconds)

    def medians(self) -> dict[str, float]:
        return {piece: statistics.median(seconds) for piece, seconds in self.seconds.items()}


def whole_step_seconds(first: int, count: int, trainer: Trainer, ranks: tg.Ranks) -> float:
    """Median of `count` steps by the host's clock, which a GPU's queue paces."""
    pacer = tg.StepPacer(ranks)
    ends = [ranks.clock()]
    for step in range(first, first + count):
        trainer.forward_and_backward(trainer.loader.next())
        trainer.optimizers.step(step, 1.0)
        trainer.average.update(snapshot=False)
        pacer.wait()
        ends.append(time.perf_counter())
    return statistics.median(end - start for start, end in itertools.pairwise(ends))


def measure_training(
    side: str, cfg: tg.Config, ranks: tg.Ranks, steps: int, whole_steps: int
) -> dict:
    """Medians in seconds of `steps` by piece, then of `whole_steps`; losses of the former."""
    torch.manual_seed(cfg.run.seed)
    training = cfg.training
    length = 4 * training.train_batch_tokens + training.train_seq_len
    stream = tg.TokenStream([synthetic_stream(cfg.model.vocab_size, length)])
    trainer = make_trainer(side, stream, cfg, ranks)
    if ranks.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = PieceTimes()
    with contextlib.closing(trainer.loader):
        for step in range(steps):
            times.measure(step, trainer, ranks)
        whole = whole_step_seconds(steps, whole_steps, trainer, ranks)
    return {
        "pieces_s": times.medians(),
        "step_s": whole,
        "first_two_steps_s": times.first_steps,
        "losses": times.losses,
        "peak_bytes": torch.cuda.max_memory_allocated() if ranks.on_gpu else peak_memory(),
    }


def measure_scoring(side: str, cfg: tg.Config, ranks: tg.Ranks, tokens: int) -> dict:
    """Seconds for every target of a stream, model alone, and the nats; the second run counts."""
    torch.manual_seed(cfg.run.seed)
    score = make_scorer(side, cfg, ranks)
    stream = synthetic_stream(cfg.model.vocab_size, tokens)
    first, _ = timed(ranks, score, stream)
    seconds, nats = timed(ranks, score, stream)
    windows = tg.plan_windows(tokens - 1, cfg.scoring.eval_seq_len, cfg.scoring.eval_stride)
    window_tokens = int((windows.end - windows.start).sum())
    return {
        "tokens": tokens,
        "first_s": first,
        "seconds": seconds,
        "nats": nats,
        "tokens_per_s": tokens / seconds,
        "window_tokens_per_s": window_tokens / seconds,
    }


def trained_model(path: Path) -> tuple[tg.GPT, tg.Config]:
    """The artifact's model, and a config that exports it in the formats of its tensors.

    Raises UserError.
    """
    artifact = tg.load_artifact(path)
    tensors = artifact.packed.tensors
    cfg = artifact.cfg.with_settings(
        matrix_format=tensors["blocks.0.fc.weight"].format,
        embed_format=tensors["embed"].format,
        control_format=tensors["smear"].format,
    )
    return artifact.model, cfg


@torch.no_grad()
def random_model(cfg: tg.Config) -> tg.GPT:
    model = tg.GPT(cfg.model)
    for p in model.parameters():
        p.copy_(torch.randn_like(p))
    return model


def measure_artifact(cfg: tg.Config, ranks: tg.Ranks, path: Path | None) -> dict:
    """Bytes of an artifact against the zero-order entropy of its symbols and against compressors.

    On trained weights where a path is given. Raises UserError.
    """
    torch.manual_seed(cfg.run.seed)
    if path is None:
        model = random_model(cfg)
    else:
        model, cfg = trained_model(path)
    seconds, packed = timed(ranks, tg.pack, model, cfg, "0" * 64)
    bound = packed.entropy_bytes()
    header, _ = tg.split_artifact(packed.data, "artifact")
    general = plain.compressed_bytes(packed.tensors)
    return {
        "weights": "random" if path is None else "trained",
        "artifact_bytes": len(packed.data),
        "header_bytes": len(header),
        "entropy_bound_bytes": bound,
        "over_bound_without_header": (len(packed.data) - len(header)) / bound,
        "general_compressors_bytes": general,
        "best_general_over_bound": min(general.values()) / bound,
        "pack_s": seconds,
    }
