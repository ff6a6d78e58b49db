"""Train variations of one preset with several seeds, one run after another, and compare them.

    sweep muon_lr=0.02,0.03 --seeds 1337 42 --out runs/lr          two values and two seeds
    sweep muon_lr=0.02,0.03 ema_decay=0.97,0.99 --out runs/grid    a grid of four
    sweep xsa_layers=0 ngram_order=0,8 --each --out runs/parts     an ablation: one change at a time

The base, which is the preset with what --fix says, is always among them. Killed or interrupted,
the same command goes on; with further values or seeds it runs only what is new. OUT then holds
table.md, results.csv and picture.png.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from eval.errors import UserError, typed_command
from tools.script import CODE_FILE, PREFERRED_SEED, load_script, missing_names

if TYPE_CHECKING:  # so that --help need not wait
    from types import ModuleType

    from tools.desk.plan import Plan
    from tools.desk.reading import Run

ROOT = Path(__file__).resolve().parents[1]
MOST_STEPS = 2**20  # more than any clock allows


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "assignments",
        nargs="*",
        metavar="SETTING=VALUE,VALUE",
        help="a setting of the script and the values to try",
    )
    parser.add_argument(
        "--fix", nargs="+", default=[], metavar="SETTING=VALUE", help="in every run, base included"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the sweep")
    parser.add_argument("--seeds", type=int, nargs="+", default=[PREFERRED_SEED], metavar="N")
    parser.add_argument("--preset", default="docs_cpu", help="[docs_cpu]")
    parser.add_argument(
        "--each", action="store_true", help="one change at a time instead of the whole grid"
    )
    parser.add_argument(
        "--train-seconds",
        type=float,
        metavar="S",
        help="equal time: every run trains S seconds, however many steps that are",
    )
    parser.add_argument(
        "--bytes",
        type=int,
        metavar="N",
        help="equal size: code and artifact of every run fit N bytes, by coarser quantisation",
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="default: the preset's")
    parser.add_argument("--checkpoint-every", type=int, default=0, metavar="STEPS", help="[0]")
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="ranks of each run [1]")
    parser.add_argument(
        "--script", type=Path, default=ROOT / CODE_FILE, metavar="FILE", help=f"[{CODE_FILE}]"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the runs and start none")


def run(args: argparse.Namespace) -> int:
    from tools.desk.plan import keep_plan
    from tools.desk.queue import Queue

    if not args.script.is_file():
        raise UserError(f"{args.script}: expected a script, found no file there")
    module = load_script(args.script)
    plan = plan_of(args, module)
    print(plan.describe(), flush=True)
    environment = environment_without_settings(module)
    queue = Queue(plan, args.out, args.script, environment, extra_flags(args), args.nproc)
    if args.dry_run:
        for planned in plan.runs:
            print(shlex.join(queue.command(planned)))
        return 0
    keep_plan(args.out, plan)
    try:
        failures = queue.run_all()
    except KeyboardInterrupt:
        command = typed_command("tools", *sys.argv[1:])
        print(f"\ninterrupted; this goes on: {command}", file=sys.stderr)
        return 130
    return report(args.out, plan, failures)


def plan_of(args: argparse.Namespace, module: ModuleType) -> Plan:
    from tools.desk.plan import INTERFACE, Plan, parse_assignments, plan_runs, variations

    missing = missing_names(module, INTERFACE)
    if missing:
        raise UserError(
            f"{args.script}: expected a script with {', '.join(missing)}, as today's {CODE_FILE} "
            "has, found none"
        )
    if args.preset not in module.PRESETS:
        known = ", ".join(module.PRESETS)
        raise UserError(f"--preset: expected one of {known}, found {args.preset!r}")
    fixed = fixed_settings(args)
    varied = parse_assignments(args.assignments)
    twice = sorted(fixed.keys() & varied.keys())
    if twice:
        raise UserError(f"{', '.join(twice)}: expected fixed or varied, found both")
    experiments = list(variations(fixed, varied, args.each))
    code = hashlib.sha256(args.script.read_bytes()).hexdigest()
    seeds = list(dict.fromkeys(args.seeds))
    data = str(args.data_dir or "")
    return Plan(args.preset, code, data, plan_runs(module, args.preset, experiments, seeds))


def fixed_settings(args: argparse.Namespace) -> dict[str, str]:
    """What --fix, --train-seconds and --bytes say. Raises UserError for two values of a setting."""
    from tools.desk.plan import parse_assignments

    fixed = {}
    for name, values in parse_assignments(args.fix).items():
        if len(values) > 1:
            raise UserError(f"--fix {name}: expected one value, found {len(values)}")
        fixed[name] = values[0]
    equal = {}
    if args.train_seconds is not None:
        equal = {"train_seconds": str(args.train_seconds), "iterations": str(MOST_STEPS)}
    if args.bytes is not None:
        equal["size_cap"] = str(args.bytes)
    twice = sorted(fixed.keys() & equal.keys())
    if twice:
        raise UserError(f"--fix {', '.join(twice)}: expected here or by its own flag, found both")
    return fixed | equal


def extra_flags(args: argparse.Namespace) -> list[str]:
    """What changes no score."""
    flags = ["--checkpoint-every", str(args.checkpoint_every)]
    if args.data_dir is not None:
        flags += ["--data-dir", str(args.data_dir)]
    return flags


def environment_without_settings(module: ModuleType) -> dict[str, str]:
    """The plan alone says what a run's settings are."""
    settings = {"PRESET"}
    for preset in module.PRESETS.values():
        settings |= {name.upper() for name in preset.flat()}
    return {name: value for name, value in os.environ.items() if name not in settings}


def report(folder: Path, plan: Plan, failures: list[str]) -> int:
    """Writes table, values and picture, and prints the table. Exit code 1 where a run failed."""
    from eval.files import write_atomic
    from eval.papers.rendering.tables import aligned, markdown_table
    from tools.desk.comparing import against_first, experiments_of
    from tools.desk.pictures import save_picture
    from tools.desk.reading import LOG, read_run
    from tools.desk.tables import COMPARISON_ALIGNMENT, COMPARISON_HEAD, comparison_rows

    folders = [folder / planned.name for planned in plan.runs]
    runs = [read_run(place) for place in folders if (place / LOG).is_file()]
    if not runs:
        raise UserError(f"{folder}: expected runs, found none that began; {failures[0]}")
    rows = against_first(experiments_of(runs))
    cells = comparison_rows(rows)
    print("\n" + aligned([COMPARISON_HEAD, *cells], gap=2))
    table = markdown_table(COMPARISON_HEAD, cells, COMPARISON_ALIGNMENT)
    notes = [f"* failed: {failure}" for failure in failures]
    text = "\n".join([f"# {folder.name}: preset {plan.preset}", "", table, "", *notes])
    write_atomic(folder / "table.md", text.rstrip() + "\n")
    write_atomic(folder / "results.csv", results_csv(runs))
    save_picture(folder / "picture.png", rows, f"{folder.name}: preset {plan.preset}")
    print(f"\n{folder}: table.md, results.csv, picture.png")
    for failure in failures:
        print(f"failed: {failure}")
    return int(bool(failures))


def results_csv(runs: list[Run]) -> str:
    """One line a run."""
    settings: dict[str, None] = {}  # in order of appearance
    for run in runs:
        settings |= dict.fromkeys(run.settings)
    facts = ["val_bpb", "neural_bpb", "train_s", "eval_s", "bytes_total"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "seed", *settings, "state", "step", *facts])
    for run in runs:
        own = [run.settings[name].value if name in run.settings else "" for name in settings]
        measured = [getattr(run, fact) for fact in facts]
        writer.writerow([run.name, run.seed, *own, run.state.value, run.step, *measured])
    return text.getvalue()
