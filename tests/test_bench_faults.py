"""Each reader against some of the mutations that bench/faults.py counts by the thousand.

A damaged file is taken, or refused in one line.
"""

import json
import subprocess
import sys
import warnings

import pytest
from conftest import CLEAN_ENV, ROOT

from bench.damage import trials
from bench.damage.mutations import mutate_bytes
from bench.damage.readers import READERS, Reader
from bench.damage.sound_files import LOG, MANIFEST, write_sound_files
from eval.errors import UserError
from eval.papers.checks.run import check_folder
from eval.papers.submission.reading import load_submission
from eval.text.corpus.dataset import Dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults")
    write_sound_files(path)
    return path


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_taken_or_refused_in_one_line(name, folder):
    READERS[name].read(folder)
    sound = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = [trials.try_mutation(name, number, folder, sound) for number in range(50)]
    assert set(outcomes) <= {trials.ACCEPTED, trials.REFUSED}
    assert trials.REFUSED in outcomes
    READERS[name].read(folder)  # and the folder is as it was


def test_a_number_of_hundreds_of_digits_is_refused(folder):
    """Found by mutation: a string of digits becomes an integer beyond float64."""
    path = folder / "record/submission.json"
    sound = path.read_bytes()
    changed = json.loads(sound)
    changed["seed_results"]["1337"]["steps"] = "9" * 400
    path.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="steps: expected integers of 64 bits"):
        load_submission(folder / "record")
    check_folder(folder / "record")
    path.write_bytes(sound)


def test_a_name_of_hundreds_of_letters_is_refused(folder):
    """Found by mutation: no system call takes it."""
    path = folder / MANIFEST
    sound = path.read_bytes()
    changed = json.loads(sound)
    changed["tokenizer"]["file"] = "t" * 300
    path.write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"tokenizer\.file"):
        Dataset(path.parent)
    path.write_bytes(sound)


def divide_by_zero(folder):
    return 1 / 0


def loop_forever(folder):
    while True:
        pass


def leave(folder):
    sys.exit(1)


def refuse_in_two_lines(folder):
    raise UserError("one\ntwo")


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (divide_by_zero, "ZeroDivisionError"),
        (loop_forever, "more than 1 s"),
        (leave, "SystemExit"),
        (refuse_in_two_lines, "a refusal of several lines"),
    ],
)
def test_a_reader_that_fails_is_counted(read, said, folder, monkeypatch):
    monkeypatch.setattr(trials, "SECONDS", 1)
    monkeypatch.setitem(READERS, "planted", Reader(LOG, mutate_bytes, read))
    sound = (folder / LOG).read_bytes()
    assert trials.try_mutation("planted", 0, folder, {}).startswith(said)
    assert (folder / LOG).read_bytes() == sound


def test_the_benchmark_runs_and_writes_its_results(tmp_path):
    out = tmp_path / "faults.json"
    argv = ["--kills", "0", "--count", "30", "--readers", "submission.json", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, ROOT / "bench/faults.py", *argv],
        capture_output=True,
        text=True,
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "submission.json" in done.stdout
    row = json.loads(out.read_text())["readers"]["submission.json"]
    assert row["accepted"] + row["refused"] == row["mutations"] == 30
    assert row["faults"] == []
    committed = json.loads((ROOT / "bench/results/faults.json").read_text())
    assert row.keys() == committed["readers"]["submission.json"].keys()
