"""Checkpoints: an interrupted run ends as an undisturbed one, and nothing damaged or foreign is gone on from."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLEAN_ENV, ROOT, TINY, fill, flags, run_script

import train_gpt as tg

BASE = dataclasses.replace(tg.Config(), **TINY)
RUN = {"iterations": 12, "swa_every": 2, "swa_lr_scale": 2.0, "qat_lr_scale": 0.9, "checkpoint_every": 3, "grad_clip": 1.0, "warmup_steps": 1}


def log_of(out: Path) -> str:
    return (out / "train.log").read_text().rpartition("===== end source =====")[2]


def steps_of(out: Path) -> list[str]:
    """Losses without times."""
    return re.findall(r"^(step:\d+/\d+ train_loss:\S+ lr_scale:\S+)", log_of(out), flags=re.M)


def result_of(out: Path) -> str:
    return re.search(r"^result .*?nats:\S+", log_of(out), flags=re.M)[0]


def checkpoints(out: Path) -> dict[int, Path]:
    return {int(p.name.split("_")[2]): p for p in sorted(out.glob("checkpoint_*.npz"))}


def wait_for(text: str, out: Path) -> None:
    """Until the log says it, at most 90 s."""
    until = time.monotonic() + 90
    while time.monotonic() < until:
        if (out / "train.log").exists() and text in log_of(out):
            return
        time.sleep(0.01)
    raise AssertionError(f"{text!r} does not come")


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


def resume(folder: Path, dataset: Path, out: Path, nproc: int = 1, source: str = "ninth", **changes: object) -> subprocess.CompletedProcess:
    if not out.exists():
        shutil.copytree(folder / source, out)
    return run_script(*flags(data_dir=dataset, out=out, **(RUN | {"resume": 1} | changes)), nproc=nproc)


def test_a_resumed_run_is_the_undisturbed_one_bit_by_bit(undisturbed, dataset, tmp_path):
    done = resume(undisturbed, dataset, tmp_path / "o")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resume step:9 " in log_of(tmp_path / "o") and steps_of(tmp_path / "o") == steps_of(undisturbed / "whole")
    assert (tmp_path / "o/artifact.bin").read_bytes() == (undisturbed / "whole/artifact.bin").read_bytes()
    assert result_of(tmp_path / "o") == result_of(undisturbed / "whole")
    with np.load(checkpoints(undisturbed / "whole")[12]) as a, np.load(checkpoints(tmp_path / "o")[12]) as b:
        assert set(a) == set(b) and len(a) > 100
        different = [name for name in a if name not in ("log", "progress") and a[name].tobytes() != b[name].tobytes()]
        assert different == [] and a["progress"][:3].tolist() == b["progress"][:3].tolist() == [12, 12 * 32, 6]


def test_a_run_killed_before_its_export_goes_on_with_the_export(undisturbed, dataset, tmp_path):
    shutil.copytree(undisturbed / "whole", tmp_path / "o")
    (tmp_path / "o/artifact.bin").unlink()
    done = resume(undisturbed, dataset, tmp_path / "o")
    assert done.returncode == 0 and "resume step:12 " in done.stdout and "train_loss" not in done.stdout
    assert result_of(tmp_path / "o") == result_of(undisturbed / "whole") and steps_of(tmp_path / "o") == steps_of(undisturbed / "whole")


def test_another_number_of_ranks_goes_on(undisturbed, dataset, tmp_path):
    done = resume(undisturbed, dataset, tmp_path / "o", nproc=2)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [[float(line.split("train_loss:")[1].split()[0]) for line in steps_of(out)] for out in (tmp_path / "o", undisturbed / "whole")]
    assert losses[0][:9] == losses[1][:9]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_elapsed_time_goes_on(undisturbed, dataset, tmp_path):
    before = float(re.search(r"^step:9/.* train_time:(\d+)ms", log_of(undisturbed / "ninth"), flags=re.M)[1])
    resume(undisturbed, dataset, tmp_path / "o")
    after = float(re.search(r"^step:12/.* train_time:(\d+)ms", log_of(tmp_path / "o"), flags=re.M)[1])
    assert float(re.search(r"train_s:(\S+)", log_of(tmp_path / "o"))[1]) * 1000 + 50 >= after > before


def test_the_clock_of_a_resumed_run_has_no_more_time_than_it_had(undisturbed, dataset, tmp_path):
    """Its two seconds were over at the checkpoint: it takes no step more."""
    limit = {"iterations": 10**6, "train_seconds": 2.0, "log_every": 1000, "checkpoint_every": 10**6}
    assert run_script(*flags(data_dir=dataset, out=tmp_path / "o", **(RUN | limit))).returncode == 0
    steps = re.search(r"steps:(\d+)", log_of(tmp_path / "o"))[1]
    done = resume(undisturbed, dataset, tmp_path / "o", **limit)
    assert done.returncode == 0, done.stderr
    assert re.search(r"steps:(\d+)", log_of(tmp_path / "o"))[1] == steps


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_ends_the_run(number, dataset, tmp_path):
    long = {"iterations": 3000, "log_every": 10**6, "checkpoint_every": 0, "eval_stride": 32}
    command = [sys.executable, str(ROOT / "train_gpt.py"), *flags(data_dir=dataset, out=tmp_path / "o", **long)]
    process = subprocess.Popen(command, env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for("step:10/", tmp_path / "o")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == "" and "stopped step:" in out
    (step,) = checkpoints(tmp_path / "o")
    assert 10 <= step < 3000 and not (tmp_path / "o/artifact.bin").exists()
    again = subprocess.Popen([*command, "--resume", "1"], env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(f"resume step:{step} ", tmp_path / "o")
    again.send_signal(number)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0 and err == "" and list(checkpoints(tmp_path / "o"))[-1] >= step


def test_ranks_under_torchrun_stop_together(dataset, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "train_gpt.py")]
    command = [*launcher, *flags(data_dir=dataset, out=tmp_path / "o", iterations=10**5, log_every=10**6)]
    process = subprocess.Popen(command, env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for("step:10/", tmp_path / "o")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert "stopped step:" in out and len(checkpoints(tmp_path / "o")) == 1, out[-3000:]
    assert 'train_gpt.py", line' not in out  # torchrun has a traceback of its own, the script has none


def test_one_rank_that_is_told_to_stop_stops_all(dataset, tmp_path):
    """The second of two, as where its machine is preempted."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "train_gpt.py")]
    command = [*launcher, *flags(data_dir=dataset, out=tmp_path / "o", iterations=10**5, log_every=10**6)]
    process = subprocess.Popen(command, env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for("step:10/", tmp_path / "o")
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    ranks = {dict(pair.split("=", 1) for pair in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in pair).get("RANK"): pid for pid in children}
    os.kill(int(ranks["1"]), signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped step:" in out and len(checkpoints(tmp_path / "o")) == 1, out[-3000:]


def test_a_second_run_in_the_same_folder_is_the_one_that_goes_on(undisturbed, dataset, tmp_path):
    """Its first checkpoints are newer than the last ones of the run before, though their steps are lower."""
    shutil.copytree(undisturbed / "whole", tmp_path / "o")
    (tmp_path / "o/train.log").unlink()
    old = set(checkpoints(tmp_path / "o").values())
    command = [sys.executable, str(ROOT / "train_gpt.py"), *flags(data_dir=dataset, out=tmp_path / "o", **RUN)]
    process = subprocess.Popen(command, env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
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


def test_a_signal_that_comes_too_late_for_a_checkpoint_ends_the_run(dataset, tmp_path, monkeypatch):
    cfg = dataclasses.replace(BASE, iterations=3, checkpoint_every=3, out=str(tmp_path))
    rt, got = tg.Runtime(log_path=tmp_path / "train.log"), []
    rt.log("begun")
    write = tg.write_atomically
    monkeypatch.setattr(tg, "write_atomically", lambda *args: (os.kill(os.getpid(), signal.SIGTERM), write(*args)))
    before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    try:
        tg.train(tg.GPT(cfg), tg.open_dataset(dataset, cfg, rt), cfg, rt)
        assert got == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


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
        (lambda out: None, {"seed": 2}, "expected a whole checkpoint of this code, config, seed and data"),
        (lambda out: None, {"iterations": 13}, "expected a whole checkpoint of this code, config, seed and data"),
    ],
)
def test_what_no_run_can_go_on_from_is_refused(damage, changes, expected, undisturbed, dataset, tmp_path):
    shutil.copytree(undisturbed / "ninth", tmp_path / "o")
    before = log_of(tmp_path / "o")
    damage(tmp_path / "o")
    done = resume(undisturbed, dataset, tmp_path / "o", **changes)
    assert done.returncode == 2 and re.fullmatch(rf"error: .*checkpoint_\S+: {expected}.*\n", done.stderr), done.stderr
    assert before in (tmp_path / "o/train.log.previous").read_text()  # the log of the run that was there


def test_without_a_checkpoint_a_run_begins(dataset, undisturbed, tmp_path):
    done = run_script(*flags(data_dir=dataset, out=tmp_path / "o", **(RUN | {"resume": 1})))
    assert done.returncode == 0 and "resume step" not in done.stdout and result_of(tmp_path / "o") == result_of(undisturbed / "whole")


def test_a_run_that_diverges_names_step_rank_and_last_checkpoint(dataset, tmp_path):
    done = run_script(*flags(data_dir=dataset, out=tmp_path / "o", iterations=50, checkpoint_every=1, muon_lr=1e30, embed_lr=1e37, log_every=10))
    assert done.returncode == 2, done.stdout[-1000:]
    said = re.fullmatch(r"error: training: expected finite losses, gradients and weights, found others in step (\d+) on rank 0; .* (\S+)\n", done.stderr)
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
    done = run_script(*flags(data_dir=dataset, out=tmp_path / "o", micro_batch_tokens=128), nproc=2, script=script)
    assert done.returncode != 0 and done.stderr.count("error: training: ") == 1
    assert "found others in step 4 on rank 1" in done.stderr, done.stderr[-3000:]


def test_the_rank_that_diverged_first_is_named(monkeypatch):
    """Three ranks after step 9: the last one's loss has not been finite since step 6."""
    rt = tg.Runtime(rank=0, world_size=3)
    others = torch.tensor([[0.0, 2.5, float("nan")], [0.0, 9.0, 5.0]], dtype=torch.float64)
    monkeypatch.setattr(rt, "all_reduce", lambda seen: seen + others)
    saved = tg.Checkpoints("run", {"weight": torch.ones(3)}, BASE, rt)
    with pytest.raises(tg.UserError, match=r"found others in step 6 on rank 2; .* last good checkpoint: none"):
        tg.log_step(9, torch.tensor(2.0), torch.tensor(9), 1.0, 1.0, saved, BASE, rt)


def test_weights_that_are_not_finite_end_the_run(tmp_path):
    saved = tg.Checkpoints("run", {"weight": torch.tensor([1.0, float("inf")])}, BASE, tg.Runtime())
    with pytest.raises(tg.UserError, match=r"found others after step 9; "):
        tg.log_step(9, torch.tensor(2.0), torch.tensor(9), 1.0, 1.0, saved, BASE, tg.Runtime())


def test_a_full_disk_costs_checkpoints_but_no_run(tiny_disk, dataset, undisturbed):
    """Log and artifact fit, one checkpoint of 0.6 MB does, a second does not."""
    done = run_script(*flags(data_dir=dataset, out=tiny_disk / "o", **RUN))
    assert done.returncode == 0, done.stderr
    assert "checkpoint not written: " in done.stdout and "No space left on device" in done.stdout
    assert result_of(tiny_disk / "o") == result_of(undisturbed / "whole")
    assert all(tg.sha256_file(p) == p.stem[-64:] for p in checkpoints(tiny_disk / "o").values()) and not list(tiny_disk.glob("o/.*"))


def test_a_disk_too_full_for_the_artifact_leaves_what_was_there(tiny_disk, dataset):
    assert run_script(*flags(data_dir=dataset, out=tiny_disk / "o")).returncode == 0
    log, artifact = (tiny_disk / "o/train.log").read_bytes(), (tiny_disk / "o/artifact.bin").read_bytes()
    fill(tiny_disk)
    done = run_script(*flags(data_dir=dataset, out=tiny_disk / "o"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr
    assert (tiny_disk / "o/artifact.bin").read_bytes() == artifact
    assert log in [p.read_bytes() for p in tiny_disk.glob("o/train.log*")]
