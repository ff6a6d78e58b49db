"""Which printed numbers the canary takes for scores, and what it says of the others."""

import time

import pytest

from eval.trial.canary.claims import MOST_SCORES, MOST_SET_ASIDE, Printed, read_claims
from eval.trial.canary.results import UNKNOWN_RESULTS, own_results


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
        ("final_chunked_exact val_loss:0.51 val_bpb:0.21", "final_chunked_exact", 0.51, 0.21, None),
        ("final_constrained_ngram val_bpb:0.39", "final_constrained_ngram", None, 0.39, None),
        ("legal_ttt_again val_loss:0.5 val_bpb:0.3", "legal_ttt_again", 0.5, 0.3, None),
        ("final_eval time:3s targets:100 val_bpb:0.39", "final_eval", None, 0.39, None),
        ("final_eval chunks:8 val_bpb:0.39", "final_eval", None, 0.39, None),
        ("ngram chunk_tokens=4096 val_bpb=0.39", "ngram", None, 0.39, None),
        ("post train_loss:6.91 val_bpb:0.39", "post", None, 0.39, None),
        ("final_train_probe val_bpb:0.39", "final_train_probe", None, 0.39, None),
        ("validation bpb: 0.39", "score", None, 0.39, None),
        ("post eval_loss=0.5 eval_bpb=0.25", "post", 0.5, 0.25, None),
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
        "final_ngram delta_vs_sota val_bpb:0.0123",
        "zlib_lvl:6.5 lvl=3.25 retrieval_loss:0.25 interval_loss:0.125",
        "quantized with zlib lvl:6 and level_bpb:3",
        "final val_loss:7 val_bpb:4",
        "  ttt chunk 3/8 done bpb=1.234567",
        "  eval 12/40 windows exact bpb=1.234567",
        "ttt epoch 3 bpb:2.1",
        "ttt chunk_idx=3 val_bpb=1.2345",
        "eval progress:0.5 val_bpb:1.2345",
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
        ("final val_loss:7 val_bpb:4", "a whole number"),
        ("final val_bpb:1.5e-9999", "not finite"),
        ("baseline val_bpb:1.2", "the line calls it `baseline`"),
        ("mean_delta_bpb:0.25", "the line calls it `delta`"),
        ("ttt [3/8] val_bpb:1.5", "progress over part of the set"),
        ("ngram mix_bpb=0.39", "a bpb that nothing calls a result"),
        ("x" * 2000 + " val_bpb:0.1", "in a line of over 2,000 characters: val_bpb:0.1"),
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


def test_every_number_that_is_skipped_is_named_once():
    progress = "".join(f"ttt_chunk [{n}/90] bpb=1.{n:02}\n" for n in range(1, 91))
    claims = read_claims(progress + "final val_bpb:0.5\nour target val_bpb:0.25\n")
    assert [claim.bpb.value for claim in claims.scores] == [0.5]
    assert claims.set_aside == (
        "progress over part of the set: ttt_chunk [1/90] bpb=1.01 (and 89 more alike)",
        "the line calls it `target`: our target val_bpb:0.25",
    )
    kinds = "".join(f"baseline {letter} val_bpb:0.25\n" for letter in "abcdefghijklmnopqrstuvwxyz")
    aside = read_claims(kinds).set_aside
    assert len(aside) == MOST_SET_ASIDE + 1 and aside[-1] == "and 6 more kinds of lines"


# --- The record's own score ---

LOG = """step:10/20 val_loss:3.1 val_bpb:1.8
ngram pass {0} mix_bpb=0.4321
final_int8_roundtrip val_loss:2.0 val_bpb:1.2
"""


def test_a_bare_bpb_counts_where_the_record_calls_it_its_score():
    found = own_results('{"name": "x", "val_bpb": 0.43209876}', [LOG.format(1)])
    assert found.labels == {"ngram pass # mix"}
    assert found.line == "ngram pass 1 mix_bpb=0.4321"
    printed = "ngram pass 1 mix_bpb=0.9000\nngram pass 2 mix_bpb=0.3900\n"
    assert read_claims(printed).scores == ()
    (claim,) = read_claims(printed, results=found.labels).scores
    assert claim.bpb.value == 0.39 and found.are_among([claim])


def test_a_record_without_a_log_of_its_score_tells_nothing():
    for submission in (
        "{}",
        '{"val_bpb": 9.5}',
        '{"val_bpb": 1}',
        "no JSON",
        '{"val_bpb":1.5e999}',
    ):
        assert own_results(submission, [LOG]) == UNKNOWN_RESULTS
    assert UNKNOWN_RESULTS.are_among([])


# --- Floods ---


@pytest.mark.parametrize(
    "form",
    [
        "final run{0} val_loss:{1:.6f} val_bpb:{1:.7f}\n",
        "final val_loss:6.9 val_bpb:{1:.7f}\n",
        "step:{0}/99999 val_loss:{1:.4f} val_bpb:{1:.4f} train_time:1ms\n",
    ],
)
def test_time_grows_with_the_number_of_lines_alone(form):
    """And of many scores those are kept that refute most, and the last ones."""
    lines = 6_000
    text = "".join(form.format(n, 9 - n / 1e4 - (n == 777)) for n in range(lines))
    script = "".join(f"a{n} = {n}.125\n" for n in range(lines))
    started = time.process_time()
    claims = read_claims(text, script)
    assert time.process_time() - started < 10
    assert len(claims.scores) + claims.left_out > lines / 2
    assert MOST_SCORES / 2 <= len(claims.scores) <= MOST_SCORES
    assert min(claim.bpb.value for claim in claims.scores) < 8
    assert claims.scores[-1].line == lines
