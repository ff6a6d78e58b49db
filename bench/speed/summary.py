"""From the runs of all sides to the figures in the results file."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch

import train_gpt as tg
from bench import plain
from bench.speed.measurements import FIRST_STEPS
from bench.speed.sides import OURS, PLAIN

Runs = dict[str, list[dict]]  # side -> one measurement a round


class Peak(NamedTuple):
    """What a side computes in, and how fast the machine is at that."""

    dtype: torch.dtype
    flops: float  # per second


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def median(runs: list[dict], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def mean_step_seconds(run: dict, steps: int) -> float:
    """Over a whole training of `steps`, compilation included."""
    return (run["first_two_steps_s"] + run["step_s"] * (steps - FIRST_STEPS)) / steps


def steps_of_a_training(runs: list[dict], training: tg.TrainingConfig) -> int:
    if not training.train_seconds:
        return training.iterations
    return min(training.iterations, int(training.train_seconds / median(runs, "step_s")))


def training_row(runs: list[dict], cfg: tg.Config, peak: Peak) -> dict:
    step = median(runs, "step_s")
    steps = steps_of_a_training(runs, cfg.training)
    mean_step = statistics.median(mean_step_seconds(run, steps) for run in runs)
    pieces = {}
    for piece in runs[0]["pieces_s"]:
        pieces[piece] = 1e3 * statistics.median(run["pieces_s"][piece] for run in runs)
    batch_tokens = cfg.training.train_batch_tokens
    flops = plain.flops_per_token(cfg.model, cfg.training.train_seq_len) * batch_tokens
    return {
        "dtype": name_of(peak.dtype),
        "pieces_ms": pieces,
        "step_ms": 1e3 * step,
        "tokens_per_s": batch_tokens / step,
        "tokens_per_s_of_the_run": batch_tokens / mean_step,
        "first_two_steps_s": median(runs, "first_two_steps_s"),
        "utilisation": flops / step / peak.flops,
        "peak_mib": max(run["peak_bytes"] for run in runs) / 2**20,
    }


def scoring_row(runs: list[dict]) -> dict:
    keys = ("first_s", "seconds", "tokens_per_s", "window_tokens_per_s", "nats")
    return {key: median(runs, key) for key in keys}


def speedup(runs: Runs, side: str, seconds_of: Callable[[str, dict], float]) -> dict:
    """Plain over `side` within each round, so that a machine's mood cancels."""
    ratios = []
    for plain_run, run in zip(runs[PLAIN], runs[side], strict=True):
        ratios.append(seconds_of(PLAIN, plain_run) / seconds_of(side, run))
    return {"speedup": statistics.median(ratios), "speedup_by_round": ratios}


def largest_relative_difference(losses: list[float], reference: list[float]) -> float:
    pairs = zip(losses, reference, strict=True)
    return max(abs(loss - expected) / expected for loss, expected in pairs)


def summarise_training(runs: Runs, cfg: tg.Config, peaks: dict[str, Peak]) -> dict[str, dict]:
    rows = {side: training_row(own, cfg, peaks[side]) for side, own in runs.items()}
    steps = {side: steps_of_a_training(own, cfg.training) for side, own in runs.items()}
    plain_losses = runs[PLAIN][0]["losses"]
    for side in rows:
        if side == PLAIN:
            continue
        rows[side] |= speedup(runs, side, lambda s, run: mean_step_seconds(run, steps[s]))
        difference = largest_relative_difference(runs[side][0]["losses"], plain_losses)
        rows[side]["largest_relative_loss_difference"] = difference
    return rows


def summarise_scoring(runs: Runs) -> dict[str, dict]:
    rows = {side: scoring_row(own) for side, own in runs.items()}
    rows[OURS] |= speedup(runs, OURS, lambda side, run: run["seconds"])
    plain_nats = rows[PLAIN]["nats"]
    rows[OURS]["relative_difference"] = abs(rows[OURS]["nats"] - plain_nats) / plain_nats
    return rows
