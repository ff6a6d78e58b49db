"""Which printed numbers the canary takes for scores, and what it says of the others."""

import pytest

from eval.trial.canary.claims import Printed, read_claims


@pytest.mark.parametrize(
    ("printed", "label", "loss", "bpb", "step"),
    [
        ("step:0/4 val_loss:6.9357 val_bpb:4.1077 train_time:0ms", "step 0", 6.9357, 4.1077, 0),
        ("0/20000 val_loss: 6.9049 val_bpb: 4.0894", "step 0", 6.9049, 4.0894, 0),
        ("s:10/200 vl:6.1234 bpb:3.3123 tt:1", "step 10", 6.1234, 3.3123, 10),
        ("[rank0]: ttt:done val_loss=6.930000 val_bpb=4.1", "ttt:done", 6.93, 4.1, None),
        ("final_integrated ngram_val_loss:6.8 ngram_val_bpb:3.9", "final_integrated ngram", 6.8,
         3.9, None),
        ("two_pass: pass 2 done val_bpb=0.093500 improvement=0.5", "two_pass: pass 2 done", None,
         0.0935, None),
        ('{"val_loss": 3.2, "val_bpb": 1.5}', "score", 3.2, 1.5, None),
        ("final val_bpb: 3.5e-7", "final", None, 3.5e-7, None),
    ],
)  # fmt: skip
def test_scores_are_read_as_scripts_print_them(printed, label, loss, bpb, step):
    (claim,) = read_claims(printed).scores
    values = [number.value if number else None for number in (claim.loss, claim.bpb)]
    assert (claim.label, *values, claim.step) == (label, loss, bpb, step)


@pytest.mark.parametrize(
    "printed",
    [
        "val_bpb:enabled tokenizer_kind=sentencepiece tokenizer_path=x",
        "  ttt_chunk [3/10] bpb=1.234567 time=3s",
        "  sliding_eval [ 50.0%] 3/10 windows running_bpb=1.23456",
        "final_integrated delta_bpb:-0.1",
        "Naive baseline val_bpb: 1.2244",
        "improvement over SOTA val_bpb:0.0123",
        "step:1/4 train_loss:6.9370 train_time:10ms",
        "target_val_bpb=1.1",
        "log0(f'val_loss:{val_loss:.4f} val_bpb:{val_bpb:.4f}')",
        "bpb:sp=1024",
        "x" * 5000 + " val_bpb:0.1",
    ],
)
def test_what_is_no_score_is_not_read(printed):
    assert read_claims(printed).scores == ()


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("final val_loss:nan val_bpb:nan", "not finite"),
        ("final val_loss:6.9 val_bpb:inf", "not finite"),
        ("final_ttt val_loss:0.0000 val_bpb:0.0000", "a placeholder"),
        ("we beat val_bpb:1.1194", "a number of the script's own text"),
    ],
)
def test_what_was_not_measured_is_set_aside(printed, reason):
    claims = read_claims(printed, script="BEST = 1.1194  # of pull request 1")
    assert claims.scores == () and claims.set_aside[0].startswith(reason)


def test_a_script_s_own_lines_are_not_its_scores():
    script = "import torch\n# this gave val_bpb:0.5 once\nmain()"
    text = f"{script}\nfinal val_bpb:0.5\n"
    assert read_claims(text, script).scores == ()
    assert [claim.line for claim in read_claims(text).scores] == [2, 4]


def test_digits_say_how_a_number_was_rounded():
    assert Printed.of("6.93").rounding == pytest.approx(0.005)
    assert Printed.of("7").rounding == pytest.approx(0.5)
    assert Printed.of("3.5e-7").rounding == pytest.approx(0.5e-8)
