"""Questions of `check` about bytes and clocks."""

import zlib

import pytest
from check_support import public_log, public_logs, verdicts
from question_support import (
    LOG,
    SCRIPT,
    TOO_LARGE,
    answer,
    contest_folder,
    edited,
)

from eval.papers.logs.sizes import Kind, sizes_of
from eval.rules import Verdict


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
        (1000, Verdict.FAIL, "1,000 stated, which is the weights without the script"),
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


def weighing(total, further=""):
    """A log of weights that fit, and what it prints of sizes besides."""
    sizes = (
        f"Serialized model int6+zstd: {total - 12} bytes\n"
        f"Total submission size int6+zstd: {total} bytes\n"
    )
    return edited(public_log(1, 1.1), ONE_COMPRESSION, sizes + further)


FITS = 15_900_012


@pytest.mark.parametrize(
    ("stated", "further", "words"),
    [
        ({"bytes_total": TOO_LARGE}, "", f"submission.json says {TOO_LARGE:,}"),
        (
            {"seed_results": {"1": {"val_bpb": 1.1, "bytes_total": TOO_LARGE}}},
            "",
            f"submission.json says {TOO_LARGE:,}",
        ),
        ({}, "Total submission size final: 16900093 bytes\n", "says 16,900,093"),
        ({}, "total_bytes: 16,638,468\n", "says 16,638,468"),
        ({}, "Total submission size: 16.64 MB\n", "says 16,640,000"),
        ({}, "Artifact size: 15.5 MiB\n", "says 16,252,928"),
    ],
)
def test_no_size_over_the_cap_is_hidden_by_a_smaller_one(tmp_path, stated, further, words):
    sizes = {"bytes_total": FITS} | stated
    folder = contest_folder(tmp_path, sizes, {LOG: weighing(FITS, further)})
    assert words in verdicts(folder)["cap"]


@pytest.mark.parametrize(
    "further",
    [
        "Total submission size: 15.90 MB\n",
        "Total submission size: 16.00 MB\n",  # may be 15,995,000
        "Total submission size before pruning: 16900093 bytes\n",
        "Submission size limit: 16,777,216 bytes\n",
        "total_bytes: 151,080,891\n",  # of the text
        "Serialized model int8+zlib: 19000000 bytes\nTotal submission size: 19000012 bytes\n",
    ],
)
def test_other_sizes_are_no_total_of_the_record(tmp_path, further):
    folder = contest_folder(tmp_path, {"bytes_total": FITS}, {LOG: weighing(FITS, further)})
    assert answer(folder, "cap").verdict is Verdict.PASS
    assert "bytes_total" not in verdicts(folder)


@pytest.mark.parametrize(
    ("printed", "verdict"),
    [("15.90", Verdict.PASS), ("16.00", Verdict.CANNOT_TELL), ("16.01", Verdict.FAIL)],
)
def test_a_total_in_megabytes_is_read_with_its_rounding(tmp_path, printed, verdict):
    total = f"Total submission size: {printed} MB\n"
    log = edited(public_log(1, 1.1), ONE_COMPRESSION, total)
    stated = {"bytes_total": min(16_000_000, round(float(printed) * 1e6))}
    assert answer(contest_folder(tmp_path, stated, {LOG: log}), "cap").verdict is verdict


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


GOES_ON = "step:12/20 train_loss:2.0 train_time:900000ms\n"
STOPS_AGAIN = "stopping_early: wallclock_cap train_time:1200000ms step:15/20\n"


@pytest.mark.parametrize(
    ("further", "words"), [(GOES_ON, "900.000 s"), (GOES_ON + STOPS_AGAIN, "1200.000 s")]
)
def test_training_that_goes_on_after_its_stop_is_caught(tmp_path, further, words):
    log = edited(public_log(1, 1.1), "Code size", f"{further}Code size")
    failed = answer(contest_folder(tmp_path, logs={LOG: log}), "train_time")
    assert failed.verdict is Verdict.FAIL
    assert words in failed.detail
    assert failed.evidence[0].text == further.splitlines()[-1]


@pytest.mark.parametrize(
    ("on_line", "further", "verdict"),
    [
        ("", "total_eval_time:912.3s", Verdict.FAIL),
        ("", "eval_time: 912.4s", Verdict.FAIL),
        ("", "eval_seconds=912", Verdict.FAIL),
        ("", "eval_time: 312.4s", Verdict.PASS),
        ("", "eval_time: 912400", Verdict.CANNOT_TELL),  # surely no seconds
        (" eval_time:500000ms", "total_eval_time:912.3s", Verdict.FAIL),
        (" eval_time:500000ms", "total_eval_time:560.0s", Verdict.PASS),  # and it is the whole
        (" eval_time:500000ms", "eval_time: 500.2s", Verdict.PASS),  # the same again
        (" eval_time:500000ms", "eval_time: 312.4s", Verdict.POLICY),
    ],
)
def test_an_evaluation_clock_may_stand_on_its_own_line(tmp_path, on_line, further, verdict):
    log = edited(public_log(1, 1.1), " eval_time:1000ms\n", f"{on_line}\n{further}\n")
    assert answer(contest_folder(tmp_path, logs={LOG: log}), "eval_time").verdict is verdict


def test_a_total_may_be_the_score_s_own_time_again(tmp_path):
    log = edited(public_log(1, 1.1), "eval_time:1000ms\n", "eval_time:500000ms\n")
    roundtrip = "final_roundtrip val_loss:1.9 val_bpb:1.15 eval_time:200000ms\n"
    log = edited(log, "final_exact", f"{roundtrip}final_exact") + "total_eval_time:500.0s\n"
    folder = contest_folder(tmp_path, logs={LOG: log})
    assert "700.0 s with the phases" in verdicts(folder, Verdict.POLICY)["eval_time"]


def test_a_validation_in_training_is_no_evaluation_phase(tmp_path):
    log = edited(public_log(1, 1.1), "step:1/9", "eval_time: 912.4s\nstep:1/9")
    assert answer(contest_folder(tmp_path, logs={LOG: log}), "eval_time").verdict is Verdict.PASS


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
