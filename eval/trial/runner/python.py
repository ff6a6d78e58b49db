"""Which Python a submission needs: a trial by an older one says nothing about the record."""

import sys
from pathlib import Path

from eval.errors import UserError
from eval.papers.submission.script import python_needed, tree_of
from eval.papers.submission.unwrap import unwrap


def require_python(script: Path) -> None:
    """Raises UserError where the script's syntax is newer than the Python that would run it."""
    source = unwrap(script.read_bytes()).source
    if tree_of(source) is not None:
        return
    needed = python_needed(source)
    if needed is None or needed <= sys.version_info[:2]:
        return
    wanted = ".".join(map(str, needed))
    found = ".".join(map(str, sys.version_info[:3]))
    raise UserError(
        f"{script}: expected syntax of Python {found}, found that of Python {wanted}; "
        f"run the referee with Python {wanted} or newer"
    )
