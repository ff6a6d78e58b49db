"""Checks of the files in the folder and of the fields in `submission.json`."""

import re
from collections.abc import Iterator

from eval.papers.checks.report import Check, Evidence, cannot_tell, fails, passes, say
from eval.papers.folder import SIZE_FILE, Record
from eval.papers.submission.reading import track_of
from eval.papers.submission.schema import (
    CODE_FILE,
    FOLDER_PATTERN,
    SUBMISSION_FILE,
    Submission,
)

CONTEST_FIELDS = (
    "author",
    "github_id",
    "name",
    "blurb",
    "date",
    "val_loss",
    "val_bpb",
    "bytes_total",
    "bytes_code",
)
FOLDER_DATE = re.compile(r"(\d{4}-\d{2}-\d{2})")
MAX_LOG_IN_GIT = 1_000_000  # bytes


def check_files(record: Record) -> Iterator[Check]:
    """What a record needs is there, and nothing that a run could load without counting it."""
    yield _check_completeness(record)
    large = [name for name in record.logs if (record.folder / name).stat().st_size > MAX_LOG_IN_GIT]
    if large:
        names = ", ".join(large)
        yield fails("log_size", f"logs over {MAX_LOG_IN_GIT:,} bytes do not belong in git: {names}")


def _check_completeness(record: Record) -> Check:
    required = ("README.md", CODE_FILE, SUBMISSION_FILE)
    missing = [name for name in required if not (record.folder / name).is_file()]
    if not record.logs:
        missing.append("a training log (*.log)")
    data_only = record.code is None and record.shipped_size is not None
    absent_by_design = {"README.md", CODE_FILE} if data_only else set()
    broken = [name for name in missing if name not in absent_by_design]
    if broken:
        return fails("files", f"missing: {', '.join(broken)}")
    if missing:
        size = Evidence(file=SIZE_FILE, text=f"{record.shipped_size} bytes")
        return cannot_tell("files", f"kept as data only: {', '.join(missing)} not here", size)
    return passes("files", f"{', '.join(required)}, {len(record.logs)} log(s)")


def check_json(record: Record) -> Iterator[Check]:
    """submission.json can be read, has the contest's fields, and fits the folder's name."""
    if record.submission is None:
        yield fails("json", record.problem)
        return
    yield _check_fields(record, record.submission)
    yield _check_date(record, record.submission)
    if record.submission.origin == "packed":
        yield _check_place(record, record.submission)


def _check_fields(record: Record, submission: Submission) -> Check:
    missing = [name for name in CONTEST_FIELDS if not _is_stated(record, name)]
    if missing:
        names = ", ".join(missing)
        place = Evidence(file=SUBMISSION_FILE)
        return fails("json", f"the contest asks for {names}; not stated", place)
    detail = "valid, all nine contest fields"
    if submission.unknown:
        detail += f"; keys without a name in our schema: {', '.join(submission.unknown)}"
    return passes("json", detail)


def _is_stated(record: Record, name: str) -> bool:
    """A blurb may be empty; the other fields say something."""
    if name == "blurb" and name in record.stated:
        return True
    return record.stated.get(name) not in (None, "")


def _check_date(record: Record, submission: Submission) -> Check:
    match = FOLDER_DATE.match(record.folder.name)
    date = submission.date
    if not match or not date:
        return cannot_tell("date", "folder name or submission.json states no date")
    if str(date) == match[1]:
        return passes("date", f"{date} in folder name and submission.json", say(record, "date"))
    # A public folder is named by whoever merged it, which need not be the day of the run.
    verdict = cannot_tell if submission.origin == "imported" else fails
    detail = f"the folder says {match[1]}, submission.json {date}"
    return verdict("date", detail, say(record, "date"))


def _check_place(record: Record, submission: Submission) -> Check:
    parent = track_of(record.folder)
    if not FOLDER_PATTERN.fullmatch(record.folder.name):
        return fails("folder", f"expected DATE_slug-kebab-case, found {record.folder.name}")
    if parent is not None and parent != submission.track:
        detail = f"lies in {parent}, states {submission.track}"
        return fails("folder", detail, say(record, "track"))
    return passes("folder", f"{submission.track}, name as required")
