"""Each reader against some of the mutations that bench/faults.py counts by the thousand: taken, or refused in one line."""

import signal
import subprocess
import sys
import warnings

import pytest
from conftest import CLEAN_ENV, ROOT

sys.path.append(str(ROOT / "bench"))  # last, so that bench/data.py does not hide the package data
import faults


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
    signal.signal(signal.SIGALRM, ring)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = [faults.one(name, number, folder, {}) for number in range(50)]
    assert set(outcomes) <= {"accepted", "refused"}
    assert "refused" in outcomes
    faults.READERS[name][2](folder)  # and the folder is as it was


def test_a_reader_that_fails_is_counted(folder, monkeypatch):
    for number, (action, said) in enumerate(
        [(lambda f: 1 / 0, "ZeroDivisionError"), (lambda f: signal.raise_signal(signal.SIGALRM), "more than"), (lambda f: sys.exit(1), "SystemExit")]
    ):
        monkeypatch.setitem(faults.READERS, "planted", ("train.log", faults.mutate_bytes, action))
        assert faults.one("planted", number, folder, {}).startswith(said)


def test_the_benchmark_runs_and_writes_its_results(tmp_path):
    command = [sys.executable, ROOT / "bench/faults.py", "--count", "30", "--readers", "submission.json", "--out", tmp_path / "faults.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"}, timeout=200)
    assert done.returncode == 0 and "submission.json" in done.stdout, done.stderr[-2000:]
