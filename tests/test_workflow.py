"""The workflow and the action for pull requests: what may write runs nothing of a stranger's.

Their shell scripts run here as GitHub would run them, with stand-ins for `gh` and for the runner.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from check_support import GOOD, public_folder, public_logs

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "check.yml"
ACTION = ROOT / "action.yml"
FAKE_GH = """#!/usr/bin/env bash
echo "$*" >> "$LOG"
[[ "$*" == *--jq* ]] && echo "$OLD"
exit 0
"""


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text("utf-8"))


def steps(path: Path) -> list[dict]:
    content = load(path)
    if "runs" in content:
        return content["runs"]["steps"]
    found = []
    for job in content["jobs"].values():
        found += job["steps"]
    return found


def script(path: Path, word: str) -> str:
    """The shell script with a word in it."""
    (found,) = (step["run"] for step in steps(path) if word in step.get("run", ""))
    return found


def run_script(text: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-e", "-c", text],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | variables,
        check=False,
    )


# --- Who may do what ---


def test_the_job_that_writes_checks_out_and_runs_nothing():
    content = load(WORKFLOW)
    assert content["permissions"] == {}
    for name, job in content["jobs"].items():
        rights = job["permissions"]
        writes = {key for key, level in rights.items() if level == "write"}
        if name == "comment":
            assert writes == {"pull-requests"}
            used = [step["uses"] for step in job["steps"] if "uses" in step]
            assert all(action.startswith("actions/download-artifact@") for action in used)
        else:
            assert writes == set()


def test_the_pull_request_is_never_checked_out():
    checkouts = [s for s in steps(WORKFLOW) if s.get("uses", "").startswith("actions/checkout")]
    assert checkouts
    for step in checkouts:
        assert "ref" not in step["with"]
        assert "repository" not in step["with"]
    for step in steps(WORKFLOW):
        assert not re.search(r"git (checkout|switch|merge|pull|worktree)", step.get("run", ""))


@pytest.mark.parametrize("path", [WORKFLOW, ACTION], ids=lambda path: path.name)
def test_no_expression_becomes_part_of_a_script(path):
    """A branch may be called `$(command)`: strangers' words reach scripts as variables."""
    for step in steps(path):
        assert "${{" not in step.get("run", "")


def test_inputs_and_outputs_that_are_used_exist():
    action = load(ACTION)
    text = ACTION.read_text("utf-8")
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(action["inputs"])
    used = set(re.findall(r"steps\.referee\.outputs\.([\w-]+)", WORKFLOW.read_text("utf-8")))
    assert used <= set(action["outputs"])


# --- What the scripts do ---


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository whose second commit adds a record with a wrong headline; its root."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "Tester")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "tester@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    root = tmp_path / "clone"
    track = root / "records" / "track_10min_16mb"
    track.mkdir(parents=True)

    def git(*args: str) -> None:
        subprocess.run(["git", *args], cwd=root, check=True, capture_output=True)

    git("init", "-q", "-b", "main")
    git("commit", "-q", "--allow-empty", "-m", "start")
    stated = GOOD | {"val_bpb": 0.9, "val_loss": 1.1 * 1.68846}
    public_folder(track, stated, public_logs({1: 1.1, 2: 1.1, 3: 1.1}))
    git("add", ".")
    git("commit", "-q", "-m", "record")
    return root


def run_action(clone: Path, folder: Path, commit: str, base: str) -> dict[str, str]:
    """The outputs of the action's step that checks, with `golf-referee` from this tree."""
    programs = folder / "bin"
    programs.mkdir()
    referee = programs / "golf-referee"
    referee.write_text(f'#!/bin/sh\nexec {sys.executable} -m eval "$@"\n')
    referee.chmod(0o755)
    done = run_script(
        script(ACTION, "golf-referee check"),
        folder,
        PATH=f"{programs}:{os.environ['PATH']}",
        PYTHONPATH=str(ROOT),
        CLONE=str(clone),
        COMMIT=commit,
        BASE=base,
        RUNNER_TEMP=str(folder),
        GITHUB_STEP_SUMMARY=str(folder / "summary"),
        GITHUB_OUTPUT=str(folder / "output"),
    )
    assert done.returncode == 0, done.stderr
    lines = (folder / "output").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_the_action_writes_the_report_and_the_exit_code(clone, tmp_path):
    outputs = run_action(clone, tmp_path, "main", "main~1")
    assert outputs["exit-code"] == "1"
    text = Path(outputs["report"]).read_text()
    assert text.startswith("## Check of the record folders")
    assert "**FAIL headline**" in text
    assert (tmp_path / "summary").read_text() == text


def test_a_change_without_records_is_no_failure(clone, tmp_path):
    outputs = run_action(clone, tmp_path, "main", "main")
    assert outputs["exit-code"] == "0"
    assert "No record folder is added or changed." in Path(outputs["report"]).read_text()


def test_a_check_that_cannot_run_says_so(clone, tmp_path):
    """What a stranger calls a branch stays inside one code span."""
    outputs = run_action(clone, tmp_path, "no`such`@team", "main")
    assert outputs["exit-code"] == "2"
    title, blank, told = Path(outputs["report"]).read_text().splitlines()
    assert (title, blank) == ("## The check could not run", "")
    assert told.startswith("`error: ")
    assert "no'such'@team" in told
    assert told.count("`") == 2
    assert told.endswith("`")


@pytest.mark.parametrize(
    ("old", "call"),
    [
        ("", "api --method POST repos/a/b/issues/7/comments -F body=@body.md"),
        ("55", "api --method PATCH repos/a/b/issues/comments/55 -F body=@body.md"),
    ],
)
def test_one_comment_is_written_and_renewed(tmp_path, old, call):
    (tmp_path / "golf-referee.md").write_text("the report `$(touch stolen)`\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gh").write_text(FAKE_GH)
    (programs / "gh").chmod(0o755)
    done = run_script(
        script(WORKFLOW, "gh api"),
        tmp_path,
        PATH=f"{programs}:{os.environ['PATH']}",
        LOG=str(tmp_path / "log"),
        OLD=old,
        NUMBER="7",
        REPOSITORY="a/b",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text().splitlines()[-1] == call
    body = (tmp_path / "body.md").read_text()
    assert body == "<!-- golf-referee -->\nthe report `$(touch stolen)`\n"
    assert not (tmp_path / "stolen").exists()
