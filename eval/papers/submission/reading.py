"""Reads `submission.json`: our own strictly, a public one key by key.

A public key that holds something impossible costs that key and nothing else: it becomes a `Fault`
and the rest is read.
"""

import codecs
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eval.errors import UserError
from eval.papers.submission.files import DirectoryFiles, Files
from eval.papers.submission.keys import Fault, stated_twice
from eval.papers.submission.public import import_public
from eval.papers.submission.schema import SUBMISSION_FILE, Submission, track_named

OTHER_NAME = re.compile(r"submission\w*\.json", re.IGNORECASE)
OUR_KEYS = ("schema_version", "origin")  # a file with both is one of ours


@dataclass(frozen=True)
class Reading:
    """`submission.json` as it was read: once for the record and for the lines that state it.

    `file` is its name. `submission` is None where there is none that can be read: `problem` says
    why. `stated` is the JSON object as its author wrote it, `faults` are the keys that were left
    out.
    """

    submission: Submission | None
    problem: str | None = None
    stated: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    faults: tuple[Fault, ...] = ()
    file: str = SUBMISSION_FILE


def load_submission(folder: Path) -> Submission:
    """Read a folder's `submission.json`, ours or a public one.

    Raises UserError, naming the file and the field, when it is missing, no JSON, states no
    val_bpb, or is one of ours that violates the schema.
    """
    reading = read_submission(folder)
    if reading.submission is None:
        raise UserError(reading.problem)
    if reading.submission.val_bpb is None:
        why = next((str(fault) for fault in reading.faults if fault.key == "val_bpb"), "missing")
        raise UserError(f"{folder / reading.file}: expected a val_bpb, found none ({why})")
    return reading.submission


def read_submission(folder: Path, files: Files | None = None) -> Reading:
    """Read a folder's `submission.json`, ours or a public one, without raising for its faults.

    Without one of that name the first `submission_*.json` counts.
    """
    source = DirectoryFiles(folder) if files is None else files
    file = _name_among(source)
    path = folder / file
    try:
        raw = source.read(file)
    except UserError as error:
        advice = "a record folder holds submission.json (python -m eval pack writes it)"
        return Reading(None, f"{error}; {advice}")
    text = _decoded(raw)
    lines = text.splitlines()
    twice: list[Fault] = []
    try:
        stated = _json_object(text, path, twice)
        submission, faults = _typed(stated, path, folder, twice)
    except UserError as error:
        return Reading(None, str(error), {}, lines, tuple(twice), file)
    return Reading(submission, None, stated, lines, (*twice, *faults), file)


def _name_among(files: Files) -> str:
    others = [name for name in files.sizes if OTHER_NAME.fullmatch(name)]
    return SUBMISSION_FILE if SUBMISSION_FILE in others or not others else others[0]


def _decoded(raw: bytes) -> str:
    """The file's text, with a byte order mark or without; UTF-16 needs one."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = raw.decode("utf-16", "replace")  # what is replaced is no JSON, or a remark's letter
    else:
        text = raw.decode("utf-8-sig", "surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _json_object(text: str, path: Path, twice: list[Fault]) -> dict[str, Any]:
    """The JSON object in a text; keys that it states twice are added to `twice`."""

    def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                twice.append(stated_twice(key, found[key], value))
            found[key] = value
        return found

    try:
        text.encode()  # a byte that is no UTF-8 has become a surrogate
        stated = json.loads(text, object_pairs_hook=without_doubles)
    except (ValueError, RecursionError) as error:
        # No UTF-8, no JSON, or numbers and nesting beyond any record.
        raise UserError(
            f"{path}: expected JSON, found {error}; repair the file or pack the record again"
        ) from None
    if not isinstance(stated, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(stated).__name__}")
    return stated


def _typed(
    stated: dict[str, Any], path: Path, folder: Path, twice: list[Fault]
) -> tuple[Submission, list[Fault]]:
    if not all(key in stated for key in OUR_KEYS):
        return import_public(stated, track_of(folder))
    if twice:
        raise UserError(f"{path}: {twice[0]}; pack the record again")
    try:
        return Submission.model_validate(stated), []
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        count = error.error_count()
        raise UserError(
            f"{path}: {where}: {first['msg']} ({count} problem(s) in all); see records/schema.json"
        ) from None


def track_of(folder: Path | None) -> str | None:
    """Track named by the parent folder, as in records/track_docs_cpu/DATE_slug."""
    parent = folder.resolve().parent.name if folder else ""
    return track_named(parent) or (parent if parent.startswith("track_") else None)
