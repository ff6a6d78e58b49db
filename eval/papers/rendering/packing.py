"""Builds and refreshes record folders."""

import ctypes
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.files import sha256_of, write_atomic
from eval.papers.folder import LOSS_PICTURE, PACKED_NAMES, SCORE_PICTURE, Record, open_record
from eval.papers.logs.log import Log
from eval.papers.logs.proof import data_of, override_settings, seed_result
from eval.papers.logs.reading import parse_log
from eval.papers.rendering.pictures import loss_picture, score_picture
from eval.papers.rendering.readme import changes_of, default_changes, readme
from eval.papers.submission.schema import (
    CODE_FILE,
    SUBMISSION_FILE,
    SeedResult,
    Submission,
    dump_submission,
)

# What a run's log must state, beside its result.
STATED_BY_EVERY_RUN = (
    "artifact.file",
    "artifact.bytes",
    "artifact.sha256",
    "config.sha256",
    "source.sha256",
)
QUOTIENT_ERROR = 1.1e-8  # of a loss or bpb printed with 8 decimals
# renameat2(2) of Linux: the constants of its arguments.
AT_FDCWD = -100
RENAME_EXCHANGE = 2

# --- Runs ---


@dataclass(frozen=True)
class Run:
    """One seed: its log, the artifact beside it and what the log proves."""

    log: Log
    artifact: Path
    result: SeedResult

    @property
    def seed(self) -> int:
        return self.log.seed


def load_run(path: Path) -> Run:
    """A run whose log is complete, agrees with itself and with the artifact beside it.

    `path` is the log or its folder. Raises UserError naming the log, what was expected and what
    was found.
    """
    log_path = path / "train.log" if path.is_dir() else path
    log = parse_log(log_path)
    if not log.native:
        raise UserError(
            f"{log_path}: expected a log that starts with log_format:1, found another format; "
            "`check` reads it, `pack` does not"
        )
    if log.problems:
        raise UserError(f"{log_path}: {log.problems[0]}; train again, the packager does not guess")
    missing = [name for name in STATED_BY_EVERY_RUN if log.text(name) is None]
    if missing:
        wanted = missing[0].replace(".", " ")
        raise UserError(
            f"{log_path}: expected a line that states {wanted}, found none; "
            "train again with the current script"
        )
    artifact = log_path.parent / Path(log.text("artifact.file")).name
    if not artifact.is_file():
        raise UserError(
            f"{artifact}: missing; the log {log_path.name} names it, keep it beside the log"
        )
    result = seed_result(log)
    verify_result_line(log, artifact, result)
    return Run(log, artifact, result)


def verify_result_line(log: Log, artifact: Path, result: SeedResult) -> None:
    """What a result line must satisfy whoever wrote it: quotients, sums, sizes and hashes.

    Raises UserError.
    """
    weights = artifact.read_bytes()
    loss = round(result.nats / result.scored_tokens, 8)
    bpb = round(result.nats / math.log(2) / result.scored_bytes, 8)
    code_bytes = log.integer("result.code_bytes")
    total = log.integer("result.artifact_bytes") + code_bytes
    val_tokens = log.integer("data.val_tokens")
    targets = val_tokens - 1 if val_tokens else None
    _require_figure(log, "val_loss", loss, result.val_loss, QUOTIENT_ERROR)
    _require_figure(log, "val_bpb", bpb, result.val_bpb, QUOTIENT_ERROR)
    _require_figure(log, "bytes_total", total, result.bytes_total)
    _require_figure(log, "artifact_bytes", len(weights), result.artifact_bytes)
    _require_figure(log, "code_bytes", len(log.source), code_bytes)
    _require_figure(log, "scored_tokens", targets, result.scored_tokens)
    hashes = (
        ("artifact", sha256_of(weights), log.text("artifact.sha256"), artifact),
        ("code", sha256_of(log.source), log.text("result.code_sha256"), log.path),
    )
    for what, computed, stated, path in hashes:
        if computed != stated:
            raise UserError(
                f"{path}: sha256 of the {what} is {computed[:12]}…, "
                f"{log.path.name} says {stated[:12]}…; use the files of one run"
            )


def _require_figure(
    log: Log, name: str, computed: float | None, stated: float, tolerance: float = 0
) -> None:
    if computed is None or abs(computed - stated) > tolerance:
        raise UserError(
            f"{log.path}: result says {name}:{stated}, its parts and files give {computed}; "
            "train again"
        )


def compare_runs(runs: list[Run]) -> None:
    """Seeds of one record differ in the seed alone.

    Raises UserError naming both logs and the first difference.
    """
    first = runs[0]
    shared = experiment_of(first)
    seeds: dict[int, Run] = {}
    for run in runs:
        known = seeds.setdefault(run.seed, run)
        if known is not run:
            raise UserError(
                f"{run.log.path}: seed {run.seed} again, as in {known.log.path}; "
                "give every seed once"
            )
        for aspect, value in experiment_of(run).items():
            if value != shared[aspect]:
                raise UserError(
                    f"{run.log.path}: {aspect} {value}, but {first.log.path} has {shared[aspect]}; "
                    "pack only runs of one experiment"
                )


def experiment_of(run: Run) -> dict[str, Any]:
    """What all seeds of a record share, by what a message calls it."""
    log = run.log
    return {
        "code (sha256)": log.text("source.sha256"),
        "config (sha256)": log.text("config.sha256"),
        "config overrides": sorted(override_settings(log)),
        "preset": log.text("config.preset"),
        # The manifest also says where it was made.
        "data": data_of(log).model_copy(update={"manifest_sha256": None}),
        "number of ranks": log.integer("env.world_size"),
        "training precision": log.text("env.train_dtype"),
    }


# --- Folders ---


@dataclass(frozen=True)
class Texts:
    """What a record's author adds to its runs. `requirements` is a file of further packages."""

    changes: str
    requirements: Path | None = None


def write_folder(
    folder: Path, submission: Submission, runs: list[Run], texts: Texts, replace: bool
) -> None:
    """Build everything under a temporary name, then rename.

    The folder is there whole or not at all. Raises UserError where it may not be written.
    """
    _restore_interrupted(folder)
    check_target(folder, runs[0].log.source, replace)
    _remove_left_over(folder)
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    building.mkdir(parents=True)
    try:
        _copy_papers(building, submission, runs)
        if texts.requirements is not None:
            require_file(texts.requirements)
            shutil.copyfile(texts.requirements, building / "requirements.txt")
        render(open_record(building), folder, texts.changes)
        if folder.exists():
            _exchange(building, folder)
        else:
            os.replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def require_file(path: Path) -> None:
    """Raises UserError where a text that an option names is no file."""
    if not path.is_file():
        raise UserError(
            f"{path}: expected a text file, found none; write it or leave the option out"
        )


def _copy_papers(building: Path, submission: Submission, runs: list[Run]) -> None:
    """Script, submission.json, logs and, where the track commits them, artifacts."""
    (building / CODE_FILE).write_bytes(runs[0].log.source)
    (building / SUBMISSION_FILE).write_text(dump_submission(submission), encoding="utf-8")
    for run in runs:
        row = submission.seed_results[str(run.seed)]
        shutil.copyfile(run.log.path, building / row.log)
        if row.artifact:
            shutil.copyfile(run.artifact, building / row.artifact)


def check_target(folder: Path, code: bytes, replace: bool) -> None:
    """Raises UserError where packing would lose something.

    A folder that holds nothing but the script that trained is not yet a record; packing completes
    it.
    """
    if not folder.exists():
        return
    names = sorted(item.name for item in folder.iterdir())
    foreign = [name for name in names if not PACKED_NAMES.fullmatch(name)]
    if foreign:
        raise UserError(
            f"{folder}: holds {', '.join(foreign)}, which packing would lose; "
            "move it away or choose another --slug"
        )
    if replace:
        return
    if (folder / SUBMISSION_FILE).exists():
        raise UserError(
            f"{folder}: a record of this name exists; "
            "give --replace to build it anew or another --slug"
        )
    script = folder / CODE_FILE
    if script.exists() and script.read_bytes() != code:
        raise UserError(
            f"{script}: differs from the source in the logs; "
            "train with the committed script or give --replace"
        )


def _restore_interrupted(folder: Path) -> None:
    """Undo a swap in three steps that was killed in the middle."""
    for aside in folder.parent.glob(f".{folder.name}.*.tmp.old"):
        if not folder.exists():
            os.replace(aside, folder)
        shutil.rmtree(aside, ignore_errors=True)


def _remove_left_over(folder: Path) -> None:
    """Remove what a killed packing left; one that is still running keeps its own."""
    for left_over in folder.parent.glob(f".{folder.name}.*.tmp"):
        process = left_over.name.split(".")[-2]
        if process.isdigit() and (int(process) == os.getpid() or not _is_running(int(process))):
            shutil.rmtree(left_over, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _exchange(a: Path, b: Path) -> None:
    """Two folders swap names.

    Linux does it in one step, so that `b` is there at every moment; other systems need three.
    """
    swap = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if swap is not None:
        failed = swap(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE)
        if not failed:
            return
    aside = b.with_name(f"{a.name}.old")
    os.replace(b, aside)
    try:
        os.replace(a, b)
    except OSError:
        os.replace(aside, b)
        raise
    os.replace(aside, a)


# --- Rendering ---


def refresh(folder: Path) -> None:
    """Render README and pictures of a packed record again; the `changes` text stays.

    Raises UserError for a record that is not packed or cannot be read.
    """
    record = open_record(folder)
    if record.submission is None:
        raise UserError(record.problem)
    if record.submission.origin != "packed":
        raise UserError(
            f"{folder / SUBMISSION_FILE}: expected a record made by `pack`, found an imported one; "
            "it stays as its author wrote it"
        )
    render(record, folder, changes_of(folder) or default_changes(record.submission))


def render(record: Record, final: Path, changes: str) -> None:
    """Write pictures and README.md into a packed record's folder, which will be `final`.

    Raises UserError when its logs or its audit cannot be read.
    """
    if record.submission is None or record.audit_problem:
        raise UserError(record.problem or record.audit_problem)
    submission = record.submission
    logs = {seed: record.log(row.log) for seed, row in submission.seed_results.items()}
    write_atomic(record.folder / LOSS_PICTURE, loss_picture(submission, logs))
    write_atomic(record.folder / SCORE_PICTURE, score_picture(submission))
    text = readme(submission, final, changes, record.audit)
    write_atomic(record.folder / "README.md", text)
