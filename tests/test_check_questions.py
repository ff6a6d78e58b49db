"""Questions of `check` about the logs, the text that was scored, and the seeds."""

import json

import pytest
from check_support import GOOD, named, public_folder, public_log, public_logs, verdicts
from question_support import (
    LOG,
    SEEDS,
    SP1024_TOKENS,
    TOO_LARGE,
    answer,
    checked,
    contest_folder,
    edited,
    wrapped,
)

from eval.papers.checks.enough_seeds import CRITICAL_LEVEL, CRITICAL_T
from eval.papers.checks.report import Severity
from eval.papers.checks.run import check_folder
from eval.rules import Verdict

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


INNOCENT = (
    f"validation tokens: {SP1024_TOKENS:,} (truncated to a multiple of 1024)",
    "train: ./data/fineweb_train_*.bin val: ./data/fineweb_val_*.bin",
    "train:fineweb_train_*.bin,val:fineweb_val_*.bin",
    f"paid_prefix: off (0 of {SP1024_TOKENS} tokens)",
    "Paid prefix blob: 0 bytes",
    "-- output head in int6: 0.002 bpb lost",
    "# fused kernel, tuned by hand",
    "# recovered from memory fragmentation by a restart of the allocator",
    "gptq: evaluating the first 64 batches for calibration",
    "eval: limited to 50,000 docs",
    "eval: stride 64, the first 960 tokens of each window are context only",
)


@pytest.mark.parametrize("words", INNOCENT)
def test_innocent_lines_are_no_faults(tmp_path, words):
    log = edited(public_log(1, 1.1), "seed:1\n", f"seed:1\n{words}\n")
    report = check_folder(contest_folder(tmp_path, logs={LOG: log}))
    said = {c.name for c in report.checks if c.verdict is not Verdict.PASS}
    assert not said & {"coverage", "overlap"}
    assert "log" not in said


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("eval windows: 969,088 (truncated)", "coverage"),
        ("validation loader (sampled)", "coverage"),
        ("paid_prefix: prefix.xz", "overlap"),
    ],
)
def test_a_hint_without_a_count_is_a_question(tmp_path, words, name):
    log = edited(public_log(1, 1.1), "seed:1\n", f"seed:1\n{words}\n")
    outcome = answer(contest_folder(tmp_path, logs={LOG: log}), name)
    assert outcome.verdict is Verdict.CANNOT_TELL
    assert outcome.severity is Severity.EXPLAIN


def test_the_score_itself_may_be_of_a_part(tmp_path):
    log = edited(public_log(1, 1.1), "final_exact", "final_exact (subset)")
    assert "cut short" in verdicts(contest_folder(tmp_path, logs={LOG: log}))["coverage"]


def test_overlong_lines_are_no_remarks(tmp_path):
    words = f"eval: 500 batches (limited) {'x' * 2000}\n# log written by hand {'x' * 2000}\n"
    log = edited(public_log(1, 1.1), "seed:1\n", f"seed:1\n{words}")
    failed = verdicts(contest_folder(tmp_path, logs={LOG: log}))
    assert not {"coverage", "log"} & set(failed)


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
        # The validations are sound, the final evaluation counts otherwise.
        (1.987, 1.68846, Verdict.FAIL, "in training the same tokens had 1.6885"),
        (1.76, 1.68846, Verdict.FAIL, "+4.24%"),
        # Fewer bytes than there are make the score worse, so the loss is of another pass.
        (1.60, 1.68846, Verdict.CANNOT_TELL, "another quantity"),
    ],
)
def test_wrong_byte_counts_are_named(tmp_path, ratio, in_training, verdict, words):
    outcome = answer(ratio_folder(tmp_path, ratio, in_training), "implied_bytes")
    assert outcome.verdict is verdict, outcome.detail
    assert words in outcome.detail


@pytest.mark.parametrize("words", ["ngram_cache: orders 2 to 7", "final_ppm_mix val_bpb:0.9"])
def test_what_is_mixed_in_prints_another_quantity(tmp_path, words):
    folder = ratio_folder(tmp_path, 1.987, 1.68846)
    log = folder / LOG
    log.write_text(edited(log.read_text(), "final_exact", f"{words}\nfinal_exact"))
    outcome = answer(folder, "implied_bytes")
    assert outcome.verdict is Verdict.CANNOT_TELL
    assert "another quantity" in outcome.detail


def test_a_stated_loss_may_be_of_another_score(tmp_path):
    """The log gives no loss beside its score, and its validations are sound."""
    folder = ratio_folder(tmp_path, 1.68846, 1.68846)
    log = folder / LOG
    log.write_text(edited(log.read_text(), f"final_exact val_loss:{1.1 * 1.68846:.8f}", "final"))
    stated = json.loads((folder / "submission.json").read_text())
    (folder / "submission.json").write_text(json.dumps(stated | {"val_loss": 1.1 * 1.987}))
    outcome = answer(folder, "implied_bytes")
    assert outcome.verdict is Verdict.CANNOT_TELL
    assert "another quantity" in outcome.detail


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(1.68846, "as SP1024 has"), (3.040, "SP8192 with the leading space counted twice")],
)
def test_without_a_log_the_stated_ratio_is_a_hint(tmp_path, ratio, words):
    folder = contest_folder(tmp_path, {"val_loss": 1.1 * ratio}, logs={})
    outcome = answer(folder, "implied_bytes")
    assert outcome.verdict is Verdict.CANNOT_TELL
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
        ("Paid prefix blob: 4,240,472 bytes", "carries validation tokens"),
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
    folder = contest_folder(tmp_path, {"bytes_total": TOO_LARGE}, code=wrapped("def f(:\n"))
    report = check_folder(folder)
    rows = [[check.name, check.verdict, check.severity, check.detail] for check in report.checks]
    assert json.loads(json.dumps(rows))
