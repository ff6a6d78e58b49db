"""The repository's own records: evidence in order, boards in step with them."""

import subprocess
from pathlib import Path

import pytest
from records_support import cli

from eval.commands import board
from eval.papers.audits.reading import read_audit
from eval.papers.checks.report import format_report
from eval.papers.checks.run import check_folder
from eval.papers.submission.schema import SUBMISSION_FILE
from eval.rules import Verdict

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [
    path.parent
    for path in sorted((ROOT / "records").glob(f"track_*/*/{SUBMISSION_FILE}"))
    if not path.parent.name.startswith(".")
]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_record_is_in_order(folder):
    report = check_folder(folder, with_audit=True)
    audit = read_audit(folder)
    # A record that the audit rejects is kept as an example of one; its papers are in order all the same.
    allowed = {"audit"} if audit is not None and audit.verdict == "INVALID" else set()
    assert {c.name for c in report.checks if c.verdict is Verdict.FAIL} <= allowed, format_report(
        report
    )


def committed(folder: Path) -> bool:
    """Whether git knows the record; outside a clone every record counts as committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--", str(folder / SUBMISSION_FILE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return listed.returncode != 0 or bool(listed.stdout)


def test_boards_are_in_step(capsys):
    """Of committed records: who has just packed one decides when it goes on the board."""
    if new := [folder.name for folder in FOLDERS if not committed(folder)]:
        pytest.skip(f"not committed yet: {', '.join(new)}; python -m eval board takes them in")
    assert cli(board, "--check", "--root", ROOT) == 0, capsys.readouterr().out
