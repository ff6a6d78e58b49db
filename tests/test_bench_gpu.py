"""bench/gpu.py, as far as a CPU can run it: its parts' figures, its limits, its files."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import flags
from train_support import tiny

import train_gpt as tg
from bench.speed import gpu, on_gpu

RANKS = tg.Ranks()


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(
        flags=" ".join(flags()),
        on_cpu=True,
        out=tmp_path,
        profile=True,
        mixer_tokens=5000,
        score_tokens=300,
        train_seconds=60.0,
    )


def test_a_step_is_measured_by_piece_and_as_a_whole(args, monkeypatch):
    monkeypatch.setattr(on_gpu, "STEPS", 4)
    monkeypatch.setattr(on_gpu, "WHOLE_STEPS", 2)
    monkeypatch.setattr(on_gpu, "peak_flops", lambda ranks, dtype: 1e11)
    ours = on_gpu.measure_step(tiny(), RANKS, args)
    plain = on_gpu.measure_plain_step(tiny(), RANKS, args)
    assert ours["losses"] == pytest.approx(plain["losses"], rel=1e-3)
    for figures in (ours, plain):
        assert 0 < figures["utilisation"] < 1
        assert figures["step_ms"] > 0
        assert set(figures["pieces_ms"]) == {"forward and backward", "optimizer", "averaging"}


def test_kernels_are_listed_by_time_and_a_trace_is_saved(args):
    rows = on_gpu.measure_kernels(tiny(), RANKS, args)["kernels"]
    ms = [row["ms"] for row in rows]
    assert ms == sorted(ms, reverse=True)
    assert ms[0] > 0
    products = [row for row in rows if row["name"] == "aten::mm"]
    assert products[0]["launches"] > 10
    assert (args.out / "trace.json.gz").stat().st_size > 1000


def test_scoring_and_the_mixer_are_timed(args):
    scoring = on_gpu.measure_compiled_scoring(tiny(), RANKS, args)
    assert scoring["window_tokens_per_s"] > scoring["tokens_per_s"] > 0
    mixer = on_gpu.measure_mixer(tiny(ngram_order=4), RANKS, args)
    assert mixer["tokens"] == 5000
    # 1.6 nats on average were given; the gate loses little where the n-grams know nothing
    assert mixer["nats_a_token"] == pytest.approx(1.6, abs=0.2)


def test_a_minute_trains_exports_and_scores(args, monkeypatch):
    figures = on_gpu.run_a_minute(tiny(), RANKS, args)
    steps = [step for step, _ in figures["loss_curve"]]
    assert steps[:3] == [1, 2, 3]
    assert all(2 < loss < 7 for _, loss in figures["loss_curve"])
    assert "step_avg:" in figures["last_step"]
    kinds = [line.split()[0] for line in figures["lines"]]
    assert kinds == ["warmup", "export", "artifact", "neural", "result"]


STAND_IN = """
import subprocess, sys, time
name = sys.argv[-1]
print("begun")
if name == "step":
    print('{"step_ms": 1.5}')
elif name == "kernels":
    sys.exit("error: no kernels")
else:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


def is_running(pid: int) -> bool:
    """Whether the process exists and is more than a zombie."""
    state = Path(f"/proc/{pid}/stat")
    return state.is_file() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_each_part_is_on_disk_at_once_and_ends_at_its_limit(args, tmp_path, monkeypatch):
    """One that is done, one that fails, one that hangs with a child of its own."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(gpu, "SCRIPT", script)
    monkeypatch.setitem(gpu.PARTS, "mixer", gpu.PARTS["mixer"]._replace(limit=2))
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    args.parts = ["step", "kernels", "mixer"]
    started = time.monotonic()
    assert not gpu.run_parts(args, "a stand-in")
    assert time.monotonic() - started < 30
    found = {}
    for name in args.parts:
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert [result["state"] for result in found.values()] == ["done", "failed", "over its limit"]
    assert found["step"]["figures"] == {"step_ms": 1.5}
    assert found["kernels"]["figures"]["last_lines"] == ["begun", "error: no kernels"]
    assert found["mixer"]["environment"]["device"] == "a stand-in"
    begun, pid = found["mixer"]["figures"]["last_lines"]
    assert begun == "begun"
    if sys.platform == "linux":
        assert not is_running(int(pid))


def test_the_default_parts_take_six_minutes_at_most():
    assert sum(part.limit for part in gpu.PARTS.values() if part.default) <= 360


def test_no_git_is_needed(monkeypatch):
    from bench.machine import software

    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert software() | {"commit": ""} == software()
    assert software()["torch"] == torch.__version__


def test_products_are_tuned_only_where_asked_for(monkeypatch):
    modes = []

    def watched(model, **options):
        modes.append(options["mode"])
        return model

    monkeypatch.setattr(torch, "compile", watched)
    gpu_ranks = tg.Ranks(device=torch.device("cuda", 0))
    for setting in (0, 1, 2):
        training = tiny(compile=setting).training
        tg.compile_model(torch.nn.Identity(), training, gpu_ranks)
    assert modes == [None, "max-autotune-no-cudagraphs"]
