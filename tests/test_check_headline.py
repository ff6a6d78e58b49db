"""Which number `check` takes for the record's, and from which of the logs in the folder.

Every folder is made here; each kind was seen on the contest's real ones.
"""

import json
from pathlib import Path

import pytest
from check_support import (
    GOOD,
    LOSS_PER_BPB,
    named,
    public_folder,
    public_log,
    public_logs,
    verdicts,
)

from eval.papers.checks.run import check_folder
from eval.papers.folder import open_record
from eval.papers.logs.choice import Group
from eval.rules import Verdict

BITS = {1: 1.10, 2: 1.12, 3: 1.14}  # per byte, by seed
MEAN = GOOD | {"val_bpb": 1.12}


def headline(folder: Path) -> tuple[Verdict, str]:
    check = named(folder, "headline")
    return check.verdict, check.detail


def further(bpb: float, label: str) -> str:
    return f"{label} val_loss:{bpb * LOSS_PER_BPB:.8f} val_bpb:{bpb:.8f} eval_time:900ms\n"


def test_the_headline_is_what_all_logs_call_alike(tmp_path):
    """A further trial of one seed, and scores of other kinds, change nothing."""
    logs = {name: log + further(1.3, "sliding") for name, log in public_logs(BITS).items()}
    logs["train_seed2.log"] += further(1.5, "final_trial")
    stated = MEAN | {"val_loss": round(1.12 * LOSS_PER_BPB, 8), "val_bpb_std": 0.02}
    stated |= {"seed_results": {str(seed): {"val_bpb": bpb} for seed, bpb in BITS.items()}}
    folder = public_folder(tmp_path, stated, logs)
    assert verdicts(folder) == {}
    assert "(final_exact)" in headline(folder)[1]


def test_ablations_reruns_and_failed_trials_are_told_apart(tmp_path):
    logs = public_logs(BITS) | {
        "ablation_no_smear_seed1.log": public_log(1, 1.05),
        "eval_seed1.log": further(1.01, "final_exact"),
        "train_seed2-stopped.log": "seed:2\nstep:1/9 train_loss:5.0 train_time:10ms\n",
        "rerun_seed3.log": public_log(3, 1.0),
    }
    folder = public_folder(tmp_path, MEAN | {"seeds": [1, 2, 3]}, logs)
    record = open_record(folder)
    assert set(record.chosen) == set(public_logs(BITS))
    assert record.groups["ablation_no_smear_seed1.log"] is Group.STUDY
    assert record.groups["eval_seed1.log"] is Group.EVALUATION
    assert record.groups["train_seed2-stopped.log"] is Group.FAILED
    assert record.groups["rerun_seed3.log"] is Group.RERUN
    assert verdicts(folder) == {}
    assert "ablation_no_smear_seed1.log (ablation" in named(folder, "log").detail


@pytest.mark.parametrize(
    "name",
    [
        "failed_then_fixed/train_seed{}.log",
        "train_seed{}_stopped_early.log",
        "early-stopped_seed{}.log",
        "train_failed_seed{}.log",  # all of them, so that the word means nothing
    ],
)
def test_a_whole_run_is_no_failed_trial(tmp_path, name):
    folder = public_folder(tmp_path, MEAN, {})
    (folder / "failed_then_fixed").mkdir()
    for seed, bpb in BITS.items():
        (folder / name.format(seed)).write_text(public_log(seed, bpb))
    assert headline(folder)[0] is Verdict.PASS
    assert len(open_record(folder).chosen) == len(BITS)
    assert "log" not in verdicts(folder)


def test_the_mean_of_all_logs_counts_those_that_are_named_failed(tmp_path):
    logs = public_logs(BITS)
    logs["train_seed3_crashfix.log"] = logs.pop("train_seed3.log")
    folder = public_folder(tmp_path, MEAN, logs)
    assert headline(folder)[0] is Verdict.PASS
    assert set(open_record(folder).chosen) == set(logs)
    (folder / "submission.json").write_text(json.dumps(GOOD | {"val_bpb": 1.11}))
    assert headline(folder)[0] is Verdict.PASS
    assert open_record(folder).groups["train_seed3_crashfix.log"] is Group.FAILED


@pytest.mark.parametrize(
    ("readme", "verdict"),
    [
        ("Mean 1.1200.", Verdict.FAIL),
        ("Mean 1.1200. Submitted: seed 1 (best)", Verdict.POLICY),
        ("**val_bpb 1.1000** (best seed), mean 1.1200", Verdict.POLICY),
        ("Submitted: seed 3", Verdict.FAIL),  # whose score the headline is not
        ("`train_seed1.log` is the log of the best run", Verdict.POLICY),
    ],
)
def test_a_headline_of_one_seed_is_a_choice_that_readme_may_state(tmp_path, readme, verdict):
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.1}, public_logs(BITS))
    (folder / "README.md").write_text(f"# x\n\n{readme}\n")
    found, detail = headline(folder)
    assert found is verdict
    assert "train_seed1.log alone" in detail
    assert "mean" in detail


def test_one_run_of_each_seed(tmp_path):
    """A seed that was run again, say since its artifact was too large: the headline says which
    runs count, and a better choice is a question."""
    logs = public_logs(BITS) | {"train_seed3_5pct.log": public_log(3, 1.17)}
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.13}, logs)
    assert headline(folder)[0] is Verdict.PASS
    assert set(open_record(folder).chosen) == {*list(logs)[:2], "train_seed3_5pct.log"}
    assert "seeds" not in verdicts(folder, Verdict.CANNOT_TELL)
    (folder / "submission.json").write_text(json.dumps(MEAN))
    assert headline(folder)[0] is Verdict.PASS
    assert "worse scores: train_seed3_5pct.log" in verdicts(folder, Verdict.CANNOT_TELL)["seeds"]


def test_a_slow_run_among_those_of_a_choice_is_judged_too(tmp_path):
    """Runs of one seed that are named alike: the headline is of one, and one took four times as
    long on two GPUs."""
    slow = public_log(1, 1.13).replace("train_time:599000ms", "train_time:2400100ms")
    slow = slow.replace("world_size:8", "world_size:2")
    logs = {"train_v0.txt": public_log(1, 1.10), "train_v1.txt": slow}
    logs["train_v2.txt"] = public_log(1, 1.12)
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.12, "track": "10min_16mb"}, logs)
    failed = verdicts(folder)
    assert "train_v1.txt: 2400.100 s" in failed["train_time"]
    assert "2 rank(s)" in failed["world_size"]


def test_a_worse_seed_than_the_mean_is_no_cherry(tmp_path):
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.14}, public_logs(BITS))
    assert headline(folder)[0] is Verdict.POLICY


def test_other_experiments_beside_the_record(tmp_path):
    """README names the log; runs of other settings are no seeds of it."""
    longer = public_log(1, 1.0).replace("max_wallclock_seconds:600", "max_wallclock_seconds:9000")
    logs = {"train_4h.log": longer, "train_10min.log": public_log(1, 1.2)}
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.0}, logs)
    (folder / "README.md").write_text("The long run, train_4h.log, has val_bpb 1.0000.\n")
    assert headline(folder)[0] is Verdict.PASS
    assert not verdicts(folder).keys() & {"seeds", "comparable", "headline"}


def test_a_mislabelled_log_still_counts(tmp_path):
    logs = public_logs(BITS)
    logs["train_seed0.log"] = logs.pop("train_seed3.log")
    folder = public_folder(tmp_path, MEAN | {"seeds": [0, 1, 2]}, logs)
    assert headline(folder)[0] is Verdict.PASS
    assert "train_seed0.log is a log of seed 3" in verdicts(folder)["seeds"]


@pytest.mark.parametrize(
    "name", ["s1_train_seed{}.log", "train_s9_{}.log", "seed_sweep/seed{}.log"]
)
def test_what_is_no_seed_in_a_name_is_no_lie(tmp_path, name):
    """An `s` with a number may be a stage; of several seeds in a name the last one is meant."""
    folder = public_folder(tmp_path, MEAN | {"seeds": [1, 2, 3]}, {})
    (folder / "seed_sweep").mkdir()
    for seed, bpb in BITS.items():
        (folder / name.format(seed)).write_text(public_log(seed, bpb))
    assert named(folder, "seeds").verdict is Verdict.PASS
    assert headline(folder)[0] is Verdict.PASS


def test_a_seed_may_stand_in_the_name_alone(tmp_path):
    logs = {name: log.replace(f"seed:{name[10]}\n", "") for name, log in public_logs(BITS).items()}
    folder = public_folder(tmp_path, MEAN | {"seeds": [1, 2, 3]}, logs)
    assert named(folder, "seeds").verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("stated", "verdict", "text"),
    [
        (1.3, Verdict.FAIL, "before the weights were quantised; the artifact scores 1.40000000"),
        (1.25, Verdict.FAIL, "the validation score in training, 1.2500"),
        (1.4, Verdict.PASS, "(final_exact)"),
        (1.2, Verdict.FAIL, "neither"),
    ],
)
def test_the_score_is_that_of_the_artifact(tmp_path, stated, verdict, text):
    score = further(1.3, "DIAGNOSTIC post_ema") + "final_exact"
    trained = "step:9/9 val_loss:2.1 val_bpb:1.2500 train_time:599000ms\nCode size"
    log = public_log(1, 1.4).replace("final_exact", score).replace("Code size", trained)
    folder = public_folder(tmp_path, GOOD | {"val_bpb": stated}, {"train.log": log})
    found, detail = headline(folder)
    assert found is verdict
    assert text in detail


@pytest.mark.parametrize(
    "label", ["[seed 1] final_exact", "final_best_ema_exact", "final_bf16_roundtrip", "legal_ttt"]
)
def test_names_of_results_that_are_no_comparisons(tmp_path, label):
    logs = {name: log.replace("final_exact", label) for name, log in public_logs(BITS).items()}
    logs = {name: log.replace("[seed 1]", f"[seed {name[10]}]") for name, log in logs.items()}
    logs = {name: log + further(1.2, "sliding_window") for name, log in logs.items()}
    folder = public_folder(tmp_path, MEAN, logs)
    assert headline(folder)[0] is Verdict.PASS


def test_an_unquantised_score_that_is_worse_is_a_rule_to_make(tmp_path):
    log = public_log(1, 1.1).replace("final_exact", further(1.3, "DIAGNOSTIC ema") + "final_exact")
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.3}, {"train.log": log})
    assert headline(folder)[0] is Verdict.POLICY


def test_a_figure_of_a_table_or_of_progress_is_no_proof_and_no_lie(tmp_path):
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.05677715}, public_logs(BITS))
    assert headline(folder)[0] is Verdict.FAIL
    (folder / "sweep.csv").write_text("stride,val_bpb\n64,1.05677715\n")
    assert headline(folder)[0] is Verdict.CANNOT_TELL
    assert named(folder, "headline").evidence[-1].file == "sweep.csv"
    logs = {"train.log": public_log(1, 1.1) + "ttt_chunk [9/9] bpb=1.0567 time=3s\n"}
    (tmp_path / "b").mkdir()
    folder = public_folder(tmp_path / "b", GOOD | {"val_bpb": 1.0567}, logs)
    assert headline(folder)[0] is Verdict.CANNOT_TELL


def test_a_mean_of_some_logs_and_a_mean_of_mixed_scores(tmp_path):
    bits = {1: 1.10000001, 2: 1.12000003, 3: 1.14000011}
    some = round((bits[1] + bits[2]) / 2, 8)
    folder = public_folder(tmp_path, GOOD | {"val_bpb": some}, public_logs(bits))
    found, detail = headline(folder)
    assert found is Verdict.FAIL
    assert "the mean of train_seed1.log, train_seed2.log alone" in detail
    (tmp_path / "b").mkdir()
    logs = public_logs({1: 1.1, 2: 1.2})
    logs["train_seed1.log"] += further(1.04, "sliding")
    folder = public_folder(tmp_path / "b", GOOD | {"val_bpb": 1.12, "seeds": [1, 2]}, logs)
    assert headline(folder)[0] is Verdict.CANNOT_TELL


def test_stated_seeds_without_logs_leave_the_headline_open(tmp_path):
    """The logs that are here agree with their seeds; those of the others are missing."""
    rows = {str(seed): {"val_bpb": bpb} for seed, bpb in BITS.items()}
    logs = {"train_seed1.log": public_log(1, 1.10)}
    folder = public_folder(tmp_path, MEAN | {"seed_results": rows}, logs)
    assert headline(folder)[0] is Verdict.CANNOT_TELL
    assert "no log for seed 2, 3" in verdicts(folder)["seeds"]


def test_bits_per_byte_under_the_name_of_the_loss(tmp_path):
    folder = public_folder(tmp_path, GOOD | {"val_loss": 1.12}, public_logs(BITS))
    assert headline(folder)[0] is Verdict.PASS
    assert "val_bpb; not stated" in verdicts(folder)["json"]


def test_a_cut_headline_is_no_lie_and_a_wrong_one_is(tmp_path):
    bits = {1: 1.10009, 2: 1.12009, 3: 1.14009}
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.12}, public_logs(bits))
    assert headline(folder)[0] is Verdict.PASS
    (folder / "submission.json").write_text(json.dumps(GOOD | {"val_bpb": 1.1198}))
    assert headline(folder)[0] is Verdict.FAIL


@pytest.mark.parametrize(
    ("stated", "verdict", "text"),
    [
        (1.11991234, Verdict.FAIL, "8.8e-05 better than 1.12000000"),
        (1.12008766, Verdict.CANNOT_TELL, "8.8e-05 worse than 1.12000000"),
        (1.11992, Verdict.FAIL, "better"),
        (1.12, Verdict.PASS, "1.12000000 (final_exact)"),
    ],
)
def test_decimals_that_nothing_explains(tmp_path, stated, verdict, text):
    folder = public_folder(tmp_path, GOOD | {"val_bpb": stated}, public_logs(BITS))
    found, detail = headline(folder)
    assert found is verdict
    assert text in detail
    severity = "to explain" if verdict is Verdict.CANNOT_TELL else "blocking"
    assert named(folder, "headline").severity == severity


def test_one_seed_close_to_the_mean_is_one_seed(tmp_path):
    bits = {1: 1.10, 2: 1.12007654, 3: 1.14}
    folder = public_folder(tmp_path, GOOD | {"val_bpb": bits[2]}, public_logs(bits))
    found, detail = headline(folder)
    assert found is Verdict.POLICY
    assert "train_seed2.log alone, one of 3 logs" in detail


@pytest.mark.parametrize(
    ("stated", "rows", "text"),
    [
        (1.1234, {}, "cut to 4 decimals"),  # the mean is 1.12348
        (1.12346667, {}, "the scores rounded to 4 decimals"),
        (1.12366667, {}, "the scores rounded to 3 decimals"),
        (1.1234800012345678, {}, "to the 8 decimals that the logs print"),
        (1.12343333, {1: 1.1034, 2: 1.1234, 3: 1.1435}, "as they are stated by seed"),
    ],
)
def test_a_headline_may_be_made_of_rounded_parts(tmp_path, stated, rows, text):
    bits = {1: 1.10344, 2: 1.12346, 3: 1.14354}
    if "3 decimals" in text:
        bits = {1: 1.1036, 2: 1.1234, 3: 1.1439}
    mean = GOOD | {"val_bpb": stated, "seed_results": {str(seed): rows[seed] for seed in rows}}
    folder = public_folder(tmp_path, mean, public_logs(bits))
    found, detail = headline(folder)
    assert found is Verdict.PASS, detail
    assert text in detail


def test_improvement_and_aggregates_judge_the_same_logs(tmp_path):
    """An ablation beside the record takes no part in `--against`."""
    (tmp_path / "base").mkdir()
    base = public_folder(
        tmp_path / "base", MEAN | {"val_bpb": 1.22}, public_logs({1: 1.21, 2: 1.23})
    )
    bits = {1: 1.11, 2: 1.12, 3: 1.13}
    logs = public_logs(bits) | {"ablation_seed1.log": public_log(1, 1.5)}
    stated = MEAN | {"seeds": [1, 2, 3], "val_bpb_std": 0.01}
    folder = public_folder(tmp_path, stated, logs)
    assert "aggregates" not in verdicts(folder)
    report = check_folder(folder, against=base)
    check = next(check for check in report.checks if check.name == "significance")
    assert "n 2 and 3" in check.detail
    assert not any("ablation" in str(line) for line in check.evidence)


# --- Values of a seed ---


@pytest.mark.parametrize(
    ("key", "value", "fails"),
    [
        ("wallclock_seconds", 600, False),  # the limit that the run was given
        ("wallclock_seconds", 595, True),
        ("step_stop", 9, False),
        ("step_stop", 8, True),
        ("eval_time_seconds", 1.0, False),
        ("eval_time_seconds", 1.9, False),  # cut, or read a line later
        ("eval_time_seconds", 5.0, False),  # perhaps of several evaluations
        ("artifact_bytes", 1000, False),
        ("artifact_bytes", 1500, True),
    ],
)
def test_values_of_the_only_seed(tmp_path, key, value, fails):
    stated = GOOD | {"val_bpb": 1.1, "seeds": [1], key: value}
    folder = public_folder(tmp_path, stated, {"train.log": public_log(1, 1.1)})
    assert ("seed_results" in verdicts(folder)) is fails
