"""Finds the logs in a record folder and reads each of them once."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from eval.errors import UserError
from eval.papers.logs.choice import seed_in_name
from eval.papers.logs.log import Log
from eval.papers.logs.reading import MAX_LOG_BYTES, parse_runs, too_large
from eval.papers.submission.files import Files

LOG_SUFFIXES = (".log", ".txt")
# Texts that are no logs, whatever they quote.
NO_LOG = re.compile(r"readme.*|licen[cs]e.*|requirements.*|notes?|changelog|.*\.py", re.IGNORECASE)
# What the log of a run holds, in any encoding that is read here. A note that quotes one result is
# no log: its name or a second kind of line has to say so.
RUN_LINES = (
    re.compile(rb"(?:step:?\s?|\bs:)?\d+/\d+ [ \w]*(?:loss|[tv]l)\s?:"),
    re.compile(rb"bpb\s?[:=]\s?\d"),
    re.compile(rb"\b(?:world_size|model_params|train_loader|val_loader|seed):"),
)
LOG_NAME = re.compile(r"log|train|seed|run|eval|output|stdout", re.IGNORECASE)


def read_logs(
    folder: Path, files: Files, names: Iterable[str], scripts: Sequence[bytes]
) -> tuple[dict[str, Log], dict[str, str]]:
    """Each distinct run by name, and the file names of copies with the name of the log.

    `scripts` may have written the logs. A log that cannot be read has a problem that says so.
    """
    logs: dict[str, Log] = {}
    copies: dict[str, str] = {}
    first_with: dict[str, str] = {}
    known_scripts = list(scripts)
    for name in names:
        stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
        if f"{dot}{suffix.lower()}" not in LOG_SUFFIXES or NO_LOG.fullmatch(stem):
            continue
        runs = _read_log(folder, files, name, known_scripts)
        if not runs:
            continue
        first = first_with.setdefault(runs[0].sha256, name)
        if first != name:
            copies[name] = first
            continue
        logs |= {run.name: run for run in runs}
        source = runs[0].source
        if source is not None and not runs[0].native and source not in known_scripts:
            known_scripts.append(source)
    return logs, copies


def _read_log(folder: Path, files: Files, name: str, scripts: Sequence[bytes]) -> list[Log]:
    """The runs of a log; none where a text file is no log."""
    path = folder / name
    size = files.sizes[name]
    if size > MAX_LOG_BYTES:
        return [Log(path, sha256=name, file=name, problems=[too_large(size)])]
    try:
        raw = files.read(name)
    except UserError as error:
        return [Log(path, sha256=name, file=name, problems=[str(error)])]
    if name.lower().endswith(".txt") and not _is_log(name, raw):
        return []
    return parse_runs(raw, path, name, scripts)


def _is_log(name: str, raw: bytes) -> bool:
    """Whether a text is the log of a run: by what it holds, and a little by its name."""
    plain = raw.replace(b"\x00", b"")  # of UTF-16, enough to be searched
    kinds = sum(pattern.search(plain) is not None for pattern in RUN_LINES)
    return kinds >= 2 or (kinds == 1 and LOG_NAME.search(name) is not None)


def log_order(name: str) -> tuple[int, bool, str]:
    """The folder's own files first, and names that give a seed before a nameless copy."""
    return name.count("/"), seed_in_name(name) is None, name
