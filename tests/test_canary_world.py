"""The world of a public script, and its launch."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sandbox_support import ANY, ISOLATED

from eval.errors import UserError
from eval.trial.canary.launch import LIMITS, Call, ScriptRun, launch, stopping_line
from eval.trial.canary.world import Corpus, World, build_world, shard
from eval.trial.sandbox.interpreter import interpreter
from eval.trial.sandbox.job import Outcome

VOCAB = 1024
SOON = replace(LIMITS, wall_seconds=20.0)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    rng = np.random.default_rng(0)
    validation = rng.integers(1, VOCAB, 500).astype(np.uint16)
    training = [rng.integers(1, VOCAB, 300).astype(np.uint16) for _ in range(2)]
    sizes = np.full(500, 3, np.uint16)
    return Corpus(VOCAB, validation, training, sizes, b"a model", b"a vocabulary")


def world_of(corpus: Corpus, code: str, **others: bytes) -> World:
    """A record whose script is `code`, with `others` beside it."""
    files = {name.replace("__", "/"): content for name, content in others.items()}
    return build_world(corpus, {"train_gpt.py": code.encode(), **files})


def run_code(corpus: Corpus, code: str, mechanism: str, **settings: object) -> ScriptRun:
    call = Call("train_gpt.py", **({"limits": SOON} | settings))
    return launch(world_of(corpus, code), call, mechanism)


# --- The world ---


def test_shards_are_what_the_contests_scripts_read():
    data = shard(np.array([1, 2, 700], np.uint16))
    header = np.frombuffer(data[:1024], "<i4")
    assert header[:3].tolist() == [20240520, 1, 3] and not header[3:].any()
    assert np.frombuffer(data[1024:], "<u2").tolist() == [1, 2, 700]


def test_bytes_of_tokens_lie_beside_transformed_data_alone(corpus):
    """In the plain folder a script would read them as validation tokens."""
    with_bytes = [name for name in world_of(corpus, "").files if "val_bytes" in name]
    assert len(with_bytes) == 1
    assert "caseops" in with_bytes[0]
    transformed = build_world(corpus, {}, caseops=True).variables["DATA_PATH"]
    assert Path(transformed).name in with_bytes[0]


def test_data_of_bytes_have_their_own_names(corpus):
    world = build_world(replace(corpus, vocab_size=260), {})
    assert world.variables["DATA_PATH"].endswith("/fineweb10B_byte260")
    assert "data/datasets/fineweb10B_byte260/fineweb_val_000000.bin" in world.files
    assert world.files["data/tokenizers/fineweb_pure_byte_260.json"] == b"a model"


@pytest.mark.parametrize("name", ["../x.py", "/x.py", "a/../../x.py"])
def test_a_record_stays_in_its_folder(corpus, name):
    with pytest.raises(UserError, match="below the record's folder"):
        build_world(corpus, {name: b""})


LOOK_AROUND = """
import glob, os
from pathlib import Path
from data import helper  # the record's own folder of that name

print(os.environ["VOCAB_SIZE"], helper.NAME)
for place in (
    os.environ["DATA_PATH"],
    os.path.join(os.environ["DATA_DIR"], "datasets", "fineweb10B_sp1024"),
    "./data/datasets/fineweb10B_sp1024",
    "../../../data/datasets/fineweb10B_sp1024",
    Path(__file__).resolve().parents[3] / "data" / "datasets" / "fineweb10B_sp1024",
    "/workspace/parameter-golf/data/datasets/fineweb10B_sp1024",
    "/data/datasets/fineweb10B_sp1024",
):
    print(*sorted(path.name for path in Path(place).glob("*.bin")))
print(Path(os.environ["TOKENIZER_PATH"]).read_text())
print(Path("data/tokenizers/fineweb_1024_bpe.model").read_text())
os.makedirs("logs")
Path("logs/run.txt").write_text("only in the log\\n1024 a neighbour\\nimport glob, os\\n")
Path("README.md").write_text("overwritten")
"""


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_data_lie_wherever_a_script_looks(corpus, mechanism):
    others = {"data__helper.py": b"NAME = 'a neighbour'", "README.md": b"x"}
    world = world_of(corpus, LOOK_AROUND, **others)
    run = launch(world, Call("train_gpt.py", limits=SOON), mechanism)
    assert run.ok, run.text
    printed = run.outcome.stdout.splitlines()
    shards = "fineweb_train_000000.bin fineweb_train_000001.bin fineweb_val_000000.bin"
    assert printed == ["1024 a neighbour", *[shards] * 7, "a model", "a model"]
    assert run.attempts == ()


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_log_files_are_read_for_what_was_not_printed(corpus, mechanism):
    """Neither the script's own source nor a line that it printed counts twice."""
    world = world_of(corpus, LOOK_AROUND, **{"data__helper.py": b"NAME = 'x'"})
    run = launch(world, Call("train_gpt.py", limits=SOON), mechanism)
    assert list(run.files) == ["logs/run.txt"]
    log = run.text.partition("==> logs/run.txt <==\n")[2].splitlines()
    assert log == ["only in the log", "1024 a neighbour"]


# --- The launch ---


SAY_WHO = """
import os, subprocess, sys
print(*(os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")), os.environ.get("A"))
print(sys.argv[1:], sys.version_info[:2])
print(subprocess.run(["nvidia-smi"], stdout=subprocess.PIPE, text=True).stdout)
"""


@pytest.mark.parametrize("mechanism", ANY)
def test_a_script_is_told_what_the_call_says(corpus, mechanism):
    settings = {"variables": {"A": "b"}, "arguments": ["--x", "1"]}
    run = run_code(corpus, SAY_WHO, mechanism, **settings)
    assert run.ok, run.text
    assert run.text.splitlines()[0] == "0 1 0 b"
    assert "['--x', '1']" in run.text
    assert "H100" in run.text


AVERAGE = """
import os
import torch, torch.distributed as dist
dist.init_process_group(backend="nccl", device_id=torch.device("cuda", int(os.environ["RANK"])))
rank, world = dist.get_rank(), dist.get_world_size()
x = torch.full((4,), float(rank), device="cuda")
dist.all_reduce(x, op=dist.ReduceOp.AVG)
whole = torch.empty(4 * world, device="cuda")
dist.all_gather_into_tensor(whole, torch.arange(4.0, device="cuda") + 4 * rank)
share = torch.empty(4, device="cuda")
dist.reduce_scatter_tensor(share, whole.clone(), op=dist.ReduceOp.SUM, async_op=True).wait()
mean_share = torch.empty(4, device="cuda")
dist.reduce_scatter_tensor(mean_share, whole.clone(), op=dist.ReduceOp.AVG)
network = torch.nn.Linear(4, 1).to("cuda")
network.idle = torch.nn.Parameter(torch.zeros(1))
model = torch.nn.parallel.DistributedDataParallel(torch.compile(network), device_ids=[rank])
for _ in range(2):
    model.zero_grad()
    model(x + rank).sum().backward()
grad = network.weight.grad
dist.barrier(device_ids=[rank])
if rank == 1:
    print(x.tolist(), whole.tolist(), share.tolist(), mean_share.tolist(), grad.tolist())
dist.destroy_process_group()
"""


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_two_ranks_meet_over_gloo(corpus, mechanism):
    run = run_code(corpus, AVERAGE, mechanism, world_size=2, limits=replace(LIMITS))
    assert run.ok, run.text
    half = [0.5] * 4
    upper = [4.0, 5.0, 6.0, 7.0]
    expected = (half, [float(i) for i in range(8)], [2 * u for u in upper], upper, [[1.0] * 4])
    assert run.text.splitlines()[0] == " ".join(map(str, expected))


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_the_line_that_stopped_a_run_is_named(corpus, mechanism):
    run = run_code(corpus, "assert 63 % 2 == 0, 'heads must divide the width'", mechanism)
    assert not run.ok
    assert run.stopped_by == "AssertionError: heads must divide the width"


UNDER_TORCHRUN = """
[rank1]: Traceback (most recent call last):
[rank1]:   File "train_gpt.py", line 3, in <module>
[rank1]: ValueError: too narrow
Traceback (most recent call last):
  File "torch/distributed/run.py", line 9, in main
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
train_gpt.py FAILED
"""


def test_under_torchrun_the_ranks_own_line_is_named():
    outcome = Outcome("none", returncode=1, seconds=1.0, stderr=UNDER_TORCHRUN)
    assert stopping_line(outcome) == "ValueError: too narrow"


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_a_missing_package_is_named(corpus, mechanism):
    run = run_code(corpus, "import a_package_that_nobody_has.part", mechanism)
    assert run.missing == ("a_package_that_nobody_has",)


def test_bad_calls_are_refused(corpus):
    world = world_of(corpus, "")
    with pytest.raises(UserError, match="expected a file of the record's folder"):
        launch(world, Call("other.py"), "none")
    with pytest.raises(UserError, match="expected one of cpu, cuda"):
        launch(world, Call("train_gpt.py", device="tpu"), "none")
    with pytest.raises(UserError, match="expected a Python interpreter"):
        launch(world, Call("train_gpt.py", python=Path("/bin/false")), "none")


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_another_interpreter_runs_the_script(corpus, mechanism, tmp_path):
    """It is asked where its environment lies, and that is shown."""
    tmp_path.chmod(0o755)  # the run is another user
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    python = tmp_path / "bin" / "python"
    assert interpreter(python).version == sys.version_info[:2]
    run = run_code(corpus, "import sys; print(sys.executable)", mechanism, python=python)
    assert run.outcome.stdout.strip() == str(python)


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_on_a_gpu_nothing_is_led_anywhere(corpus, mechanism):
    code = "import sys; print('cuda_on_the_cpu' in sys.modules)"
    assert run_code(corpus, code, mechanism, device="cuda").outcome.stdout == "False\n"
    assert run_code(corpus, code, mechanism, device="cpu").outcome.stdout == "True\n"
