"""Checks of the files in the folder and of the fields in `submission.json`."""

import re
from collections.abc import Iterable

from eval.papers.checks.report import Check, Evidence, cannot_tell, fails, passes, say
from eval.papers.folder import PACKED_NAMES, SIZE_FILE, Record
from eval.papers.submission.reading import track_of
from eval.papers.submission.schema import CODE_FILE, FOLDER_PATTERN, SUBMISSION_FILE

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

FOREIGN_CODE = re.compile(
    r".*\.(py|pyc|so|c|cc|cpp|cu|rs|js|sh|pyx|pth?|bin|npz|npy|model|zst|xz|br|gz|7z|zip)"
)

MAX_LOG_IN_GIT = 1_000_000


def check_files(record: Record) -> Iterable[Check]:
    missing = [
        name
        for name in ("README.md", CODE_FILE, SUBMISSION_FILE)
        if not (record.folder / name).is_file()
    ]
    if not record.logs:
        missing.append("a training log (*.log)")
    data_only = record.code is None and record.shipped_size is not None
    absent_by_design = {"README.md", CODE_FILE} if data_only else set()
    broken = [name for name in missing if name not in absent_by_design]
    if broken:
        yield fails("files", f"missing: {', '.join(broken)}")
    elif missing:
        yield cannot_tell(
            "files",
            f"kept as data only: {', '.join(missing)} not here",
            Evidence(file=SIZE_FILE, text=f"{record.shipped_size} bytes"),
        )
    else:
        yield passes(
            "files", f"README.md, {CODE_FILE}, {SUBMISSION_FILE}, {len(record.logs)} log(s)"
        )
    helpers = [
        p.name
        for p in sorted(record.folder.rglob("*"))
        if p.is_file() and FOREIGN_CODE.fullmatch(p.name) and "__pycache__" not in p.parts
    ]
    uncounted = [name for name in helpers if not PACKED_NAMES.fullmatch(name)]
    if uncounted:
        packed = record.submission is not None and record.submission.origin == "packed"
        yield (fails if packed else cannot_tell)(
            "uncounted",
            f"further files that a run could load, in no byte count here: {', '.join(uncounted)}",
        )
    large = [name for name in record.logs if (record.folder / name).stat().st_size > MAX_LOG_IN_GIT]
    if large:
        yield fails(
            "log_size",
            f"logs over {MAX_LOG_IN_GIT:,} bytes do not belong in git: {', '.join(large)}",
        )


def check_json(record: Record) -> Iterable[Check]:
    if record.submission is None:
        yield fails("json", record.problem)
        return
    missing = [
        name
        for name in CONTEST_FIELDS
        if record.stated.get(name) in (None, "")
        and (name != "blurb" or "blurb" not in record.stated)
    ]
    unnamed = ", ".join(record.submission.unknown)
    if missing:
        yield fails(
            "json",
            f"the contest asks for {', '.join(missing)}; not stated",
            Evidence(file=SUBMISSION_FILE),
        )
    else:
        yield passes(
            "json",
            "valid, all nine contest fields"
            + (f"; keys without a name in our schema: {unnamed}" if unnamed else ""),
        )
    match = re.match(r"(\d{4}-\d{2}-\d{2})", record.folder.name)
    date = record.submission.date
    if match and date and str(date) != match[1]:
        # A public folder is named by whoever merged it, which need not be the day of the run.
        verdict = cannot_tell if record.submission.origin == "imported" else fails
        yield verdict(
            "date", f"the folder says {match[1]}, submission.json {date}", say(record, "date")
        )
    elif match and date:
        yield passes("date", f"{date} in folder name and submission.json", say(record, "date"))
    else:
        yield cannot_tell("date", "folder name or submission.json states no date")
    if record.submission.origin == "packed":
        parent = track_of(record.folder)
        if not FOLDER_PATTERN.fullmatch(record.folder.name):
            yield fails("folder", f"expected DATE_slug-kebab-case, found {record.folder.name}")
        elif parent is not None and parent != record.submission.track:
            yield fails(
                "folder",
                f"lies in {parent}, states {record.submission.track}",
                say(record, "track"),
            )
        else:
            yield passes("folder", f"{record.submission.track}, name as required")
