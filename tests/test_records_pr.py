"""The pull-request command in throw-away repositories.

One commit, only additions, nothing else touched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from records_support import FakeRun, audit, cli, pack_three

from eval.commands import pack, pr
from eval.errors import UserError
from eval.files import sha256_of

ROOT = Path(__file__).resolve().parents[1]
BRANCH = "record/2026-11-24_example-record"


@pytest.fixture
def git(tmp_path, monkeypatch):
    """A repository with one commit on main and an uncommitted record; calls run git there."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "Tester")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "tester@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")

    def run(*args: str) -> str:
        command = ["git", *args]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    run("init", "-q", "-b", "main")
    # A filter that would change the bytes of a log.
    (tmp_path / ".gitattributes").write_text("*.log text eol=crlf\n")
    (tmp_path / ".gitignore").write_text("/runs/\n*.bin\n")
    (tmp_path / "file.txt").write_text("one\n")
    run("add", ".gitattributes", ".gitignore", "file.txt")
    run("commit", "-q", "-m", "start")
    return run


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_three(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def record(git, packed, tmp_path):
    folder = tmp_path / "records" / packed.parent.name / packed.name
    shutil.copytree(packed, folder)
    return folder


def test_branch_adds_the_folder_and_nothing_else(git, record, tmp_path, capsys):
    (tmp_path / "file.txt").write_text("edited, not committed\n")
    (tmp_path / "staged.txt").write_text("staged\n")
    git("add", "staged.txt")
    status = git("status", "--porcelain")
    head = git("rev-parse", "HEAD")
    assert cli(pr, record, "--root", tmp_path) == 0
    assert git("rev-parse", "HEAD") == head
    assert git("status", "--porcelain") == status
    assert git("branch", "--show-current") == "main\n"
    assert git("rev-list", f"main..{BRANCH}").count("\n") == 1
    changes = git("diff", "--no-renames", "--name-status", "main", BRANCH).splitlines()
    place = f"records/track_docs_cpu/{record.name}"
    assert sorted(changes) == sorted(f"A\t{place}/{item.name}" for item in record.iterdir())
    for item in record.iterdir():  # byte for byte, whatever .gitattributes and .gitignore say
        command = ["git", "cat-file", "blob", f"{BRANCH}:{place}/{item.name}"]
        stored = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
        assert stored.stdout == item.read_bytes()
    title, body = (tmp_path / "runs" / f"{record.name}.pr.md").read_text().split("\n\n", 1)
    assert title == "Record: Example record, val_bpb 1.00000 (3-seed mean)"
    assert git("log", "-1", "--format=%s", BRANCH).strip() == title
    for text in (
        "| 42 | 1.03000000 |",
        "## Evidence",
        "PASS",
        "## Audit",
        "for seed in 1337 42 2025; do",
        "adds one folder",
    ):
        assert text in body
    assert BRANCH in capsys.readouterr().out


def test_index_stays_and_inherited_variables_lead_nowhere(git, record, tmp_path, monkeypatch):
    """A hook or another tool may have set them.

    And a file touched since its commit is what makes `git status` rewrite the index."""
    git("add", "-f", str(record))
    git("commit", "-q", "-m", "record")
    for item in record.iterdir():
        os.utime(item, (1, 1))
    index = tmp_path / ".git" / "index"
    before = index.read_bytes()
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    assert cli(pr, record, "--root", tmp_path, "--base", "main~1") == 0
    assert index.read_bytes() == before
    assert not (tmp_path / "elsewhere").exists()


def refused(record, root, match, *options):
    """The branches of records that there are after a refusal."""
    with pytest.raises(UserError, match=match):
        cli(pr, record, "--root", root, *options)
    command = ["git", "branch", "--list", "record/*"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_failing_record_is_refused(git, record, tmp_path):
    (record / "artifact_seed42.bin").write_bytes(b"other weights")
    assert refused(record, tmp_path, r"1 check\(s\) fail, first artifacts") == ""


def test_an_audit_of_something_else_is_refused(git, record, tmp_path):
    audit(record, "PASS")
    cli(pack, "--refresh", record)
    path = record / "audit.json"
    path.write_text(path.read_text().replace(sha256_of(record / "train_gpt.py"), "0" * 64))
    assert refused(record, tmp_path, r"1 check\(s\) fail, first audit: .*code_sha256") == ""


def test_files_that_pack_does_not_write_are_refused(git, record, tmp_path):
    (record / "notes.txt").write_text("mine")
    assert refused(record, tmp_path, r"notes\.txt: not a file that pack writes") == ""
    (record / "notes.txt").unlink()
    (record / "requirements.txt").symlink_to("/etc/hostname")
    assert refused(record, tmp_path, r"requirements\.txt: not a file that pack writes") == ""


def test_an_edited_committed_record_is_refused(git, record, tmp_path):
    git("add", "-f", str(record))
    git("commit", "-q", "-m", "record")
    assert refused(record, tmp_path, "already in main; a record's pull request only adds") == ""
    text = record / "README.md"
    text.write_text(text.read_text().replace("One sentence.", "Another sentence.", 1))
    # Based on the commit before, the folder is new; but it differs from what is committed here.
    assert refused(record, tmp_path, "check|uncommitted", "--base", "main~1") == ""
    git("checkout", "-q", "--", str(text))
    assert cli(pr, record, "--root", tmp_path, "--base", "main~1") == 0
    assert git("rev-list", "--count", f"main~1..{BRANCH}") == "1\n"


def test_an_existing_branch_is_kept(git, record, tmp_path):
    git("branch", BRANCH)
    before = git("rev-parse", BRANCH)
    refused(record, tmp_path, "exists; delete it")
    assert git("rev-parse", BRANCH) == before


def test_anonymous_misplaced_and_baseless_records_are_refused(git, record, tmp_path):
    assert refused(record, tmp_path, "expected a branch or commit", "--base", "nowhere") == ""
    assert refused(record, tmp_path / "records", "expected .*records/TRACK/DATE_slug") == ""
    run = FakeRun().write(tmp_path / "runs" / "x")
    about = ["--name", "Nobody", "--date", "2026-11-24"]
    author = ["--author", "anonymous", "--github-id", "x"]
    assert cli(pack, run, *about, *author, "--records-dir", tmp_path / "records") == 0
    assert refused(record.parent / "2026-11-24_nobody", tmp_path, "the author is anonymous") == ""


# --- What git says ---


def test_outside_a_repository(packed, tmp_path):
    folder = tmp_path / "records" / packed.parent.name / packed.name
    shutil.copytree(packed, folder)
    with pytest.raises(UserError, match=r"expected a git repository, found none .*; clone"):
        cli(pr, folder, "--root", tmp_path)


def test_without_an_identity(git, record, tmp_path, monkeypatch):
    for variable in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
        monkeypatch.delenv(f"GIT_{variable}")
    monkeypatch.delenv("EMAIL", raising=False)
    # Else git would make one up from the user's and the machine's name.
    settings = tmp_path / "gitconfig"
    settings.write_text("[user]\n\tuseConfigOnly = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    remedy = "git config --global user.name NAME and git config --global user.email"
    assert refused(record, tmp_path, remedy) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a repository away")
def test_in_somebody_elses_repository(git, record, tmp_path):
    os.chown(tmp_path, 12345, 12345)
    os.chown(tmp_path / ".git", 12345, 12345)
    with pytest.raises(UserError) as caught:
        cli(pr, record, "--root", tmp_path)
    assert f"git config --global --add safe.directory {tmp_path}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_the_locale_lacks(git, tmp_path):
    """git reads and writes UTF-8 even where the terminal is ASCII."""
    run = FakeRun().write(tmp_path / "runs" / "x")
    about = ["--name", "Example record Ω", "--slug", "omega", "--date", "2026-11-24"]
    author = ["--author", "Ann Author", "--github-id", "ann"]
    assert cli(pack, run, *about, *author, "--records-dir", tmp_path / "records") == 0
    folder = next((tmp_path / "records").glob("*/2026-11-24_omega"))
    environment = os.environ | {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "eval", "pr", str(folder), "--root", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Example record \\u03a9" in done.stdout
    title = git("log", "-1", "--format=%s", f"record/{folder.name}")
    assert title.startswith("Record: Example record Ω, ")
