"""A record folder, opened and parsed once for everybody who asks about it.

`submission.json` is read when the folder is opened. The script, the logs and the audit are read
when somebody first asks for them, and kept.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.errors import UserError
from eval.papers.logs.choice import Choice, Claims, Group, choose, seed_of
from eval.papers.logs.finding import log_order, read_logs
from eval.papers.logs.log import Log, LoggedScore
from eval.papers.logs.main_script import likely_scripts
from eval.papers.logs.naming import Naming, named_in_readme
from eval.papers.logs.reading import parse_log
from eval.papers.logs.values import decimals
from eval.papers.submission.files import DirectoryFiles, Files
from eval.papers.submission.keys import RECORD_FIELDS, Fault
from eval.papers.submission.reading import read_submission, track_of
from eval.papers.submission.schema import (
    AUDIT_FILE,
    CODE_FILE,
    SUBMISSION_FILE,
    TRACKS,
    Environment,
    SeedResult,
    Submission,
    Track,
)

if TYPE_CHECKING:
    from eval.papers.audits.reading import AuditReading
    from eval.papers.audits.report import AuditReport
    from eval.papers.audits.standing import Standing

SIZE_FILE = CODE_FILE + ".size"  # stands for the script where a folder is kept as data only
LOSS_PICTURE = "loss.png"
SCORE_PICTURE = "score.png"
PACKED_NAMES = re.compile(
    rf"README\.md|{re.escape(SUBMISSION_FILE)}|{re.escape(CODE_FILE)}|requirements\.txt"
    r"|(?:loss|score)\.png|audit\.json|AUDIT\.md"
    r"|train_seed\d+\.log|artifact_seed\d+\.bin|__pycache__"
)
ARTIFACT = re.compile(r"artifact_seed(\d+)\.bin")
README_FILE = "README.md"
README_NAMES = ("readme.md", "readme", "readme.txt")
LENIENT = 1e-4  # bits per byte: a public headline may be cut instead of rounded, or made of parts
GIVEN = "given"  # stands for the seed of an artifact passed by hand
CONTEST_TRACK = "track_10min_16mb"
CONTEST_SECONDS = 600


@dataclass
class Record:
    """A record folder.

    `submission` is None where there is none that can be read: `problem` says why.
    `stated` is its JSON object as the author wrote it, `json_lines` the lines of the file,
    `faults` its keys that could not be used, `json_file` its name.
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
    faults: tuple[Fault, ...] = ()
    json_file: str = SUBMISSION_FILE
    artifacts: dict[str, Path] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    with_audit: bool = False

    # --- The files ---

    @cached_property
    def names(self) -> dict[str, int]:
        """Bytes of every file by name, without the companions that macOS leaves."""
        return {name: size for name, size in self.files.sizes.items() if not is_companion(name)}

    @cached_property
    def companions(self) -> list[str]:
        """Names of the files that macOS puts beside others in archives; they may be deleted."""
        return [name for name in self.files.sizes if is_companion(name)]

    @cached_property
    def readme(self) -> str:
        """Text of README.md; empty where there is none."""
        found = [name for name in self.names if name.lower() in README_NAMES]
        if not found:
            return ""
        try:
            return self.files.read(found[0]).decode("utf-8-sig", "replace")
        except UserError:
            return ""

    # --- The script ---

    @cached_property
    def likely_scripts(self) -> list[str]:
        """The scripts that may be the record's: several where nothing tells which one it is."""
        return likely_scripts(self.names, self.files, self.readme)

    @property
    def script_name(self) -> str | None:
        """The script's name; None where the folder has none, or does not tell which one it is."""
        return self.likely_scripts[0] if len(self.likely_scripts) == 1 else None

    @property
    def script(self) -> Path:
        return self.folder / (self.script_name or CODE_FILE)

    @cached_property
    def code(self) -> bytes | None:
        """Bytes of the script, None where the folder has none."""
        return None if self.script_name is None else self.files.read(self.script_name)

    @cached_property
    def shipped_size(self) -> int | None:
        """Bytes of the script; by the file that stands for it where the folder is data only."""
        if self.code is not None:
            return len(self.code)
        raw = self.files.read(SIZE_FILE) if SIZE_FILE in self.names else b""
        counted = raw.decode(errors="replace").strip()
        return int(counted) if re.fullmatch(r"\d{1,12}", counted) else None

    # --- The logs ---

    @cached_property
    def _logs_and_copies(self) -> tuple[dict[str, Log], dict[str, str]]:
        scripts = [] if self.code is None else [self.code]
        return read_logs(self.folder, self.files, sorted(self.names, key=log_order), scripts)

    @property
    def logs(self) -> dict[str, Log]:
        """Each distinct run once, by its log's name in the folder; `#2` marks a second run."""
        return self._logs_and_copies[0]

    def log(self, name: str) -> Log:
        """The log of that file name, or the log that it is a copy of.

        Raises UserError for one that cannot be read.
        """
        known = self.logs.get(self.duplicates.get(name, name))
        return parse_log(self.folder / name) if known is None else known

    def read_logs(self) -> None:
        """Read the logs now."""
        _ = self._logs_and_copies

    @property
    def duplicates(self) -> dict[str, str]:
        """File names of byte-identical copies of a log, with the name of that log."""
        return self._logs_and_copies[1]

    @cached_property
    def _namings(self) -> list[Naming]:
        return named_in_readme(self.readme, self.logs, self.headline)

    @property
    def naming(self) -> Naming | None:
        """The line of README that names the logs that were chosen by it."""
        own = set(self.choice.own)
        fitting = [naming for naming in self._namings if own <= set(naming.logs)]
        return fitting[0] if fitting and self.choice.by_readme else None

    @cached_property
    def choice(self) -> Choice:
        """Which logs are the record's own, which of their scores the headline is, and why."""
        return choose(self.logs, self._claims())

    @property
    def chosen(self) -> dict[str, Log]:
        """The record's own logs by name: those that the headline has to follow from."""
        return {name: self.logs[name] for name in self.choice.own}

    @property
    def groups(self) -> dict[str, Group]:
        """What each log is to the record, by its name."""
        return self.choice.groups

    def score(self, log: Log) -> LoggedScore | None:
        """The log's score that counts: the one that the headline is made of, else its last.

        None where a log ends on several that could be its result, and the headline is of none.
        """
        known = self.choice.scores.get(log.name)
        if known is not None:
            return known
        under_label = [s for s in log.scores_in_order if s.label == self.choice.label]
        if under_label:
            return under_label[-1]
        return None if log.ambiguous else log.final

    @cached_property
    def by_seed(self) -> dict[int, Log]:
        """The log of each seed: the record's own, else the first one.

        Where a log does not print its seed, its name may say it.
        """
        found: dict[int, Log] = {}
        for log in (*self.chosen.values(), *self.logs.values()):
            seed = seed_of(log)
            if seed is not None:
                found.setdefault(seed, log)
        return found

    def final_scores(self) -> dict[str, LoggedScore]:
        """The score of each of the record's own logs, by name."""
        scores = {name: self.score(log) or log.final for name, log in self.chosen.items()}
        return {name: score for name, score in scores.items() if score is not None}

    @property
    def headline(self) -> float | None:
        """The stated bits per byte."""
        return self.submission.val_bpb if self.submission else None

    @property
    def headline_key(self) -> str:
        """The key of submission.json that states the headline."""
        return next((key for key in RECORD_FIELDS["val_bpb"] if key in self.stated), "val_bpb")

    def _claims(self) -> Claims:
        if self.submission is None or self.headline is None:
            return Claims()
        rows = self.submission.seed_results.items()
        packed = self.submission.origin == "packed"
        exact = 0.5 * 10.0 ** -decimals(self.headline) + 1e-12
        return Claims(
            headline=self.headline,
            tolerances=(exact,) if packed else (exact, LENIENT),
            seeds=tuple(self.submission.seeds),
            by_seed={int(seed): row.val_bpb for seed, row in rows if seed.isdecimal()},
            named=tuple(naming.logs for naming in self._namings),
        )

    # --- The audit ---

    @cached_property
    def _audit(self) -> "AuditReading | None":
        """None where the record was never audited."""
        if AUDIT_FILE not in self.files.sizes:
            return None
        # Here, as its schema costs more than the check of a folder that has no audit.
        from eval.papers.audits.reading import open_audit

        return open_audit(self.folder, self.files)

    @property
    def audit(self) -> "AuditReport | None":
        """The report beside the record, None where it was never audited or cannot be read."""
        return self._audit.report if self._audit else None

    @property
    def audit_problem(self) -> str | None:
        """Why audit.json cannot be read."""
        return self._audit.problem if self._audit else None

    @property
    def audit_lines(self) -> tuple[str, ...]:
        """The lines of audit.json."""
        return self._audit.lines if self._audit else ()

    @cached_property
    def standing(self) -> "Standing":
        """What the audit is worth: whether it counts, its verdict in a word, and the reasons."""
        from eval.papers.audits.standing import standing

        problem = self.audit_problem or self.problem
        return standing(self.audit, problem, self.files, self.submission)

    # --- The claims ---

    @property
    def track(self) -> Track | None:
        """Budgets of the record's track, where it is a known one."""
        return TRACKS.get(self.submission.track) if self.submission else None

    @property
    def track_name(self) -> str | None:
        """Track of the parent folder, else the stated one if it is known.

        Else it is the contest's where every log shows its clock. What else submission.json may
        call its track lifts no limit.
        """
        placed = track_of(self.folder)
        if placed is not None:
            return placed
        if self.track is not None:
            return self.submission.track
        caps = [log.number("config.max_wallclock_seconds") for log in self.logs.values()]
        return CONTEST_TRACK if caps and all(cap == CONTEST_SECONDS for cap in caps) else None

    def claim(self, seed: str) -> SeedResult | None:
        """What submission.json states for a seed, its score at least."""
        if self.submission is None:
            return None
        results = {
            s: row for s, row in self.submission.seed_results.items() if row.val_bpb is not None
        }
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
    read = read_submission(folder, files)
    return Record(
        folder=folder,
        files=files,
        submission=read.submission,
        problem=read.problem,
        stated=read.stated,
        json_lines=read.lines,
        faults=read.faults,
        json_file=read.file,
    )


def open_for_trial(folder: Path, artifact: Path | None = None, seed: int | None = None) -> Record:
    """Open a record folder to run it: all its artifacts, or `artifact`, or that of one seed.

    Raises UserError when there is no script or no artifact to run.
    """
    record = open_record(folder)
    if record.submission is not None and record.submission.val_bpb is None:
        # A public record without a headline: nothing can be held against the trial.
        record.problem = f"{folder / record.json_file}: states no val_bpb"
        record.submission = None
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


def is_companion(name: str) -> bool:
    """Whether a file is what macOS puts beside another one: `._NAME`, or in `__MACOSX`."""
    parts = name.split("/")
    return parts[-1].startswith("._") or parts[-1] == ".DS_Store" or "__MACOSX" in parts
