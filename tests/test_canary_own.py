"""The CUDA branch of train_gpt.py runs whole on a CPU, unmodified, and gives the CPU's numbers."""

import re
from pathlib import Path

import pytest
from conftest import ROOT, TINY, english_documents, flags, run_script, write_dataset
from sandbox_support import ISOLATED

from eval.trial.canary.launch import LIMITS, Call, ScriptRun, launch
from eval.trial.canary.world import World

FOLDER = "records/track/own"
SETTINGS = {
    "bf16": 1,
    "compile": 1,
    "ngram_order": 3,
    "warmup_steps": 1,
    "checkpoint_every": 2,
    "swa_every": 2,
    "seed": 42,
}

# One interpreter trains, resumes from the last checkpoint, and scores, as three commands would.
THREE_COMMANDS = """
import runpy, sys

def command(*words):
    sys.argv = ["train_gpt.py", *words]
    try:
        runpy.run_path("train_gpt.py", run_name="__main__")
    except SystemExit as left:
        assert left.code in (0, None), left.code

command(*sys.argv[1:])
command(*sys.argv[1:], "--resume", "1")
command("score", "--artifact", "out/artifact.bin", "--tokens", "data/test_val_000000.bin",
        "--out", "out")
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    documents = english_documents()[:60]
    folder = tmp_path_factory.mktemp("own") / "test_byte"
    return write_dataset(folder, {"train": documents[20:], "val": documents[:6]})


def own_world(dataset: Path) -> World:
    files = {f"data/{path.name}": path for path in dataset.iterdir()}
    files |= {"train_gpt.py": ROOT / "train_gpt.py", "run.py": THREE_COMMANDS.encode()}
    return World({f"{FOLDER}/{name}": content for name, content in files.items()}, FOLDER, {})


def run_own(dataset: Path, script: str, world_size: int, mechanism: str) -> ScriptRun:
    arguments = flags(data_dir="data", out="out", **SETTINGS)
    call = Call(script, arguments, world_size=world_size, limits=LIMITS)
    return launch(own_world(dataset), call, mechanism)


def bits(text: str) -> float:
    """Of the last `result` line."""
    return float(re.findall(r"^result .*?val_bpb:(\S+)", text, flags=re.MULTILINE)[-1])


def losses(text: str) -> list[float]:
    """Of the steps of the first run in `text`, nats."""
    steps = re.findall(r"^step:(\d+)/\d+ train_loss:(\S+)", text, flags=re.MULTILINE)
    return [float(loss) for _, loss in steps[: TINY["iterations"]]]


@pytest.fixture(scope="module")
def on_the_cpu(small, tmp_path_factory) -> str:
    """What the same run prints in the branch for CPUs."""
    out = tmp_path_factory.mktemp("cpu") / "out"
    settings = SETTINGS | {"bf16": 0, "compile": 0}
    done = run_script(*flags(data_dir=small, out=out, **settings))
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same_numbers(run: ScriptRun, on_the_cpu: str) -> None:
    """The artifact differs: a GPU's stores scales in bfloat16, which is float32 here."""
    assert losses(run.text) == pytest.approx(losses(on_the_cpu), abs=1e-5)
    assert bits(run.text) == pytest.approx(bits(on_the_cpu), abs=5e-3)


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_it_trains_resumes_and_scores_as_on_a_gpu(small, on_the_cpu, mechanism):
    run = run_own(small, "run.py", 1, mechanism)
    assert run.ok, run.text[-2000:]
    assert 'gpu:"NVIDIA H100 80GB HBM3"' in run.text
    assert "memory peak_allocated_mib:0" in run.text
    assert len(re.findall(r"^result ", run.text, flags=re.MULTILINE)) == 2
    assert "resume" in run.text
    assert "scored test_val_000000:" in run.text
    assert_same_numbers(run, on_the_cpu)
    assert run.attempts == ()


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_two_ranks_train_over_gloo_in_place_of_nccl(small, on_the_cpu, mechanism):
    run = run_own(small, "train_gpt.py", 2, mechanism)
    assert run.ok, run.text[-2000:]
    assert "world_size:2" in run.text
    assert "gpus:2" in run.text
    assert_same_numbers(run, on_the_cpu)
