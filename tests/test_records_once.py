"""A record folder is opened and parsed once on its way through each command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from records_support import audit, cli, pack_three

from eval.commands import pack
from eval.papers.rendering.board import BEGIN, END

ROOT = Path(__file__).resolve().parents[1]
# Runs one command of the referee and prints, last, how often it opened each file.
COUNTING = """
import collections, json, os, sys
opened = collections.Counter()
def note(event, arguments):
    if event == "open":
        opened[os.path.realpath(str(arguments[0]))] += 1
sys.addaudithook(note)
from eval.__main__ import main
code = main(sys.argv[1:])
print(json.dumps([code, opened]))
"""


def opened_by(*command: object) -> tuple[int, dict[str, int]]:
    """(exit code, how often each file was opened) of a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A repository with two audited records that nobody has committed."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "README.md").write_text(f"{BEGIN}\n{END}\n")
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=folder, check=True)
    author = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    commit = ["commit", "-q", "--allow-empty", "-m", "start"]
    subprocess.run(["git", *author, *commit], cwd=folder, check=True)
    for name in ("One", "Two"):
        record = pack_three(folder, name)
        audit(record, "PASS")
        assert cli(pack, "--refresh", record) == 0
    return folder


COMMANDS = {
    "check": ["check", "ONE"],
    "check --against": ["check", "ONE", "--against", "TWO"],
    "compare": ["compare", "ONE", "TWO"],
    "pack --refresh": ["pack", "--refresh", "ONE"],
    "board": ["board", "--root", "ROOT"],
    "pr": ["pr", "TWO", "--root", "ROOT"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_papers_are_opened_once(root, name, monkeypatch):
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Ann")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "ann@example.org")
    track = root / "records" / "track_docs_cpu"
    places = {"ONE": track / "2026-11-24_one", "TWO": track / "2026-11-24_two", "ROOT": root}
    command = [places.get(word, word) for word in COMMANDS[name]]
    code, opened = opened_by(*command)
    assert code in (0, 1)  # 1: a record is no improvement over its equal
    papers = [path for path in opened if Path(path).name in ("submission.json", "audit.json")]
    papers += [path for path in opened if Path(path).suffix == ".log"]
    papers = [path for path in papers if Path(path).is_relative_to(root)]
    assert any(path.endswith("submission.json") for path in papers)
    assert {path: opened[path] for path in papers} == dict.fromkeys(papers, 1)
