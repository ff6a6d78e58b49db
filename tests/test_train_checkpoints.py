"""Checkpoints: an interrupted run ends as an undisturbed one; damaged ones are refused."""

import math
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fill, flags, run_script
from runs_support import (
    checkpoints,
    log_of,
    result_field,
    result_of,
    start_script,
    step_losses,
    steps_of,
    wait_for,
)
from train_support import tiny

import train_gpt as tg

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
    folder: Path, dataset: Path, out: Path, nproc: int = 1, **changes: object
) -> subprocess.CompletedProcess:
    """--resume 1 in `out`, which begins as a copy of the run's folder at its ninth step."""
    if not out.exists():
        shutil.copytree(folder / "ninth", out)
    settings = RUN | {"resume": 1} | changes
    return run_script(*flags(data_dir=dataset, out=out, **settings), nproc=nproc)


def assert_same_run(out: Path, whole: Path) -> None:
    assert steps_of(out) == steps_of(whole)
    assert result_of(out) == result_of(whole)


def test_a_resumed_run_is_the_undisturbed_one_bit_by_bit(undisturbed, dataset, tmp_path):
    out, whole = tmp_path / "o", undisturbed / "whole"
    done = resume(undisturbed, dataset, out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resume step:9 " in log_of(out)
    assert_same_run(out, whole)
    assert (out / "artifact.bin").read_bytes() == (whole / "artifact.bin").read_bytes()
    with np.load(checkpoints(whole)[12]) as a, np.load(checkpoints(out)[12]) as b:
        assert set(a) == set(b) and len(a) > 100
        tensors = set(a) - {"log", "progress"}
        assert [name for name in tensors if a[name].tobytes() != b[name].tobytes()] == []
        step, row, snapshots = 12, 12 * 32, 6
        assert a["progress"][:3].tolist() == [step, row, snapshots]
        assert b["progress"][:3].tolist() == [step, row, snapshots]


def test_a_run_killed_before_its_export_goes_on_with_the_export(undisturbed, dataset, tmp_path):
    out = shutil.copytree(undisturbed / "whole", tmp_path / "o")
    (out / "artifact.bin").unlink()
    done = resume(undisturbed, dataset, out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resume step:12 " in done.stdout and "train_loss" not in done.stdout
    assert_same_run(out, undisturbed / "whole")


def test_another_number_of_ranks_goes_on(undisturbed, dataset, tmp_path):
    done = resume(undisturbed, dataset, tmp_path / "o", nproc=2)
    assert done.returncode == 0, done.stderr[-2000:]
    resumed, whole = step_losses(tmp_path / "o"), step_losses(undisturbed / "whole")
    assert resumed[:9] == whole[:9]
    np.testing.assert_allclose(resumed, whole, rtol=1e-3)


def train_time(step: int, out: Path) -> float:
    """Milliseconds at which a step was logged."""
    return float(re.search(rf"^step:{step}/.* train_time:(\d+)ms", log_of(out), flags=re.M)[1])


def test_elapsed_time_goes_on(undisturbed, dataset, tmp_path):
    out = tmp_path / "o"
    resume(undisturbed, dataset, out)
    assert train_time(12, out) > train_time(9, undisturbed / "ninth")
    assert float(result_field(out, "train_s")) * 1000 + 50 >= train_time(12, out)


def test_the_clock_of_a_resumed_run_has_no_more_time_than_it_had(undisturbed, dataset, tmp_path):
    """Its two seconds were over at the checkpoint: it takes no step more."""
    limit = {"iterations": 10**6, "train_seconds": 2.0}
    limit |= {"log_every": 1000, "checkpoint_every": 10**6}
    out = tmp_path / "o"
    assert run_script(*flags(data_dir=dataset, out=out, **(RUN | limit))).returncode == 0
    steps = result_field(out, "steps")
    done = resume(undisturbed, dataset, out, **limit)
    assert done.returncode == 0, done.stderr
    assert result_field(out, "steps") == steps


def test_a_second_run_in_the_same_folder_is_the_one_that_goes_on(undisturbed, dataset, tmp_path):
    """Its first checkpoints are newer than the last ones of the run before it.

    Their steps are lower.
    """
    out = shutil.copytree(undisturbed / "whole", tmp_path / "o")
    (out / "train.log").unlink()
    old = set(checkpoints(out).values())
    settings = flags(data_dir=dataset, out=out, **RUN)
    process = start_script(*settings, folder=tmp_path / "printed")
    wait_for("checkpoint step:3 ", out)
    process.kill()
    process.communicate()
    steps = {step for step, path in checkpoints(out).items() if path not in old}
    assert steps and min(steps) < 12
    done = resume(undisturbed, dataset, out)
    assert done.returncode == 0 and f"resume step:{max(steps)} " in done.stdout
    assert result_of(out) == result_of(undisturbed / "whole")


def test_writing_takes_no_training_time(dataset, tmp_path, monkeypatch):
    cfg = tiny(iterations=3, checkpoint_every=1, out=str(tmp_path), data_dir=str(dataset))
    log = tg.Log(tmp_path / "train.log")
    log("begun")
    write = tg.write_atomically

    def write_slowly(*args: object) -> None:
        time.sleep(1.5)
        write(*args)

    monkeypatch.setattr(tg, "write_atomically", write_slowly)
    data = tg.open_dataset(cfg, tg.Ranks())
    progress = tg.train(tg.GPT(cfg.model), data, cfg, tg.Ranks(), log)
    assert progress.seconds < 3
    with np.load(checkpoints(tmp_path)[3]) as arrays:
        assert arrays["progress"][3] == pytest.approx(progress.seconds, abs=0.5)


@pytest.mark.parametrize("layers", [(0, 4), (4, 4), (0, 1)])
def test_a_model_without_skips_trains(layers, dataset, tmp_path):
    """Its skip weights are a parameter without elements or gradient."""
    encoder, count = layers
    shape = {"num_encoder_layers": encoder, "num_layers": count, "xsa_layers": 1}
    settings = flags(data_dir=dataset, out=tmp_path / "o", iterations=2, **shape)
    done = run_script(*settings, nproc=2)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_newest_checkpoint_is_the_last_one_written_whatever_the_clock_says(tmp_path):
    state = {"weight.0": torch.zeros(3)}
    saved = tg.Checkpoints("run", state, tiny(out=str(tmp_path)), tg.Ranks())
    log = tg.Log(tmp_path / "train.log")
    log("begun")
    for step in (7, 8, 2, 3):  # a run, and another one in the same folder
        state["weight.0"].fill_(step)
        assert saved.save(tg.Checkpoint(step, 32 * step, 0, 0.5), log)
        backwards = time.time() + 600 - step
        for name in saved.find():
            os.utime(tmp_path / str(name), (backwards, backwards))
    assert list(checkpoints(tmp_path)) == [2, 3]
    assert saved.load(log) == tg.Checkpoint(3, 96, 0, 0.5)
    assert state["weight.0"].tolist() == [3, 3, 3]


def test_a_damaged_checkpoint_is_passed_over(undisturbed, dataset, tmp_path):
    out = shutil.copytree(undisturbed / "whole", tmp_path / "o")
    newest = checkpoints(out)[12]
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1
    newest.write_bytes(raw)
    done = resume(undisturbed, dataset, out)
    assert done.returncode == 0 and "resume step:9 " in done.stdout
    assert result_of(out) == result_of(undisturbed / "whole")


def leave_alone(out: Path) -> None:
    pass


def damage_all(out: Path) -> None:
    for path in out.glob("checkpoint_*.npz"):
        path.write_bytes(path.read_bytes()[:-1])


def forge(out: Path) -> None:
    """The right name for the wrong bytes."""
    for path in out.glob("checkpoint_*.npz"):
        raw = path.read_bytes()[:5000]
        path.unlink()
        digest = tg.hashlib.sha256(raw).hexdigest()
        (out / f"{path.stem[:-64]}{digest}.npz").write_bytes(raw)


NOT_THIS_RUN = "expected a whole checkpoint of this code, config, seed and data"


@pytest.mark.parametrize(
    ("damage", "changes", "expected"),
    [
        (damage_all, {}, NOT_THIS_RUN),
        (forge, {}, "expected a checkpoint, found BadZipFile"),
        (leave_alone, {"seed": 2}, NOT_THIS_RUN),
        (leave_alone, {"iterations": 13}, NOT_THIS_RUN),
    ],
)
def test_what_no_run_can_go_on_from_is_refused(
    damage, changes, expected, undisturbed, dataset, tmp_path
):
    out = shutil.copytree(undisturbed / "ninth", tmp_path / "o")
    before = log_of(out)
    damage(out)
    done = resume(undisturbed, dataset, out, **changes)
    assert done.returncode == 2
    message = rf"error: .*checkpoint_\S+: {expected}.*\n"
    assert re.fullmatch(message, done.stderr), done.stderr
    # the log of the run that was there
    assert before in (out / "train.log.previous").read_text()


def test_without_a_checkpoint_a_run_begins(dataset, undisturbed, tmp_path):
    settings = RUN | {"resume": 1}
    done = run_script(*flags(data_dir=dataset, out=tmp_path / "o", **settings))
    assert done.returncode == 0 and "resume step" not in done.stdout
    assert result_of(tmp_path / "o") == result_of(undisturbed / "whole")


@pytest.fixture
def disk_size(undisturbed) -> int:
    """Log and artifact fit, one checkpoint does, a second does not."""
    whole = undisturbed / "whole"
    checkpoint = max(path.stat().st_size for path in checkpoints(whole).values())
    others = [(whole / name).stat().st_size for name in ("train.log", "artifact.bin")]
    return sum(others) + checkpoint + checkpoint // 4


def test_a_full_disk_costs_checkpoints_but_no_run(tiny_disk, dataset, undisturbed):
    out = tiny_disk / "o"
    done = run_script(*flags(data_dir=dataset, out=out, **RUN))
    assert done.returncode == 0, done.stderr
    assert "checkpoint not written: " in done.stdout
    assert "No space left on device" in done.stdout
    assert result_of(out) == result_of(undisturbed / "whole")
    written = checkpoints(out).values()
    assert written and all(tg.sha256_file(path) == path.stem[-64:] for path in written)
    assert not list(out.glob(".*"))


def test_a_disk_too_full_for_the_artifact_leaves_what_was_there(tiny_disk, dataset):
    out = tiny_disk / "o"
    assert run_script(*flags(data_dir=dataset, out=out)).returncode == 0
    log = (out / "train.log").read_bytes()
    artifact = (out / "artifact.bin").read_bytes()
    fill(tiny_disk)
    done = run_script(*flags(data_dir=dataset, out=out))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
    assert (out / "artifact.bin").read_bytes() == artifact
    assert log in [path.read_bytes() for path in out.glob("train.log*")]


@pytest.mark.parametrize("bad", [[3, math.nan, 0, 1.0], [math.inf, 0, 0, 1.0], [3, -5, 0, 1], [3]])
def test_numbers_that_no_run_wrote_are_refused(bad, tmp_path):
    """The right name and sha256, and a log that must stay what it was."""
    log = tg.Log(tmp_path / "train.log")
    log("begun")
    saved = tg.Checkpoints("run", {"weight.0": torch.zeros(3)}, tiny(out=str(tmp_path)), tg.Ranks())
    arrays = {"weight.0": np.ones(3, np.float32), "log": np.zeros(9, np.uint8)}
    np.savez(tmp_path / "made.npz", progress=np.array(bad), **arrays)
    digest = tg.sha256_file(tmp_path / "made.npz")
    name = tg.CheckpointName(saved.run, 1, 3, digest)
    (tmp_path / "made.npz").rename(tmp_path / str(name))
    with pytest.raises(tg.UserError, match="expected a checkpoint, found ValueError progress"):
        saved.load(log)
    assert log.path.read_text() == "begun\n"


def test_the_names_of_checkpoints_are_read_as_they_are_written():
    name = tg.CheckpointName("0123456789ab", 7, 123, "f" * 64)
    assert tg.CheckpointName.parse(Path("folder") / str(name)) == name
    assert tg.CheckpointName.parse(Path("checkpoint_of_mine.npz")) is None
