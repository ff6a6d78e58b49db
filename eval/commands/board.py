"""`python -m eval board`: boards from the records themselves.

Writes records/README.md, records/index.html (one self-contained page, no network), records/schema.json and the table between the markers of the
root README.md; `--check` writes nothing and fails where a file differs from what the records give. Scores of one track are compared only
within one corpus version: each has a board of its own.
"""

import argparse
import difflib
from pathlib import Path

from eval.files import REPOSITORY, write_atomic
from eval.papers.rendering.board import collect, generate


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 where files and records disagree",
    )
    parser.add_argument("--root", type=Path, default=REPOSITORY, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    entries = collect(args.root / "records")
    wanted = generate(args.root, entries)
    stale = [
        path
        for path, text in wanted.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    if args.check:
        for path in stale:
            print(difference(path, wanted[path], args.root))
        print(
            f"{len(wanted)} files, {len(entries)} records: "
            + (f"{len(stale)} out of date; run python -m eval board" if stale else "in step")
        )
        return int(bool(stale))
    for path in stale:
        write_atomic(path, wanted[path])
    print(
        f"{len(entries)} records; wrote {', '.join(str(p.relative_to(args.root)) for p in stale) or 'nothing, all in step'}"
    )
    print(f"look at {args.root / 'records' / 'index.html'}")
    return 0


def difference(path: Path, wanted: str, root: Path) -> str:
    found = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    lines = list(
        difflib.unified_diff(
            found, wanted.splitlines(), "found", "from the records", lineterm="", n=0
        )
    )
    shown = [line[:160] for line in lines[2:8]]
    return "\n".join(
        [
            f"{path.relative_to(root)}:",
            *(f"  {line}" for line in shown),
            *(["  …"] if len(lines) > 8 else []),
        ]
    )
