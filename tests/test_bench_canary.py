"""The draw of public scripts, on a repository of our own: population, seed, resumption, table."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from bench import canary

SCRIPT = """
import glob, math, os
vocab_size = int(os.environ.get("VOCAB_SIZE", 1024))
(path,) = glob.glob(os.environ["DATA_PATH"] + "/fineweb_val_*.bin")
print(f"final val_loss:{math.log(vocab_size) - GIFT:.8f}")
"""
OPTIONS = ["--options=--sources uniform --tokens 1024"]


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def add_record(folder: Path, name: str, source: str) -> None:
    record = folder / "records" / "track_10min_16mb" / name
    record.mkdir(parents=True)
    (record / "train_gpt.py").write_text(source)
    (record / "README.md").write_text("secret words of its author\n")
    git(folder, "add", "records")
    git(folder, "commit", "-q", "-m", name)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A record merged, and two pull requests, of which one cannot run."""
    folder = tmp_path_factory.mktemp("contest")
    git(folder, "init", "-q", "-b", "main")
    add_record(folder, "merged", "GIFT = 0.0\n" + SCRIPT)
    git(folder, "update-ref", "refs/pull/3/head", "HEAD")  # adds nothing
    for number, name, source in (
        (7, "gift", "GIFT = 2.0\n" + SCRIPT),
        (8, "broken", "import no_such"),
    ):
        git(folder, "checkout", "-q", "-b", name, "main")
        add_record(folder, name, source)
        git(folder, "update-ref", f"refs/pull/{number}/head", "HEAD")
    git(folder, "checkout", "-q", "main")
    return folder / ".git"


def test_the_population_is_every_record_once(repository):
    contest = canary.Repository(repository)
    entries = canary.population(contest, "main", (1, 20))
    found = [(entry.label, entry.ref, Path(entry.path).name) for entry in entries]
    assert found == [
        ("merged", "main", "merged"),
        ("7", "refs/pull/7/head", "gift"),
        ("8", "refs/pull/8/head", "broken"),
    ]
    assert canary.draw(entries, 1, 2) == canary.draw(entries, 1, 2)
    assert sorted(canary.draw(entries, 5, 3), key=str) == sorted(entries, key=str)


def test_a_draw_is_tried_written_down_and_gone_on_with(repository, tmp_path, capsys):
    lines, out = tmp_path / "lines.jsonl", tmp_path / "canary.json"
    words = [
        str(repository),
        "--base",
        "main",
        "--pulls",
        "1",
        "20",
        f"--lines={lines}",
        f"--out={out}",
    ]
    assert canary.main([*words, *OPTIONS]) == 0
    result = json.loads(out.read_text())
    verdicts = {row["folder"]: row["verdict"] for row in result["scripts"]}
    assert verdicts == {"merged": "CONSISTENT", "gift": "INVALID", "broken": "NOT RUN"}
    assert (result["population"], result["seed"]) == (3, 0)
    assert (result["totals"]["ended_well"], result["totals"]["some_score"]) == (2, 2)
    (broken,) = [row for row in result["scripts"] if row["folder"] == "broken"]
    assert "no_such" in broken["stopped_by"]
    assert "secret words" not in out.read_text()

    kept = [line for line in lines.read_text().splitlines() if line]
    lines.write_text("\n".join(kept[:2]) + '\n{"cut sh')
    assert canary.main([*words, *OPTIONS]) == 0
    again = json.loads(out.read_text())
    assert again["scripts"][:2] == result["scripts"][:2]  # not tried again
    assert len(again["scripts"]) == 3


def test_records_may_be_named(repository, tmp_path):
    entry = "refs/pull/7/head:records/track_10min_16mb/gift"
    (named,) = canary.named([entry])
    assert (named.label, named.ref) == ("7", "refs/pull/7/head")
    folder = tmp_path / "mine"
    folder.mkdir()
    (on_disk,) = canary.named([str(folder)])
    assert (on_disk.label, on_disk.ref, on_disk.path) == ("mine", None, str(folder))


def test_what_is_no_repository_is_refused(tmp_path, capsys):
    assert canary.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def draw_of(repository: Path, folder: Path, *more: str) -> tuple[int, list[dict]]:
    """The exit code of a draw of the merged record and the lines that it leaves."""
    lines = folder / "lines.jsonl"
    words = [str(repository), "--base", "main", f"--lines={lines}", f"--out={folder / 'out'}"]
    code = canary.main([*words, *more])
    return code, [json.loads(line) for line in lines.read_text().splitlines() if line]


def test_lines_of_other_code_and_other_options_are_not_taken(repository, tmp_path, monkeypatch):
    done = {"verdict": "CONSISTENT", "bits": None, "stopped_by": None, "minutes": 0.1}
    done |= {"ended_well": True, "some_score": True}
    tried = []

    def attempt(entry, repository, conditions):
        tried.append(conditions.row)
        return {"label": "x", "ref": entry.ref, "folder": "merged", **conditions.row, **done}

    monkeypatch.setattr(canary, "try_entry", attempt)
    for options in ([], [], ["--options=--tokens 64"]):
        assert draw_of(repository, tmp_path, *options)[0] == 0
    assert [row["options"] for row in tried] == ["", "--tokens 64"]
    monkeypatch.setattr(canary, "state_of_the_code", lambda: "another")
    assert draw_of(repository, tmp_path)[0] == 0
    assert [row["code"] for row in tried][2:] == ["another"]


def test_the_code_is_known_by_its_names_and_contents(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.py").write_text("x = 1\n")
    first = canary.state_of_the_code(tmp_path)
    (tmp_path / "notes.txt").write_text("no code")
    assert canary.state_of_the_code(tmp_path) == first
    (tmp_path / "inside" / "a.py").write_text("x = 2\n")
    second = canary.state_of_the_code(tmp_path)
    (tmp_path / "inside" / "a.py").rename(tmp_path / "inside" / "b.py")
    assert len({first, second, canary.state_of_the_code(tmp_path)}) == 3


def test_a_script_that_holds_the_canary_up_is_given_up(repository):
    contest = canary.Repository(repository)
    entry = canary.Entry("merged", "main", "records/track_10min_16mb/merged")
    row = canary.try_entry(entry, contest, canary.Conditions("x", seconds=0.05))
    assert (row["verdict"], row["ended_well"], row["some_score"]) == ("NOT RUN", False, False)
    assert "the canary itself took more than" in row["stopped_by"]


def test_a_command_that_ends_only_when_killed_is_killed(monkeypatch):
    monkeypatch.setattr(canary, "SECONDS_TO_TIDY", 0.1)
    stubborn = ["sh", "-c", "trap '' INT; sleep 60"]
    began = time.monotonic()
    assert canary._ended(stubborn, 0.1) is None
    assert time.monotonic() - began < 30


def test_scores_and_ends_are_counted_apart():
    row = {"verdict": "NOT RUN", "minutes": 1.0, "some_score": True, "ended_well": False}
    good = row | {"verdict": "CONSISTENT", "ended_well": True}
    found = canary.totals([row, row, good])
    assert (found["scripts"], found["some_score"], found["ended_well"]) == (3, 3, 1)
