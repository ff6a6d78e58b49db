"""Which evidence `check` finds in a stranger's folder, and what it reads from it.

Every folder is made here; each kind was seen on the contest's real ones.
"""

import json
import time
from pathlib import Path

import pytest
from check_support import (
    GOOD,
    named,
    public_folder,
    public_log,
    public_logs,
    verdicts,
)

from eval.papers.checks.run import check_folder
from eval.papers.folder import open_record
from eval.papers.logs.log import Log
from eval.papers.logs.reading import parse_runs
from eval.papers.submission.reading import read_submission
from eval.rules import Verdict

BITS = {1: 1.10, 2: 1.12, 3: 1.14}  # per byte, by seed
MEAN = GOOD | {"val_bpb": 1.12}
SOURCE = """import os
import sys


def main(args, log0):
    log0(f"seed:{args.seed}")
    log0("final_exact val_loss:0.5 val_bpb:0.30000000")
    log0(f"max_wallclock_seconds:{args.max_wallclock_seconds:.3f}")


main(sys.argv, print)
"""


def headline(folder: Path) -> tuple[Verdict, str]:
    check = named(folder, "headline")
    return check.verdict, check.detail


def read(text: str | bytes, file: str = "train.log", script: str = "") -> list[Log]:
    """The runs in a log."""
    raw = text.encode() if isinstance(text, str) else text
    scripts = [script.encode()] if script else []
    return parse_runs(raw, Path(file), file, scripts)


# --- Files ---


@pytest.mark.parametrize("name", ["train_seed1.txt", "logs/run1.log", "logs/a/seed_1.TXT"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_log_is_found_by_what_it_holds(tmp_path, name, encoding, newline):
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.1}, {})
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(public_log(1, 1.1).replace("\n", newline).encode(encoding))
    assert named(folder, "files").verdict is Verdict.PASS
    assert headline(folder)[0] is Verdict.PASS
    assert named(folder, "headline").evidence[-1].file == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("requirements.txt", "torch\n"),
        ("README.txt", public_log(1, 1.3)),
        ("notes.txt", "val_bpb: 1.3 was our first try\n"),
        ("results.csv", "val_bpb:1.3\n"),
        ("._train_seed1.log", "\x00\x05\x16\x07" + public_log(2, 1.3)),
        ("__MACOSX/train_seed1.log", public_log(2, 1.3)),
    ],
)
def test_other_texts_are_no_logs(tmp_path, name, text):
    logs = {"train_seed1.log": public_log(1, 1.1)}
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.1}, logs)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    assert list(open_record(folder).logs) == ["train_seed1.log"]
    assert verdicts(folder) == {}
    told = verdicts(folder, Verdict.CANNOT_TELL).get("companions", "")
    assert (name in told) is name.startswith(("._", "__MACOSX"))


def test_links_are_not_followed(tmp_path):
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.1}, {})
    elsewhere = tmp_path / "elsewhere.log"
    elsewhere.write_text(public_log(1, 1.1))
    (folder / "train.log").symlink_to(elsewhere)
    assert open_record(folder).logs == {}


def test_without_a_log_nothing_passes(tmp_path):
    folder = public_folder(tmp_path, MEAN, {})
    assert check_folder(folder, with_audit=True).verdict is Verdict.CANNOT_TELL
    unclear = verdicts(folder, Verdict.CANNOT_TELL)
    assert {"files", "log", "headline", "train_time", "eval_time"} <= set(unclear)
    assert verdicts(folder) == {}


def test_a_log_without_a_run_proves_nothing(tmp_path):
    folder = public_folder(tmp_path, MEAN, {"train.log": "[RESULT] score=1.12\n"})
    assert "no training steps" in verdicts(folder, Verdict.CANNOT_TELL)["log"]
    assert "log" not in verdicts(folder)


def test_an_exception_after_the_score_is_a_question(tmp_path):
    log = public_log(1, 1.1) + "Traceback (most recent call last):\n  killed by signal 15\n"
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.1}, {"train.log": log})
    check = named(folder, "log")
    assert check.verdict is Verdict.CANNOT_TELL
    assert check.severity == "to explain"


def test_submission_json_under_another_name(tmp_path):
    folder = public_folder(tmp_path, MEAN, public_logs(BITS))
    (folder / "submission.json").rename(folder / "submission_ternary.json")
    assert verdicts(folder) == {}
    assert named(folder, "headline").evidence[0].file == "submission_ternary.json"


@pytest.mark.parametrize(
    ("names", "readme", "found"),
    [
        (["train_gpt.py", "train_other.py"], "run `torchrun train_other.py`", "train_gpt.py"),
        (
            ["train_ternary.py", "helper.py", "train_b.py"],
            "```\nSEED=42 torchrun --standalone \\\n  --nproc_per_node=8 train_b.py\n```",
            "train_b.py",
        ),
        (["run.py"], "", "run.py"),
        (["train_x.py", "helper.py"], "", "train_x.py"),
        (["prep.py", "main.py"], "python3 prep.py && torchrun records/t/r/main.py", "main.py"),
        (["prep.py", "main.py"], "`python3 prep.py`, then `python3 main.py`", "main.py"),
        (["src/train_gpt.py", "src/model.py", "prep.py"], "", "src/train_gpt.py"),
        (["train_x.py", "old/train_x.py"], "", "train_x.py"),
        (["a.py", "b.py"], "", None),
        (["train_a.py", "train_b.py"], "python3 prep.py", None),
    ],
)
def test_the_script_is_found(tmp_path, names, readme, found):
    folder = public_folder(tmp_path, MEAN, public_logs(BITS))
    (folder / "train_gpt.py").unlink()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("import math\n")
    (folder / "README.md").write_text(f"# x\n\nval_bpb 1.12\n{readme}\n")
    record = open_record(folder)
    assert record.script_name == found
    assert "files" not in verdicts(folder)
    unclear = verdicts(folder, Verdict.CANNOT_TELL)
    assert ("files" in unclear) is (found is None)
    if found is None:
        assert ", ".join(names) in unclear["files"]
    elif found != "train_gpt.py":
        assert f"train_gpt.py is called {found}" in named(folder, "script_name").detail


@pytest.mark.parametrize("size", [12, len(SOURCE)])
def test_the_logs_tell_which_script_was_run(tmp_path, size):
    """By the source that they print, else by its size; README's command counts less."""
    printed = "" if size == len(SOURCE) else SOURCE
    folder = public_folder(tmp_path, MEAN, {"train.log": printed + public_log(1, 1.12, code=size)})
    (folder / "train_gpt.py").rename(folder / "train_a.py")
    (folder / "train_b.py").write_text(SOURCE)
    (folder / "README.md").write_text("# x\n\nval_bpb 1.12, see `torchrun train_a.py`\n")
    assert open_record(folder).script_name == "train_b.py"
    assert not verdicts(folder).keys() & {"files", "source"}


@pytest.mark.parametrize("line", ["run-" * 6000, "best seed" + " " * 30_000, "run " * 400])
def test_a_hostile_readme_is_read_in_time(tmp_path, line):
    """Each line has its end in time, and so have many of them."""
    folder = public_folder(tmp_path, MEAN, {"train.log": public_log(1, 1.12)})
    (folder / "train_gpt.py").rename(folder / "a.py")
    (folder / "b.py").write_text("import math\n")
    (folder / "README.md").write_text(f"{line}\n" * 20 + "torchrun b.py\n")
    begin = time.process_time()
    record = open_record(folder)
    assert record.script_name == "b.py"
    assert record.chosen
    assert time.process_time() - begin < 1


# --- Runs and printed sources ---

RUN = public_log(7, 1.2)


@pytest.mark.parametrize("ruler", ["=" * 100, "-" * 80, "*" * 20, ""])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("lead", ["", "logs/abc.txt\n"])
@pytest.mark.parametrize("script", ["", SOURCE])
def test_a_printed_source_is_no_result(ruler, mark, lead, script):
    """Between rulers of any kind or without any, known as the shipped script or not."""
    (log,) = read(f"{lead}{mark}{SOURCE}{ruler}\n{RUN}", script=script)
    assert (log.seed, log.final.val_bpb, len(log.scores)) == (7, 1.2, 1)
    assert log.problems == log.doubts == []
    assert log.source.decode().split() == SOURCE.split()


def test_a_source_of_a_newer_python_ends_where_the_run_begins():
    newer = SOURCE.replace('log0(f"seed:{args.seed}")', 'log0(f"seed:{f"{args.seed}"}")')
    (log,) = read(f"{newer}{'=' * 100}\n{RUN}")
    assert (log.seed, log.final.val_bpb, len(log.scores)) == (7, 1.2, 1)
    assert log.source.decode().split() == newer.split()


def test_lines_of_the_run_that_are_python_too_belong_to_the_run():
    (log,) = read(f"{SOURCE}logs/abc.txt\nseed:7\n{RUN.replace('seed:7', '')}")
    assert log.seed == 7
    assert log.source.decode().rstrip().endswith("main(sys.argv, print)")


def test_what_was_never_filled_in_is_source():
    (log,) = read('log0(f"val_bpb:0.5 seed:{args.seed}")\nseed:{args.seed:d} val_bpb:0.4\n' + RUN)
    assert (log.seed, len(log.scores)) == (7, 1)


def test_a_log_with_two_runs_is_two_runs(tmp_path):
    """Each with its own seed, source and result; one that was written twice counts once."""
    other = SOURCE.replace("0.30000000", "0.40000000")
    text = f"{SOURCE}{public_log(1, 1.1)}{other}{public_log(2, 1.3)}{public_log(2, 1.3)}"
    runs = read(text)
    assert [(run.name, run.seed, run.final.val_bpb) for run in runs] == [
        ("train.log", 1, 1.1),
        ("train.log#2", 2, 1.3),
    ]
    assert [b"0.40000000" in run.source for run in runs] == [False, True]
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.2, "seeds": [1, 2]}, {"train.log": text})
    assert headline(folder)[0] is Verdict.PASS
    assert verdicts(folder).keys() <= {"source"}  # the script of the folder is another one


def test_a_failed_start_and_an_evaluation_are_no_further_runs():
    head = RUN.partition("step:")[0]
    evaluated = head + "final_ttt_exact val_loss:2.0 val_bpb:1.19000000\n"
    (log,) = read(head + RUN + evaluated)
    assert [score.val_bpb for score in log.scores] == [1.2, 1.19]


def test_equal_numbers_are_equal_however_written():
    (log,) = read(RUN.replace("seed:7", "seed:7\nmax_wallclock_seconds:600"))
    assert log.problems == log.doubts == []
    (log,) = read(RUN.replace("seed:7", "seed:7\nmax_wallclock_seconds:900"))
    assert "max_wallclock_seconds = 900" in log.doubts[0]


def test_a_seed_and_a_time_from_other_lines():
    """A seed among other settings, and the last step's clock where no line says that it stopped."""
    text = RUN.replace("seed:7", "lr:0.04 batch:524288 seed:7").replace("stopping_early:", "note:")
    (log,) = read(text)
    assert log.seed == 7
    assert log.number("result.train_s") == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("line", "label", "bpb"),
    [
        ("ttt_sliding:done val_loss=1.9 val_bpb=1.12 elapsed=293.2s", "ttt_sliding:done", 1.12),
        ("q_sw_x vl:1.89 bpb:1.13", "q_sw_x", 1.13),
        ("legal_ttt_exact val_loss:1.8 val_bpb:1.11logs/abc.txt", "legal_ttt_exact", 1.11),
        ("final_int6 (100% of val) val_loss:1.9 val_bpb:1.12", "final_int6 (100% of val)", 1.12),
        ("final_chunk (no running mean) val_bpb:1.12", "final_chunk (no running mean)", 1.12),
        ("quantized_sliding 64/2048 val_bpb:1.12", "quantized_sliding 64/2048", 1.12),
        ("sliding (100.0 % of val) val_bpb:1.12", "sliding (100.0 % of val)", 1.12),
        ("sliding (50% of val) val_bpb:1.12", None, None),
        ("final_sliding [ 12.5%] val_bpb:1.12", None, None),
        ("  ttt_chunk [3/1893] bpb=1.2 time=3s", None, None),
        ("sliding_eval [ 12.5%] 3/24 windows running_bpb=1.2", None, None),
    ],
)
def test_scores_of_many_shapes_and_progress_that_is_none(line, label, bpb):
    (log,) = read(f"step:1/9 train_loss:5.0 train_time:10ms\n{line}\n")
    scores = [(score.label, score.val_bpb) for score in log.scores]
    assert scores == ([] if label is None else [(label, bpb)])


@pytest.mark.parametrize("steps", ["step:1/9 train_loss:5.0 train_time:10ms\n", ""])
def test_a_log_with_progress_alone_is_a_question(tmp_path, steps):
    log = f"seed:1\n{steps}ttt_chunk [9/9] val_bpb:1.12\n" + "more\n" * 40
    folder = public_folder(tmp_path, MEAN, {"train.log": log})
    assert "only progress lines" in verdicts(folder, Verdict.CANNOT_TELL)["log"]
    assert not verdicts(folder).keys() & {"log", "headline"}


def test_a_long_log_is_read_in_time():
    """16 MB take at most 2 s of CPU, so an eighth takes no more than half a second or so."""
    steps = [f"step:{i}/90000 train_loss:2.1234 train_time:{i * 80}ms" for i in range(1, 36_000)]
    text = "\n".join(["world_size:8", "seed:1", *steps, RUN.splitlines()[-1]]).encode()
    assert len(text) > 2**21 * 0.8
    begin = time.process_time()
    (log,) = read(text)
    assert time.process_time() - begin < 1
    assert len(log.steps) == 35_999


# --- Keys ---


def submission(tmp_path, text: str | dict):
    raw = json.dumps(text) if isinstance(text, dict) else text
    (tmp_path / "submission.json").write_text(raw)
    return read_submission(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bytes_total", "about 16 MB"),
        ("val_loss", float("nan")),
        ("seeds", ["x"]),
        ("bytes_code", 1 << 70),
        ("date", "yesterday"),
        ("val_bpb_std", -1),
    ],
)
def test_a_bad_key_costs_itself_and_nothing_else(tmp_path, key, value):
    reading = submission(tmp_path, {"name": "n", "github_id": "g", "val_bpb": 1.1, key: value})
    assert [fault.key for fault in reading.faults] == [key]
    assert (reading.submission.name, reading.submission.val_bpb) == ("n", 1.1)
    assert getattr(reading.submission, key) in (None, [])


@pytest.mark.parametrize("value", [[{"a": float("inf")}], {"dict": {"x": [float("nan")]}}])
def test_an_unknown_key_that_is_no_json_costs_itself(tmp_path, value):
    """JSON has no infinity; the validator's name of a place is not always a key."""
    reading = submission(tmp_path, {"name": "n", "val_bpb": 1.1, "mystery": value})
    assert reading.submission.val_bpb == 1.1


def test_a_list_where_one_value_was_expected_is_kept(tmp_path):
    stated = {"name": "n", "val_bpb": 1.1, "seeds": [1, 2], "eval_time_seconds": [83, 84]}
    reading = submission(tmp_path, stated)
    assert reading.faults == ()
    assert reading.submission.unknown == {"eval_time_seconds": [83, 84]}
    assert reading.submission.seeds == [1, 2]


def test_no_name_hides_no_fault(tmp_path):
    stated = {key: value for key, value in GOOD.items() if key != "name"} | {"run_name": "x"}
    stated |= {"val_bpb": 1.0, "seeds": [1, 5]}
    folder = public_folder(tmp_path, stated, {"train.log": public_log(1, 1.1)})
    failed = verdicts(folder)
    assert "the contest asks for name" in failed["json"]
    assert {"headline", "seeds"} <= set(failed)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_half_a_letter_of_utf16_is_no_crash(tmp_path, encoding):
    folder = public_folder(tmp_path, MEAN, public_logs(BITS))
    whole = ("\ufeff" + json.dumps(MEAN)).encode(encoding)
    (folder / "submission.json").write_bytes(whole)
    assert headline(folder)[0] is Verdict.PASS
    for cut in (whole[:-1], whole + b"x", whole[:2] + b"\x00"):
        (folder / "submission.json").write_bytes(cut)
        reading = read_submission(folder)
        assert reading.submission is None
        assert "expected JSON" in reading.problem
    assert "expected JSON" in verdicts(folder)["json"]


def test_three_keys_are_asked_for(tmp_path):
    stated = {"name": "n", "github_id": "g", "val_bpb": 1.12}
    folder = public_folder(tmp_path, stated, public_logs(BITS))
    assert verdicts(folder) == {}


@pytest.mark.parametrize(
    ("stated", "field", "value"),
    [
        ({"mean_val_bpb": 1.1}, "val_bpb", 1.1),
        ({"val_bpb_mean": 1.1, "val_bpb": 1.2}, "val_bpb", 1.2),
        ({"val_bpb": None, "mean_val_bpb": 1.1}, "val_bpb", 1.1),
        ({"results": {"mean_val_bpb": 1.1, "std_val_bpb": 0.1}}, "val_bpb_std", 0.1),
        ({"code_bytes": 5}, "bytes_code", 5),
        ({"total_submission_bytes": 5}, "bytes_total", 5),
        ({"submission_name": "s"}, "name", "s"),
        ({"val_bpb_seed7": 1.1, "val_bpb_seed8": 1.2}, "seeds", [7, 8]),
        ({"seeds": [{"seed": 7, "val_bpb": 1.1}]}, "seeds", [7]),
        ({"seed": 7, "seed_results": {"7": 1.1, "8": 1.2}}, "seeds", [7, 8]),
        ({"seed_results": {"7": 1.1, "mean": 1.1}}, "stated", {"val_bpb_mean": 1.1}),
        ({"seed_results": {"7_slow": {"val_bpb": 1.1}}}, "seeds", []),
        ({"seeds": {"7": {"val_bpb": 1.1}, "8_5pct": {"val_bpb": 1.2}}}, "seeds", []),
        ({"seed_results": {"note": "pending"}}, "seeds", []),
    ],
)
def test_keys_by_other_names(tmp_path, stated, field, value):
    reading = submission(tmp_path, stated)
    assert reading.faults == ()
    assert getattr(reading.submission, field) == value


def test_values_of_seeds_by_other_names(tmp_path):
    row = {"val_bpb": 1.1, "ms_per_step": 80.5, "eval_time_ms": 2500, "artifact_size_bytes": 9}
    reading = submission(tmp_path, {"seeds": {"7": row}})
    (result,) = reading.submission.seed_results.values()
    assert (result.val_bpb, result.step_avg_ms) == (1.1, 80.5)
    assert (result.eval_s, result.artifact_bytes) == (2.5, 9)


@pytest.mark.parametrize(
    ("text", "severity"),
    [
        ('{"name": "n", "github_id": "g", "val_bpb": 0.5, "val_bpb": 1.1}', "blocking"),
        ('{"name": "n", "name": "n", "github_id": "g", "val_bpb": 1.1}', "format"),
    ],
)
def test_a_key_that_is_stated_twice_fails(tmp_path, text, severity):
    folder = public_folder(tmp_path, MEAN, {"train.log": public_log(1, 1.1)})
    (folder / "submission.json").write_text(text)
    check = named(folder, "json")
    assert check.verdict is Verdict.FAIL
    assert "is stated twice" in check.detail
    assert check.severity == severity


@pytest.mark.parametrize(("first", "severity"), [(1.0, "blocking"), (1.12, "format")])
def test_a_seed_with_two_results_fails(tmp_path, first, severity):
    rows = [{"seed": 2, "val_bpb": bpb} for bpb in (first, 1.12)]
    for key in ("seed_results", "seeds", "per_seed"):
        reading = submission(tmp_path, {"name": "n", "val_bpb": 1.12, key: rows})
        assert [fault.key for fault in reading.faults] == [f"{key}.2"]
    folder = public_folder(tmp_path, MEAN | {"seed_results": rows}, public_logs({2: 1.12}))
    check = named(folder, "json")
    assert check.verdict is Verdict.FAIL
    assert f"seed_results.2 is stated twice, {{'val_bpb': {first}}}" in check.detail
    assert check.severity == severity


@pytest.mark.parametrize("size", [1000, 1012])
def test_artifact_bytes_may_be_weights_or_total(tmp_path, size):
    stated = {key: value for key, value in MEAN.items() if key != "bytes_total"}
    rows = {str(seed): {"val_bpb": bpb, "artifact_bytes": size} for seed, bpb in BITS.items()}
    folder = public_folder(tmp_path, stated | {"seed_results": rows}, public_logs(BITS))
    assert "seed_results" not in verdicts(folder)
    rows["1"]["artifact_bytes"] = 1001
    (folder / "submission.json").write_text(json.dumps(stated | {"seed_results": rows}))
    assert "artifact_bytes 1001" in verdicts(folder)["seed_results"]


# --- Track ---


def slow_log() -> str:
    return public_log(1, 1.1).replace("train_time:599000ms", "train_time:2400000ms")


@pytest.mark.parametrize("stated", ["10min-16mb", "10-minute", "track_non_record_16mb", None])
def test_the_folder_says_which_limits_hold(tmp_path, stated):
    parent = tmp_path / "track_10min_16mb"
    parent.mkdir()
    claims = GOOD | {"val_bpb": 1.1} | ({"track": stated} if stated else {})
    folder = public_folder(parent, claims, {"train.log": slow_log()})
    assert open_record(folder).track_name == "track_10min_16mb"
    assert "2400.000 s" in verdicts(folder)["train_time"]
    noted = verdicts(folder, Verdict.CANNOT_TELL).get("track", "")
    assert (stated in (None, "10min-16mb")) is (noted == "")


@pytest.mark.parametrize("stated", ["unlimited", "10min-16mb"])
def test_an_unknown_track_lifts_no_limit(tmp_path, stated):
    """Outside of any track's folder the logs' clock tells the contest's track."""
    claims = GOOD | {"val_bpb": 1.1, "track": stated}
    folder = public_folder(tmp_path, claims, {"train.log": slow_log()})
    assert "2400.000 s" in verdicts(folder)["train_time"]
