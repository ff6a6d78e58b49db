"""Parameters by group and their bytes after export.

For an artifact, or for the initial weights of a script with a preset and settings.
"""

import argparse
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from eval.errors import UserError
from tools.script import (
    Record,
    add_record_arguments,
    choose_artifact,
    find_record,
    load_script,
    missing_names,
    refusals_of,
)

# What a script must have for a table: that of today's train_gpt.py.
INTERFACE = ("GPT", "Packed", "entropy_bytes", "load_artifact", "pack", "parse_config")
INITIAL_WEIGHTS = "initial weights (zero-initialised projections compress to nothing)"


def configure(parser: argparse.ArgumentParser) -> None:
    add_record_arguments(parser)
    parser.usage = (
        f"{parser.prog} RECORD [--artifact A | --seed-artifact SEED | --preset P] [settings]"
    )
    parser.epilog = (
        "Without an artifact, --preset and all settings are those of the script, "
        "for example: params train_gpt.py --preset docs_cpu --num-layers 3"
    )


def run(args: argparse.Namespace) -> int:
    record = find_record(args.record)
    artifact = choose_artifact(record, args)
    if artifact is not None and args.settings:
        raise UserError(
            f"{artifact}: expected no settings beside an artifact, "
            f"found {' '.join(args.settings)}; pass the script alone to change settings"
        )
    module = load_script(record.script)
    missing = missing_names(module, INTERFACE)
    if missing:
        print("\n".join(what_is_known(record, artifact, missing)))
        return 0
    with refusals_of(module):
        rows = read_groups(module, artifact, args.settings)
    print(artifact or INITIAL_WEIGHTS)
    print(table_of(rows))
    return 0


@dataclass
class Group:
    """Tensors that differ in their layer alone."""

    name: str
    tensors: int = 0
    parameters: int = 0
    formats: tuple[str, ...] = ()
    stored_bytes: int = 0
    entropy_bytes: float = 0.0

    def add(self, parameters: int, formats: tuple[str, ...], stored: int, entropy: float) -> None:
        self.tensors += 1
        self.parameters += parameters
        self.formats = tuple(sorted({*self.formats, *formats}))
        self.stored_bytes += stored
        self.entropy_bytes += entropy


def read_groups(module: ModuleType, artifact: Path | None, settings: list[str]) -> list[Group]:
    """In the order of the model's parameters, and the total at last."""
    if artifact is None:
        cfg, _ = module.parse_config(settings, os.environ)
        model = module.GPT(cfg.model)
        packed = module.pack(model, cfg, "")
    else:
        loaded = module.load_artifact(artifact)
        model = loaded.model
        packed = loaded.packed
    groups: dict[str, Group] = {}
    total = Group("total")
    for name, p in model.named_parameters():
        stored = packed.tensors[name]
        coded_bytes = packed.coded_bytes[name]
        entropy = module.entropy_bytes(stored.parts())
        group_name = re.sub(r"\.\d+|\.weight", "", name)
        group = groups.setdefault(group_name, Group(group_name))
        group.add(p.numel(), (stored.format,), coded_bytes, entropy)
        total.add(p.numel(), (), coded_bytes, entropy)
    return [*groups.values(), total]


def table_of(rows: list[Group]) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    table.add_column("group")
    for title in ("tensors", "parameters", "share"):
        table.add_column(title, justify="right")
    table.add_column("format")
    for title in ("stored bytes", "entropy bytes"):
        table.add_column(title, justify="right")
    total = rows[-1].parameters
    for row in rows:
        table.add_row(
            row.name,
            str(row.tensors),
            f"{row.parameters:,}",
            f"{row.parameters / total:.1%}",
            "/".join(row.formats),
            f"{row.stored_bytes:,}",
            f"{row.entropy_bytes:,.0f}",
        )
    console = Console(file=io.StringIO(), width=1000, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def what_is_known(record: Record, artifact: Path | None, missing: list[str]) -> list[str]:
    """Of a script with another interface: the sizes of its files, and what it claims."""
    lines = [
        f"{record.script}: parameters by group are unknown, "
        f"because this script has no {', '.join(missing)} like today's train_gpt.py",
        f"code            {record.script.stat().st_size:>12,} bytes",
    ]
    if artifact is None:
        return lines
    lines.append(f"artifact        {artifact.stat().st_size:>12,} bytes  {artifact.name}")
    for seed, result in claimed_results(record).items():
        if result.get("artifact") == artifact.name and "parameters" in result:
            lines.append(
                f"parameters      {result['parameters']:>12,} by submission.json, seed {seed}"
            )
    return lines


def claimed_results(record: Record) -> dict[str, dict]:
    results = record.submission().get("seed_results")
    if not isinstance(results, dict):
        return {}
    return {seed: result for seed, result in results.items() if isinstance(result, dict)}
