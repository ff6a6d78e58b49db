"""Killed runs and damaged files, counted: `python bench/faults.py`.

It writes bench/results/faults.json.

`--kills` pipelines (train, export, score, pack) meet a SIGKILL at a random moment, in turns in
each phase, and are started again with --resume. Score, record and artifact must be those of a run
that nobody disturbed.

Each reader of shards, manifests, artifacts, logs and record folders gets `--count` mutations of a
sound file: bits, bytes, stretches and numbers changed, parts cut, doubled or moved, JSON values
exchanged for others of any type. Most mutated artifacts are sealed with their sha256 again, so
that damage reaches the code behind the seal.

A reader must take the file or refuse it in one line. A traceback, a hang, a crash or memory beyond
the limit is a fault. It is kept with the mutation's number, which gives the same file again.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.damage.kills import measure_kills
from bench.damage.readers import READERS
from bench.damage.trials import commit_with_changes, fuzz, worker
from bench.machine import RESULTS, write_json


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--count", type=int, default=10_000, help="mutations per reader; 0 = none")
    parser.add_argument(
        "--kills", type=int, default=20, help="pipelines killed and gone on with; 0 = none"
    )
    parser.add_argument(
        "--readers",
        nargs="+",
        choices=READERS,
        default=list(READERS),
        metavar="READER",
        help=f"of: {', '.join(READERS)}",
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "faults.json")
    parser.add_argument(
        "--worker", nargs=3, metavar=("READER", "FIRST", "COUNT"), help=argparse.SUPPRESS
    )
    return parser


def versions() -> dict:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def measure(args: argparse.Namespace) -> dict:
    """Adds to the results file after each measurement; its other rows stay."""
    results = json.loads(args.out.read_text()) if args.out.exists() else {"readers": {}}
    if args.kills:
        results["kills"] = measure_kills(args.kills) | {"commit": commit_with_changes()}
        write_json(args.out, results)
    for name in tqdm(args.readers if args.count else [], desc="readers"):
        results["readers"][name] = fuzz(name, args.count, len(os.sched_getaffinity(0)))
        results["environment"] = versions()
        write_json(args.out, results)
    return results


def print_kills(kills: dict) -> None:
    met = ", ".join(f"{phase} {count}" for phase, count in kills["met"].items())
    print(
        f"{kills['same']} of {kills['kills']} killed runs ended, resumed, "
        f"with the undisturbed run's score {kills['undisturbed']['val_bpb']}; met in: {met}"
    )


def print_readers(rows: dict[str, dict]) -> None:
    print(f"{'reader':<24}{'mutations':>10}{'accepted':>10}{'refused':>10}{'faults':>8}")
    for name, row in rows.items():
        print(
            f"{name:<24}{row['mutations']:>10,}{row['accepted']:>10,}"
            f"{row['refused']:>10,}{len(row['faults']):>8,}"
        )


def main() -> int:
    """Exit code: 1 where a killed run was lost or a reader has a fault."""
    args = build_parser().parse_args()
    if args.worker:
        name, first, count = args.worker
        worker(name, int(first), int(count))
        return 0
    results = measure(args)
    kills = results.get("kills")
    lost = 0
    if kills:
        print_kills(kills)
        lost = kills["kills"] - kills["same"]
    print_readers(results["readers"])
    faults = sum(len(row["faults"]) for row in results["readers"].values())
    return int(lost > 0 or faults > 0)


if __name__ == "__main__":
    sys.exit(main())
