"""The repository's own records: evidence in order, boards in step with them."""

import subprocess
from pathlib import Path

import pytest
from records_support import cli

from eval.commands import board
from eval.papers.audits.reading import read_audit
from eval.papers.checks.showing import format_report
from eval.papers.checks.run import check_folder
from eval.papers.submission.schema import SUBMISSION_FILE
from eval.rules import Verdict

ROOT = Path(__file__).resolve().parents[1]
SUBMISSIONS = sorted((ROOT / "records").glob(f"track_*/[!.]*/{SUBMISSION_FILE}"))
FOLDERS = [path.parent for path in SUBMISSIONS]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_record_is_in_order(folder):
    report = check_folder(folder, with_audit=True)
    audit = read_audit(folder)
    # A record that the audit rejects stays as an example of one. Its papers are in order.
    rejected = audit is not None and audit.verdict == "INVALID"
    allowed = {"audit"} if rejected else set()
    failed = {check.name for check in report.checks if check.verdict is Verdict.FAIL}
    assert failed <= allowed, format_report(report)


def committed(folder: Path) -> bool:
    """Whether git knows the record; outside a clone every record counts as committed."""
    command = ["git", "ls-files", "--", str(folder / SUBMISSION_FILE)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return listed.returncode != 0 or bool(listed.stdout)


def test_boards_are_in_step(capsys):
    """Of committed records: whoever packs one decides when it goes on the board."""
    new = [folder.name for folder in FOLDERS if not committed(folder)]
    if new:
        pytest.skip(f"not committed yet: {', '.join(new)}; python -m eval board takes them in")
    assert cli(board, "--check", "--root", ROOT) == 0, capsys.readouterr().out
