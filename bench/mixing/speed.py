"""Speed and memory of exact counts, beside the hashed estimator's chunk loop.

`time_exact` and `time_hashed` are each for a process of their own, as an evaluation is one.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

import train_gpt as tg
from bench.hashed_ngram import HashedConfig, hashed_mix
from bench.machine import peak_memory

ORDER = 11
SIDE_BY_SIDE_TOKENS = 1_000_000
WARM_UP_TOKENS = 5000  # first calls load kernels

Child = Callable[[str, int], dict]  # a side and a number of tokens -> its measurement


def made_up_columns(length: int, count: int) -> list[np.ndarray]:
    """In place of a model's scores: float64 [length] each."""
    rng = np.random.default_rng(0)
    return [rng.gamma(2.0, 1.5, length) for _ in range(count)]


def made_up_scores(length: int) -> tg.StreamScores:
    nll, entropy, confidence = map(torch.from_numpy, made_up_columns(length, 3))
    return tg.StreamScores(nll[:-1], entropy, confidence, {})


def first_scores(scores: tg.StreamScores, length: int) -> tg.StreamScores:
    nll = scores.nll[: length - 1]
    return tg.StreamScores(nll, scores.entropy[:length], scores.confidence[:length], {})


def time_exact(tokens: np.ndarray, vocab_size: int, ranks: tg.Ranks) -> dict:
    """Of one mix over the tokens.

    Peak memory is what comes on top of the inputs, None where the start took more.
    """
    scores = made_up_scores(len(tokens))
    cfg = tg.Config().with_settings(vocab_size=vocab_size, ngram_order=ORDER)
    few = min(WARM_UP_TOKENS, len(tokens))
    tg.final_scores(first_scores(scores, few), tokens[:few], cfg, ranks.map)
    before = peak_memory()
    started = time.perf_counter()
    tg.final_scores(scores, tokens, cfg, ranks.map)
    seconds = time.perf_counter() - started
    peak = (peak_memory() - before) / len(tokens)
    return {
        "tokens": len(tokens),
        "seconds": seconds,
        "us_per_token": 1e6 * seconds / len(tokens),
        "peak_bytes_per_token": peak or None,
    }


def time_hashed(tokens: np.ndarray) -> dict:
    """Of the published estimator's chunk loop over the tokens."""
    columns = made_up_columns(len(tokens) - 1, 3)
    cfg = HashedConfig(n_max=ORDER)
    few = min(WARM_UP_TOKENS, len(tokens))
    hashed_mix(tokens[:few], *(column[: few - 1] for column in columns), cfg)
    started = time.perf_counter()
    hashed_mix(tokens, *columns, cfg)
    return {"tokens": len(tokens), "seconds": time.perf_counter() - started}


def run_child(command: list[str]) -> dict:
    """What this script prints when it is asked for one measurement."""
    done = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def time_lengths(child: Child, lengths: list[int], rounds: int) -> list[dict]:
    """Of each length the run with the median time."""
    by_round = []
    for _ in tqdm(range(rounds), desc="lengths"):
        by_round.append([child("exact", length) for length in lengths])
    medians = []
    for runs in zip(*by_round, strict=True):
        by_time = sorted(runs, key=lambda run: run["seconds"])
        medians.append(by_time[rounds // 2])
    return medians


def time_side_by_side(child: Child, tokens: int, rounds: int) -> dict:
    """The two sides in turns."""
    seconds: dict[str, list[float]] = {"exact": [], "hashed": []}
    for _ in tqdm(range(rounds), desc="side by side"):
        for side, runs in seconds.items():
            runs.append(child(side, tokens)["seconds"])
    exact = statistics.median(seconds["exact"])
    hashed = statistics.median(seconds["hashed"])
    return {
        "tokens": tokens,
        "exact_seconds": exact,
        "hashed_seconds": hashed,
        "speedup": hashed / exact,
        "runs": seconds,
    }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is timed, and how often."""

    lengths: list[int]  # tokens
    length_rounds: int
    side_by_side_rounds: int
    available: int  # training tokens


def measure_speed(child: Child, plan: Plan) -> dict:
    """With prefixes of the training tokens."""
    exact = time_lengths(child, plan.lengths, plan.length_rounds)
    tokens = min(SIDE_BY_SIDE_TOKENS, plan.available)
    return {
        "orders": f"2-{ORDER}",
        "exact": exact,
        "side_by_side": time_side_by_side(child, tokens, plan.side_by_side_rounds),
        "growth": exact[-1]["us_per_token"] / exact[0]["us_per_token"],
    }
