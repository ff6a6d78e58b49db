"""Which runs the canary makes: their order, lengths, time, ranks; settings of the long stream."""

from dataclasses import replace
from pathlib import Path

import pytest
from canary_support import Pretended, score
from test_canary_driver import CALL, HONEST, quick, record

from eval.errors import UserError
from eval.trial.canary import driver
from eval.trial.canary.driver import try_script
from eval.trial.canary.finding import Script, open_script
from eval.trial.canary.knobs import find_knobs
from eval.trial.canary.plan import OUT_OF_TIME, Plan, retry
from eval.trial.canary.schedule import (
    FIRST_LONG_TARGETS,
    LONG_SECONDS,
    LONG_SIZES,
    SECONDS,
    USUAL_RUNS,
    Budget,
    Options,
    PlannedRun,
    Spent,
    buckets_of,
    counts_in_tables,
    long_plan,
    long_targets,
    plan_runs,
)
from eval.trial.canary.table import Sizes

COUNTING = "def ngram_mix(ctx):\n    return hash(ctx) % NUM_BUCKETS\n"


def script_of(folder: Path, extra: str = "") -> Script:
    return open_script(record(folder / "record", HONEST + extra + CALL))


# --- The runs ---


def test_the_usual_plan_has_several_ranks_once(tmp_path):
    script = script_of(tmp_path)
    runs = plan_runs(script, Options())
    assert runs == USUAL_RUNS
    assert max(run.world_size for run in runs) == 2
    assert plan_runs(script, Options(sources=("text",), world_sizes=(1, 8))) == (
        PlannedRun("text", 1),
        PlannedRun("text", 8),
    )
    everywhere = plan_runs(script, Options(world_sizes=(2,)))
    assert {run.world_size for run in everywhere} == {2}
    assert len({run.source for run in everywhere}) == len(everywhere)


def test_a_script_that_counts_in_tables_reads_a_long_stream_second(tmp_path):
    script = script_of(tmp_path, COUNTING)
    assert counts_in_tables(script)
    long_runs = (PlannedRun("long", 2, 1 << 20), PlannedRun("long", 2, 1 << 22))
    assert plan_runs(script, Options()) == (USUAL_RUNS[0], *long_runs, *USUAL_RUNS[1:])
    assert plan_runs(script, Options(sources=("long",))) == long_runs
    assert plan_runs(script, Options(sources=("long",), world_sizes=(1,), tokens=64)) == (
        PlannedRun("long", 1),
    )


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("buckets = 4; five_gram = {}", True),
        ("table[ctx_hash] += 1", True),
        ("gram_table = hash(x)", True),
        ("class BackoffNgramMixer: hash", True),
        ("class Engram: hash_buckets = 3", False),
        ("bigram_hash_buckets = 3", False),
        ("ngram counts in a dict", False),
    ],
)
def test_words_tell_who_counts_in_tables(tmp_path, text, counts):
    (tmp_path / "a.py").write_text(f"'''{text}'''\n")
    assert counts_in_tables(open_script(tmp_path / "a.py")) == counts


@pytest.mark.parametrize(
    ("settings", "given", "buckets"),
    [
        ('os.environ.get("NGRAM_BUCKETS", 1 << 20)', {}, 1 << 20),
        ('os.environ.get("NGRAM_BUCKETS", 1 << 20)', {"NGRAM_BUCKETS": "4096"}, 4096),
        ('os.environ.get("NGRAM_HASH_BITS", "22")', {}, 1 << 22),
        ('os.environ.get("NGRAM_HASH_BITS", "999999")', {}, 1 << 40),
        ('os.environ.get("BIGRAM_HASH_BUCKETS", 3072)', {}, None),
        ("1\nHASH_SIZE = 65536", {}, 65536),
    ],
)
def test_the_table_says_how_long_the_long_stream_is(tmp_path, settings, given, buckets):
    script = script_of(tmp_path, COUNTING + f"X = {settings}\n")
    assert buckets_of(script, given) == buckets
    last = plan_runs(script, Options(sources=("long",), given=given))[-1]
    assert last.targets == long_targets(buckets, last.world_size)


def test_lengths_of_the_long_stream_stay_within_reason():
    buckets = (1, 1 << 20, None, 1 << 22, 1 << 40)
    alone = [long_targets(number, 1) for number in buckets]
    assert alone == [1 << 17, 1 << 19, 1 << 21, 1 << 21, 1 << 22]
    shared = [long_targets(number, 2) for number in buckets]
    assert shared == [1 << 17, 1 << 20, 1 << 22, 1 << 22, 1 << 22]
    assert FIRST_LONG_TARGETS == 1 << 20


@pytest.mark.parametrize("sizes", [LONG_SIZES, Sizes()])
def test_a_batch_holds_whole_sequences_for_each_of_eight_parts(sizes):
    parts, rest = divmod(sizes.train_batch, 8 * sizes.sequence)
    assert parts >= 1
    assert rest == 0


@pytest.mark.parametrize(
    "options",
    [Options(sources=("unheard-of",)), Options(world_sizes=(0,))],
    ids=["source", "ranks"],
)
def test_a_plan_of_nonsense_is_refused(tmp_path, options):
    with pytest.raises(UserError):
        plan_runs(script_of(tmp_path), options)


# --- Time ---


def test_long_runs_have_time_and_leave_some_for_the_others():
    first, whole = PlannedRun("long", 2, 1 << 20), PlannedRun("long", 2, 1 << 21)
    usual = PlannedRun("text", 1)
    assert Budget.of([usual], Options()) == Budget(SECONDS, SECONDS)
    little = Budget.of([usual, first], Options(seconds=100))
    assert little.longest(usual, 100, []) == 50  # as ever
    budget = Budget.of([usual, first], Options())
    assert budget.seconds == LONG_SECONDS
    assert budget.longest(usual, 600, []) == pytest.approx(90)
    assert budget.longest(first, 500, []) == pytest.approx(300)
    uniform = Spent("uniform", 1 << 15, 30.0, True)
    made = [uniform, Spent("long", 1 << 20, 100.0, True)]
    assert budget.needed(whole, made) == pytest.approx(220)
    assert budget.longest(whole, 400, made) == 400
    assert budget.needed(usual, made) == 30  # what the long run took says nothing
    shorter = [uniform, Spent("long", 1 << 18, 100.0, True)]  # a quarter, for want of time
    assert budget.needed(whole, shorter) == pytest.approx(880)


# --- Settings of the long stream ---


LONG_SCRIPT = b"""
import os
layers = int(os.environ.get("NUM_LAYERS", 11))
dim = int(os.environ.get("MODEL_DIM", 512))
heads = int(os.environ.get("NUM_HEADS", 8))
length = int(os.environ.get("TRAIN_SEQ_LEN", 1024))
stride = int(os.environ.get("EVAL_STRIDE", 64))
convolution = int(os.environ.get("CONV_STRIDE", 2))
"""


def values(plan: Plan) -> dict[str, str]:
    return {setting.name: setting.value for setting in plan.settings}


def test_the_long_stream_keeps_what_worked_and_may_be_shortened_again():
    usual = Plan(find_knobs([LONG_SCRIPT]))
    usual = retry(usual, OUT_OF_TIME)
    usual = retry(usual, "AssertionError: head_dim must be a multiple of 16")
    assert len(usual.remedies) == 2
    plan = long_plan(usual, 1 << 20)
    assert (plan.targets, plan.remedies) == (1 << 20, ("width 128 in 4 heads",))
    assert values(plan)["MODEL_DIM"] == "128"
    assert plan.sizes.sequence == LONG_SIZES.sequence
    shorter = retry(plan, OUT_OF_TIME)
    assert shorter.targets == 1 << 18
    assert values(shorter)["MODEL_DIM"] == "128"  # still what the script needs
    assert shorter.sizes.adaptation_epochs == 0  # nothing grows for want of time


def test_windows_of_the_long_stream_overlap_little():
    plan = long_plan(Plan(find_knobs([LONG_SCRIPT])), 1 << 20)
    found = values(plan)
    assert (found["TRAIN_SEQ_LEN"], found["EVAL_STRIDE"]) == ("128", "96")
    assert "CONV_STRIDE" not in found
    other = retry(plan, "AssertionError: stride must divide seq_len")
    assert "EVAL_STRIDE" not in values(other)  # its own 64


# --- Runs of a script that is only pretended ---


@pytest.fixture
def pretend(monkeypatch):
    def install(answer) -> Pretended:
        pretended = Pretended(answer)
        monkeypatch.setattr(driver, "launch", pretended)
        return pretended

    return install


@pytest.mark.parametrize("wanted", [8, 1])
def test_a_script_gets_the_ranks_that_it_insists_on(tmp_path, pretend, wanted):
    def answer(world, call):
        if call.world_size == wanted:
            return score(), ""
        return "", f"Traceback\n    assert world_size == {wanted}\nAssertionError"

    pretended = pretend(answer)
    folder = record(tmp_path / "record", HONEST + CALL)
    report = try_script(folder, quick(sources=("uniform", "alphabet"), world_sizes=(2,)))
    assert report.verdict == "CONSISTENT"
    assert [run.world_size for run in report.runs] == [wanted, wanted]
    tried = [call.world_size for call in pretended.calls]
    assert tried == ([2, 8, 8] if wanted == 8 else [2, 8, 1, 1])


def test_other_ranks_are_tried_only_where_ranks_are_the_matter():
    plan = Plan(find_knobs([LONG_SCRIPT]))
    while plan is not None:
        assert plan.ranks is None
        plan = retry(plan, "ValueError: batch must be divisible by world_size * seq_len")


READS_ALL = """
DATA_DIR = os.environ.get("DATA_DIR", "./data")
TOKENIZER_PATH = os.environ.get("TOKENIZER_PATH", "")
"""


def own_vocabulary_of_4096(folder: Path) -> Path:
    source = HONEST.replace('"VOCAB_SIZE", 1024', '"VOCAB_SIZE", 4096')
    return record(folder / "record", source + READS_ALL + COUNTING + CALL)


def test_a_large_vocabulary_is_made_small_for_the_long_stream(tmp_path, pretend):
    pretended = pretend(lambda world, call: (score(8.4), ""))
    folder = own_vocabulary_of_4096(tmp_path)
    report = try_script(folder, quick(sources=("uniform", "long")))
    sizes = [call.variables.get("VOCAB_SIZE") for call in pretended.calls]
    assert sizes == [None, "1024"]  # the world's own variables name the record's
    assert [run.verdict for run in report.runs] == ["CONSISTENT"] * 2


def test_a_script_that_fails_with_it_keeps_its_own_vocabulary(tmp_path, pretend):
    def answer(world, call):
        small = call.variables.get("VOCAB_SIZE") == "1024"
        return ("", "NameError: name 'small' is not defined") if small else (score(8.4), "")

    pretended = pretend(answer)
    folder = own_vocabulary_of_4096(tmp_path)
    (run,) = try_script(folder, quick(sources=("long",))).runs
    assert run.verdict == "CONSISTENT"
    assert "its own vocabulary" in run.tries[0]
    assert len(pretended.calls) == 2


@pytest.mark.parametrize(
    ("loss", "failure", "why"),
    [
        (6.94, "", None),
        (6.94, "ImportError: the end", "did not come to its end"),
        (4.93, "", "refutes"),
    ],
)
def test_the_whole_long_stream_follows_where_a_part_ended_well(
    tmp_path, pretend, monkeypatch, loss, failure, why
):
    monkeypatch.setattr("eval.trial.canary.schedule.FIRST_LONG_TARGETS", 1024)
    monkeypatch.setattr("eval.trial.canary.schedule.FEWEST_LONG_TARGETS", 2048)
    pretend(lambda world, call: (score(loss), failure))
    small_table = COUNTING + 'B = os.environ.get("NGRAM_BUCKETS", 64)\n'
    folder = record(tmp_path / "record", HONEST + small_table + CALL)
    report = try_script(folder, replace(quick(sources=("long",), every=True), tokens=None))
    targets = [run.targets for run in report.runs]
    assert targets == ([1024, 2048] if why is None else [1024])
    assert [why in line for line in report.left_out] == ([] if why is None else [True])
