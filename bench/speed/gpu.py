"""The parts of bench/gpu.py, and the command that runs them one after the other."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import train_gpt as tg
from bench.machine import RESULTS, ROOT, software, write_json
from bench.speed import on_gpu

SCRIPT = ROOT / "bench" / "gpu.py"


class Part(NamedTuple):
    """What is measured, and for how many seconds at most."""

    limit: int
    measure: Callable[[tg.Config, tg.Ranks, argparse.Namespace], dict[str, Any]]
    default: bool = True  # runs unless --parts names others


PARTS = {
    "tests": Part(50, on_gpu.run_tests),
    "step": Part(80, on_gpu.measure_step),
    "plain step": Part(30, on_gpu.measure_plain_step),
    "kernels": Part(35, on_gpu.measure_kernels),
    "scoring": Part(35, on_gpu.measure_compiled_scoring),
    "mixer": Part(20, on_gpu.measure_mixer),
    "minute": Part(110, on_gpu.run_a_minute),
    "tuned step": Part(300, on_gpu.measure_tuned_step, default=False),
    "scoring as written": Part(60, on_gpu.measure_scoring_as_written, default=False),
}


def build_parser(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    default = [name for name, part in PARTS.items() if part.default]
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=default, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu", help="folder of the results")
    parser.add_argument("--profile", action="store_true", help="also save a trace of three steps")
    parser.add_argument("--flags", default="", help="more of train_gpt.py's flags, in one string")
    parser.add_argument(
        "--mixer-tokens", type=int, default=62_021_846, help="as many as the contest scores"
    )
    parser.add_argument("--score-tokens", type=int, default=800_000)
    parser.add_argument("--train-seconds", type=float, default=60.0, help="of the part `minute`")
    parser.add_argument(
        "--on-cpu", action="store_true", help="try the command where there is no GPU"
    )
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    return parser


def file_of(name: str, folder: Path, suffix: str) -> Path:
    return folder / (name.replace(" ", "_") + suffix)


def stop(child: subprocess.Popen) -> None:
    """Ends a part and all that it has started."""
    if hasattr(os, "killpg"):
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()


def run_part(name: str, argv: list[str], folder: Path) -> dict[str, Any]:
    """Its state, seconds and figures. All that it prints goes into a log in the folder."""
    command = [sys.executable, str(SCRIPT), *argv, "--one", name]
    started = time.perf_counter()
    log = file_of(name, folder, ".log")
    with open(log, "wb") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT
        )
        try:
            state = "done" if child.wait(PARTS[name].limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            stop(child)
            state = "over its limit"
    seconds = round(time.perf_counter() - started, 1)
    lines = log.read_text("utf-8", "replace").splitlines()
    figures = json.loads(lines[-1]) if state == "done" else {"last_lines": lines[-15:]}
    return {"part": name, "state": state, "seconds": seconds, "figures": figures}


def run_parts(args: argparse.Namespace, device: str) -> bool:
    """Whether all were done. Each is on disk before the next one begins."""
    args.out.mkdir(parents=True, exist_ok=True)
    environment = {"device": device} | software()
    all_done = True
    for name in args.parts:
        result = run_part(name, sys.argv[1:], args.out)
        write_json(file_of(name, args.out, ".json"), result | {"environment": environment})
        print(f"{name}: {result['state']}, {result['seconds']} s", flush=True)
        print(json.dumps(result["figures"], indent=1)[:2000], flush=True)
        all_done = all_done and result["state"] == "done"
    return all_done


def main(doc: str) -> None:
    """Exit code 0 where all parts were done, 1 where not or without a GPU, 2 for wrong flags."""
    args = build_parser(doc).parse_args()
    size = [] if args.on_cpu else ["--train-batch-tokens", "65536"]
    try:
        cfg, _ = tg.parse_config([*size, *args.flags.split()], {})
        with tg.open_ranks({}, bool(cfg.training.bf16)) as ranks:
            if not ranks.on_gpu and not args.on_cpu:
                sys.exit("error: expected a cuda device, found cpu; run bench/cpu.py here")
            if args.one:
                print(json.dumps(PARTS[args.one].measure(cfg, ranks, args)), flush=True)
                return
            device = on_gpu.device_name(ranks)
        sys.exit(0 if run_parts(args, device) else 1)
    except tg.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
