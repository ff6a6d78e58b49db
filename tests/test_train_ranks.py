"""Whole runs: the same numbers for every number of ranks, one precision, one moment to stop."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT, flags, run_script
from runs_support import changed_script, log_of, result_field, step_losses

import train_gpt as tg


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """Five steps of the same configuration on 1, 2, 4 and 8 processes."""
    folder = tmp_path_factory.mktemp("ranks")
    script = changed_script(folder / "precise.py")
    for n in (1, 2, 4, 8):
        settings = flags(data_dir=dataset, out=folder / str(n), micro_batch_tokens=128)
        done = run_script(*settings, nproc=n, script=script)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_losses_and_score_do_not_depend_on_the_number_of_ranks(runs, ranks):
    alone = step_losses(runs / "1")
    assert len(alone) == 5
    np.testing.assert_allclose(step_losses(runs / str(ranks)), alone, rtol=1e-4)
    scores = [float(result_field(runs / str(n), "val_bpb")) for n in (1, ranks)]
    # quantisation turns 1e-7 into an occasional step
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


def test_ranks_train_in_one_precision_and_agree_in_it(runs, dataset, tmp_path):
    """Also where one rank's CPU multiplies bfloat16 fast and another's does not."""
    losses = {}
    for name, fast, nproc in (("one", "True", 1), ("both", "True", 2), ("mixed", "RANK == 0", 2)):
        change = f"train_gpt.multiplies_bfloat16_fast = lambda device: {fast}"
        script = changed_script(tmp_path / f"{name}.py", change)
        settings = flags(data_dir=dataset, out=tmp_path / name, bf16=1, micro_batch_tokens=128)
        done = run_script(*settings, nproc=nproc, script=script)
        assert done.returncode == 0, done.stderr[-3000:]
        log = log_of(tmp_path / name)
        expected = "float32" if name == "mixed" else "bfloat16"
        assert re.search(r"^env .*train_dtype:(\S+)", log, flags=re.M)[1] == expected
        assert "config:override bf16" not in log
        losses[name] = step_losses(tmp_path / name)
    np.testing.assert_allclose(losses["both"], losses["one"], rtol=1e-4)
    np.testing.assert_allclose(losses["mixed"], step_losses(runs / "2"), rtol=1e-6)
    difference = np.subtract(losses["both"], losses["mixed"])
    assert np.abs(difference).max() > 1e-6


def test_micro_batches_do_not_change_the_losses(runs, dataset, tmp_path):
    settings = flags(data_dir=dataset, out=tmp_path / "o", micro_batch_tokens=1024)
    done = run_script(*settings, script=runs / "precise.py")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(step_losses(tmp_path / "o"), step_losses(runs / "1"), rtol=1e-4)


def test_the_same_seed_gives_the_same_score_and_another_seed_another(dataset, tmp_path):
    scores = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        settings = flags(data_dir=dataset, out=tmp_path / name, iterations=3)
        done = run_script(*settings, env={"SEED": str(seed)})
        assert done.returncode == 0, done.stderr
        scores.append(result_field(tmp_path / name, "val_bpb"))
    assert scores[0] == scores[1] != scores[2]


SKEWED_CLOCKS = """
real, speed = time.perf_counter, 1 + 49 * RANK
time.perf_counter = lambda: speed * real()
train_alone = train_gpt.train
def train(*args):
    progress = train_alone(*args)
    sys.stdout.write(f"rank {RANK} stopped after {progress.step} steps\\n")
    return progress
train_gpt.train = train
main = train_gpt.main
def main_and_threads(argv):
    code = main(argv)
    names = [open(f"/proc/self/task/{task}/comm").read().strip()
             for task in os.listdir("/proc/self/task")]
    # in one piece: the ranks share the pipe
    sys.stdout.write(f"left running: {[name for name in names if 'gloo' in name]}\\n")
    return code
train_gpt.main = main_and_threads
"""


def test_all_ranks_stop_on_the_same_step_under_skewed_clocks(dataset, tmp_path):
    """Rank 1's clock runs 50 times too fast.

    Left to itself it would stop alone, and rank 0 would wait for it for ever.
    """
    limits = {"iterations": 100_000, "train_seconds": 2.0, "warmdown_steps": 20}
    settings = flags(data_dir=dataset, out=tmp_path / "o", **limits)
    script = changed_script(tmp_path / "skewed.py", SKEWED_CLOCKS)
    done = run_script(*settings, nproc=2, script=script)
    assert done.returncode == 0, done.stderr[-3000:]
    stopped = dict(re.findall(r"rank (\d) stopped after (\d+) steps", done.stdout))
    assert set(stopped) == {"0", "1"}
    assert stopped["0"] == stopped["1"]
    assert int(stopped["0"]) > 1
    # a thread of the process group that outlives it can abort an exiting rank
    assert re.findall(r"left running: (.*)", done.stdout) == ["[]", "[]"]


def test_the_log_is_self_contained(runs):
    log = (runs / "1" / "train.log").read_text()
    header = re.search(r"===== source train_gpt.py bytes:(\d+) sha256:(\w+) =====\n", log)
    code_bytes, code_sha256 = int(header[1]), header[2]
    source = log[header.end() :].encode()[:code_bytes]
    assert source == (ROOT / "train_gpt.py").read_bytes()
    assert tg.hashlib.sha256(source).hexdigest() == code_sha256
    assert log.strip().splitlines()[-1].startswith("result ")
    artifact_bytes = int(result_field(runs / "1", "artifact_bytes"))
    assert int(result_field(runs / "1", "bytes_total")) == artifact_bytes + code_bytes
    assert artifact_bytes == (runs / "1" / "artifact.bin").stat().st_size
    bits = float(result_field(runs / "1", "nats")) / np.log(2)
    bpb = bits / int(result_field(runs / "1", "scored_bytes"))
    assert bpb == pytest.approx(float(result_field(runs / "1", "val_bpb")), abs=1e-8)


def test_the_result_line_reports_the_reloaded_artifact(runs, dataset, tmp_path):
    manifest = json.loads((dataset / "manifest.json").read_text())
    val = dataset / manifest["splits"]["val"]["files"][0]["name"]
    artifact = runs / "1" / "artifact.bin"
    done = run_script("score", "--artifact", artifact, "--tokens", val, "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    nll = np.load(tmp_path / "o" / f"{val.stem}.nll.npy")
    assert nll.sum() == pytest.approx(float(result_field(runs / "1", "nats")), abs=1e-6)
