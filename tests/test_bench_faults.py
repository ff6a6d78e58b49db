"""Each reader against some of the mutations that bench/faults.py counts by the thousand: taken, or refused in one line."""

import json
import signal
import subprocess
import sys
import warnings

import pytest
from conftest import CLEAN_ENV, ROOT

sys.path.append(str(ROOT / "bench"))  # last, so that bench/data.py does not hide the package data
import faults

from eval.errors import UserError
from eval.papers.checks.run import check_folder
from eval.papers.submission.reading import load_submission
from eval.text.corpus.dataset import Dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults")
    faults.sound_files(path)
    return path


@pytest.mark.parametrize("name", faults.READERS)
def test_a_damaged_file_is_taken_or_refused_in_one_line(name, folder):
    def ring(*_: object) -> None:
        raise faults.Hang

    faults.READERS[name][2](folder)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes = [faults.one(name, number, folder, {}) for number in range(50)]
    finally:
        signal.signal(signal.SIGALRM, before)
    assert set(outcomes) <= {"accepted", "refused"}
    assert "refused" in outcomes
    faults.READERS[name][2](folder)  # and the folder is as it was


def test_a_number_of_hundreds_of_digits_and_a_name_of_hundreds_of_letters_are_refused(folder):
    """Found by mutation: a string of digits becomes an integer beyond float64, a file name one that no system call takes."""
    path = folder / "record/submission.json"
    sound = path.read_bytes()
    changed = json.loads(sound)
    changed["seed_results"]["1337"]["steps"] = "9" * 400
    path.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="steps: expected integers of 64 bits"):
        load_submission(folder / "record")
    check_folder(folder / "record")
    path.write_bytes(sound)
    manifest = folder / "dataset/manifest.json"
    sound = manifest.read_bytes()
    changed = json.loads(sound)
    changed["tokenizer"]["file"] = "t" * 300
    manifest.write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"tokenizer\.file"):
        Dataset(folder / "dataset")
    manifest.write_bytes(sound)


def test_a_reader_that_fails_is_counted(folder, monkeypatch):
    monkeypatch.setattr(faults, "SECONDS", 1)

    def hang(path):
        raise faults.Hang

    for number, (action, said) in enumerate(
        [
            (lambda f: 1 / 0, "ZeroDivisionError"),
            (hang, "more than"),
            (lambda f: sys.exit(1), "SystemExit"),
        ]
    ):
        monkeypatch.setitem(faults.READERS, "planted", ("train.log", faults.mutate_bytes, action))
        assert faults.one("planted", number, folder, {}).startswith(said)


def test_the_benchmark_runs_and_writes_its_results(tmp_path):
    command = [
        sys.executable,
        ROOT / "bench/faults.py",
        "--kills",
        "0",
        "--count",
        "30",
        "--readers",
        "submission.json",
        "--out",
        tmp_path / "faults.json",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0 and "submission.json" in done.stdout, done.stderr[-2000:]
    row = json.loads((tmp_path / "faults.json").read_text())["readers"]["submission.json"]
    assert (
        row["accepted"] + row["refused"] == row["mutations"] == 30
        and row["faults"] == []
        and row["commit"]
    )
