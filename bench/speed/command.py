"""The command line of bench/cpu.py; that of bench/gpu.py is in gpu.py.

Each measurement runs in a process of its own, the sides in turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import train_gpt as tg
from bench.machine import RESULTS, software, write_json
from bench.speed.measurements import (
    FIRST_STEPS,
    measure_artifact,
    measure_scoring,
    measure_training,
    peak_flops,
)
from bench.speed.picture import draw
from bench.speed.sides import PLAIN, SCORING_SIDES, TRAINING_SIDES, train_dtype
from bench.speed.summary import Peak, Runs, name_of, summarise_scoring, summarise_training

SIDES = {"training": TRAINING_SIDES, "scoring": SCORING_SIDES}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What one of the commands measures, and how much of it by default."""

    device: str  # "cpu" or "cuda"
    flags: list[str]  # of train_gpt.py
    steps: int
    whole_steps: int
    rounds: int
    score_tokens: int

    @property
    def name(self) -> str:
        return "gpu" if self.device == "cuda" else "cpu"


def build_parser(benchmark: Benchmark, doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=benchmark.steps,
        help="per round, timed piece by piece; the first two do not count",
    )
    parser.add_argument(
        "--whole-steps",
        type=int,
        default=benchmark.whole_steps,
        help="per round, timed without waiting between pieces",
    )
    parser.add_argument("--rounds", type=int, default=benchmark.rounds)
    parser.add_argument("--score-tokens", type=int, default=benchmark.score_tokens)
    parser.add_argument(
        "--artifact",
        type=Path,
        help="trained weights for the artifact's bytes, exported by this train_gpt.py; "
        "default: random ones",
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--flags", default="", help="more of train_gpt.py's flags, in one string")
    parser.add_argument("--part", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=TRAINING_SIDES, help=argparse.SUPPRESS)
    return parser


def child(part: str, side: str) -> dict:
    """One measurement in a fresh process.

    It has no allocator settings of this one and no compiled code of an earlier one.
    """
    command = [sys.executable, *sys.argv, "--part", part, "--side", side]
    env = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    with tempfile.TemporaryDirectory() as cache:
        env |= {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def measure_part(args: argparse.Namespace, cfg: tg.Config, ranks: tg.Ranks) -> dict:
    """What a child process is asked for."""
    if args.part == "training":
        return measure_training(args.side, cfg, ranks, args.steps, args.whole_steps)
    return measure_scoring(args.side, cfg, ranks, args.score_tokens)


def measure_all_sides(rounds: int) -> dict[str, Runs]:
    """By part and side, one measurement a round."""
    runs: dict[str, Runs] = {}
    jobs = []
    for part, sides in SIDES.items():
        runs[part] = {side: [] for side in sides}
        for _ in range(rounds):
            jobs += [(part, side) for side in sides]
    for part, side in tqdm(jobs, desc="measurements"):
        runs[part][side].append(child(part, side))
    return runs


def find_peaks(ranks: tg.Ranks) -> dict[str, Peak]:
    """By side; each precision is measured once."""
    dtypes = {side: train_dtype(side, ranks) for side in TRAINING_SIDES}
    flops = {dtype: peak_flops(ranks, dtype) for dtype in set(dtypes.values())}
    return {side: Peak(dtype, flops[dtype]) for side, dtype in dtypes.items()}


def device_name(benchmark: Benchmark) -> str:
    return torch.cuda.get_device_name() if benchmark.device == "cuda" else tg.cpu_name()


def main(benchmark: Benchmark, doc: str) -> None:
    parser = build_parser(benchmark, doc)
    args = parser.parse_args()
    if args.steps <= FIRST_STEPS or min(args.whole_steps, args.rounds) < 1:
        parser.error("expected at least 3 steps, 1 whole step and 1 round")
    try:
        cfg, _ = tg.parse_config([*benchmark.flags, *args.flags.split()], {})
        run(benchmark, args, cfg)
    except tg.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(benchmark: Benchmark, args: argparse.Namespace, cfg: tg.Config) -> None:
    """Raises UserError, and SystemExit on another device than the benchmark's."""
    threads = {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
    tune_cpu = args.side != PLAIN  # the plain side has no allocator settings
    with tg.open_ranks(threads, bool(cfg.training.bf16), tune_cpu) as ranks:
        found = ranks.device.type
        if found != benchmark.device:
            script = "gpu" if found == "cuda" else "cpu"
            sys.exit(
                f"error: expected a {benchmark.device} device, found {found}; "
                f"run bench/{script}.py here"
            )
        if args.part:
            print(json.dumps(measure_part(args, cfg, ranks)))
            return
        peaks = find_peaks(ranks)
        artifact = measure_artifact(cfg, ranks, args.artifact)
    runs = measure_all_sides(args.rounds)
    result = {
        "training": summarise_training(runs["training"], cfg, peaks),
        "scoring": summarise_scoring(runs["scoring"]),
        "artifact": artifact,
        "environment": {"device": device_name(benchmark)} | software(),
        "config": {
            "flags": " ".join([*benchmark.flags, args.flags]).strip(),
            "batch_tokens": cfg.training.train_batch_tokens,
            "peak_flops": {name_of(peak.dtype): peak.flops for peak in peaks.values()},
        },
    }
    write_json(args.out / f"{benchmark.name}.json", result)
    draw(result, args.out / f"{benchmark.name}.png")
    print(json.dumps(result, indent=1))
