"""Checkpoints: an interrupted run ends as an undisturbed one, and nothing damaged or foreign is gone on from."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLEAN_ENV, ROOT, TINY, fill, flags, run_script
from runs_support import checkpoints, log_of, result_of, steps_of, wait_for

import train_gpt as tg

BASE = dataclasses.replace(tg.Config(), **TINY)
RUN = {
    "bf16": 1,
    "iterations": 12,
    "swa_every": 2,
    "swa_lr_scale": 2.0,
    "qat_lr_scale": 0.9,
    "checkpoint_every": 3,
    "grad_clip": 1.0,
    "warmup_steps": 1,
}


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    """A whole run, and a copy of its folder as it was at the ninth of twelve steps."""
    folder = tmp_path_factory.mktemp("checkpoints")
    done = run_script(*flags(data_dir=dataset, out=folder / "whole", **RUN))
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(checkpoints(folder / "whole")) == [9, 12]
    shutil.copytree(folder / "whole", folder / "ninth")
    checkpoints(folder / "ninth")[12].unlink()
    (folder / "ninth/artifact.bin").unlink()
    return folder


def resume(
    folder: Path, dataset: Path, out: Path, nproc: int = 1, source: str = "ninth", **changes: object
) -> subprocess.CompletedProcess:
    if not out.exists():
        shutil.copytree(folder / source, out)
    return run_script(
        *flags(data_dir=dataset, out=out, **(RUN | {"resume": 1} | changes)), nproc=nproc
    )


def test_a_resumed_run_is_the_undisturbed_one_bit_by_bit(undisturbed, dataset, tmp_path):
    done = resume(undisturbed, dataset, tmp_path / "o")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resume step:9 " in log_of(tmp_path / "o") and steps_of(tmp_path / "o") == steps_of(
        undisturbed / "whole"
    )
    assert (tmp_path / "o/artifact.bin").read_bytes() == (
        undisturbed / "whole/artifact.bin"
    ).read_bytes()
    assert result_of(tmp_path / "o") == result_of(undisturbed / "whole")
    with (
        np.load(checkpoints(undisturbed / "whole")[12]) as a,
        np.load(checkpoints(tmp_path / "o")[12]) as b,
    ):
        assert set(a) == set(b) and len(a) > 100
        different = [
            name
            for name in a
            if name not in ("log", "progress") and a[name].tobytes() != b[name].tobytes()
        ]
        assert different == [] and a["progress"][:3].tolist() == b["progress"][:3].tolist() == [
            12,
            12 * 32,
            6,
        ]


def test_a_run_killed_before_its_export_goes_on_with_the_export(undisturbed, dataset, tmp_path):
    shutil.copytree(undisturbed / "whole", tmp_path / "o")
    (tmp_path / "o/artifact.bin").unlink()
    done = resume(undisturbed, dataset, tmp_path / "o")
    assert (
        done.returncode == 0
        and "resume step:12 " in done.stdout
        and "train_loss" not in done.stdout
    )
    assert result_of(tmp_path / "o") == result_of(undisturbed / "whole") and steps_of(
        tmp_path / "o"
    ) == steps_of(undisturbed / "whole")


def test_another_number_of_ranks_goes_on(undisturbed, dataset, tmp_path):
    done = resume(undisturbed, dataset, tmp_path / "o", nproc=2)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [
        [float(line.split("train_loss:")[1].split()[0]) for line in steps_of(out)]
        for out in (tmp_path / "o", undisturbed / "whole")
    ]
    assert losses[0][:9] == losses[1][:9]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_elapsed_time_goes_on(undisturbed, dataset, tmp_path):
    before = float(
        re.search(r"^step:9/.* train_time:(\d+)ms", log_of(undisturbed / "ninth"), flags=re.M)[1]
    )
    resume(undisturbed, dataset, tmp_path / "o")
    after = float(
        re.search(r"^step:12/.* train_time:(\d+)ms", log_of(tmp_path / "o"), flags=re.M)[1]
    )
    assert (
        float(re.search(r"train_s:(\S+)", log_of(tmp_path / "o"))[1]) * 1000 + 50 >= after > before
    )


def test_the_clock_of_a_resumed_run_has_no_more_time_than_it_had(undisturbed, dataset, tmp_path):
    """Its two seconds were over at the checkpoint: it takes no step more."""
    limit = {
        "iterations": 10**6,
        "train_seconds": 2.0,
        "log_every": 1000,
        "checkpoint_every": 10**6,
    }
    assert run_script(*flags(data_dir=dataset, out=tmp_path / "o", **(RUN | limit))).returncode == 0
    steps = re.search(r"steps:(\d+)", log_of(tmp_path / "o"))[1]
    done = resume(undisturbed, dataset, tmp_path / "o", **limit)
    assert done.returncode == 0, done.stderr
    assert re.search(r"steps:(\d+)", log_of(tmp_path / "o"))[1] == steps


def test_a_second_run_in_the_same_folder_is_the_one_that_goes_on(undisturbed, dataset, tmp_path):
    """Its first checkpoints are newer than the last ones of the run before, though their steps are lower."""
    shutil.copytree(undisturbed / "whole", tmp_path / "o")
    (tmp_path / "o/train.log").unlink()
    old = set(checkpoints(tmp_path / "o").values())
    command = [
        sys.executable,
        str(ROOT / "train_gpt.py"),
        *flags(data_dir=dataset, out=tmp_path / "o", **RUN),
    ]
    process = subprocess.Popen(
        command, env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )
    wait_for("checkpoint step:3 ", tmp_path / "o")
    process.kill()
    process.wait()
    steps = {step for step, path in checkpoints(tmp_path / "o").items() if path not in old}
    assert steps and min(steps) < 12
    done = resume(undisturbed, dataset, tmp_path / "o")
    assert done.returncode == 0 and f"resume step:{max(steps)} " in done.stdout
    assert result_of(tmp_path / "o") == result_of(undisturbed / "whole")


def test_writing_takes_no_training_time(dataset, tmp_path, monkeypatch):
    cfg = dataclasses.replace(BASE, iterations=3, checkpoint_every=1, out=str(tmp_path))
    rt = tg.Runtime(log_path=tmp_path / "train.log")
    rt.log("begun")
    write = tg.write_atomically
    monkeypatch.setattr(tg, "write_atomically", lambda *args: (time.sleep(1.5), write(*args)))
    seconds = tg.train(tg.GPT(cfg), tg.open_dataset(dataset, cfg, rt), cfg, rt)[1]
    with np.load(checkpoints(tmp_path)[3]) as arrays:
        assert seconds < 3 and arrays["progress"][3] == pytest.approx(seconds, abs=0.5)


@pytest.mark.parametrize("layers", [(0, 4), (4, 4), (0, 1)])
def test_a_model_without_skips_trains(layers, dataset, tmp_path):
    """Its skip weights are a parameter without elements or gradient."""
    encoder, count = layers
    done = run_script(
        *flags(
            data_dir=dataset,
            out=tmp_path / "o",
            num_encoder_layers=encoder,
            num_layers=count,
            xsa_layers=1,
            iterations=2,
        ),
        nproc=2,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_newest_checkpoint_is_the_last_one_written_whatever_the_clock_says(tmp_path):
    state = {"weight.0": torch.zeros(3)}
    saved = tg.Checkpoints(
        "run",
        state,
        dataclasses.replace(BASE, out=str(tmp_path)),
        tg.Runtime(log_path=tmp_path / "train.log"),
    )
    (tmp_path / "train.log").write_text("begun\n")
    for step in (7, 8, 2, 3):  # a run, and another one in the same folder
        state["weight.0"].fill_(step)
        assert saved.save(step, 32 * step, 0, 0.5)
        for path in saved.find():
            os.utime(path, (time.time() + 600 - step, time.time() + 600 - step))
    assert (
        list(checkpoints(tmp_path)) == [2, 3]
        and saved.load() == (3, 96, 0, 0.5)
        and state["weight.0"].tolist() == [3, 3, 3]
    )


def test_a_damaged_checkpoint_is_passed_over(undisturbed, dataset, tmp_path):
    shutil.copytree(undisturbed / "whole", tmp_path / "o")
    newest = checkpoints(tmp_path / "o")[12]
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1
    newest.write_bytes(raw)
    done = resume(undisturbed, dataset, tmp_path / "o")
    assert done.returncode == 0 and "resume step:9 " in done.stdout
    assert result_of(tmp_path / "o") == result_of(undisturbed / "whole")


def damage_all(out: Path) -> None:
    for path in out.glob("checkpoint_*.npz"):
        path.write_bytes(path.read_bytes()[:-1])


def forge(out: Path) -> None:
    """The right name for the wrong bytes."""
    for path in out.glob("checkpoint_*.npz"):
        raw = path.read_bytes()[:5000]
        path.unlink()
        (out / f"{path.stem[:-64]}{tg.hashlib.sha256(raw).hexdigest()}.npz").write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "changes", "expected"),
    [
        (damage_all, {}, "expected a whole checkpoint of this code, config, seed and data"),
        (forge, {}, "expected a checkpoint, found BadZipFile"),
        (
            lambda out: None,
            {"seed": 2},
            "expected a whole checkpoint of this code, config, seed and data",
        ),
        (
            lambda out: None,
            {"iterations": 13},
            "expected a whole checkpoint of this code, config, seed and data",
        ),
    ],
)
def test_what_no_run_can_go_on_from_is_refused(
    damage, changes, expected, undisturbed, dataset, tmp_path
):
    shutil.copytree(undisturbed / "ninth", tmp_path / "o")
    before = log_of(tmp_path / "o")
    damage(tmp_path / "o")
    done = resume(undisturbed, dataset, tmp_path / "o", **changes)
    assert done.returncode == 2 and re.fullmatch(
        rf"error: .*checkpoint_\S+: {expected}.*\n", done.stderr
    ), done.stderr
    assert (
        before in (tmp_path / "o/train.log.previous").read_text()
    )  # the log of the run that was there


def test_without_a_checkpoint_a_run_begins(dataset, undisturbed, tmp_path):
    done = run_script(*flags(data_dir=dataset, out=tmp_path / "o", **(RUN | {"resume": 1})))
    assert (
        done.returncode == 0
        and "resume step" not in done.stdout
        and result_of(tmp_path / "o") == result_of(undisturbed / "whole")
    )


def test_a_full_disk_costs_checkpoints_but_no_run(tiny_disk, dataset, undisturbed):
    """Log and artifact fit, one checkpoint of 0.6 MB does, a second does not."""
    done = run_script(*flags(data_dir=dataset, out=tiny_disk / "o", **RUN))
    assert done.returncode == 0, done.stderr
    assert "checkpoint not written: " in done.stdout and "No space left on device" in done.stdout
    assert result_of(tiny_disk / "o") == result_of(undisturbed / "whole")
    assert all(
        tg.sha256_file(p) == p.stem[-64:] for p in checkpoints(tiny_disk / "o").values()
    ) and not list(tiny_disk.glob("o/.*"))


def test_a_disk_too_full_for_the_artifact_leaves_what_was_there(tiny_disk, dataset):
    assert run_script(*flags(data_dir=dataset, out=tiny_disk / "o")).returncode == 0
    log, artifact = (
        (tiny_disk / "o/train.log").read_bytes(),
        (tiny_disk / "o/artifact.bin").read_bytes(),
    )
    fill(tiny_disk)
    done = run_script(*flags(data_dir=dataset, out=tiny_disk / "o"))
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "No space left on device" in done.stderr
    )
    assert (tiny_disk / "o/artifact.bin").read_bytes() == artifact
    assert log in [p.read_bytes() for p in tiny_disk.glob("o/train.log*")]
