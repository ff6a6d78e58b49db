"""`python -m tools runs`: what a person sees of runs that are done, at work, killed or old."""

import io
import json
import math
import re

import pytest
from records_support import FakeRun
from rich.console import Console
from scipy import stats

import train_gpt as tg
from tools.__main__ import main
from tools.desk.comparing import experiments_of
from tools.desk.reading import State, find_runs, read_run
from tools.desk.statistics import difference
from tools.desk.watching import duration, sparkline, view

LN2 = math.log(2)


def printed(capsys, *argv: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in argv]) == 0
    return capsys.readouterr().out


def refused(capsys, *argv: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in argv]) == 2
    return capsys.readouterr().err


def fake(folder, seed: int, bits: float, **changes: object):
    """A run that is done, with `bits` per byte."""
    return FakeRun(seed=seed, nats=2000 * LN2 * bits, **changes).write(folder)


def unfinished(folder, ending: str = "", **changes: object):
    """A log whose last line is cut in the middle of a step."""
    run = FakeRun(**changes)
    lines = [run.env, *run.settings(), run.data(), "warmup steps:0 time:0.0s"]
    lines += [*run.step_lines()[:4], ending]
    folder.mkdir(parents=True)
    log = run.head() + "\n".join(line for line in lines if line).encode()
    (folder / "train.log").write_bytes(log + b"\nstep:200/400 train_lo")
    return folder


def metrics_line(step: int, **changes: object) -> bytes:
    record = {"event": "step", "step": step, "steps": 400, "train_loss": 5.0 - step / 100}
    record |= {"tokens_per_s": 10_240.0, "lr_scale": 0.5, "train_s": step / 10, "left_s": 80.0}
    return json.dumps(record | changes).encode() + b"\n"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Four seeds of two experiments, and three runs without a result."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs"
    slower = {"config": "e" * 64, "overrides": ("depth=3",), "train_s": 99.0}
    for seed, bits, gap in ((1, 1.50, 0.03), (2, 1.52, 0.05)):
        fake(folder / f"a_seed{seed}", seed, bits)
        fake(folder / f"b_seed{seed}", seed, bits - gap, **slower)
    unfinished(folder / "killed", seed=7)
    (folder / "killed/metrics.jsonl").write_bytes(metrics_line(10) + b'{"event": "st')
    stopped = "stopped step:150 by a signal; --resume 1 goes on from the newest checkpoint"
    unfinished(folder / "stopped", stopped)
    (folder / "stopped/metrics.jsonl").write_bytes(b"")
    unfinished(folder / "old")
    return folder


def test_runs_are_listed_whatever_became_of_them(runs, capsys):
    """The list names runs/ by itself; a run without metrics.jsonl that still grows is at work."""
    lines = printed(capsys, "runs").splitlines()
    assert lines[0].split("  ")[0] == "run"
    rows = {line.split()[0]: line for line in lines[1:]}
    assert list(rows) == [f"runs/{path.name}" for path in sorted(runs.iterdir())]
    assert re.search(
        r"done +docs_cpu +2 +400 +1\.47000 +99\.0 +[\d,]+ +depth=3$", rows["runs/b_seed2"]
    )
    assert re.search(r"broken off +docs_cpu +7 +10/400", rows["runs/killed"])
    assert re.search(r"stopped +docs_cpu +1337 +150/400", rows["runs/stopped"])
    assert re.search(r"running: training +docs_cpu +1337 +150/400", rows["runs/old"])


def test_a_run_that_holds_its_lock_is_at_work(runs):
    metrics = tg.Metrics(runs / "killed/metrics.jsonl")
    assert read_run(runs / "killed").state is State.RUNNING
    metrics.close()
    assert read_run(runs / "killed").state is State.BROKEN_OFF


def test_half_a_line_in_metrics_is_left_out(runs):
    found = read_run(runs / "killed")
    assert [(point.step, point.train_loss) for point in found.points] == [(10, 4.9)]


@pytest.mark.parametrize("name", ["train.log", "metrics.jsonl"])
def test_a_run_is_read_wherever_its_files_end(name, tmp_path):
    """Every reader meets files that are being written."""
    fake(tmp_path, 1, 1.5)
    metrics = b"".join(map(metrics_line, range(10, 60, 10)))
    (tmp_path / "metrics.jsonl").write_bytes(metrics)
    whole = (tmp_path / name).read_bytes()
    for size in {*range(0, len(whole), 61), len(whole) - 1}:
        (tmp_path / name).write_bytes(whole[:size])
        found = read_run(tmp_path)
        assert terminal(found)
        assert (found.val_bpb is None) == (name == "train.log")


@pytest.mark.parametrize(
    "line",
    [b"\xff\x00\n", b"[1]\n", b'{"step": 5}\n', b'{"event": "step", "step": "x"}\n', b"[" * 99_999],
)
def test_what_is_no_record_is_left_out_of_metrics(line, runs):
    path = runs / "killed/metrics.jsonl"
    path.write_bytes(metrics_line(10) + line + b"\n" + metrics_line(20, train_loss=math.nan))
    found = read_run(runs / "killed")
    assert [point.step for point in found.points] == [10, 20]
    assert [point.train_loss for point in found.train_points()] == [4.9]
    assert found.latest["step"] == 10 and terminal(found)


def test_an_old_run_has_its_points_from_the_log(runs):
    points = read_run(runs / "a_seed1").points
    assert [point.step for point in points][:3] == [0, 50, 100]
    assert points[-1].val_loss == 2.9 and points[1].train_loss == pytest.approx(4.7788, abs=1e-4)


@pytest.mark.parametrize("command", ["runs", "sweep"])
def test_help_names_every_option(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0 and "runs the record's code" not in said
    options = {"runs": ("--compare", "--watch", "--plot"), "sweep": ("--seeds", "--each", "--fix")}
    assert all(option in said for option in options[command])


def test_what_holds_no_runs_is_refused(tmp_path, capsys):
    assert "expected a run or a folder of runs" in refused(capsys, "runs", tmp_path)
    fake(tmp_path / "x/one", 1, 1.5)
    fake(tmp_path / "x/two", 2, 1.5)
    said = refused(capsys, "runs", tmp_path / "x", "--compare")
    assert "found 1: these runs differ in their seeds alone" in said
    assert "expected one run at work, found none" in refused(capsys, "runs", tmp_path, "--watch")


def test_a_comparison_shows_settings_curves_and_paired_differences(runs, capsys):
    places = [f"runs/{name}" for name in ("a_seed1", "a_seed2", "b_seed1", "b_seed2")]
    said = printed(capsys, "runs", *places, "--compare")
    assert re.search(r"^ +A +B\ndepth +0 +3$", said, flags=re.M)
    assert re.search(r"A +█[▁-█]+ +3\.\d{4} at step 400 +runs/a_seed1", said)
    row = next(line for line in said.splitlines() if line.startswith("B depth=3"))
    expected = stats.ttest_rel([1.47, 1.47], [1.50, 1.52])
    low, high = expected.confidence_interval(0.95)
    cells = ["-0.04000", f"{low:+.5f} to {high:+.5f}", f"{expected.pvalue:.2g}"]
    assert re.search(" +".join(map(re.escape, [*cells, "paired t, 2 seeds"])), row)
    assert re.search(r"^A depth=0 +2 +1\.51000 +0\.01414 +base", said, flags=re.M)


def test_the_test_is_the_one_that_the_seeds_allow():
    base = {1: 1.50, 2: 1.52, 3: 1.53}
    welch = difference(base, {7: 1.49, 8: 1.48, 9: 1.50})
    expected = stats.ttest_ind([1.49, 1.48, 1.50], [1.50, 1.52, 1.53], equal_var=False)
    assert welch.test == "Welch t, 3 and 3 seeds"
    assert welch.p == pytest.approx(expected.pvalue)
    assert welch.mean == pytest.approx(1.49 - 1.55 + 0.1 / 3)
    paired = difference(base, {2: 1.50, 3: 1.52, 9: 9.9})
    assert paired.test == "paired t, 2 seeds" and paired.mean == pytest.approx(-0.015)
    alone = difference(base, {1: 1.4})
    assert alone.test == "no test: one seed" and alone.p is None
    assert alone.mean == pytest.approx(1.4 - sum(base.values()) / 3)
    alike = difference(base, {seed: bits - 0.01 for seed, bits in base.items()})
    assert alike.test == "no test: every seed differs alike" and alike.mean == pytest.approx(-0.01)
    assert difference(base, {}) is None


def test_other_scripts_and_data_are_other_experiments(tmp_path):
    fake(tmp_path / "a", 1, 1.5)
    fake(tmp_path / "b", 1, 1.4, source="print('another')\n")
    fake(tmp_path / "c", 1, 1.3, version="f" * 64)
    labels = [experiment.label for experiment in experiments_of(find_runs([tmp_path]))]
    assert len(labels) == 3 and len(set(labels)) == 3
    assert labels[2].endswith("data=ffffffff")


def terminal(run, width: int = 80) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    console.print(view(run))
    return console.file.getvalue()


def test_a_run_at_work_is_watched(runs):
    """What a terminal of 80 columns shows."""
    path = runs / "killed/metrics.jsonl"
    validation = json.dumps({"event": "validation", "step": 30, "val_loss": 4.5}).encode() + b"\n"
    path.write_bytes(b"".join(map(metrics_line, (10, 20, 30))) + validation)
    metrics = tg.Metrics(path)
    shown = terminal(read_run(runs / "killed"))
    metrics.close()
    assert re.search(r"state +training", shown) and re.search(r"step +30 of 400", shown)
    assert re.search(r"loss +█[▄▅]▁ 4\.7000", shown)
    assert re.search(r"validation +4\.5000 nats per token at step 30", shown)
    assert re.search(r"speed +10,240 tokens/s", shown)
    assert re.search(r"left +1 min 20 s of training", shown)
    assert max(map(len, shown.splitlines())) <= 80


def test_watching_ends_with_the_run(runs, capsys):
    """In a pipe it prints lines; the exit code says whether there is a result."""
    assert "score 1.50000 bits per byte" in printed(capsys, "runs", runs / "a_seed1", "--watch")
    assert main(["runs", str(runs / "killed"), "--watch"]) == 1
    assert "state broken off" in capsys.readouterr().out


def test_a_sparkline_is_as_long_as_its_values_or_its_width():
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline(list(range(100)), width=4) == "▁▃▆█"
    assert [duration(s) for s in (5.4, 80, 7500)] == ["5 s", "1 min 20 s", "2 h 05 min"]


@pytest.mark.pictures
def test_a_picture_is_drawn_of_whatever_there_is(runs, tmp_path, capsys):
    path = tmp_path / "pictures/all.png"
    said = printed(capsys, "runs", "--plot", path)
    assert said == f"{path}: 7 runs of 2 experiments\n"
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000
    assert "expected a place for a picture" in refused(capsys, "runs", "--plot", "a.xyz")
