"""The experiments of a sweep: a base, and what is changed in it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from eval.errors import UserError
from tools.desk.tables import counted
from tools.script import refusals_of

PLAN = "sweep.json"
INTERFACE = ("parse_config", "config_sha256", "PRESETS")
BASE = "base"


@dataclass(frozen=True)
class PlannedRun:
    """One run: its folder's name, and its settings beside the preset as the script's flags."""

    name: str
    seed: int
    settings: dict[str, str]
    config: str  # sha256, as the run's log will state it

    def flags(self, preset: str, out: Path) -> list[str]:
        flags = ["--preset", preset]
        for name, value in self.settings.items():
            flags += [f"--{name.replace('_', '-')}", value]
        return [*flags, "--seed", str(self.seed), "--out", str(out)]


@dataclass(frozen=True)
class Plan:
    """What a sweep runs, in order: seed by seed, so that a part of it already compares."""

    preset: str
    code: str  # sha256 of the script
    data: str  # --data-dir, where it is not the preset's
    runs: list[PlannedRun]

    def describe(self) -> str:
        experiments = len({run.config for run in self.runs})
        return f"{counted(experiments, 'experiment')}, {counted(len(self.runs), 'run')}"


def parse_assignments(texts: Sequence[str]) -> dict[str, list[str]]:
    """Values by setting, from `name=a,b`. Raises UserError."""
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip("-").replace("-", "_")
        parts = [part.strip() for part in values.split(",")]
        if not equals or not name or not all(parts):
            raise UserError(f"{text}: expected SETTING=VALUE,VALUE, as in muon_lr=0.02,0.03")
        if name in found:
            raise UserError(f"{text}: expected each setting once, found {name} twice")
        found[name] = parts
    return found


def variations(
    fixed: Mapping[str, str], varied: Mapping[str, Sequence[str]], each: bool
) -> Iterator[dict[str, str]]:
    """The base first, then the grid of all values or, with `each`, every value alone."""
    base = dict(fixed)
    yield base
    if each:
        for name, values in varied.items():
            for value in values:
                yield base | {name: value}
    elif varied:
        for combination in itertools.product(*varied.values()):
            yield base | dict(zip(varied, combination, strict=True))


def plan_runs(
    module: ModuleType,
    preset: str,
    experiments: Sequence[Mapping[str, str]],
    seeds: Sequence[int],
) -> list[PlannedRun]:
    """Every experiment with every seed; equal ones are one, the base above all.

    `module` is the imported script, which refuses what it cannot run: UserError.
    """
    distinct: dict[str, dict[str, str]] = {}
    for settings in experiments:
        distinct.setdefault(_config_sha256(module, preset, settings), dict(settings))
    (base, *_) = distinct.values()
    runs = []
    for seed in seeds:
        for config, settings in distinct.items():
            own = [f"{name}={value}" for name, value in settings.items() if base.get(name) != value]
            name = f"{','.join(own) or BASE}_seed{seed}"
            runs.append(PlannedRun(name.replace("/", "-"), seed, settings, config))
    return runs


def _config_sha256(module: ModuleType, preset: str, settings: Mapping[str, str]) -> str:
    flags = PlannedRun("", 0, dict(settings), "").flags(preset, Path("out"))
    try:
        with refusals_of(module):
            cfg, _ = module.parse_config(flags, {})
    except SystemExit:  # argparse has already said which flag
        raise UserError("sweep: the script refuses these settings; correct them") from None
    return module.config_sha256(cfg)


def keep_plan(folder: Path, plan: Plan) -> None:
    """Writes sweep.json. Raises UserError where the folder holds what does not compare.

    More values and seeds may be added to a sweep: runs that are done stay.
    """
    from eval.files import write_atomic

    path = folder / PLAN
    if path.is_file():
        known, data, configs = _read_plan(path)
        if data != plan.data:
            raise UserError(
                f"{path}: expected --data-dir {data or 'to be left out'}, "
                f"found {plan.data or 'none'}; give another --out"
            )
        if known != plan.code:
            raise UserError(
                f"{path}: expected the script with sha256 {known[:12]}, found {plan.code[:12]}; "
                "runs of two scripts do not compare: give another --out"
            )
        for run in plan.runs:
            if configs.get(run.name, run.config) != run.config:
                raise UserError(
                    f"{path}: expected {run.name} with the settings that it has there, "
                    "found others; give another --out"
                )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(asdict(plan), indent=1) + "\n")


def _read_plan(path: Path) -> tuple[str, str, dict[str, str]]:
    """sha256 of the script, the data, sha256 of each run's settings by its name.

    Raises UserError.
    """
    try:
        known = json.loads(path.read_bytes())
        configs = {run["name"]: run["config"] for run in known["runs"]}
        return str(known["code"]), str(known["data"]), configs
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: expected a sweep's plan, found {error}; remove it") from None
