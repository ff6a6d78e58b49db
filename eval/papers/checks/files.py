"""Checks of the files in the folder and of the fields in `submission.json`."""

import re
from collections.abc import Iterator

from eval.papers.checks.report import (
    Check,
    Evidence,
    Severity,
    cannot_tell,
    fails,
    passes,
    policy,
    say,
)
from eval.papers.folder import README_FILE, SIZE_FILE, Record
from eval.papers.submission.keys import Fault
from eval.papers.submission.reading import track_of
from eval.papers.submission.schema import (
    CODE_FILE,
    CONTEST_FIELDS,
    FOLDER_PATTERN,
    TRACKS,
    Submission,
    track_named,
)

FOLDER_DATE = re.compile(r"(\d{4}-\d{2}-\d{2})")
MAX_LOG_IN_GIT = 1_000_000  # bytes


def check_files(record: Record) -> Iterator[Check]:
    """What a record needs is there, under whatever name it can be found."""
    yield _check_completeness(record)
    if record.script_name not in (CODE_FILE, None):
        yield policy("script_name", f"{CODE_FILE} is called {record.script_name}")
    sizes = {log.file: record.names.get(log.file, 0) for log in record.logs.values()}
    large = [name for name, size in sizes.items() if size > MAX_LOG_IN_GIT]
    if large:
        names = ", ".join(large)
        yield fails("log_size", f"logs over {MAX_LOG_IN_GIT:,} bytes do not belong in git: {names}")
    if record.companions:
        detail = f"companions that macOS left, to be deleted: {', '.join(record.companions)}"
        yield cannot_tell("companions", detail)


def _check_completeness(record: Record) -> Check:
    script = record.script_name
    present = {
        README_FILE: bool(record.readme) or README_FILE in record.names,
        script or CODE_FILE: script is not None or len(record.likely_scripts) > 1,
        record.json_file: record.json_file in record.names,
    }
    missing = [name for name, here in present.items() if not here]
    data_only = record.code is None and record.shipped_size is not None
    absent_by_design = {README_FILE, CODE_FILE} if data_only else set()
    broken = [name for name in missing if name not in absent_by_design]
    if broken:
        return fails("files", f"missing: {', '.join(broken)}", severity=_weight(record, broken))
    if missing:
        size = Evidence(file=SIZE_FILE, text=f"{record.shipped_size} bytes")
        detail = f"kept as data only: {', '.join(missing)} not here"
        return cannot_tell("files", detail, size, severity=Severity.NOTE)
    if script is None:
        names = ", ".join(record.likely_scripts)
        return cannot_tell("files", f"nothing tells which script was run: {names}")
    if not record.logs:
        return cannot_tell("files", "no training log (*.log, *.txt)")
    count = len({log.file for log in record.logs.values()})
    return passes("files", f"{', '.join(present)}, {count} log(s)")


def _weight(record: Record, broken: list[str]) -> Severity:
    """Without script or statement nothing is proven; a README only explains."""
    only_readme = broken == [README_FILE]
    packed = record.submission is not None and record.submission.origin == "packed"
    return Severity.FORMAT if only_readme and not packed else Severity.BLOCKING


def check_json(record: Record) -> Iterator[Check]:
    """submission.json can be read, has the contest's fields, and fits the folder's name."""
    for fault in record.faults:
        yield _faulty(record, fault)
    if record.submission is None:
        told = any(fault.twice for fault in record.faults)
        if not told and not record.problem.startswith(
            f"{record.folder / record.json_file}: missing"
        ):
            yield fails("json", record.problem, severity=Severity.BLOCKING)
        return
    yield from _check_fields(record, record.submission)
    yield from _check_date(record, record.submission)
    if record.submission.origin == "packed":
        yield _check_place(record, record.submission)
    else:
        yield from _check_track(record)


def _faulty(record: Record, fault: Fault) -> Check:
    """A number that is stated twice may be two numbers; any other fault costs its key alone."""
    severity = Severity.BLOCKING if fault.twice and fault.differs else Severity.FORMAT
    key = fault.key.rpartition(".")[2]
    return fails("json", str(fault), say(record, key), severity=severity)


def _check_fields(record: Record, submission: Submission) -> Iterator[Check]:
    missing = [name for name in CONTEST_FIELDS if getattr(submission, name) in (None, "")]
    if missing:
        names = ", ".join(missing)
        place = Evidence(file=record.json_file)
        yield fails("json", f"the contest asks for {names}; not stated", place)
    elif not record.faults:
        detail = f"valid, states {', '.join(CONTEST_FIELDS)}"
        if submission.unknown:
            detail += f"; keys without a name in our schema: {', '.join(submission.unknown)}"
        yield passes("json", detail)


def _check_track(record: Record) -> Iterator[Check]:
    """A stated track is the folder's; another one lifts no limit."""
    stated = record.stated.get("track")
    if not isinstance(stated, str):
        return
    placed = track_of(record.folder)
    known = track_named(stated)
    line = say(record, "track")
    if known is None:
        judged = record.track_name or "no track's limits"
        detail = f"{stated!r} is none of {', '.join(TRACKS)}; judged by {judged}"
        yield cannot_tell("track", detail, line)
    elif placed not in (None, known):
        yield cannot_tell("track", f"lies in {placed}, states {stated}; judged by {placed}", line)
    else:
        yield passes("track", known, line)


def _check_date(record: Record, submission: Submission) -> Iterator[Check]:
    match = FOLDER_DATE.match(record.folder.name)
    date = submission.date
    if not match or not date:
        return
    if str(date) == match[1]:
        yield passes("date", f"{date} in folder name and submission.json", say(record, "date"))
        return
    # A public folder is named by whoever merged it, which need not be the day of the run.
    verdict = cannot_tell if submission.origin == "imported" else fails
    detail = f"the folder says {match[1]}, submission.json {date}"
    yield verdict("date", detail, say(record, "date"))


def _check_place(record: Record, submission: Submission) -> Check:
    parent = track_of(record.folder)
    if not FOLDER_PATTERN.fullmatch(record.folder.name):
        return fails("folder", f"expected DATE_slug-kebab-case, found {record.folder.name}")
    if parent is not None and parent != submission.track:
        detail = f"lies in {parent}, states {submission.track}"
        return fails("folder", detail, say(record, "track"))
    return passes("folder", f"{submission.track}, name as required")
