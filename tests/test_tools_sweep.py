"""`python -m tools sweep`, on a script that trains in no time."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CLEAN_ENV, ROOT
from scipy import stats

from tools.__main__ import main
from tools.desk import pictures, queue

# Scores (rate - 2)² / 10 + depth / 100 + seed / 1000 above 1 bit per byte. `delay` is the time that
# a step takes, and a rate above 8 diverges.
STAND_IN = """\
import argparse, fcntl, hashlib, json, os, sys, time
from pathlib import Path

class UserError(Exception):
    pass

class Settings(dict):
    def flat(self):
        return dict(self)

PRESETS = {"docs_cpu": Settings(
    rate=1.0, depth=2, delay=0.0, iterations=4, train_seconds=0.0, size_cap=10**6,
    seed=1337, out="", resume=0, checkpoint_every=0, data_dir="",
)}
OWN = ("seed", "out", "resume", "checkpoint_every", "data_dir")

def parse_config(argv, environ):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--preset", choices=PRESETS, default="docs_cpu")
    preset = PRESETS["docs_cpu"]
    for name, default in preset.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default))
    given = vars(parser.parse_args(argv))
    del given["preset"]
    cfg = dict(preset)
    lines = ["config:preset docs_cpu"]
    for name, default in preset.items():
        value = given[name] if given[name] is not None else environ.get(name.upper(), default)
        cfg[name] = type(default)(value)
        if cfg[name] != default:
            lines.append(f"config:override {name}={cfg[name]} (default {default}, from flag)")
    if cfg["depth"] > 99:
        raise UserError("config: expected depth <= 99; change these flags")
    return cfg, [*lines, f"config sha256:{config_sha256(cfg)}"]

def config_sha256(cfg):
    shared = {name: value for name, value in cfg.items() if name not in OWN}
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()

def main(argv):
    cfg, lines = parse_config(argv, os.environ)
    source = Path(__file__).read_bytes()
    code = hashlib.sha256(source).hexdigest()
    out = Path(cfg["out"])
    (out / "starts").open("a").write("x")
    metrics = open(out / "metrics.jsonl", "a")
    fcntl.flock(metrics, fcntl.LOCK_EX)
    log = open(out / "train.log", "w", buffering=1)
    print("log_format:1", file=log)
    print(f"===== source train_gpt.py bytes:{len(source)} sha256:{code} =====", file=log)
    print(source.decode(), "===== end source =====", "env python:3", *lines, sep="\\n", file=log)
    print("data version:" + "a" * 64, "warmup steps:0", sep="\\n", file=log)
    if cfg["rate"] > 8:
        print("error: training: expected finite losses, found others", file=sys.stderr)
        return 2
    for step in range(1, cfg["iterations"] % 1000 + 1):
        time.sleep(cfg["delay"])
        print(f"step:{step}/{cfg['iterations']} train_loss:{4 / step:.6f} train_time:9ms", file=log)
    bpb = 1 + (cfg["rate"] - 2) ** 2 / 10 + cfg["depth"] / 100 + cfg["seed"] / 1000
    size = min(cfg["size_cap"], 5000)
    print(
        f"result val_loss:2.0 val_bpb:{bpb:.8f} nats:9.0 scored_tokens:5 scored_bytes:9 "
        f"steps:4 train_s:{cfg['train_seconds'] or 1.5} eval_s:0.5 artifact_bytes:{size} "
        f"code_bytes:0 bytes_total:{size} code_sha256:{code} seed:{cfg['seed']}",
        file=log,
    )
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def script(tmp_path, monkeypatch, request) -> Path:
    """In the current folder. Only a test marked `pictures` draws."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(queue, "POLL_S", 0.01)
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(pictures, "save_picture", lambda *arguments: None)
    path = tmp_path / "train_gpt.py"
    path.write_text(STAND_IN)
    return path


def sweep(capsys, *argv: object, code: int = 0) -> str:
    """What is printed."""
    capsys.readouterr()
    words = ["sweep", *argv, "--script", "train_gpt.py"]
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    return captured.err if code == 2 else captured.out


def starts(out: str) -> dict[str, int]:
    """How often each run was started."""
    return {path.parent.name: path.stat().st_size for path in Path(out).glob("*/starts")}


@pytest.mark.pictures
def test_three_values_and_two_seeds_make_a_table_and_a_picture(script, capsys, monkeypatch):
    """Value 1 is the base itself. What the environment says of settings does not count."""
    monkeypatch.setenv("DEPTH", "7")
    said = sweep(capsys, "rate=1,2,4", "--seeds", 1, 5, "--out", "runs/rate")
    assert "3 experiments, 6 runs" in said
    assert re.search(r"\[5/6\] rate=2_seed5: val_bpb 1\.02500 in \d s, about \d s left", said)
    begun = starts("runs/rate")
    assert {name.rpartition("_")[0] for name in begun} == {"base", "rate=2", "rate=4"}
    assert len(begun) == 6 and set(begun.values()) == {1}
    rows = [line.split("  ") for line in said.splitlines() if line.startswith("rate=")]
    assert [row[0] for row in rows] == ["rate=1.0", "rate=2.0", "rate=4.0"]
    assert "1.12300" in rows[0] and "base" in " ".join(rows[0])
    assert "-0.10000" in rows[1] and "+0.30000" in " ".join(rows[2])
    table = Path("runs/rate/table.md").read_text()
    assert "| rate=2.0 | 2 | 1.02300 | 0.00283 | -0.10000 |" in table
    values = list(csv.DictReader(Path("runs/rate/results.csv").read_text().splitlines()))
    assert [row["rate"] for row in values] == ["", "2.0", "4.0"] * 2
    assert Path("runs/rate/picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_runs_nothing_twice_and_more_seeds_only_what_is_new(script, capsys):
    argv = ("rate=2", "--out", "runs/s", "--seeds")
    sweep(capsys, *argv, 1)
    said = sweep(capsys, *argv, 1, 2)
    assert "[2/4] rate=2_seed1: done before" in said and "[4/4] rate=2_seed2: val_bpb" in said
    assert set(starts("runs/s").values()) == {1}
    assert "no test: every seed differs alike" in said


def test_p_is_that_of_the_paired_test(script, capsys, tmp_path):
    """Half of the seeds gain more than the others."""
    changed = STAND_IN.replace("** 2 / 10", "** 2 / 10 * (1 + cfg['seed'] % 2)")
    script.write_text(changed)
    said = sweep(capsys, "rate=2", "--seeds", 1, 2, 3, "--out", "runs/p")
    expected = stats.ttest_rel([0.0, 0.0, 0.0], [0.2, 0.1, 0.2]).pvalue
    assert re.search(rf" {expected:.2g} +paired t, 3 seeds", said), said


def test_one_change_at_a_time_on_a_fixed_base(script, capsys):
    argv = ("rate=2,3", "depth=5", "--each", "--fix", "delay=0.001", "--out", "runs/parts")
    said = sweep(capsys, *argv)
    assert set(starts("runs/parts")) == {
        "base_seed1337",
        "rate=2_seed1337",
        "rate=3_seed1337",
        "depth=5_seed1337",
    }
    logs = [path.read_text() for path in Path("runs/parts").glob("*/train.log")]
    assert all("config:override delay=0.001" in log for log in logs)
    assert "rate=1.0, depth=5" in said and "no test: one seed" in said


def test_equal_time_and_equal_bytes(script, capsys):
    argv = ("rate=2", "--train-seconds", 2.5, "--bytes", 1234, "--out", "runs/equal")
    said = sweep(capsys, *argv)
    rows = [line.split() for line in said.splitlines() if line.startswith("rate=")]
    assert [row[-2:] for row in rows] == [["2.5", "1,234"], ["2.5", "1,234"]]
    both = sweep(capsys, "rate=2", *argv[1:], "--fix", "size_cap=9", code=2)
    assert "--fix size_cap: expected here or by its own flag, found both" in both


def test_a_run_that_fails_is_told_and_the_others_go_on(script, capsys):
    said = sweep(capsys, "rate=9,2", "--out", "runs/f", code=1)
    assert "failed: rate=9_seed1337: training: expected finite losses, found others" in said
    assert "rate=2_seed1337: val_bpb 1.0" not in said  # the seed adds 1.337
    assert "rate=2_seed1337: val_bpb 2.35700" in said
    assert re.search(r"^rate=9\.0 +0 .*no score", said, flags=re.M)
    assert "* failed: rate=9_seed1337" in Path("runs/f/table.md").read_text()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["rate"], "rate: expected SETTING=VALUE,VALUE"),
        (["rate=1,"], "rate=1,: expected SETTING=VALUE,VALUE"),
        (["rate=1", "--rate=2"], "unrecognized arguments|expected each setting once"),
        (["no_such=1"], "the script refuses these settings"),
        (["rate=x"], "the script refuses these settings"),
        (["depth=100"], "expected depth <= 99"),
        (["rate=2", "--fix", "rate=3"], "rate: expected fixed or varied, found both"),
        (["rate=2", "--preset", "none"], "expected one of docs_cpu, found 'none'"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(argv, expected, script, capsys):
    try:
        said = sweep(capsys, *argv, "--out", "runs/x", code=2)
    except SystemExit:  # argparse
        said = capsys.readouterr().err
    assert re.search(expected, said), said
    assert not Path("runs").exists()


def test_two_scripts_or_two_bases_do_not_mix(script, capsys):
    sweep(capsys, "rate=2", "--out", "runs/x")
    said = sweep(capsys, "rate=2", "--out", "runs/x", "--fix", "depth=3", code=2)
    assert "expected base_seed1337 with the settings that it has there" in said
    said = sweep(capsys, "rate=2", "--out", "runs/x", "--data-dir", "other", code=2)
    assert "expected --data-dir to be left out, found other; give another --out" in said
    script.write_text(STAND_IN + "# changed\n")
    said = sweep(capsys, "rate=2", "--out", "runs/x", code=2)
    assert "runs of two scripts do not compare: give another --out" in said


def test_a_dry_run_prints_commands_that_run(script, capsys):
    said = sweep(capsys, "rate=2", "--out", "runs/dry", "--dry-run")
    commands = said.splitlines()[1:]
    assert len(commands) == 2 and not Path("runs").exists()
    Path("runs/dry/rate=2_seed1337").mkdir(parents=True)
    assert subprocess.run(commands[1], shell=True).returncode == 0
    assert Path("runs/dry/rate=2_seed1337/train.log").is_file()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_sweep_goes_on(ending, script, capsys):
    """In its second run. A killed sweep leaves that run alone, and it may still be at work."""
    argv = ["rate=2", "--fix", "delay=0.2", "--out", "runs/k"]
    command = [sys.executable, "-m", "tools", "sweep", *argv, "--script", "train_gpt.py"]
    environment = CLEAN_ENV | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not Path("runs/k/rate=2_seed1337/train.log").is_file():
        assert time.monotonic() < until and child.poll() is None
        time.sleep(0.02)
    child.send_signal(ending)
    _, said = child.communicate(timeout=60)
    if ending == signal.SIGTERM:
        assert child.returncode == 130 and "interrupted; this goes on: " in said
        assert "-m tools sweep rate=2 --fix delay=0.2 --out runs/k" in said
    else:
        wait_for_result(Path("runs/k/rate=2_seed1337/train.log"), until)
    said = sweep(capsys, *argv)
    assert "[1/2] base_seed1337: done before" in said
    assert ("[2/2] rate=2_seed1337: val_bpb" in said) == (ending == signal.SIGTERM)
    assert starts("runs/k")["rate=2_seed1337"] == 1 + (ending == signal.SIGTERM)


def wait_for_result(log: Path, until: float) -> None:
    while "\nresult " not in log.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_run_that_is_still_at_work_is_not_disturbed(script, capsys):
    sweep(capsys, "rate=2", "--out", "runs/w")
    folder = Path("runs/w/rate=2_seed1337")
    log = folder / "train.log"
    log.write_text(log.read_text().rpartition("result ")[0])
    (folder / "metrics.jsonl").unlink()  # older than that file: the log's age decides
    said = sweep(capsys, "rate=2", "--out", "runs/w", code=2)
    assert f"{folder}: expected no run at work, found one; wait for it or end it" in said
    old = time.time() - 1000
    os.utime(log, (old, old))
    assert "[2/2] rate=2_seed1337: val_bpb" in sweep(capsys, "rate=2", "--out", "runs/w")
    assert json.loads(Path("runs/w/sweep.json").read_text())["preset"] == "docs_cpu"
