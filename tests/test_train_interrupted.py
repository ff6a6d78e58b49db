"""Signals and numbers that are not finite: how a run ends before its time."""

import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import flags, run_script
from runs_support import changed_script, checkpoints, start_script, start_torchrun, wait_for
from train_support import tiny

import train_gpt as tg

ENDLESS = {"iterations": 10**5, "log_every": 10**6}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_ends_the_run(number, dataset, tmp_path):
    out = tmp_path / "o"
    settings = flags(data_dir=dataset, out=out, eval_stride=32, **ENDLESS)
    process = start_script(*settings, folder=tmp_path / "printed")
    wait_for("step:10/", out)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and stderr == "" and "stopped step:" in stdout
    (step,) = checkpoints(out)
    assert 10 <= step < ENDLESS["iterations"] and not (out / "artifact.bin").exists()
    again = start_script(*settings, "--resume", "1", folder=tmp_path / "again")
    wait_for(f"resume step:{step} ", out)
    again.send_signal(number)
    _, stderr = again.communicate(timeout=60)
    assert again.returncode == 0 and stderr == ""
    assert list(checkpoints(out))[-1] >= step


def test_ranks_under_torchrun_stop_together(dataset, tmp_path):
    settings = flags(data_dir=dataset, out=tmp_path / "o", **ENDLESS)
    process = start_torchrun(*settings, nproc=2)
    wait_for("step:10/", tmp_path / "o")
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)
    assert "stopped step:" in stdout and len(checkpoints(tmp_path / "o")) == 1, stdout[-3000:]
    assert 'train_gpt.py", line' not in stdout  # torchrun has a traceback, the script has none


def process_of_rank(launcher: subprocess.Popen, rank: int) -> int:
    """The pid of one rank below torchrun."""
    command = ["pgrep", "-P", str(launcher.pid)]
    children = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    for pid in children:
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            return int(pid)
    raise AssertionError(f"no child of {launcher.pid} has rank {rank}")


def test_one_rank_that_is_told_to_stop_stops_all(dataset, tmp_path):
    """The second of two, as where its machine is preempted."""
    settings = flags(data_dir=dataset, out=tmp_path / "o", **ENDLESS)
    process = start_torchrun(*settings, nproc=2)
    wait_for("step:10/", tmp_path / "o")
    os.kill(process_of_rank(process, 1), signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped step:" in stdout, stdout[-3000:]
    assert len(checkpoints(tmp_path / "o")) == 1


def test_a_signal_that_comes_too_late_for_a_checkpoint_ends_the_run(dataset, tmp_path, monkeypatch):
    """It arrives while the last checkpoint is written, and is raised again after training."""
    cfg = tiny(iterations=3, checkpoint_every=3, out=str(tmp_path), data_dir=str(dataset))
    log = tg.Log(tmp_path / "train.log")
    log("begun")
    write = tg.write_atomically

    def write_and_signal(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        write(*args)

    monkeypatch.setattr(tg, "write_atomically", write_and_signal)
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    try:
        data = tg.open_dataset(cfg, tg.Ranks())
        tg.train(tg.GPT(cfg.model), data, cfg, tg.Ranks(), log)
        assert got == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_that_diverges_names_step_rank_and_last_checkpoint(dataset, tmp_path):
    wild = {"muon_lr": 1e30, "embed_lr": 1e37}
    schedule = {"iterations": 50, "checkpoint_every": 1, "log_every": 10}
    done = run_script(*flags(data_dir=dataset, out=tmp_path / "o", **wild, **schedule))
    assert done.returncode == 2, done.stdout[-1000:]
    said = re.fullmatch(
        r"error: training: expected finite losses, gradients and weights, found others "
        r"(in step \d+ on rank 0|after step \d+); .* (\S+)\n",
        done.stderr,
    )
    paths = list(checkpoints(tmp_path / "o").values())
    assert said and said[2] == (paths[-1].name if paths else "none")
    for path in paths:
        with np.load(path) as arrays:
            assert all(np.isfinite(arrays[name]).all() for name in arrays)


PLANT_A_NAN = """
observe = train_gpt.Health.observe
calls = []
def observe_and_plant(self, loss, params):
    calls.append(loss)
    if RANK == 1 and len(calls) == 4:
        params[2].grad.view(-1)[0] = math.nan
    observe(self, loss, params)
train_gpt.Health.observe = observe_and_plant
"""


def test_a_gradient_that_is_not_finite_is_found_where_it_arose(dataset, tmp_path):
    """Rank 1's at step 4: after the reduction every rank has it."""
    script = changed_script(tmp_path / "planted.py", PLANT_A_NAN)
    settings = flags(data_dir=dataset, out=tmp_path / "o", micro_batch_tokens=128)
    done = run_script(*settings, nproc=2, script=script)
    assert done.returncode != 0 and done.stderr.count("error: training: ") == 1
    assert "found others in step 4 on rank 1" in done.stderr, done.stderr[-3000:]


def check_after_step_9(weight: torch.Tensor, finite_steps: list[float]) -> None:
    checkpoints = tg.Checkpoints("run", {"weight": weight}, tiny(), tg.Ranks())
    tg.check_finite(9, finite_steps, checkpoints)


def test_the_rank_that_diverged_first_is_named():
    """Three ranks after step 9: the last one's loss has not been finite since step 6."""
    expected = r"found others in step 6 on rank 2; .* last good checkpoint: none"
    with pytest.raises(tg.UserError, match=expected):
        check_after_step_9(torch.ones(3), [9.0, 9.0, 5.0])


def test_weights_that_are_not_finite_end_the_run():
    with pytest.raises(tg.UserError, match=r"found others after step 9; "):
        check_after_step_9(torch.tensor([1.0, float("inf")]), [9.0])
    check_after_step_9(torch.ones(3), [9.0, 9.0])


def test_health_counts_the_steps_before_the_first_that_was_not_finite():
    params = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    health = tg.Health(tg.Ranks(), steps=5)
    for planted in (1.0, float("inf"), 1.0):
        for p in params:
            p.grad = torch.ones_like(p)
        params[1].grad[0] = planted
        health.observe(torch.tensor(2.0), params)
    assert health.by_rank() == ([2.0], [7.0])
