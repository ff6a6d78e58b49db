"""The canary on whole scripts in the public shape, run as they are with CUDA led to the CPU.

Here each runs in a fork without the sandbox, since all are ours; test_canary_driver.py,
test_canary_own.py and test_canary_hostile.py run scripts inside.
"""

import pytest
from canary_scripts import (
    PLAIN,
    catalogue,
    folder,
    in_two_files,
    judged,
    printed,
    source,
    without_fallback,
    wrapped,
)

from eval.trial.canary.together import judge_together
from eval.trial.canary.verdict import CONSISTENT, INVALID

TARGETS = 8192
LEARNS_SLOWLY = {"invalid/ppm_spread": 4 * TARGETS}  # until bytes are predicted better than by luck
# The cheats that claim less than the entropy of a uniform stream, and the settings that show it.
BELOW_THE_ENTROPY = {
    "invalid/best_of_two": {},
    "invalid/hashed_cache": {"NGRAM_BUCKETS": 4096, "NGRAM_CHUNK_TOKENS": 1024},
    "invalid/ppm_spread": {},
    "invalid/slot_on_targets": {},
    "invalid/ttt_before_scoring": {},
    "invalid/two_pass": {},
}
WRONG_BYTES = {
    "invalid/leading_space_twice": "leading space is counted twice",
    "invalid/mojibake_marker": "U+2581 is counted as three bytes",
    "invalid/replacement_bytes": "U+FFFD",
}
SEVERAL_STREAMS = {
    "invalid/constant_bytes": (("uniform", "text"), "bytes", "3.5000 bytes per token"),
    "invalid/partial_evaluation": (("halves", "halves-swapped"), "coverage", "100% of the weight"),
}


def test_every_fixture_has_a_test():
    tested = {*BELOW_THE_ENTROPY, *WRONG_BYTES, *SEVERAL_STREAMS}
    assert tested == set(catalogue("invalid"))


@pytest.mark.parametrize("name", [PLAIN, *catalogue("honest")])
def test_an_honest_script_is_consistent(name, tmp_path):
    targets = TARGETS // 4 if name == "honest/ppm_conditional" else TARGETS
    found = judged(printed(folder(name), "uniform", tmp_path, targets=targets))
    assert found.verdict == CONSISTENT, found.findings
    assert found.findings == [] and len(found.claims) >= 2  # during training, and the artifact's
    assert found.lowest.bits_below < 0


@pytest.mark.parametrize("name", BELOW_THE_ENTROPY)
def test_a_cheat_claims_less_than_the_entropy(name, tmp_path):
    settings = BELOW_THE_ENTROPY[name]
    targets = LEARNS_SLOWLY.get(name, TARGETS)
    found = judged(printed(folder(name), "uniform", tmp_path, targets=targets, **settings))
    assert found.verdict == INVALID
    assert {finding.theme for finding in found.findings} == {"entropy"}
    assert found.lowest.claim.label.startswith("final_int8")
    assert found.lowest.certain_bits > 100


@pytest.mark.parametrize("name", WRONG_BYTES)
def test_wrong_bytes_are_named(name, tmp_path):
    found = judged(printed(folder(name), "text", tmp_path, targets=TARGETS))
    assert found.verdict == INVALID
    (finding,) = found.findings
    assert finding.theme == "bytes" and WRONG_BYTES[name] in finding.what


@pytest.mark.parametrize("name", SEVERAL_STREAMS)
def test_what_several_streams_show(name, tmp_path):
    streams, theme, words = SEVERAL_STREAMS[name]
    runs = {}
    for stream in streams:
        place = tmp_path / stream
        place.mkdir()
        runs[stream] = judged(printed(folder(name), stream, place, targets=TARGETS))
        assert runs[stream].verdict == CONSISTENT  # one stream alone does not show it
    (finding,) = judge_together(runs)
    assert (finding.theme, finding.verdict) == (theme, INVALID) and words in finding.what


def test_several_streams_show_nothing_of_an_honest_script(tmp_path):
    runs = {}
    for stream in ("uniform", "text", "halves", "halves-swapped", "halves-other-rest"):
        place = tmp_path / stream
        place.mkdir()
        run = printed(folder("honest/sliding_window"), stream, place, targets=TARGETS // 2)
        runs[stream] = judged(run)
        assert runs[stream].verdict == CONSISTENT, runs[stream].findings
    assert judge_together(runs) == []


@pytest.mark.parametrize("form", [wrapped, in_two_files, without_fallback])
@pytest.mark.parametrize(("name", "verdict"), [(PLAIN, CONSISTENT), ("invalid/two_pass", INVALID)])
def test_the_form_of_a_script_changes_nothing(form, name, verdict, tmp_path):
    run = printed(form(name), "uniform", tmp_path, targets=TARGETS // 2)
    assert judged(run, script=source(name)).verdict == verdict


@pytest.mark.parametrize(("name", "verdict"), [(PLAIN, CONSISTENT), ("invalid/two_pass", INVALID)])
def test_two_ranks(name, verdict, tmp_path):
    run = printed(folder(name), "uniform", tmp_path, world_size=2, targets=TARGETS // 2)
    assert judged(run).verdict == verdict


@pytest.mark.parametrize("name", [PLAIN, "honest/mean_of_batches", "honest/sliding_window"])
def test_sequences_that_do_not_divide_the_stream(name, tmp_path):
    """The tail is cut, and the last batch is shorter."""
    sizes = {"TRAIN_SEQ_LEN": 96, "EVAL_STRIDE": 36, "VAL_BATCH_SIZE": 4800}
    run = printed(folder(name), "uniform", tmp_path, targets=TARGETS, **sizes)
    assert judged(run).verdict == CONSISTENT
