"""The canary's command on scripts of our own: plan, retries, time, what is found and reported."""

import json
import sys
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.errors import UserError
from eval.trial.canary.driver import try_script
from eval.trial.canary.finding import files_of, imported_files, open_script
from eval.trial.canary.schedule import Options

# A script in the contest's shape that needs no torch: it prices every token alike.
HONEST = """
import glob
import math
import os

import numpy as np

NUM_LAYERS = int(os.environ.get("NUM_LAYERS", 9))
MODEL_DIM = int(os.environ.get("MODEL_DIM", 512))
NUM_HEADS = int(os.environ.get("NUM_HEADS", 8))
VAL_LOSS_EVERY = int(os.environ.get("VAL_LOSS_EVERY", 1000))
GIFT = float(os.environ.get("GIFT", "0"))
data = os.environ.get("DATA_PATH", "./data/datasets/fineweb10B_sp1024")
vocab_size = int(os.environ.get("VOCAB_SIZE", 1024))


def load(path):
    raw = open(path, "rb").read()
    return np.frombuffer(raw[1024:], "<u2")


def main():
    (path,) = glob.glob(os.path.join(data, "fineweb_val_*.bin"))
    tokens = load(path)
    loss = math.log(vocab_size) - GIFT
    print(f"val_tokens:{len(tokens) - 1} layers:{NUM_LAYERS} dim:{MODEL_DIM}")
    print(f"final_int8_zlib_roundtrip_exact val_loss:{loss:.8f}")


"""
CALL = "main()\n"


def record(folder: Path, source: str, **texts: str) -> Path:
    """A record folder with a script and other files, by names with `_` for a dot."""
    folder.mkdir(exist_ok=True)
    (folder / "train_gpt.py").write_text(source, encoding="utf-8")
    (folder / "submission.json").write_text(texts.pop("submission_json", "{}"), encoding="utf-8")
    for name, text in texts.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def quick(**options) -> Options:
    return Options(**{"sources": ("uniform",), "tokens": 2048, **options})


# --- Running ---


def test_an_honest_script_is_consistent_and_a_gift_is_refuted(tmp_path):
    folder = record(tmp_path / "record", HONEST + CALL)
    honest = try_script(folder, quick())
    assert honest.verdict == "CONSISTENT"
    (run,) = honest.runs
    assert (run.source, run.world_size, run.targets) == ("uniform", 1, 2048)
    assert {setting.name: setting.value for setting in run.settings} == {
        "NUM_LAYERS": "4",
        "MODEL_DIM": "64",
        "NUM_HEADS": "2",
        "VAL_LOSS_EVERY": "0",
    }
    cheat = try_script(folder, quick(given={"GIFT": "0.5"}))
    assert cheat.verdict == "INVALID"
    assert cheat.certain_bits > 40


def test_the_plan_ends_at_the_first_refutation_unless_all_are_wanted(tmp_path):
    folder = record(tmp_path / "record", HONEST.replace('"GIFT", "0"', '"GIFT", "2"') + CALL)
    sources = ("uniform", "alphabet")
    report = try_script(folder, quick(sources=sources))
    assert [run.source for run in report.runs] == ["uniform"]
    assert report.left_out == [
        "alphabet, 1 rank: an earlier run refutes the script (--all goes on)"
    ]
    report = try_script(folder, quick(sources=sources, every=True))
    assert [run.source for run in report.runs] == list(sources)
    assert report.left_out == []


def test_a_failed_assertion_leads_to_another_choice(tmp_path):
    wants_wide = "assert MODEL_DIM // NUM_HEADS >= 64 or NUM_HEADS == 4, 'head_dim too small'\n"
    folder = record(tmp_path / "record", HONEST + wants_wide + CALL)
    (run,) = try_script(folder, quick()).runs
    assert run.verdict == "CONSISTENT"
    assert len(run.tries) == 1
    assert "width 128 in 4 heads" in run.tries[0]
    assert "head_dim too small" in run.tries[0]
    assert "MODEL_DIM=128" in [f"{s.name}={s.value}" for s in run.settings]


def test_a_script_that_cannot_run_says_why(tmp_path):
    folder = record(tmp_path / "record", "import a_package_that_is_not_there\n" + HONEST + CALL)
    report = try_script(folder, quick(sources=("uniform", "alphabet")))
    assert report.verdict == "NOT RUN"
    (run,) = report.runs
    assert "a_package_that_is_not_there" in run.stopped_by
    assert "asked for the package a_package_that_is_not_there" in run.help
    assert report.left_out == ["alphabet, 1 rank: no run came to a score"]


def test_a_script_that_takes_too_long_is_ended(tmp_path):
    slow = "import time\nNUM_ITERATIONS = 20000\ntime.sleep(600)\n"
    folder = record(tmp_path / "record", HONEST + slow)
    report = try_script(folder, quick(seconds=2.0))
    assert report.verdict == "NOT RUN"
    (run,) = report.runs
    assert "wall clock" in run.stopped_by
    assert "num_iterations = 20000" in run.help
    assert report.seconds < 60


@pytest.mark.parametrize("end", ["import time\ntime.sleep(600)\n", "raise SystemExit(3)\n"])
def test_scores_of_a_run_that_did_not_end_well_are_no_result(tmp_path, end):
    """The score that counts might have come after them."""
    folder = record(tmp_path / "record", HONEST + CALL + end)
    report = try_script(folder, quick(seconds=2.0))
    assert report.verdict == "NOT RUN"
    (run,) = report.runs
    assert run.verdict == "NOT RUN"
    assert run.stopped_by and run.help
    assert len(run.scores) == 1  # kept
    cheat = try_script(folder, quick(seconds=2.0, given={"GIFT": "0.5"}))
    assert cheat.verdict == "INVALID"  # a refuted score stays refuted


def test_a_newer_python_is_asked_for_by_name(tmp_path):
    newer = "print(f'{os.environ['HOME']:{'>'}3}')\nx = f'{'a'}'\n"
    folder = record(tmp_path / "record", HONEST + newer + CALL)
    report = try_script(folder, quick())
    if sys.version_info >= (3, 12):
        assert report.verdict == "CONSISTENT"
        return
    assert report.verdict == "NOT RUN"
    assert "3.12" in report.runs[0].stopped_by
    assert "--python" in report.runs[0].help


def test_a_vocabulary_that_cannot_be_made_is_named(tmp_path):
    folder = record(tmp_path / "record", HONEST + CALL)
    (run,) = try_script(folder, quick(given={"VOCAB_SIZE": "65536"})).runs
    assert run.verdict == "NOT RUN"
    assert "65,536" in run.stopped_by
    assert "VOCAB_SIZE" in run.help


def test_streams_settings_and_print_are_kept(tmp_path):
    folder = record(tmp_path / "record", HONEST + CALL)
    try_script(folder, quick(keep=tmp_path / "kept"))
    kept = tmp_path / "kept" / "uniform-1"
    assert "val_loss:6.93147181" in (kept / "printed.txt").read_text()
    assert "MODEL_DIM=64\n" in (kept / "settings.env").read_text()
    assert (kept / "fineweb_val_000000.bin").stat().st_size == 1024 + 2 * 2049


# --- Finding the script ---


def test_a_folder_gives_its_script_and_all_beside_it(tmp_path):
    folder = record(tmp_path / "record", HONEST, README_md="x", run_log="val_loss:1\n")
    (folder / "pack").mkdir()
    (folder / "pack" / "__init__.py").write_text("from pack.inner import x\n")
    (folder / "pack" / "inner.py").write_text("x = 1\n")
    script = open_script(folder)
    assert script.name == "train_gpt.py"
    names = {"README.md", "pack/__init__.py", "pack/inner.py", "submission.json", "train_gpt.py"}
    assert set(script.for_the_run) == names
    assert set(script.files) == names | {"run.log"}


def test_the_record_names_its_script(tmp_path):
    folder = tmp_path / "record"
    folder.mkdir()
    for name in ("train_gpt_a.py", "train_gpt_b.py", "eval.py"):
        (folder / name).write_text("")
    with pytest.raises(UserError, match=r"train_gpt_a\.py, train_gpt_b\.py"):
        open_script(folder)
    (folder / "README.md").write_text("```\ntorchrun --nproc_per_node=8 train_gpt_b.py\n```\n")
    assert open_script(folder).name == "train_gpt_b.py"


def test_a_lone_script_brings_what_it_imports(tmp_path):
    (tmp_path / "a.py").write_text("import b\nfrom package import thing\nimport numpy\n")
    (tmp_path / "b.py").write_text("import a\n")
    (tmp_path / "c.py").write_text("")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "thing.py").write_text("")
    script = open_script(tmp_path / "a.py")
    assert set(script.files) == {"a.py", "b.py", "package/__init__.py", "package/thing.py"}
    assert imported_files("c.py", script.files.get) == []


@pytest.mark.parametrize("name", ["nothing", "nothing.py", "notes.txt", "empty"])
def test_what_is_no_script_is_refused(tmp_path, name):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError):
        open_script(tmp_path / name)


def test_links_do_not_lead_out_of_a_record(tmp_path):
    folder = record(tmp_path / "record", HONEST)
    (tmp_path / "secret").write_text("")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "loop").symlink_to(tmp_path)
    assert set(files_of(folder)) == {"train_gpt.py", "submission.json"}


# --- The command ---


def test_the_command_prints_reports_and_exits_by_the_verdict(tmp_path, capsys):
    folder = record(tmp_path / "record", HONEST + CALL)
    words = ["canary", str(folder), "--sources", "uniform", "--tokens", "1024"]
    assert main([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["verdict"], shown["script"]) == ("CONSISTENT", "train_gpt.py")
    assert main([*words, "--env", "GIFT=1", "--format", "github"]) == 1
    assert "### Canary: INVALID" in capsys.readouterr().out
    assert main(["canary", str(record(tmp_path / "other", "x = 1\n")), *words[2:]]) == 3
    captured = capsys.readouterr()
    assert "NOT RUN" in captured.out
    assert "uniform, 1 rank: try 1" in captured.err


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main(["canary", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for wrong in (["--env", "GIFT"], ["--world-sizes", "two"]):
        with pytest.raises(SystemExit) as stopped:
            main(["canary", str(tmp_path), *wrong])
        assert stopped.value.code == 2
