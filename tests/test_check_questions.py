"""Questions of `check` about bytes, clocks, the script, the text and the seeds.

Every record here is made by hand from one sound one.
"""

import base64
import json
import lzma
import sys
import zlib

import pytest
from check_support import GOOD, named, public_folder, public_log, public_logs, verdicts

from eval.papers.checks.enough_seeds import CRITICAL_LEVEL, CRITICAL_T
from eval.papers.checks.run import check_folder
from eval.papers.logs.sizes import Kind, sizes_of
from eval.rules import Verdict

TRACK = "track_10min_16mb"
LOG = "train_seed1.log"
SCRIPT = "import math\n"  # 12 bytes, as GOOD states
TOO_LARGE = 16_000_001
SP1024_TOKENS = 62_021_632
SEEDS = {1: 1.10, 2: 1.11, 3: 1.12}  # bits per byte


def contest_folder(parent, submission=(), logs=None, code=SCRIPT):
    """A sound record of the contest's track, with these changes."""
    place = parent / TRACK
    place.mkdir(parents=True)
    stated = GOOD | {"val_bpb": 1.1} | dict(submission)
    return public_folder(place, stated, {LOG: public_log(1, 1.1)} if logs is None else logs, code)


def edited(log, old, new):
    assert old in log, old
    return log.replace(old, new)


def checked(folder, name):
    """All answers to one question."""
    return [check for check in check_folder(folder).checks if check.name == name]


def answer(folder, name):
    (check,) = checked(folder, name)
    return check


def test_a_sound_record_has_no_complaint(tmp_path):
    folder = contest_folder(tmp_path)
    assert verdicts(folder) == {}
    assert verdicts(folder, Verdict.POLICY) == {}


# --- Sizes ---


def test_every_size_is_read_with_its_label():
    lines = [
        "Serialized model: 67,224,983 bytes",
        "Code size (uncompressed): 47642 bytes",
        "Code size (compressed): 11000 bytes",
        "Serialized model int6+zstd: 15000000 bytes (payload:17 ratio:3.9x)",
        "[2026-03-25 10:59:34] INFO: Total submission size int6+zstd: 15011000 bytes",
        "step 3 has 12 bytes in it",
        "SUBMISSION_SUMMARY run_id:x artifact:15000001 code:20 total:15000021 fits:YES",
        "quant_a6: artifact=15000002 bytes (14.3 MB) total_submission=15000022 bytes",
        "artifact: 15000003 bytes (model:14999983 code:20)",
        "gptq:pre_prune artifact=16500000 target=15900000",
    ]
    sizes = sizes_of(enumerate(lines, 1))
    read = [(size.kind, size.label, size.bytes, size.line) for size in sizes.all]
    assert read == [
        (Kind.WEIGHTS, "", 67_224_983, 1),
        (Kind.CODE, "", 47_642, 2),
        (Kind.PACKED_CODE, "", 11_000, 3),
        (Kind.WEIGHTS, "int6+zstd", 15_000_000, 4),
        (Kind.TOTAL, "int6+zstd", 15_011_000, 5),
        (Kind.WEIGHTS, "SUBMISSION_SUMMARY run_id:x", 15_000_001, 7),
        (Kind.CODE, "", 20, 7),
        (Kind.TOTAL, "SUBMISSION_SUMMARY run_id:x", 15_000_021, 7),
        (Kind.WEIGHTS, "quant_a6", 15_000_002, 8),
        (Kind.TOTAL, "quant_a6", 15_000_022, 8),
        (Kind.TOTAL, "", 15_000_003, 9),
        (Kind.WEIGHTS, "", 14_999_983, 9),
        (Kind.CODE, "", 20, 9),
    ]


TWO_COMPRESSIONS = (
    "Serialized model int8+zlib: 19000000 bytes\n"
    "Total submission size int8+zlib: 19000012 bytes\n"
    "Serialized model int6+zstd: 15000000 bytes\n"
    "Total submission size int6+zstd: 15000012 bytes\n"
)
ONE_COMPRESSION = (
    "Serialized model int6+zstd: 1000 bytes\nTotal submission size int6+zstd: 1012 bytes\n"
)


def two_compressions(parent, total):
    log = edited(public_log(1, 1.1), ONE_COMPRESSION, TWO_COMPRESSIONS)
    return contest_folder(parent, {"bytes_total": total}, {LOG: log})


def test_of_two_compressions_the_stated_one_was_shipped(tmp_path):
    folder = two_compressions(tmp_path / "small", 15_000_012)
    assert verdicts(folder) == {}
    assert "weights 15,000,000 + script 12" in answer(folder, "cap").detail
    large = two_compressions(tmp_path / "large", 19_000_012)
    assert "19,000,012" in verdicts(large)["cap"]


def test_the_total_of_the_uncompressed_weights_was_not_shipped(tmp_path):
    raw = "Serialized model: 67000000 bytes\nTotal submission size: 67000012 bytes\n"
    log = edited(public_log(1, 1.1), ONE_COMPRESSION, raw + ONE_COMPRESSION)
    assert verdicts(contest_folder(tmp_path / "both", logs={LOG: log})) == {}
    log = edited(public_log(1, 1.1), ONE_COMPRESSION, raw)
    folder = contest_folder(tmp_path / "alone", logs={LOG: log})
    assert "no log prints a size" in verdicts(folder, Verdict.CANNOT_TELL)["cap"]


@pytest.mark.parametrize(
    ("key", "size"), [("bytes_total", 1012), ("artifact_bytes", 1012), ("artifact_bytes", 1000)]
)
def test_artifact_bytes_may_be_weights_or_total(tmp_path, key, size):
    seed_results = {"1": {"val_bpb": 1.1, key: size}}
    folder = contest_folder(tmp_path, {"bytes_total": None, "seed_results": seed_results})
    assert answer(folder, "bytes_total").verdict is Verdict.PASS
    assert "seed_results" not in verdicts(folder)


@pytest.mark.parametrize(
    ("stated", "verdict", "words"),
    [
        (1012, Verdict.PASS, "the total of"),
        (1000, Verdict.FAIL, "1,000 stated, the logs say 1,012"),
        (1013, Verdict.FAIL, "1,013 stated, the logs say 1,012"),
        (None, Verdict.CANNOT_TELL, "states no total, the logs say 1,012"),
    ],
)
def test_the_stated_total_is_one_of_the_log(tmp_path, stated, verdict, words):
    folder = contest_folder(tmp_path, {"bytes_total": stated})
    outcome = answer(folder, "bytes_total")
    assert outcome.verdict is verdict
    assert words in outcome.detail


def test_a_total_may_be_of_another_log_or_of_none(tmp_path):
    """An ablation beside the record prints the stated total; a seed without a log proves none."""
    logs = public_logs({1: 1.1})
    logs["ablation_seed1.log"] = edited(public_log(1, 1.2), ": 1012 bytes", ": 1020 bytes")
    folder = contest_folder(tmp_path / "other", {"bytes_total": 1020}, logs)
    outcome = answer(folder, "bytes_total")
    assert outcome.verdict is Verdict.CANNOT_TELL
    assert "1,020 is of ablation_seed1.log" in outcome.detail
    rows = {"1": {"val_bpb": 1.1, "artifact_bytes": 1012}, "2": {"artifact_bytes": TOO_LARGE}}
    stated = {"bytes_total": None, "seed_results": rows}
    folder = contest_folder(tmp_path / "none", stated)
    outcome = answer(folder, "bytes_total")
    assert "for seed 2, of which there is no log" in outcome.detail
    assert f"submission.json says {TOO_LARGE:,}" in verdicts(folder)["cap"]


def test_one_of_several_printed_totals_is_the_stated_one(tmp_path):
    """A launcher's log of three seeds, one result line for each."""
    results = "".join(f"[RESULT] run={i} | size=15,70{i},116B | OK\n" for i in range(3))
    log = edited(public_log(1, 1.1), ONE_COMPRESSION, results)
    folder = contest_folder(tmp_path, {"bytes_total": 15_702_116}, {LOG: log})
    assert answer(folder, "bytes_total").verdict is Verdict.PASS


def test_a_rounded_total_is_one_of_the_log(tmp_path):
    log = edited(public_log(1, 1.1), "1012 bytes", "15899961 bytes")
    log = edited(log, ": 1000 bytes", ": 15899949 bytes")
    folder = contest_folder(tmp_path, {"bytes_total": 15_900_000}, {LOG: log})
    assert "15,899,961, rounded" in answer(folder, "bytes_total").detail


@pytest.mark.parametrize(
    ("megabytes", "stated", "verdicts_of"),
    [
        ("15.92", 15_923_012, ("PASS", "PASS")),
        ("15.92", 15_926_012, ("FAIL", "PASS")),  # would be printed as 15.93
        ("16.00", 16_000_000, ("PASS", "CANNOT-TELL")),  # 15,995,000 would leave room
        ("16.01", 16_000_000, ("FAIL", "FAIL")),
    ],
)
def test_weights_may_be_printed_in_megabytes(tmp_path, megabytes, stated, verdicts_of):
    printed = f"artifact:{megabytes}MB ternary:64880640(14239486B) fp:2513744(2537376B) code:12\n"
    log = edited(public_log(1, 1.1), ONE_COMPRESSION, printed)
    folder = contest_folder(tmp_path, {"bytes_total": stated}, {LOG: log})
    assert (answer(folder, "bytes_total").verdict, answer(folder, "cap").verdict) == verdicts_of


def test_a_total_below_its_parts_is_caught(tmp_path):
    log = edited(public_log(1, 1.1), "int6+zstd: 1012 bytes", "int6+zstd: 1005 bytes")
    folder = contest_folder(tmp_path, {"bytes_total": 1005}, {LOG: log})
    assert "total 1,005 is less than weights + code (1,000 + 12)" in verdicts(folder)["bytes_total"]


@pytest.mark.parametrize("label", ["", " int6+zstd"])
def test_any_total_over_the_cap_is_caught(tmp_path, label):
    """With or without a label; the sum need not be that of weights and code."""
    log = edited(
        public_log(1, 1.1),
        "Total submission size int6+zstd: 1012",
        f"Total submission size{label}: {TOO_LARGE}",
    )
    folder = contest_folder(tmp_path / "logged", {"bytes_total": TOO_LARGE}, {LOG: log})
    failed = answer(folder, "cap")
    assert failed.verdict is Verdict.FAIL
    assert f"submission.json says {TOO_LARGE:,}, {LOG} says {TOO_LARGE:,}" in failed.detail
    silent = "\n".join(
        line for line in log.splitlines() if "size" not in line and "Seri" not in line
    )
    folder = contest_folder(tmp_path / "stated", {"bytes_total": TOO_LARGE}, {LOG: silent + "\n"})
    assert f"submission.json says {TOO_LARGE:,}" in verdicts(folder)["cap"]


def test_a_script_counted_compressed_is_a_policy(tmp_path):
    """Both totals are named, and the script is compressed here for comparison."""
    code = SCRIPT + "# filler\n" * 5000
    log = edited(
        public_log(1, 1.1),
        ONE_COMPRESSION,
        f"Code size (uncompressed): {len(code)} bytes\n"
        "Code size (compressed): 900 bytes\n"
        "Serialized model int6+zstd: 15990000 bytes\n"
        "Total submission size int6+zstd: 15990900 bytes\n",
    )
    log = edited(log, "Code size: 12 bytes\n", "")
    stated = {"bytes_total": 15_990_900, "bytes_code": len(code)}
    outcome = answer(contest_folder(tmp_path, stated, {LOG: log}, code), "cap")
    assert outcome.verdict is Verdict.POLICY
    assert "(900 bytes logged) 15,990,900" in outcome.detail
    assert f"as shipped {15_990_000 + len(code):,}" in outcome.detail
    assert f"zlib {len(zlib.compress(code.encode(), 9))}" in outcome.detail
    assert all(name in outcome.detail for name in ("lzma", "brotli", "zstd"))


def test_a_script_that_no_compressor_makes_fit_is_caught(tmp_path):
    log = edited(public_log(1, 1.1), ": 1000 bytes", ": 15999999 bytes")
    log = edited(log, ": 1012 bytes", ": 15999999 bytes")
    folder = contest_folder(tmp_path, {"bytes_total": 15_999_999}, {LOG: log})
    assert "cap" in verdicts(folder)


# --- Clocks ---


def timed_folder(parent, train_ms=599_000, eval_ms=1000, extra=""):
    log = edited(public_log(1, 1.1), "train_time:599000ms", f"train_time:{train_ms}ms")
    log = edited(log, "eval_time:1000ms", f"eval_time:{eval_ms}ms")
    return contest_folder(parent, logs={LOG: edited(log, "final_exact", f"{extra}final_exact")})


@pytest.mark.parametrize(
    ("train_ms", "eval_ms", "failed"),
    [
        (600_900, 600_900, set()),  # a clock is read when the host notices
        (605_900, 1000, set()),  # 9 steps of 67 s each, of which 6 s excuse
        (606_100, 1000, {"train_time"}),
        (599_000, 601_200, {"eval_time"}),
    ],
)
def test_clocks_have_a_tolerance_of_a_second_or_a_step(tmp_path, train_ms, eval_ms, failed):
    assert set(verdicts(timed_folder(tmp_path, train_ms, eval_ms))) == failed


def test_without_a_log_no_clock_passes(tmp_path):
    folder = contest_folder(tmp_path, logs={})
    unclear = verdicts(folder, Verdict.CANNOT_TELL)
    assert unclear["train_time"] == unclear["eval_time"] == "no log states a time"


def test_the_last_step_tells_the_time_of_a_run_that_was_not_stopped(tmp_path):
    lines = public_log(1, 1.1).splitlines()
    kept = [line for line in lines if not line.startswith("stopping_early")]
    log = "\n".join(kept).replace("train_time:10ms", "train_time:2400000ms") + "\n"
    folder = contest_folder(tmp_path, logs={LOG: log})
    assert "2400.000 s" in verdicts(folder)["train_time"]


@pytest.mark.parametrize(
    ("extra", "total"),
    [
        ("final_roundtrip val_loss:1.9 val_bpb:1.15 eval_time:200000ms\n", "700.0 s"),
        # The same phase, timed inside and outside of a function, counts once.
        ("final_window:done val_loss=1.9 val_bpb=1.1 took 500.2s\n", None),
    ],
)
def test_phases_beside_the_clock_are_a_policy_and_count_once(tmp_path, extra, total):
    log = public_log(1, 1.1)
    log = edited(log, "final_exact ", f"{extra}final_window_exact ")
    log = edited(log, "eval_time:1000ms", "eval_time:500000ms")
    folder = contest_folder(tmp_path, logs={LOG: log})
    found = verdicts(folder, Verdict.POLICY).get("eval_time")
    assert found is None if total is None else total in found
    assert "eval_time" not in verdicts(folder)


# --- The script ---


@pytest.mark.parametrize("code", ["", "\n\n", '"""Nothing but words."""\n', "pass\n"])
def test_a_script_without_statements_is_empty(tmp_path, code):
    assert "is empty" in verdicts(contest_folder(tmp_path, code=code))["compiles"]


NEWER = 'import os\nprint(f"{os.environ.get("HOME")}")\n'  # PEP 701: Python 3.12


def wrapped(source):
    packed = base64.b85encode(lzma.compress(source.encode())).decode()
    return f"import lzma as L,base64 as B\nexec(L.decompress(B.b85decode('{packed}')))\n"


def with_python(version):
    """A log that names its Python, None for one that does not."""
    first = "" if version is None else f"Running Python {version} (main)\n"
    return {LOG: first + public_log(1, 1.1)}


@pytest.mark.parametrize("wrap", [str, wrapped])
@pytest.mark.parametrize(
    ("logged", "verdict", "words"),
    [
        (None, Verdict.CANNOT_TELL, "needs Python 3.12, this is"),
        ("3.12.3", Verdict.CANNOT_TELL, "needs Python 3.12, this is"),
        ("3.10.12", Verdict.FAIL, "needs Python 3.12, its log says 3.10"),
    ],
)
def test_newer_syntax_than_ours_is_no_fault(tmp_path, wrap, logged, verdict, words):
    if sys.version_info >= (3, 12) and verdict is Verdict.CANNOT_TELL:
        pytest.skip("this Python reads the syntax of 3.12")
    folder = contest_folder(tmp_path, logs=with_python(logged), code=wrap(NEWER))
    outcome = answer(folder, "compiles")
    assert outcome.verdict is verdict
    assert words in outcome.detail
    assert ("inside" in outcome.detail) is (wrap is wrapped)


def test_the_source_inside_a_wrapper_is_compiled(tmp_path):
    sound = contest_folder(tmp_path / "sound", code=wrapped("x = 1\n"))
    assert "inside exec, lzma, base85" in answer(sound, "compiles").detail
    broken = contest_folder(tmp_path / "broken", code=wrapped("def f(:\n"))
    assert "inside exec, lzma, base85" in verdicts(broken)["compiles"]
    empty = contest_folder(tmp_path / "empty", code=wrapped("\n"))
    assert "is empty" in verdicts(empty)["compiles"]


def test_a_text_that_only_running_shows_is_open(tmp_path):
    folder = contest_folder(tmp_path, code="exec(open('elsewhere').read())\n")
    assert "only running it shows" in verdicts(folder, Verdict.CANNOT_TELL)["compiles"]


@pytest.mark.parametrize(
    ("stated", "verdict"),
    [
        (len(SCRIPT), Verdict.PASS),
        (len(SCRIPT) + 1, Verdict.PASS),  # as a checkout of Windows has it
        (len(SCRIPT) - 1, Verdict.PASS),  # without the last line's end
        (len(SCRIPT) + 2, Verdict.FAIL),
    ],
)
def test_a_script_has_the_stated_size(tmp_path, stated, verdict):
    log = edited(public_log(1, 1.1), "Code size: 12 bytes\n", "")
    folder = contest_folder(tmp_path, {"bytes_code": stated}, {LOG: log})
    assert answer(folder, "code_bytes").verdict is verdict


PRINTED = "import os\n\n\ndef main():\n    rate = 0.04\n    print(os.name, rate)\n\n\nmain()\n"
RULER = "=" * 100 + "\n"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("rate = 0.04", "rate = 0.04", None),
        ("rate = 0.04", "rate = 0.04  # as before", None),
        ("rate = 0.04", "rate = 0.05", 5),
        ("print(os.name, rate)", "print(os.name)", 6),
    ],
)
def test_the_printed_source_is_compared_with_the_script(tmp_path, old, new, line):
    log = PRINTED + RULER + public_log(1, 1.1)
    folder = contest_folder(tmp_path, logs={LOG: log}, code=edited(PRINTED, old, new))
    outcome = answer(folder, "source")
    if line is None:
        assert outcome.verdict is Verdict.PASS
        return
    assert outcome.verdict is Verdict.FAIL
    ours, theirs = outcome.evidence
    assert (ours.line, theirs.line) == (line, line)
    assert ours.text == new
    assert theirs.text == old


# --- What it loads ---

HELPER = "x = 2\n" * 30  # 180 bytes
IMPORTING = "import tilt\n"  # as long as SCRIPT


def weighing(weights):
    log = edited(public_log(1, 1.1), ": 1000 bytes", f": {weights} bytes")
    return {LOG: edited(log, ": 1012 bytes", f": {weights + 12} bytes")}


@pytest.mark.parametrize(
    ("weights", "code", "verdict"),
    [
        (15_999_900, IMPORTING, Verdict.FAIL),
        (15_000_000, IMPORTING, Verdict.CANNOT_TELL),  # in no count, and there is room for it
        (15_999_900, SCRIPT, Verdict.PASS),  # nobody loads it
    ],
)
def test_imported_files_count(tmp_path, weights, code, verdict):
    stated = {"bytes_total": weights + 12}
    folder = contest_folder(tmp_path, stated, weighing(weights), code)
    (folder / "tilt.py").write_text(HELPER)
    outcome = answer(folder, "uncounted")
    assert outcome.verdict is verdict
    assert "tilt.py" in outcome.detail


def test_a_file_that_the_script_names_is_asked_for(tmp_path):
    code = "import ctypes\nctypes.CDLL('kernel.so')\n"
    folder = contest_folder(tmp_path, {"bytes_code": len(code)}, code=code)
    (folder / "kernel.so").write_bytes(b"\x7fELF")
    assert "names kernel.so" in verdicts(folder, Verdict.CANNOT_TELL)["uncounted"]


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("import torch\nimport numpy as np\nimport math\n", Verdict.PASS),
        ("import my_layers\n", Verdict.FAIL),
        ("if False:\n    import my_layers\n", Verdict.CANNOT_TELL),
        ("def f():\n    from my_layers import g\n", Verdict.CANNOT_TELL),
        ("try:\n    import my_layers\nexcept ImportError:\n    my_layers = None\n", Verdict.PASS),
        ("from .core import g\n", Verdict.FAIL),
    ],
)
def test_modules_that_nobody_provides(tmp_path, code, verdict):
    assert answer(contest_folder(tmp_path, code=code), "modules").verdict is verdict


def test_a_module_that_readme_names_is_asked_for(tmp_path):
    folder = contest_folder(tmp_path, code="import my_layers\n")
    (folder / "README.md").write_text("val_bpb 1.1\n\npip install my-layers\n")
    assert answer(folder, "modules").verdict is Verdict.CANNOT_TELL


def test_requirements_and_helpers_provide_modules(tmp_path):
    folder = contest_folder(tmp_path, code="import my_layers\nimport odd_package\n")
    (folder / "requirements.txt").write_text("# what it needs\nodd-package==1.0\n")
    (folder / "my_layers").mkdir()
    (folder / "my_layers" / "__init__.py").write_text("import math\n")
    assert answer(folder, "modules").verdict is Verdict.PASS


# --- The logs ---


@pytest.mark.parametrize(
    "words",
    [
        "# Logs were captured by hand.",
        "# extracted from session transcript, full log lost when pod terminated",
        "# Note: full training logs were not saved",
        "Note: detailed step logs not preserved",
    ],
)
def test_a_log_that_says_it_is_none_is_caught(tmp_path, words):
    folder = contest_folder(tmp_path, logs={LOG: f"{words}\n{public_log(1, 1.1)}"})
    failed = [check for check in checked(folder, "log") if check.verdict is Verdict.FAIL]
    assert [check.evidence[0].line for check in failed] == [1]


def test_scores_without_a_training_step_are_asked_for(tmp_path):
    lines = [line for line in public_log(1, 1.1).splitlines() if not line.startswith("step:")]
    folder = contest_folder(tmp_path, logs={LOG: "\n".join(lines) + "\n"})
    unclear = [c for c in checked(folder, "log") if c.verdict is Verdict.CANNOT_TELL]
    assert "no training steps" in unclear[0].detail


@pytest.mark.parametrize(("ranks", "verdict"), [(8, Verdict.PASS), (2, Verdict.FAIL)])
def test_the_contest_has_eight_ranks(tmp_path, ranks, verdict):
    log = edited(public_log(1, 1.1), "world_size:8", f"world_size:{ranks}")
    assert answer(contest_folder(tmp_path, logs={LOG: log}), "world_size").verdict is verdict


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        ({"model_params": 26_829_913}, Verdict.PASS),
        ({"parameters": 27_000_000}, Verdict.PASS),  # rounded
        ({"params": "26.8M"}, Verdict.PASS),
        ({"num_params": 21_000_000}, Verdict.FAIL),
        ({"params": "21.5M"}, Verdict.FAIL),
        ({"model_params": 26_829_914}, Verdict.FAIL),
    ],
)
def test_claimed_parameters_are_those_of_the_logs(tmp_path, claim, verdict):
    log = edited(public_log(1, 1.1), "model_params:5", "model_params:26829913")
    folder = contest_folder(tmp_path, claim, {LOG: log})
    assert answer(folder, "parameters").verdict is verdict


# --- The text ---


@pytest.mark.parametrize(
    "words",
    [
        "eval: 500 batches (limited)",
        "final evaluation limited to 3000000 tokens",
        "validation: only the first 2,000 documents are scored",
    ],
)
def test_a_partial_evaluation_is_caught(tmp_path, words):
    log = edited(public_log(1, 1.1), "final_exact", f"{words}\nfinal_exact")
    assert "cut short" in verdicts(contest_folder(tmp_path, logs={LOG: log}))["coverage"]


@pytest.mark.parametrize(
    ("tokens", "verdict"),
    [
        (SP1024_TOKENS, Verdict.PASS),
        (3_000_064, Verdict.FAIL),
        (61_000_000, Verdict.FAIL),
        (99_000_000, Verdict.CANNOT_TELL),
    ],
)
def test_the_whole_split_is_scored(tmp_path, tokens, verdict):
    """The ratio of loss to bpb names the tokenizer, so the number of tokens can be judged."""
    folder = contest_folder(tmp_path, logs={LOG: public_log(1, 1.1, tokens=tokens)})
    assert answer(folder, "coverage").verdict is verdict


def test_another_tokenizer_of_the_whole_text_is_no_partial_evaluation(tmp_path):
    """Fewer tokens of more bytes each: 61,409,000 at 1.0053 times SP1024's ratio are 150.4 MB."""
    log = public_log(1, 1.1, tokens=61_409_000)
    log = edited(log, f"{1.1 * 1.68846:.8f}", f"{1.1 * 1.68846 * 1.0053:.8f}")
    folder = contest_folder(tmp_path, logs={LOG: log})
    assert checked(folder, "coverage") == []


def ratio_folder(parent, ratio, in_training):
    """A record whose final score and last validation have these ratios of loss to bpb."""
    validation = f"step:9/9 val_loss:{1.2 * in_training:.6f} val_bpb:1.200000 train_time:20ms\n"
    log = edited(public_log(1, 1.1), "stopping_early", f"{validation}stopping_early")
    head, mark, tail = log.partition("final_exact val_loss:")
    loss = tail.split(" ", 1)
    return contest_folder(parent, logs={LOG: f"{head}{mark}{1.1 * ratio:.8f} {loss[1]}"})


@pytest.mark.parametrize(
    ("ratio", "in_training", "verdict", "words"),
    [
        (1.68846, 1.68846, Verdict.PASS, "as SP1024 has"),
        (1.987, 1.987, Verdict.FAIL, "leading space counted twice"),
        (2.253, 2.253, Verdict.FAIL, "mojibake"),
        # The validations are sound: what is mixed in later prints another quantity.
        (1.987, 1.68846, Verdict.CANNOT_TELL, "another quantity"),
    ],
)
def test_wrong_byte_counts_are_named(tmp_path, ratio, in_training, verdict, words):
    outcome = answer(ratio_folder(tmp_path, ratio, in_training), "implied_bytes")
    assert outcome.verdict is verdict, outcome.detail
    assert words in outcome.detail


def test_more_bytes_than_the_split_holds_are_caught(tmp_path):
    """A tokenizer of one's own: 145 million tokens of 0.89 nats per bpb are 186 MB."""
    log = edited(
        public_log(1, 1.1, tokens=144_967_680), f"{1.1 * 1.68846:.8f}", f"{1.1 * 0.89:.8f}"
    )
    folder = contest_folder(tmp_path, logs={LOG: log})
    assert "more than any published split holds" in verdicts(folder)["implied_bytes"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("paid_prefix:loaded 6,200,000 tokens from p.xz", "carries validation tokens"),
        ("train_loader:shards pattern=x/fineweb_val_*.bin", "trains on the validation"),
        ("train_on_val:True", "trains on the validation"),
        ("train_loader:dataset:fineweb10B_sp1024_valonly train_shards:1", "trains on the val"),
    ],
)
def test_training_on_validation_is_caught(tmp_path, words, what):
    log = edited(public_log(1, 1.1), "seed:1\n", f"seed:1\n{words}\n")
    assert what in verdicts(contest_folder(tmp_path, logs={LOG: log}))["overlap"]


@pytest.mark.parametrize("few", [True, False])
def test_shards_that_overlap_with_validation(tmp_path, few):
    """1,499 shards alone are a question; with the script that made them they are a proof."""
    log = public_log(1, 1.1, tokens=47_851_520)
    log = edited(log, "seed:1\n", "seed:1\ntrain_loader:dataset:x train_shards:1499\n")
    folder = contest_folder(tmp_path, logs={LOG: log})
    documents = "10_000" if few else "50_000"
    option = f'parser.add_argument("--val-docs", type=int, default={documents})\n'
    (folder / "prepare_caseops_data.py").write_text(option)
    found = answer(folder, "overlap")
    assert found.verdict is (Verdict.FAIL if few else Verdict.CANNOT_TELL)


# --- Seeds ---


def test_the_table_of_students_distribution():
    from scipy import stats

    for df, critical in CRITICAL_T.items():
        assert critical == pytest.approx(stats.t.isf(CRITICAL_LEVEL, df), abs=1e-4)


def seeds_folder(parent, count, **stated):
    bits = dict(list(SEEDS.items())[:count])
    mean = sum(bits.values()) / count
    return contest_folder(parent, {"val_bpb": mean} | stated, public_logs(bits))


@pytest.mark.parametrize(
    ("count", "stated", "verdict", "words"),
    [
        (1, {}, Verdict.CANNOT_TELL, "1 seed(s)"),
        # 31.8205 · 0.00707107 / sqrt(2)
        (2, {}, Verdict.CANNOT_TELL, "a gain of 0.15910 bpb"),
        # 6.9646 · 0.01 / sqrt(3)
        (3, {}, Verdict.PASS, "a gain of 0.04021 bpb"),
        (3, {"baseline_val_bpb": 1.2, "p_value": 0.001}, Verdict.PASS, "gain is 0.09000"),
        (3, {"baseline_val_bpb": 1.12, "p_value": 0.001}, Verdict.FAIL, "yet called significant"),
        (3, {"baseline_val_bpb": 1.12}, Verdict.PASS, "gain is 0.01000"),
    ],
)
def test_enough_seeds(tmp_path, count, stated, verdict, words):
    outcome = answer(seeds_folder(tmp_path, count, **stated), "enough_seeds")
    assert outcome.verdict is verdict
    assert words in outcome.detail


def test_other_tracks_ask_for_no_seeds(tmp_path):
    place = tmp_path / "track_non_record_16mb"
    place.mkdir()
    folder = public_folder(place, GOOD | {"val_bpb": 1.1}, {LOG: public_log(1, 1.1)})
    assert checked(folder, "enough_seeds") == []


def test_the_gain_over_another_record_is_given_in_bits(tmp_path):
    """Three seeds each, 0.02 bits apart: p of any gain is 0.14, p of the bar's 0.17."""
    base = seeds_folder(tmp_path / "base", 3)
    logs = public_logs({seed: bpb - 0.01 for seed, bpb in SEEDS.items()})
    better = contest_folder(tmp_path / "better", {"val_bpb": 1.10}, logs)
    outcome = named(better, "significance", against=base)
    assert outcome.verdict is Verdict.POLICY
    assert "delta -0.010000 bpb" in outcome.detail
    assert "the leaderboard's practice, p < 0.25 without a bar, is met" in outcome.detail


def test_answers_are_json(tmp_path):
    """Every answer of a record full of faults can be written down."""
    folder = contest_folder(tmp_path, {"bytes_total": TOO_LARGE}, code=wrapped(NEWER))
    report = check_folder(folder)
    rows = [[check.name, check.verdict, check.severity, check.detail] for check in report.checks]
    assert json.loads(json.dumps(rows))
