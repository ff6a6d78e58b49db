"""The repository's own records: evidence in order, boards in step with them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from records_support import cli, pack_three

from eval.commands import board, pr
from eval.papers.audits.reading import read_audit
from eval.papers.checks.run import check_folder
from eval.papers.checks.showing import format_report
from eval.papers.rendering.board import BEGIN, END
from eval.papers.submission.schema import SUBMISSION_FILE
from eval.rules import Verdict

ROOT = Path(__file__).resolve().parents[1]
RECORD = re.compile(r"records/[^/]+/[^/]+(?=/)")


def submissions(root: Path) -> list[Path]:
    return sorted((root / "records").glob(f"track_*/[!.]*/{SUBMISSION_FILE}"))


FOLDERS = [path.parent for path in submissions(ROOT)]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_record_is_in_order(folder):
    report = check_folder(folder, with_audit=True)
    audit = read_audit(folder)
    # A record that the audit rejects stays as an example of one. Its papers are in order.
    rejected = audit is not None and audit.verdict == "INVALID"
    allowed = {"audit"} if rejected else set()
    failed = {check.name for check in report.checks if check.verdict is Verdict.FAIL}
    assert failed <= allowed, format_report(report)


def git(*args: str, root: Path = ROOT) -> str | None:
    """What git prints, None where it fails: outside a clone, or at the first commit."""
    command = ["git", *args]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def new_folders(root: Path) -> set[str]:
    """Records that the boards need not show yet: not committed, or all that HEAD adds.

    A record's pull request is one commit that adds a folder and nothing else, so that two of them
    never change the same file. Whoever merges it regenerates the boards: the next commit fails
    here if nobody has.
    """
    listed = git("ls-files", "--", "records", root=root)
    if listed is None:
        return set()
    known = {path.rpartition("/")[0] for path in listed.splitlines()}
    present = {path.parent.relative_to(root).as_posix() for path in submissions(root)}
    changes = git("diff-tree", "-r", "--no-renames", "--name-status", "HEAD^1", "HEAD", root=root)
    lines = [line.split("\t") for line in (changes or "").splitlines()]
    added = {RECORD.match(path)[0] for how, path in lines if how == "A" and RECORD.match(path)}
    only_records = all(how == "A" and RECORD.match(path) for how, path in lines)
    return (present - known) | (added if only_records else set())


def without(root: Path, folders: set[str], copy: Path) -> Path:
    """A copy of the records and of the boards, without some records."""
    shutil.copytree(root / "records", copy / "records")
    shutil.copyfile(root / "README.md", copy / "README.md")
    for folder in folders:
        shutil.rmtree(copy / folder)
    return copy


def test_boards_are_in_step(capsys, tmp_path):
    """Of all records but the new ones: a record's own commit adds its folder alone."""
    root = without(ROOT, new_folders(ROOT), tmp_path / "boards")
    assert cli(board, "--check", "--root", root) == 0, capsys.readouterr().out


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A small repository as this one is, with a record on its boards; its root."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "Tester")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "tester@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    root = tmp_path / "clone"
    root.mkdir()
    pack_three(root, "Old record")
    shutil.copyfile(ROOT / ".gitattributes", root / ".gitattributes")
    (root / ".gitignore").write_text("/runs/\n")
    (root / "README.md").write_text(f"{BEGIN}\n{END}\n")
    assert cli(board, "--root", root) == 0
    for args in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "old"]):
        assert git(*args, root=root) is not None
    return root


def test_the_branch_of_a_pull_request_passes(clone, tmp_path, capsys):
    """`eval pr` adds a folder alone. Its branch passes; what follows it needs new boards."""
    folder = pack_three(clone, "New record")
    assert cli(pr, folder, "--root", clone) == 0
    shutil.rmtree(folder)
    git("checkout", "-q", f"record/{folder.name}", root=clone)
    place = folder.relative_to(clone).as_posix()
    assert new_folders(clone) == {place}
    branch = without(clone, new_folders(clone), tmp_path / "branch")
    assert cli(board, "--check", "--root", branch) == 0, capsys.readouterr().out
    assert cli(board, "--check", "--root", clone) == 1
    (clone / "notes").write_text("")
    git("add", "notes", root=clone)
    git("commit", "-q", "-m", "notes", root=clone)
    assert new_folders(clone) == set()


def test_line_endings_are_the_same_on_every_system(clone, tmp_path):
    """Git for Windows converts by default; hashes are of the bytes as recorded."""
    (clone / "train_gpt.py").write_bytes(b"a\r\nb\n")
    git("add", ".", root=clone)
    git("commit", "-q", "-m", "script", root=clone)
    command = ["clone", "-q", "-c", "core.autocrlf=true", str(clone), str(tmp_path / "windows")]
    assert git(*command, root=tmp_path) is not None
    for path in git("ls-files", root=clone).splitlines():
        assert (tmp_path / "windows" / path).read_bytes() == (clone / path).read_bytes(), path
