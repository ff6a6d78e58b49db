"""What a run tells while it works: metrics.jsonl, sinks, progress, summary, errors; its device."""

import fcntl
import functools
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import flags, run_script
from runs_support import changed_script, checkpoints, log_of, result_field, result_of, steps_of
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from train_support import tiny

import train_gpt as tg
from eval.papers.logs.reading import parse_log

RUN = {"iterations": 6, "val_every": 2, "val_tokens": 200, "checkpoint_every": 3}


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """A whole run, what it printed, and its folder."""
    out = tmp_path_factory.mktemp("metrics") / "whole"
    done = run_script(*flags(data_dir=dataset, out=out, **RUN))
    assert done.returncode == 0, done.stderr[-2000:]
    return SimpleNamespace(out=out, printed=done.stdout, errors=done.stderr)


def metrics_of(out: Path, event: str = "") -> list[dict]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if event in ("", record["event"])]


# --- metrics.jsonl --------------------------------------------------------------------------------


def test_every_logged_point_is_an_object(whole):
    log = parse_log(whole.out / "train.log")
    trained = metrics_of(whole.out, "step")
    assert [record["step"] for record in trained] == [1, 2, 3, 4, 5, 6]
    for record, point in zip(trained, [s for s in log.steps if s.train_loss], strict=True):
        assert record["train_loss"] == pytest.approx(point.train_loss, abs=1e-6)
        assert record["train_s"] == pytest.approx(point.train_s, abs=1e-3)
        assert record["tokens"] == record["step"] * 1024
        assert record["tokens_per_s"] == pytest.approx(record["tokens"] / record["train_s"])
        assert record["muon_lr"] == pytest.approx(record["lr_scale"] * tiny().training.muon_lr)
        assert 50 < record["peak_memory_mib"] < 100_000
    assert metrics_of(whole.out)[-1]["event"] == "result"
    (result,) = metrics_of(whole.out, "result")
    assert f"{result['val_bpb']:.8f}" == result_field(whole.out, "val_bpb")
    assert result["bytes_total"] == int(result_field(whole.out, "bytes_total"))
    assert result["neural_val_bpb"] != result["val_bpb"]


def test_validations_read_a_part_and_change_nothing(whole, dataset, tmp_path):
    """The referee's reader finds them; training and the final score are those without them."""
    points = metrics_of(whole.out, "validation")
    assert [point["step"] for point in points] == [0, 2, 4, 6]
    assert all(point["val_tokens"] == 200 and "val_bpb" not in point for point in points)
    assert points[0]["val_loss"] == pytest.approx(math.log(260), rel=0.05)
    assert points[-1]["val_loss"] < points[0]["val_loss"] - 0.1
    logged = [s for s in parse_log(whole.out / "train.log").steps if s.val_loss is not None]
    assert [(s.step, s.val_bpb) for s in logged] == [(0, None), (2, None), (4, None), (6, None)]
    for point, step in zip(points, logged, strict=True):
        assert step.val_loss == pytest.approx(point["val_loss"], abs=5e-5)
    without = tmp_path / "without"
    settings = RUN | {"val_every": 0, "checkpoint_every": 0}
    assert run_script(*flags(data_dir=dataset, out=without, **settings)).returncode == 0
    assert steps_of(without) == steps_of(whole.out)
    assert result_of(without) == result_of(whole.out)


def test_a_validation_of_the_whole_split_has_bits_per_byte(whole, dataset, tmp_path):
    """In the folder of another run, whose numbers make room."""
    out = shutil.copytree(whole.out, tmp_path / "o")
    settings = {"iterations": 1, "val_every": 1, "ngram_order": 0}
    assert run_script(*flags(data_dir=dataset, out=out, **settings)).returncode == 0
    assert [record["step"] for record in metrics_of(out)] == [0, 1, 1, 1]
    last = metrics_of(out, "validation")[-1]
    assert f"val_bpb:{last['val_bpb']:.4f} train_time" in log_of(out)
    with pytest.raises(ValueError, match="val_tokens to be 0 or at least 2"):
        tiny(val_tokens=1)


def test_a_resumed_run_continues_without_duplicates(whole, dataset, tmp_path):
    """Killed after step 5 while it wrote; its newest checkpoint is that of step 3."""
    out = shutil.copytree(whole.out, tmp_path / "o")
    checkpoints(out)[6].unlink()
    lines = (out / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (out / "metrics.jsonl").write_bytes(b"".join(lines[:-3]) + lines[-3][:20])
    done = run_script(*flags(data_dir=dataset, out=out, resume=1, **RUN))
    assert done.returncode == 0 and "resume step:3 " in log_of(out), done.stderr

    def without_clock(folder: Path) -> list[tuple]:
        found = metrics_of(folder)
        return [(r["event"], r["step"], r.get("train_loss"), r.get("val_loss")) for r in found]

    assert without_clock(out) == without_clock(whole.out)


def test_the_file_is_locked_while_the_run_lives(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = tg.Metrics(path)
    metrics.write("step", 1, {"train_loss": 2.5})
    with open(path) as reader:
        with pytest.raises(BlockingIOError):
            fcntl.flock(reader, fcntl.LOCK_SH | fcntl.LOCK_NB)
        metrics.close()
        fcntl.flock(reader, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert json.load(reader) == {"event": "step", "step": 1, "train_loss": 2.5}


# --- sinks ----------------------------------------------------------------------------------------


class Recorder:
    """A stand-in for wandb or trackio; refuses the numbers of step `fails_at`, 0 is the start."""

    def __init__(self, fails_at: int = -1):
        self.calls: list[tuple] = []
        self.fails_at = fails_at

    def init(self, project, name, config):
        if self.fails_at == 0:
            raise ConnectionError("no account")
        self.calls.append(("init", project, name, config["muon_lr"]))

    def log(self, numbers, step):
        if step == self.fails_at:
            raise ConnectionError("the server is gone")
        self.calls.append((step, numbers))

    def finish(self):
        self.calls.append(("finish",))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_receives_the_numbers(name, tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, name, recorder)
    cfg = tiny(sink=name, out=str(tmp_path / "idea_seed1"))
    metrics = tg.Metrics(tmp_path / "metrics.jsonl", tg.open_sink(cfg))
    metrics.write("step", 3, {"train_loss": 2.5, "note": "words are no numbers"})
    metrics.close()
    assert recorder.calls == [
        ("init", "parameter-golf", "idea_seed1", cfg.training.muon_lr),
        (3, {"step/train_loss": 2.5}),
        ("finish",),
    ]


def test_tensorboard_receives_scalars(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            written.append("flush")

        def close(self):
            written.append("close")

    stand_in = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    sink = tg.open_sink(tiny(sink="tensorboard", out=str(tmp_path)))
    metrics = tg.Metrics(tmp_path / "metrics.jsonl", sink)
    metrics.write("validation", 4, {"val_loss": 1.5})
    metrics.close()
    scalar = ("validation/val_loss", 1.5, 4)
    assert written == [tmp_path / "tensorboard", scalar, "flush", "close"]


def test_a_sink_that_fails_costs_no_run(tmp_path, capsys):
    metrics = tg.Metrics(tmp_path / "metrics.jsonl", Recorder(fails_at=2))
    for step in (1, 2, 3):
        metrics.write("step", step, {"train_loss": 1.0})
    metrics.close()
    assert "--sink: the server is gone; the run goes on without" in capsys.readouterr().err
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_sink_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Recorder(fails_at=0))
    with pytest.raises(tg.UserError, match="--sink wandb: expected it to start, found no account"):
        tg.open_sink(tiny(sink="wandb", out=str(tmp_path)))


def test_no_package_of_a_sink_is_imported_unasked():
    assert tg.open_sink(tiny()) is None
    assert not {"tensorboard", "wandb", "trackio"} & sys.modules.keys()


def test_a_missing_package_is_one_line_that_helps(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(tg.UserError) as refused:
        tg.open_sink(tiny(sink="trackio", out=str(tmp_path)))
    command = re.search(r"`(\S+) -m pip install trackio`", str(refused.value))
    assert command and "\n" not in str(refused.value)
    assert shutil.which(command[1])


# --- what is printed ------------------------------------------------------------------------------


SHOW_ALL = """
patient = train_gpt.Meter.__init__
def impatient(self, *arguments):
    patient(self, *arguments)
    if self.what:
        self.interval = self.next_line = 0.0
train_gpt.Meter.__init__ = impatient
"""


def test_the_end_of_a_run_is_not_silent(dataset, tmp_path):
    script = changed_script(tmp_path / "impatient.py", SHOW_ALL)
    settings = flags(data_dir=dataset, out=tmp_path / "o", iterations=1)
    done = run_script(*settings, script=script)
    assert done.returncode == 0, done.stderr
    for work in ("export", "final scoring", "mixing n-grams"):
        shares = [int(s) for s in re.findall(rf"^{work}: (\d+)% after", done.stderr, flags=re.M)]
        assert len(shares) > 2 and shares == sorted(shares), (work, shares)
    assert "% after" not in (tmp_path / "o/train.log").read_text().split("end source")[-1]


def test_a_terminal_has_one_line_that_is_written_over(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(tg.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    meter = tg.Meter("scoring", 4)
    for _ in range(3):
        now[0] += 5
        meter.advance()
    meter.close()
    said = capsys.readouterr().err
    assert "\n" not in said
    assert said.split("\r")[1].rstrip() == "scoring: 25% after 5 s, about 15 s left"
    assert said.split("\r")[5].rstrip() == "scoring: 75% after 15 s, about 5 s left"
    assert said.endswith(f"\r{' ' * 79}\r")


def test_elsewhere_there_is_a_line_every_15_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(tg.time, "perf_counter", lambda: now[0])
    meter = tg.Meter("scoring", 100)
    hidden = tg.Meter("", 100)
    for _ in range(10):
        now[0] += 4
        meter.advance()
        hidden.advance()
    meter.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "scoring: 4% after 16 s, about 384 s left",
        "scoring: 8% after 32 s, about 368 s left",
    ]


def test_a_run_ends_with_a_summary_that_is_no_part_of_the_log(whole):
    after = whole.printed.rpartition("result val_loss")[2].splitlines()[1:]
    assert [line.split("  ")[0] for line in after] == [
        "score",
        "model alone",
        "bytes",
        "time",
        "files",
    ]
    assert float(after[0].split()[1]) == round(float(result_field(whole.out, "val_bpb")), 5)
    assert f"{int(result_field(whole.out, 'bytes_total')):,} of 16,000,000" in after[2]
    assert (whole.out / "train.log").read_text().splitlines()[-1].startswith("result ")


@pytest.mark.parametrize(
    ("folder", "advice"),
    [
        ("docs_sp1024", r"build it with `\S+ -m data docs --vocab-size 1024`"),
        (
            "fineweb10B_sp8192",
            r"download it with `\S+ -m data fineweb --variant sp8192`, "
            r"or train on the embedded corpus with --preset docs_cpu",
        ),
        ("mine_sp512", r"build it with `\S+ -m data text FILES --name mine`"),
    ],
)
def test_a_missing_data_set_names_the_command_that_makes_it(folder, advice, tmp_path):
    with pytest.raises(tg.UserError, match=rf"expected a data set's manifest.*; {advice}$"):
        tg.read_manifest(tmp_path / folder)


def test_the_interpreter_is_named_as_the_user_can_type_it(tmp_path, monkeypatch):
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    shutil.copy("/bin/true", python)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)
    assert tg.typed_python() == ".venv/bin/python"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert tg.typed_python() == str(python)
    monkeypatch.setenv("PATH", str(python.parent))
    assert tg.typed_python() == "python"


def test_a_log_names_no_folder_of_its_machine(whole, dataset):
    """Both were given as absolute paths."""
    own = log_of(whole.out)
    assert "config:override out=.../whole (default" in own
    assert f"config:override data_dir=.../{dataset.name} (default" in own
    assert str(whole.out.parent) not in own and str(dataset.parent) not in own


def test_the_list_of_processes_is_left_out(monkeypatch):
    """nvidia-smi names their programs, with folders."""
    listing = "| H200 |\n+----+\n| Processes:  |\n| 0 /home/ann/.venv/bin/python |"
    monkeypatch.setattr(tg, "output_of", lambda *command: listing)
    monkeypatch.setattr(tg, "environment_line", lambda ranks: "env")
    report = tg.environment_report(tg.Ranks(device=torch.device("cuda")))
    assert report[2] == "| H200 |\n+----+"


def test_a_closed_pipe_is_silent(monkeypatch, capfd):
    """As of `train_gpt.py --help | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patch, os.fdopen(writer, "w") as pipe:
        patch.setattr(sys, "stdout", pipe)
        assert tg.main(["--help"]) == 141
    assert capfd.readouterr().err == ""


# --- devices --------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    missing = r"--device mps: expected an Apple GPU and a torch built for it, found none"
    with pytest.raises(tg.UserError, match=missing), tg.open_ranks({}, device_name="mps"):
        pass
    if not torch.cuda.is_available():
        expected = "--device cuda: expected a CUDA GPU, found none"
        with pytest.raises(tg.UserError, match=expected), tg.open_ranks({}, device_name="cuda"):
            pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with tg.open_ranks({"OMP_NUM_THREADS": "1"}, tune_cpu=False, device_name="cpu") as ranks:
        assert ranks.device == tg.CPU


def test_metal_falls_back_only_where_the_user_lets_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    fallback = {"PYTORCH_ENABLE_MPS_FALLBACK": "1"}
    with pytest.raises(tg.UserError, match="expected PYTORCH_ENABLE_MPS_FALLBACK=1"):
        tg.open_metal({}, world_size=1)
    with pytest.raises(tg.UserError, match="expected one process, found 2"):
        tg.open_metal(fallback, world_size=2)
    assert tg.open_metal(fallback, world_size=1) == torch.device("mps")


class Float64Found(TorchDispatchMode):
    """Collects the operators that make float64 tensors, which Metal cannot."""

    def __init__(self):
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else [result]
        if any(isinstance(t, torch.Tensor) and t.dtype == torch.float64 for t in made):
            self.found.add(str(operator))
        return result


def test_training_needs_no_float64_on_its_device(monkeypatch):
    """But for rotary tables and logged losses, both of which Metal leaves to the CPU."""
    make_tables = tg.rotary_tables

    def tables_elsewhere(*arguments):
        with _disable_current_modes():
            return make_tables(*arguments)

    monkeypatch.setattr(tg, "rotary_tables", tables_elsewhere)
    cfg = tiny(qat_lr_scale=2.0, swa_every=1)
    model = tg.GPT(cfg.model)
    ranks = tg.Ranks()
    optimizers = tg.Optimizers(model, cfg.training, ranks)
    average = tg.Average(model, cfg.training)
    health = tg.Health(ranks, 0)
    tg.quantize_matrices(model, tg.export_formats(model, cfg))
    tokens = torch.randint(2, 260, (4, 33))
    with Float64Found() as mode:
        compute = functools.partial(model, dtype=torch.float32)
        batch = [(tokens[:, :-1], tokens[:, 1:])]
        loss = tg.training_step(compute, batch, optimizers.params, ranks)
        health.observe(loss, optimizers.params)
        optimizers.step(0, 1.0)
        average.update(snapshot=True)
        average.copy_to_model()
    assert mode.found == set()
    with mode:
        health.by_rank()
    assert mode.found


def test_metal_scores_on_the_cpu():
    model = tg.GPT(tiny().model)
    on_metal = tg.Ranks(device=torch.device("mps"))
    scored, ranks = tg.where_float64_is(model, on_metal)
    assert scored is not model and scored.embed.device == tg.CPU and ranks.device == tg.CPU
    assert torch.equal(scored.embed, model.embed)
    assert tg.where_float64_is(model, ranks) == (model, ranks)
