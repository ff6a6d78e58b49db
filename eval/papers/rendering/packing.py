"""Builds and refreshes record folders."""

import ctypes
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from eval.errors import UserError
from eval.files import sha256_of, write_atomic
from eval.papers.audits.reading import read_audit
from eval.papers.folder import LOSS_PICTURE, PACKED_NAMES, SCORE_PICTURE
from eval.papers.logs.log import Log
from eval.papers.logs.proof import data_of, override_settings, seed_result
from eval.papers.logs.reading import parse_log
from eval.papers.rendering.pictures import loss_picture, score_picture
from eval.papers.rendering.readme import changes_of, default_changes, readme
from eval.papers.submission.reading import load_submission
from eval.papers.submission.schema import (
    CODE_FILE,
    SUBMISSION_FILE,
    SeedResult,
    Submission,
    dump_submission,
)


@dataclass(frozen=True)
class Run:
    """One seed: its log, the artifact beside it and what the log proves."""

    log: Log
    artifact: Path
    result: SeedResult

    @property
    def seed(self) -> int:
        return self.log.seed


def is_readable(path: Path) -> bool:
    if not path.is_file():
        raise UserError(
            f"{path}: expected a text file, found none; write it or leave the option out"
        )
    return True


def load_run(path: Path) -> Run:
    """A run whose log is complete, agrees with itself and with the artifact beside it.

    Raises UserError naming the log, what was expected and what was found."""
    path = path / "train.log" if path.is_dir() else path
    log = parse_log(path)
    if not log.native:
        raise UserError(
            f"{path}: expected a log that starts with log_format:1, found another format; `check` reads it, `pack` does not"
        )
    if log.problems:
        raise UserError(f"{path}: {log.problems[0]}; train again, the packager does not guess")
    wanted = (
        "artifact.file",
        "artifact.bytes",
        "artifact.sha256",
        "config.sha256",
        "source.sha256",
    )
    if missing := [name for name in wanted if log.text(name) is None]:
        raise UserError(
            f"{path}: expected a line that states {missing[0].replace('.', ' ')}, found none; train again with the current script"
        )
    artifact = path.parent / Path(log.text("artifact.file")).name
    if not artifact.is_file():
        raise UserError(
            f"{artifact}: missing; the log {path.name} names it, keep it beside the log"
        )
    result = seed_result(log)
    verify_result_line(log, artifact, result)
    return Run(log, artifact, result)


def verify_result_line(log: Log, artifact: Path, result: SeedResult) -> None:
    """What a result line must satisfy whoever wrote it: division, additions, sizes and hashes. Raises UserError."""
    weights = artifact.read_bytes()
    code = log.source
    expected = {
        "val_loss": (round(result.nats / result.scored_tokens, 8), result.val_loss, 1.1e-8),
        "val_bpb": (
            round(result.nats / math.log(2) / result.scored_bytes, 8),
            result.val_bpb,
            1.1e-8,
        ),
        "bytes_total": (
            log.integer("result.artifact_bytes") + log.integer("result.code_bytes"),
            result.bytes_total,
            0,
        ),
        "artifact_bytes": (len(weights), result.artifact_bytes, 0),
        "code_bytes": (len(code), log.integer("result.code_bytes"), 0),
        "scored_tokens": (
            log.integer("data.val_tokens") - 1 if log.integer("data.val_tokens") else None,
            result.scored_tokens,
            0,
        ),
    }
    for name, (computed, stated, tolerance) in expected.items():
        if computed is None or abs(computed - stated) > tolerance:
            raise UserError(
                f"{log.path}: result says {name}:{stated}, its parts and files give {computed}; train again"
            )
    hashes = {
        "artifact": (sha256_of(weights), log.text("artifact.sha256"), artifact),
        "code": (sha256_of(code), log.text("result.code_sha256"), log.path),
    }
    for what, (computed, stated, path) in hashes.items():
        if computed != stated:
            raise UserError(
                f"{path}: sha256 of the {what} is {computed[:12]}…, {log.path.name} says {stated[:12]}…; use the files of one run"
            )


def compare_runs(runs: list[Run]) -> None:
    """Seeds of one record differ in the seed alone. Raises UserError naming both logs and the first difference."""
    first = runs[0]
    seeds: dict[int, Run] = {}
    for run in runs:
        if (known := seeds.setdefault(run.seed, run)) is not run:
            raise UserError(
                f"{run.log.path}: seed {run.seed} again, as in {known.log.path}; give every seed once"
            )
        aspects = {
            "code (sha256)": lambda r: r.log.text("source.sha256"),
            "config (sha256)": lambda r: r.log.text("config.sha256"),
            "config overrides": lambda r: sorted(override_settings(r.log)),
            "preset": lambda r: r.log.text("config.preset"),
            "data": lambda r: data_of(r.log).model_copy(
                update={"manifest_sha256": None}
            ),  # the manifest also says where it was made
            "number of ranks": lambda r: r.log.integer("env.world_size"),
            "training precision": lambda r: r.log.text("env.train_dtype"),
        }
        for aspect, read in aspects.items():
            if read(run) != read(first):
                raise UserError(
                    f"{run.log.path}: {aspect} {read(run)}, but {first.log.path} has {read(first)}; pack only runs of one experiment"
                )


def write_folder(
    folder: Path,
    submission: Submission,
    runs: list[Run],
    changes: str,
    requirements: Path | None,
    replace: bool,
) -> None:
    """Build everything under a temporary name, then rename: the folder is there whole or not at all."""
    for aside in folder.parent.glob(
        f".{folder.name}.*.tmp.old"
    ):  # a swap in three steps was killed in the middle
        if not folder.exists():
            os.replace(aside, folder)
        shutil.rmtree(aside, ignore_errors=True)
    check_target(folder, runs[0].log.source, replace)
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # by a packing that was killed
        if (pid := left.name.split(".")[-2]).isdigit() and (
            int(pid) == os.getpid() or not _runs(int(pid))
        ):
            shutil.rmtree(left, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        (building / CODE_FILE).write_bytes(runs[0].log.source)
        (building / SUBMISSION_FILE).write_text(dump_submission(submission), encoding="utf-8")
        for run in runs:
            row = submission.seed_results[str(run.seed)]
            shutil.copyfile(run.log.path, building / row.log)
            if row.artifact:
                shutil.copyfile(run.artifact, building / row.artifact)
        if requirements is not None and is_readable(requirements):
            shutil.copyfile(requirements, building / "requirements.txt")
        render(building, folder, changes)
        if folder.exists():
            _exchange(building, folder)
        else:
            os.replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _exchange(a: Path, b: Path) -> None:
    """Two folders swap names: in one step on Linux (renameat2 with RENAME_EXCHANGE), so that `b` is there at every moment; else in three."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here = -100  # AT_FDCWD
    if rename is not None and rename(here, os.fsencode(a), here, os.fsencode(b), 2) == 0:
        return
    aside = b.with_name(f"{a.name}.old")
    os.replace(b, aside)
    try:
        os.replace(a, b)
    except OSError:
        os.replace(aside, b)
        raise
    os.replace(aside, a)


def check_target(folder: Path, code: bytes, replace: bool) -> None:
    """A folder that holds nothing but the script that trained is not yet a record; packing completes it. Raises UserError otherwise."""
    if not folder.exists():
        return
    foreign = sorted(
        item.name for item in folder.iterdir() if not PACKED_NAMES.fullmatch(item.name)
    )
    if foreign:
        raise UserError(
            f"{folder}: holds {', '.join(foreign)}, which packing would lose; move it away or choose another --slug"
        )
    if (folder / SUBMISSION_FILE).exists() and not replace:
        raise UserError(
            f"{folder}: a record of this name exists; give --replace to build it anew or another --slug"
        )
    script = folder / CODE_FILE
    if script.exists() and script.read_bytes() != code and not replace:
        raise UserError(
            f"{script}: differs from the source in the logs; train with the committed script or give --replace"
        )


def refresh(folder: Path) -> None:
    """Render README and pictures of a packed record again from its submission.json, logs and audit.json; the `changes` text stays."""
    submission = load_submission(folder)
    if submission.origin != "packed":
        raise UserError(
            f"{folder / SUBMISSION_FILE}: expected a record made by `pack`, found an imported one; it stays as its author wrote it"
        )
    render(folder, folder, changes_of(folder) or default_changes(submission))


def render(folder: Path, final: Path, changes: str) -> None:
    """Write pictures and README.md into `folder`, which will be known as `final`."""
    submission = load_submission(folder)
    logs = {seed: parse_log(folder / row.log) for seed, row in submission.seed_results.items()}
    write_atomic(folder / LOSS_PICTURE, loss_picture(submission, logs))
    write_atomic(folder / SCORE_PICTURE, score_picture(submission))
    write_atomic(folder / "README.md", readme(submission, final, changes, read_audit(folder)))
