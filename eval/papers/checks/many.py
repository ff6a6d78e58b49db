"""Checks many folders, on all cores, and keeps going whatever one of them holds."""

import contextlib
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from eval.errors import UserError
from eval.papers.checks.report import Report
from eval.papers.checks.run import check_record
from eval.papers.folder import Record, open_record
from eval.rules import Verdict

FEW = 8  # folders that are checked sooner than further processes have started
FOLDERS_AT_A_TIME = 4  # that a process is given
MOST_SECONDS = 20.0  # of CPU time for one folder; a real one takes about 1
DEEPEST = 4  # levels of folders below a given one in which records are looked for
STATEMENT = re.compile(r"submission\w*\.json", re.IGNORECASE)
EVIDENCE = re.compile(r".*\.(?:py|log)", re.IGNORECASE)
NO_RECORDS = re.compile(r"\..*|__.*__")


@dataclass(frozen=True)
class Job:
    """One folder to check: a directory, or the folder of a commit in `repository`."""

    folder: Path
    repository: Path | None = None
    commit: str | None = None
    against: Path | None = None


def record_folders(folder: Path) -> list[Path]:
    """The folder itself if it holds what a record is made of, else the records below it."""
    return _records_below(folder, DEEPEST) or [folder]


def _records_below(folder: Path, depth: int) -> list[Path]:
    """Records in a folder of folders; a folder without further ones counts as a record too.

    A script or a log makes a record only where no folder below states a result: many a collection
    has scripts beside its records, and many a record its logs in a folder.
    """
    try:
        items = sorted(folder.iterdir())
    except OSError:
        return []  # whoever opens it says why
    if _has_file(items, STATEMENT):
        return [folder]
    found = []
    for item in items if depth else []:
        if item.is_dir() and not item.is_symlink() and not NO_RECORDS.fullmatch(item.name):
            found += _records_below(item, depth - 1) or [item]
    if _has_file(items, EVIDENCE):
        return [record for record in found if _has_file(record.iterdir(), STATEMENT)] or [folder]
    return found


def _has_file(items: Iterable[Path], names: re.Pattern) -> bool:
    return any(names.fullmatch(item.name) and item.is_file() for item in items)


def check_many(jobs: Sequence[Job], processes: int | None = None) -> Iterator[Report]:
    """A report for each job, in their order, as soon as it and those before it are there.

    `processes` is the number of cores by default. A folder that cannot be read gets a report
    that says why.
    """
    count = min(processes or cores(), len(jobs))
    if count <= 1 or len(jobs) < FEW:
        yield from map(examine, jobs)
        return
    yield from _in_parallel(jobs, count)


def _in_parallel(jobs: Sequence[Job], count: int) -> Iterator[Report]:
    """As `check_many`, in so many processes; goes on where one of them is killed."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    done = 0
    try:
        with ProcessPoolExecutor(count) as pool:
            for report in pool.map(examine, jobs, chunksize=FOLDERS_AT_A_TIME):
                done += 1
                yield report
    except BrokenProcessPool:
        yield from _one_by_one(jobs[done:])


def _one_by_one(jobs: Sequence[Job]) -> Iterator[Report]:
    """A report for each job; a folder whose check kills its process gets one that says so."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    left = deque(jobs)
    while left:
        try:
            with ProcessPoolExecutor(1) as pool:
                while left:
                    report = pool.submit(examine, left[0]).result()
                    left.popleft()
                    yield report
        except BrokenProcessPool:
            killed = "the process that checked it was killed, perhaps for its memory"
            yield _unreadable(left.popleft(), f"{killed}; check the folder by hand")


def cores() -> int:
    """Cores that this process may use; macOS and Windows tell only how many there are."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


class _OutOfTimeError(BaseException):
    """No Exception, so that nobody who expects faults of a folder takes it for one."""


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    """Raises _OutOfTimeError after MOST_SECONDS of CPU time.

    Windows has no such clock, and only a process's first thread hears it.
    """
    first = threading.current_thread() is threading.main_thread()
    if not first or not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _stop(*_: object) -> None:
    raise _OutOfTimeError


def examine(job: Job) -> Report:
    """The report of one folder; `problem` says why where it cannot be read."""
    try:
        with _limited_time():
            base = None if job.against is None else _opened(job.against)
            report = check_record(_record(job), base)
    except _OutOfTimeError:
        _commit.cache_clear()  # whose git may have been interrupted while it answered
        told = f"its check took more than {MOST_SECONDS:g} s of CPU time and was stopped"
        return _unreadable(job, f"{told}; look for overlong lines and files")
    except (UserError, OSError) as error:
        return _unreadable(job, str(error))
    except ModuleNotFoundError:
        raise  # what this installation lacks, no folder can be checked without
    except Exception as error:
        # A fault of the referee's own. Strangers wrote what it reads, so that one folder in
        # thousands may find such a fault; the others must be judged nevertheless.
        return _unreadable(job, f"the referee failed, please report it: {error!r}")
    return replace(report, commit=job.commit)


def _record(job: Job) -> Record:
    if job.repository is None or job.commit is None:
        record = open_record(job.folder)
    else:
        from eval.papers.checks.commits import CommitFiles

        files = CommitFiles(_commit(job.repository, job.commit), job.folder.as_posix())
        if not files.sizes:
            raise UserError(
                f"{job.folder}: expected a folder of commit {job.commit[:12]}, found none; "
                "name it from the root of the repository"
            )
        record = open_record(job.folder, files)
    record.with_audit = True
    return record


@cache
def _commit(repository: Path, commit: str):
    """Listed once in each process."""
    from eval.papers.checks.commits import Commit, Git

    return Commit(Git(repository), commit)


@cache
def _opened(folder: Path) -> Record:
    """The record to beat, read once in each process."""
    return open_record(folder)


def _unreadable(job: Job, problem: str) -> Report:
    return Report(
        folder=str(job.folder),
        name=None,
        verdict=Verdict.CANNOT_TELL,
        checks=[],
        problem=problem,
        commit=job.commit,
    )
