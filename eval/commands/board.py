"""`python -m eval board`: boards from the records themselves.

Writes records/README.md, records/index.html, a page for each record below records/pages, the files
that these load (records/assets; no network), records/records.json for programs, records/schema.json
and the table between the markers of the root README.md. The page of a record that is gone goes
too. `--check` writes nothing and fails where a file differs from what the records give. A record
that no board can show is left out, with a line that says why, and makes the exit code 1. Scores of
one track are compared only within one corpus version: each has a board of its own.
"""

import argparse
import difflib
import sys
from pathlib import Path

from eval.errors import typed_command
from eval.files import REPOSITORY, write_atomic
from eval.papers.checks.pairs import contests
from eval.papers.rendering.board import generate
from eval.papers.rendering.entries import collect

SHOWN_LINES = 6  # of the difference between a file and what it should hold
SHOWN_WIDTH = 160  # characters of each


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 where files and records disagree",
    )
    parser.add_argument("--root", type=Path, default=REPOSITORY, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    entries, left_out = collect(args.root / "records")
    for problem in left_out:
        print(f"left out: {problem}", file=sys.stderr)
    wanted = generate(args.root, entries, contests(entries))
    stale = [path for path, text in wanted.items() if text_of(path) != text]
    gone = [path for path in generated(args.root) if path not in wanted]
    if args.check:
        for path in stale:
            print(difference(path, wanted[path], args.root))
        for path in gone:
            print(f"{path.relative_to(args.root)}: nothing generates it any more")
        wrong = len(stale) + len(gone)
        state = f"{wrong} out of date; run {typed_command('eval', 'board')}" if wrong else "in step"
        print(f"{len(wanted)} files, {len(entries)} records: {state}")
        return int(bool(wrong or left_out))
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, wanted[path])
    for path in gone:
        path.unlink()
    changes = [*(f"wrote {path.relative_to(args.root)}" for path in stale)]
    changes += [f"removed {path.relative_to(args.root)}" for path in gone]
    print(f"{len(entries)} records; {', '.join(changes) or 'wrote nothing, all in step'}")
    print(f"look at {args.root / 'records' / 'index.html'}")
    return int(bool(left_out))


def generated(root: Path) -> list[Path]:
    """Files in the folders that hold nothing but what this command writes."""
    records = root / "records"
    return sorted([*records.glob("pages/*/*.html"), *records.glob("assets/*.*")])


def text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def difference(path: Path, wanted: str, root: Path) -> str:
    """The first lines in which a file differs from what it should hold."""
    found = (text_of(path) or "").splitlines()
    names = ("found", "from the records")
    diff = difflib.unified_diff(found, wanted.splitlines(), *names, lineterm="", n=0)
    lines = list(diff)[2:]  # without the names
    shown = [f"  {line[:SHOWN_WIDTH]}" for line in lines[:SHOWN_LINES]]
    more = ["  …"] if len(lines) > SHOWN_LINES else []
    return "\n".join([f"{path.relative_to(root)}:", *shown, *more])
