"""A record folder, opened and parsed once for everybody who asks about it.

`submission.json` is read when the folder is opened. The script, the logs and the audit are read
when somebody first asks for them, and kept.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.papers.audits.reading import AuditReading, open_audit
from eval.papers.audits.report import AuditReport
from eval.papers.files import DirectoryFiles, Files
from eval.papers.logs.log import Log, LoggedScore
from eval.papers.logs.reading import parse_log
from eval.papers.submission.reading import read_submission
from eval.papers.submission.schema import (
    CODE_FILE,
    SUBMISSION_FILE,
    TRACKS,
    Environment,
    SeedResult,
    Submission,
    Track,
)

SIZE_FILE = CODE_FILE + ".size"  # stands for the script where a folder is kept as data only
LOSS_PICTURE = "loss.png"
SCORE_PICTURE = "score.png"
PACKED_NAMES = re.compile(
    rf"README\.md|{re.escape(SUBMISSION_FILE)}|{re.escape(CODE_FILE)}|requirements\.txt"
    r"|(?:loss|score)\.png|audit\.json|AUDIT\.md"
    r"|train_seed\d+\.log|artifact_seed\d+\.bin|__pycache__"
)
ARTIFACT = re.compile(r"artifact_seed(\d+)\.bin")
GIVEN = "given"  # stands for the seed of an artifact passed by hand
CONTEST_TRACK = "track_10min_16mb"
CONTEST_SECONDS = 600


@dataclass
class Record:
    """A record folder.

    `submission` is None where there is none that can be read: `problem` says why.
    `stated` is its JSON object as the author wrote it, `json_lines` the lines of the file.
    `artifacts` by seed, in the record's order; `missing` holds the stated seeds without one.
    `with_audit` says whether the checks look at the audit too. `files` is where the folder is
    read from; `folder` names it, and is a directory of this machine only if the files are.
    """

    folder: Path
    files: Files
    submission: Submission | None = None
    problem: str | None = None
    stated: dict[str, Any] = field(default_factory=dict)
    json_lines: list[str] = field(default_factory=list)
    artifacts: dict[str, Path] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    with_audit: bool = False

    # --- The script ---

    @property
    def script(self) -> Path:
        return self.folder / CODE_FILE

    @property
    def script_name(self) -> str | None:
        """The name of the script's file, None where the folder has none."""
        return CODE_FILE if CODE_FILE in self.files.sizes else None

    @cached_property
    def code(self) -> bytes | None:
        """Bytes of the script, None where the folder has none."""
        return self.files.read(CODE_FILE) if CODE_FILE in self.files.sizes else None

    @cached_property
    def shipped_size(self) -> int | None:
        """Bytes of the script; by the file that stands for it where the folder is data only."""
        if self.code is not None:
            return len(self.code)
        raw = self.files.read(SIZE_FILE) if SIZE_FILE in self.files.sizes else b""
        counted = raw.decode(errors="replace").strip()
        return int(counted) if re.fullmatch(r"\d{1,12}", counted) else None

    # --- The logs ---

    @cached_property
    def _logs_and_copies(self) -> tuple[dict[str, Log], dict[str, str]]:
        logs: dict[str, Log] = {}
        copies: dict[str, str] = {}
        first_with: dict[str, str] = {}
        paths = [path for path in self.folder.glob("*.log") if path.is_file()]
        for path in sorted(paths, key=_log_order):
            log = parse_log(path)
            first = first_with.setdefault(log.sha256, path.name)
            if first == path.name:
                logs[path.name] = log
            else:
                copies[path.name] = first
        return logs, copies

    @property
    def logs(self) -> dict[str, Log]:
        """Each distinct log once, by file name. Raises UserError for one that cannot be read."""
        return self._logs_and_copies[0]

    @property
    def chosen(self) -> dict[str, Log]:
        """The record's own logs, by file name."""
        return self.logs

    def score(self, log: Log) -> LoggedScore | None:
        """The score that a log gives to the record."""
        return log.final

    def log(self, name: str) -> Log:
        """The log of that file name, or the log that it is a copy of.

        Raises UserError for one that cannot be read.
        """
        known = self.logs.get(self.duplicates.get(name, name))
        return parse_log(self.folder / name) if known is None else known

    def read_logs(self) -> None:
        """Read the logs now. Raises UserError for one that cannot be read."""
        _ = self._logs_and_copies

    @property
    def duplicates(self) -> dict[str, str]:
        """File names of byte-identical copies of a log, with the name of that log."""
        return self._logs_and_copies[1]

    @cached_property
    def by_seed(self) -> dict[int, Log]:
        """The first log of each seed."""
        found: dict[int, Log] = {}
        for log in self.logs.values():
            if log.seed is not None:
                found.setdefault(log.seed, log)
        return found

    def final_scores(self) -> dict[str, LoggedScore]:
        """The score that each log ends on, by file name."""
        return {name: log.final for name, log in self.logs.items() if log.final is not None}

    # --- The audit ---

    @cached_property
    def _audit(self) -> AuditReading:
        return open_audit(self.folder)

    @property
    def audit(self) -> AuditReport | None:
        """The report beside the record, None where it was never audited or cannot be read."""
        return self._audit.report

    @property
    def audit_problem(self) -> str | None:
        """Why audit.json cannot be read."""
        return self._audit.problem

    @property
    def audit_lines(self) -> tuple[str, ...]:
        """The lines of audit.json."""
        return self._audit.lines

    # --- The claims ---

    @property
    def track(self) -> Track | None:
        """Budgets of the track that submission.json states."""
        name = self.submission.track if self.submission else None
        return TRACKS.get(name) if name else None

    @property
    def track_name(self) -> str | None:
        """Stated track, else the contest's where every log shows its clock."""
        if self.submission and self.submission.track:
            return self.submission.track
        caps = [log.number("config.max_wallclock_seconds") for log in self.logs.values()]
        return CONTEST_TRACK if caps and all(cap == CONTEST_SECONDS for cap in caps) else None

    def claim(self, seed: str) -> SeedResult | None:
        """What submission.json states for a seed."""
        if self.submission is None:
            return None
        results = self.submission.seed_results
        if seed == GIVEN and len(results) == 1:
            return next(iter(results.values()))
        return results.get(seed)

    def claimed_environment(self, seed: str) -> Environment | None:
        claim = self.claim(seed)
        if claim is not None and claim.environment is not None:
            return claim.environment
        return self.submission.environment if self.submission else None


def open_record(folder: Path, files: Files | None = None) -> Record:
    """Open a record folder: a directory, or `files` from elsewhere that `folder` is the name of.

    Raises UserError when it is no folder; faults inside it are not raised.
    """
    if files is None:
        if not folder.is_dir():
            found = "a file" if folder.exists() else "nothing"
            raise UserError(f"{folder}: expected a record folder, found {found}")
        files = DirectoryFiles(folder)
    read = read_submission(folder)
    return Record(folder, files, read.submission, read.problem, read.stated, read.lines)


def open_for_trial(folder: Path, artifact: Path | None = None, seed: int | None = None) -> Record:
    """Open a record folder to run it: all its artifacts, or `artifact`, or that of one seed.

    Raises UserError when there is no script or no artifact to run.
    """
    record = open_record(folder)
    if not record.script.is_file() or record.script.is_symlink():
        found = "a symbolic link" if record.script.is_symlink() else "none"
        raise UserError(f"{record.script}: expected the record's script, found {found}")
    if artifact is not None:
        if not artifact.is_file():
            raise UserError(f"{artifact}: expected an artifact file, found none")
        record.artifacts = {GIVEN if seed is None else str(seed): artifact}
    else:
        _take_committed(record, seed)
    return record


def _take_committed(record: Record, seed: int | None) -> None:
    """Take the folder's own artifacts: stated seeds first, or one seed alone."""
    committed = committed_artifacts(record.folder)
    stated = [str(number) for number in record.submission.seeds] if record.submission else []
    unstated = sorted(set(committed) - set(stated), key=int)
    record.missing = [name for name in stated if name not in committed]
    if seed is None:
        wanted = [name for name in [*stated, *unstated] if name in committed]
    elif str(seed) in committed:
        wanted = [str(seed)]
    else:
        seeds = ", ".join(committed) or "none"
        raise UserError(f"{record.folder}: no artifact_seed{seed}.bin; it has seeds {seeds}")
    record.artifacts = {name: committed[name] for name in wanted}
    if not record.artifacts:
        raise UserError(
            f"{record.folder}: no artifact_seed*.bin; "
            "tracks with large weights keep them outside git, pass --artifact FILE"
        )


def committed_artifacts(folder: Path) -> dict[str, Path]:
    """Artifacts in the folder, by seed, as the file system lists them."""
    found = {}
    for path in folder.iterdir():
        match = ARTIFACT.fullmatch(path.name)
        if match and path.is_file() and not path.is_symlink():
            found[match[1]] = path
    return found


def seed_in_name(name: str) -> int | None:
    """Seed that a file name states."""
    match = re.search(r"seed_?(\d+)", name)
    return int(match[1]) if match else None


def _log_order(path: Path) -> tuple[bool, str]:
    """Names that give a seed first, so that a nameless copy is the one called duplicate."""
    return seed_in_name(path.name) is None, path.name
