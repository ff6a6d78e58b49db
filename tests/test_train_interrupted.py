"""Signals and numbers that are not finite: how a run ends before its time."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLEAN_ENV, ROOT, TINY, flags, run_script
from runs_support import checkpoints, wait_for

import train_gpt as tg

BASE = dataclasses.replace(tg.Config(), **TINY)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_ends_the_run(number, dataset, tmp_path):
    long = {"iterations": 3000, "log_every": 10**6, "checkpoint_every": 0, "eval_stride": 32}
    command = [
        sys.executable,
        str(ROOT / "train_gpt.py"),
        *flags(data_dir=dataset, out=tmp_path / "o", **long),
    ]
    process = subprocess.Popen(
        command,
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for("step:10/", tmp_path / "o")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == "" and "stopped step:" in out
    (step,) = checkpoints(tmp_path / "o")
    assert 10 <= step < 3000 and not (tmp_path / "o/artifact.bin").exists()
    again = subprocess.Popen(
        [*command, "--resume", "1"],
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(f"resume step:{step} ", tmp_path / "o")
    again.send_signal(number)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0 and err == "" and list(checkpoints(tmp_path / "o"))[-1] >= step


def test_ranks_under_torchrun_stop_together(dataset, tmp_path):
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(ROOT / "train_gpt.py"),
    ]
    command = [
        *launcher,
        *flags(data_dir=dataset, out=tmp_path / "o", iterations=10**5, log_every=10**6),
    ]
    process = subprocess.Popen(
        command,
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for("step:10/", tmp_path / "o")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert "stopped step:" in out and len(checkpoints(tmp_path / "o")) == 1, out[-3000:]
    assert (
        'train_gpt.py", line' not in out
    )  # torchrun has a traceback of its own, the script has none


def test_one_rank_that_is_told_to_stop_stops_all(dataset, tmp_path):
    """The second of two, as where its machine is preempted."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(ROOT / "train_gpt.py"),
    ]
    command = [
        *launcher,
        *flags(data_dir=dataset, out=tmp_path / "o", iterations=10**5, log_every=10**6),
    ]
    process = subprocess.Popen(
        command,
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for("step:10/", tmp_path / "o")
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    ranks = {
        dict(
            pair.split("=", 1)
            for pair in Path(f"/proc/{pid}/environ").read_text().split("\0")
            if "=" in pair
        ).get("RANK"): pid
        for pid in children
    }
    os.kill(int(ranks["1"]), signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (
        process.returncode == 0 and "stopped step:" in out and len(checkpoints(tmp_path / "o")) == 1
    ), out[-3000:]


def test_a_signal_that_comes_too_late_for_a_checkpoint_ends_the_run(dataset, tmp_path, monkeypatch):
    cfg = dataclasses.replace(BASE, iterations=3, checkpoint_every=3, out=str(tmp_path))
    rt, got = tg.Runtime(log_path=tmp_path / "train.log"), []
    rt.log("begun")
    write = tg.write_atomically
    monkeypatch.setattr(
        tg, "write_atomically", lambda *args: (os.kill(os.getpid(), signal.SIGTERM), write(*args))
    )
    before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    try:
        tg.train(tg.GPT(cfg), tg.open_dataset(dataset, cfg, rt), cfg, rt)
        assert got == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_that_diverges_names_step_rank_and_last_checkpoint(dataset, tmp_path):
    done = run_script(
        *flags(
            data_dir=dataset,
            out=tmp_path / "o",
            iterations=50,
            checkpoint_every=1,
            muon_lr=1e30,
            embed_lr=1e37,
            log_every=10,
        )
    )
    assert done.returncode == 2, done.stdout[-1000:]
    said = re.fullmatch(
        r"error: training: expected finite losses, gradients and weights, found others (in step \d+ on rank 0|after step \d+); .* (\S+)\n",
        done.stderr,
    )
    last = checkpoints(tmp_path / "o")
    assert said and (said[2] == list(last.values())[-1].name if last else said[2] == "none")
    for path in last.values():
        with np.load(path) as arrays:
            assert all(np.isfinite(arrays[name]).all() for name in arrays)


def test_a_gradient_that_is_not_finite_is_found_where_it_arose(dataset, tmp_path):
    """Rank 1's at step 4: after the reduction every rank has it."""
    script = tmp_path / "planted.py"
    plant = "            if rt.rank == 1 and step == 3:\n                model.smear.grad[0] = math.nan\n            good +="
    script.write_text(Path(tg.__file__).read_text().replace("            good +=", plant))
    done = run_script(
        *flags(data_dir=dataset, out=tmp_path / "o", micro_batch_tokens=128), nproc=2, script=script
    )
    assert done.returncode != 0 and done.stderr.count("error: training: ") == 1
    assert "found others in step 4 on rank 1" in done.stderr, done.stderr[-3000:]


def test_the_rank_that_diverged_first_is_named(monkeypatch):
    """Three ranks after step 9: the last one's loss has not been finite since step 6."""
    rt = tg.Runtime(rank=0, world_size=3)
    others = torch.tensor([[0.0, 2.5, float("nan")], [0.0, 9.0, 5.0]], dtype=torch.float64)
    monkeypatch.setattr(rt, "all_reduce", lambda seen: seen + others)
    saved = tg.Checkpoints("run", {"weight": torch.ones(3)}, BASE, rt)
    with pytest.raises(
        tg.UserError, match=r"found others in step 6 on rank 2; .* last good checkpoint: none"
    ):
        tg.log_step(9, torch.tensor(2.0), torch.tensor(9), 1.0, 1.0, saved, BASE, rt)


def test_weights_that_are_not_finite_end_the_run(tmp_path):
    saved = tg.Checkpoints("run", {"weight": torch.tensor([1.0, float("inf")])}, BASE, tg.Runtime())
    with pytest.raises(tg.UserError, match=r"found others after step 9; "):
        tg.log_step(9, torch.tensor(2.0), torch.tensor(9), 1.0, 1.0, saved, BASE, tg.Runtime())
