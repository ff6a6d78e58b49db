"""What each part of bench/gpu.py measures. All figures go to a JSON file."""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import train_gpt as tg
from bench.machine import ROOT
from bench.speed.measurements import (
    measure_scoring,
    measure_training,
    peak_flops,
    synthetic_stream,
    timed,
)
from bench.speed.sides import OURS, PLAIN, make_trainer, train_dtype
from bench.speed.summary import Peak, training_row

STEPS = 6  # timed piece by piece, the first two not
WHOLE_STEPS = 20
PROFILED_STEPS = 3
MOST_KERNELS = 40  # in the table
TRAINING_TOKENS = 20_000_000
VALIDATION_TOKENS = 300_000
Figures = dict[str, Any]


def device_name(ranks: tg.Ranks) -> str:
    return torch.cuda.get_device_name(ranks.device) if ranks.on_gpu else tg.cpu_name()


def run_tests(cfg: tg.Config, ranks: tg.Ranks, args: argparse.Namespace) -> Figures:
    """Raises SystemExit where one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    if done.returncode:
        sys.exit(1)
    return {"summary": done.stdout.splitlines()[-1]}


def step_figures(side: str, cfg: tg.Config, ranks: tg.Ranks) -> Figures:
    """ms by piece and in all, share of the peak, memory, losses."""
    run = measure_training(side, cfg, ranks, STEPS, WHOLE_STEPS)
    dtype = train_dtype(side, ranks)
    row = training_row([run], cfg, Peak(dtype, peak_flops(ranks, dtype)))
    return row | {"losses": run["losses"]}


def measure_step(cfg: tg.Config, ranks: tg.Ranks, args: argparse.Namespace) -> Figures:
    return step_figures(OURS, cfg, ranks)


def measure_tuned_step(cfg: tg.Config, ranks: tg.Ranks, args: argparse.Namespace) -> Figures:
    """With products that the compiler has tuned, the activation in them where that is faster."""
    return step_figures(OURS, cfg.with_settings(compile=2), ranks)


def measure_plain_step(cfg: tg.Config, ranks: tg.Ranks, args: argparse.Namespace) -> Figures:
    return step_figures(PLAIN, cfg, ranks)


def measure_kernels(cfg: tg.Config, ranks: tg.Ranks, args: argparse.Namespace) -> Figures:
    """Kernels of a training step by the time that they take; with --profile also a trace."""
    length = 4 * cfg.training.train_batch_tokens + cfg.training.train_seq_len
    stream = tg.TokenStream([synthetic_stream(cfg.model.vocab_size, length)])
    trainer = make_trainer(OURS, stream, cfg, ranks)

    def step(number: int) -> None:
        trainer.forward_and_backward(trainer.loader.next())
        trainer.optimizers.step(number, 1.0)
        trainer.average.update(snapshot=False)

    for number in range(PROFILED_STEPS):
        step(number)
    ranks.clock()
    with torch.profiler.profile() as profile:
        for number in range(PROFILED_STEPS):
            step(PROFILED_STEPS + number)
        ranks.clock()
    trainer.loader.close()
    if args.profile:
        profile.export_chrome_trace(str(args.out / "trace.json.gz"))
    return {"kernels": kernel_table(profile, ranks)}


def kernel_table(profile: torch.profiler.profile, ranks: tg.Ranks) -> list[Figures]:
    """Those that take the most time, with ms and launches a step."""

    def microseconds(event: Any) -> float:
        return event.self_device_time_total if ranks.on_gpu else event.self_cpu_time_total

    events = sorted(profile.key_averages(), key=lambda event: -microseconds(event))
    rows = []
    for event in events[:MOST_KERNELS]:
        ms = microseconds(event) / 1e3 / PROFILED_STEPS
        rows.append({"name": event.key, "ms": ms, "launches": event.count / PROFILED_STEPS})
    return rows


def measure_compiled_scoring(cfg: tg.Config, ranks: tg.Ranks, args: argparse.Namespace) -> Figures:
    """As a long stream is scored; the first pass compiles."""
    with mock.patch.object(tg, "BATCHES_TO_COMPILE", 1):
        return measure_scoring(OURS, cfg, ranks, args.score_tokens)


def measure_scoring_as_written(
    cfg: tg.Config, ranks: tg.Ranks, args: argparse.Namespace
) -> Figures:
    return measure_scoring(OURS, cfg, ranks, args.score_tokens)


def measure_mixer(cfg: tg.Config, ranks: tg.Ranks, args: argparse.Namespace) -> Figures:
    """Seconds to mix a stream with a model that says something different at every position."""
    stream = synthetic_stream(cfg.model.vocab_size, args.mixer_tokens)
    generator = torch.Generator(ranks.device).manual_seed(0)

    def random(count: int) -> torch.Tensor:
        kind = {"dtype": torch.float64, "device": ranks.device, "generator": generator}
        return 3 * torch.rand(count, **kind) + 0.1

    N = len(stream)
    scores = tg.StreamScores(random(N - 1), random(N), random(N), probes={})
    if ranks.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds, (nll, _) = timed(ranks, tg.final_scores, scores, stream, cfg, ranks.map)
    return {
        "tokens": N,
        "seconds": seconds,
        "nats_a_token": nll.mean().item(),
        "peak_bytes": torch.cuda.max_memory_allocated() if ranks.on_gpu else 0,
    }


def write_shard(path: Path, tokens: np.ndarray) -> None:
    header = np.zeros(tg.SHARD_HEADER_INTS, dtype="<i4")
    header[:3] = (tg.SHARD_MAGIC, tg.SHARD_VERSION, len(tokens))
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())


def write_dataset(folder: Path, vocab_size: int, sizes: dict[str, int]) -> None:
    """Synthetic shards of so many tokens by split, and their manifest."""
    splits = {}
    for split, size in sizes.items():
        name = f"{split}.bin"
        write_shard(folder / name, synthetic_stream(vocab_size, size))
        splits[split] = {"files": [{"name": name, "tokens": size}], "source_bytes": 2 * size}
    manifest = {
        "corpus": "synthetic",
        "version": "1",
        "tokenizer": {"sha256": "0" * 64, "vocab_size": vocab_size},
        "splits": splits,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def run_a_minute(cfg: tg.Config, ranks: tg.Ranks, args: argparse.Namespace) -> Figures:
    """The script itself: trains on synthetic shards, exports, reads back and scores.

    Raises SystemExit where it fails.
    """
    sizes = {"train": TRAINING_TOKENS, "val": VALIDATION_TOKENS}
    if args.on_cpu:
        sizes = {"train": 20_000, "val": 500}
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), cfg.model.vocab_size, sizes)
        settings = {
            "data-dir": folder,
            "out": f"{folder}/out",
            "train-seconds": args.train_seconds,
            "val-every": 0,
            "log-every": 10,
        }
        flags = [f"--{name}={value}" for name, value in settings.items()]
        command = [sys.executable, str(ROOT / "train_gpt.py"), *args.flags.split(), *flags]
        done = subprocess.run(command, cwd=ROOT)
        if done.returncode:
            sys.exit(1)
        return figures_of_log(Path(folder, "out", "train.log").read_text("utf-8"))


def figures_of_log(log: str) -> Figures:
    """The loss curve, (step, nats) pairs, and the lines on speed, memory, export and score."""
    text = log.partition("===== end source =====")[2]
    curve = re.findall(r"^step:(\d+)/\d+ train_loss:(\S+)", text, re.MULTILINE)
    kept = re.findall(r"^(?:warmup|memory|export|artifact|neural|result) .*", text, re.MULTILINE)
    last_step = re.findall(r"^step:.*step_avg:.*", text, re.MULTILINE)[-1]
    return {
        "loss_curve": [(int(step), float(loss)) for step, loss in curve],
        "last_step": last_step,
        "lines": kept,
    }
