"""What the canary makes of printed scores: no honest one is refuted, and cheats are."""

import math
import time
from functools import cache

import numpy as np
import pytest

from eval.text.corpus.bytes import BOS
from eval.trial.canary.results import OwnWords, own_results
from eval.trial.canary.sources import SOURCES, TARGETS, Known, draw_streams, middle
from eval.trial.canary.together import judge_together
from eval.trial.canary.tokenizers import BYTE_LEVEL
from eval.trial.canary.verdict import CONSISTENT, INVALID, NOT_RUN, REMARK, Judgement, judge_run

LN2 = math.log(2.0)
VOCAB_SIZE = 1024
SEED = 11
EXACT = "final_int8_zlib_roundtrip_exact"


@cache
def stream(name: str, targets: int = TARGETS) -> Known:
    return draw_streams(SOURCES[name], SEED, VOCAB_SIZE, targets + 1, ()).validation


@cache
def bytes_of(name: str, targets: int = TARGETS) -> np.ndarray:
    """int64 [targets]."""
    tokenizer = SOURCES[name].tokenizer(VOCAB_SIZE)
    return tokenizer.byte_counts(stream(name, targets).tokens)[1:]


def line(loss: float, bpb: float, label: str = EXACT, decimals: int = 8) -> str:
    return f"{label} val_loss:{loss:.{decimals}f} val_bpb:{bpb:.{decimals}f}\n"


def scored(losses: np.ndarray, counted: np.ndarray, **options) -> str:
    """The line of a script that scored targets with these losses and bytes."""
    return line(losses.mean(), losses.sum() / LN2 / counted.sum(), **options)


def judged(name: str, text: str, targets: int = TARGETS, **options) -> Judgement:
    source = SOURCES[name]
    known = stream(name, targets)
    return judge_run(text, known, source, source.tokenizer(VOCAB_SIZE), **options)


# --- Honest scripts ---


def weights(quirk: str, name: str) -> np.ndarray:
    """How often a script with a quirk counts each target, float64 [targets]."""
    known = stream(name)
    counted = np.ones(TARGETS)
    if quirk == "tail cut":
        counted[-100:] = 0
    elif quirk == "first window left out":
        counted[:256] = 0
    elif quirk == "last window many times":
        counted[-64:] = 16
    elif quirk == "no BOS":
        counted[known.tokens[1:] == 1] = 0
    elif quirk == "an eighth":
        counted[TARGETS // 8 :] = 0
    elif quirk == "every other sequence":
        counted.reshape(-1, 128)[1::2] = 0
    return counted


def mean_of_batches(values: np.ndarray) -> float:
    """The last batch is shorter and counts like the others."""
    batches = np.split(values, np.arange(5000, len(values), 5000))
    return float(np.mean([batch.mean() for batch in batches]))


QUIRKS = [
    "none",
    "tail cut",
    "first window left out",
    "last window many times",
    "no BOS",
    "an eighth",
    "every other sequence",
]
UNITS = {
    "nats per token": lambda loss, bpb: line(loss, bpb),
    "four decimals": lambda loss, bpb: line(loss, bpb, decimals=4),
    "two decimals": lambda loss, bpb: line(loss, bpb, decimals=2),
    "bits per token": lambda loss, bpb: line(loss / LN2, bpb),
    "nats per byte": lambda loss, bpb: line(bpb * LN2, bpb),
    "bits per byte": lambda loss, bpb: line(bpb, bpb),
    "loss alone": lambda loss, bpb: f"final val_loss:{loss:.8f}\n",
    "bpb alone": lambda loss, bpb: f"final val_bpb:{bpb:.8f}\n",
    "during training": lambda loss, bpb: line(loss, bpb, label="step:3/4", decimals=4),
}


def honest_losses(name: str, spread: float, rng: np.random.Generator) -> np.ndarray:
    """Nats of each target under a probability q with ln(q/g) normal and q/g of mean one.

    So close to the truth that luck alone decides which of q and g is ahead."""
    luck = rng.normal(-(spread**2) / 2, spread, TARGETS) if spread else np.zeros(TARGETS)
    return stream(name).nats[1:] - luck


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("quirk", QUIRKS)
def test_no_honest_script_is_refuted(quirk, unit):
    """Not even one that knows the law of the stream, whatever it counts, in whatever unit."""
    rng = np.random.default_rng(1)
    for name in ("uniform", "text", "documents", "halves"):
        counted = weights(quirk, name)
        total_bytes = (counted * bytes_of(name)).sum()
        for spread in (0.0, 0.02, 0.3):
            losses = counted * honest_losses(name, spread, rng)
            text = UNITS[unit](losses.sum() / counted.sum(), losses.sum() / LN2 / total_bytes)
            found = judged(name, text)
            assert found.verdict == CONSISTENT, (name, spread, found.findings)


@pytest.mark.parametrize("name", ["uniform", "alphabet", "halves"])
def test_a_mean_of_means_is_not_refuted(name):
    """Of ragged batches, with the bytes of all."""
    rng = np.random.default_rng(2)
    for spread in (0.003, 0.03, 0.3):
        loss = mean_of_batches(honest_losses(name, spread, rng))
        bpb = loss / LN2 * TARGETS / bytes_of(name).sum()
        assert judged(name, line(loss, bpb)).verdict == CONSISTENT


def test_sums_in_float32_are_not_refuted():
    losses = stream("uniform").nats[1:].astype(np.float32)
    total = np.float32(0)
    for window in losses.reshape(-1, 32):
        total += window.sum(dtype=np.float32)
    loss = float(total / np.float32(TARGETS))
    bpb = loss / LN2 * TARGETS / bytes_of("uniform").sum()
    found = judged("uniform", line(loss, bpb))
    assert found.verdict == CONSISTENT and found.lowest.certain_bits < 0


def test_losses_in_bfloat16_are_not_refuted_on_a_gpu():
    """Numbers between 4 and 8 are rounded by up to a 64th there."""
    loss = stream("uniform").nats[1:].mean() - 1 / 80
    text = line(loss, loss / LN2 * TARGETS / bytes_of("uniform").sum())
    assert judged("uniform", text, device="cuda").verdict == CONSISTENT
    assert judged("uniform", text).verdict == INVALID


def test_rounding_to_a_lower_number_is_no_saving():
    loss = stream("uniform").nats[1:].mean()  # 6.92756
    down = math.floor(loss * 100) / 100
    bpb = loss / LN2 * TARGETS / bytes_of("uniform").sum()
    assert judged("uniform", f"final val_loss:{down:.2f} val_bpb:{bpb:.8f}\n").verdict == CONSISTENT


def test_every_score_of_many_counts_as_a_choice():
    one = judged("uniform", line(6.92, 2.4963))
    labels = [f"final_{number}" for number in range(64)]
    many = judged("uniform", "".join(line(6.92, 2.4963, label=label) for label in labels))
    assert one.lowest.certain_bits - many.lowest.certain_bits == pytest.approx(6.0)


# --- Cheats ---


@pytest.mark.parametrize("name", ["uniform", "text", "documents", "alphabet", "halves"])
def test_a_gain_of_a_hundredth_of_a_nat_is_refuted(name):
    found = judged(name, scored(stream(name).nats[1:] - 0.01, bytes_of(name)))
    assert found.verdict == INVALID
    assert found.lowest.bits_below == pytest.approx(0.01 * TARGETS / LN2, rel=1e-3)
    assert 400 < found.lowest.certain_bits < found.lowest.bits_below
    assert "all 32,768 targets" in found.findings[0].what
    assert EXACT in found.findings[0].line


def test_a_score_during_training_or_under_another_label_counts():
    good = scored(stream("uniform").nats[1:] + 0.1, bytes_of("uniform"))
    bad = scored(stream("uniform").nats[1:] - 0.1, bytes_of("uniform"), label="step:2/4")
    for text in (bad + good, good + bad, bad.replace("step:2/4", "legal_ttt") + good):
        found = judged("uniform", text)
        assert found.verdict == INVALID and len(found.findings) == 1
    train_loss = "step:2/4 train_loss:1.2345 train_time:10ms\n"
    assert judged("uniform", train_loss + good).verdict == CONSISTENT


def test_only_the_worst_of_many_refutations_are_named():
    labels = [f"final_{number}" for number in range(30)]
    text = "".join(line(6.5 - n / 100, 2.4, label=label) for n, label in enumerate(labels))
    found = judged("uniform", "step:1/4 train_loss:6.9\n" + text)
    assert [one.verdict for one in found.findings].count(INVALID) == 20
    assert any("10 more scores" in one.what for one in found.findings)
    assert any("final_29 " in one.line for one in found.findings)


def test_of_a_flood_of_scores_the_lowest_is_judged():
    """In time that grows with their number alone, and each of them counts as a choice."""
    losses = np.linspace(9.0, 7.0, 20_000)
    losses[12_345] = 6.0
    text = "".join(f"final val_loss:{loss:.7f} val_bpb:{loss / 2.77:.7f}\n" for loss in losses)
    started = time.process_time()
    found = judged("uniform", "step:1/4 train_loss:6.9\n" + text)
    assert time.process_time() - started < 20
    assert found.verdict == INVALID and found.lowest.claim.line == 12_347
    assert any(
        "of 20,000 scores only the lowest and the last" in one.what for one in found.findings
    )


def test_a_record_whose_own_score_was_not_judged_is_told_so():
    results = own_results('{"val_bpb": 1.2345}', ["final_mix val_loss:2.1 val_bpb:1.2345\n"])
    own = OwnWords("", results)
    text = scored(stream("uniform").nats[1:] + 0.1, bytes_of("uniform"), label="step:4/4")
    (finding,) = judged("uniform", text, own=own).findings
    assert (finding.theme, finding.verdict) == ("scores", REMARK)
    assert finding.line == "final_mix val_loss:2.1 val_bpb:1.2345"
    assert judged("uniform", text + text.replace("step:4/4", "final_mix"), own=own).findings == []


@pytest.mark.parametrize("name", ["uniform", "text", "documents"])
def test_a_bpb_alone_is_refuted(name):
    bpb = stream(name).entropy / LN2 / bytes_of(name).sum()
    assert judged(name, f"final val_bpb:{0.7 * bpb:.8f}\n").verdict == INVALID


def test_a_bpb_that_is_not_of_the_loss_beside_it_is_judged_alone():
    """As of byte mixers, which print the network's loss."""
    fair = scored(stream("uniform").nats[1:], bytes_of("uniform"), label="step:4/4")
    loss = stream("uniform").nats[1:].mean()
    bpb = loss / LN2 * TARGETS / bytes_of("uniform").sum()
    found = judged("uniform", fair + line(loss, 0.97 * bpb))
    assert found.verdict == INVALID
    assert found.findings[0].theme == "entropy" and "bits/byte" in found.findings[0].what


def test_a_bpb_that_cannot_be_of_the_loss_beside_it_is_judged_where_it_is_the_only_pair():
    """As of byte mixers that print no step: 107 bytes per target are in no text."""
    found = judged("uniform", "final_ppm_mixed val_loss:6.95123456 val_bpb:0.09350000\n")
    assert found.verdict == INVALID and found.findings[0].theme == "entropy"
    assert "bits/byte" in found.findings[0].what
    for honest in ("val_loss:227000.125 val_bpb:2.51", "val_loss:6.95 val_bpb:1.95"):
        assert judged("uniform", f"final {honest}\n").verdict == CONSISTENT


def test_a_loss_alone_needs_a_known_unit():
    low = "final val_loss:2.00000000\n"
    found = judged("uniform", low)
    assert found.verdict == CONSISTENT and not found.judged  # may be nats per byte
    assert judged("uniform", "step:1/4 train_loss:6.9312\n" + low).verdict == INVALID


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("leading space", "the leading space is counted twice"),
        ("marker", "U+2581 is counted as three bytes"),
        ("stray", "byte pieces are counted as U+FFFD"),
    ],
)
def test_wrong_counts_of_bytes_are_named(what, how):
    tokenizer = SOURCES["text"].tokenizer(VOCAB_SIZE)
    target = stream("text").tokens[1:].astype(np.int64)
    surfaces = tokenizer.table.surface
    counted = bytes_of("text").astype(float)
    if what == "leading space":
        counted += tokenizer.table.leading[target]
    elif what == "marker":
        spaces = [
            0 if raw else text.count(b" ")
            for text, raw in zip(surfaces, tokenizer.byte_pieces, strict=True)
        ]
        counted += 2 * np.array(spaces)[target]
    else:
        stray = [len(text) == 1 and text[0] >= 0x80 for text in surfaces]
        counted += 2 * np.array(stray)[target]
    found = judged("text", scored(stream("text").nats[1:] + 4.0, counted))
    assert found.verdict == INVALID
    assert found.findings[0].theme == "bytes" and how in found.findings[0].what


def test_bytes_that_nothing_explains_are_a_remark():
    found = judged("text", scored(stream("text").nats[1:] + 4.0, 1.07 * bytes_of("text")))
    assert found.verdict == CONSISTENT
    assert [finding.verdict for finding in found.findings] == [REMARK]
    assert "another tokenizer" in found.findings[0].what


# --- Several runs ---


def runs(lines: dict[str, str]) -> dict[str, Judgement]:
    return {name: judged(name, text) for name, text in lines.items()}


def honest_line(name: str, factor: float = 1.0) -> str:
    return scored(stream(name).nats[1:] + 4.0, factor * bytes_of(name))


def test_constant_bytes_per_token_show_on_two_streams():
    ones = np.full(TARGETS, 3.5)
    lines = {name: scored(stream(name).nats[1:] + 4.0, ones) for name in ("uniform", "text")}
    found = judge_together(runs(lines))
    assert [(one.theme, one.verdict) for one in found] == [("bytes", INVALID)]
    assert "3.5000 bytes per token whatever the text" in found[0].what


def test_bytes_times_a_constant_show_on_two_streams():
    lines = {name: honest_line(name, 1.07) for name in ("uniform", "text")}
    found = judge_together(runs(lines))
    assert [one.verdict for one in found] == [INVALID] and "+7.00% bytes" in found[0].what
    assert judge_together(runs({name: honest_line(name) for name in lines})) == []


def test_a_tokenizer_of_its_own_is_no_constant():
    lines = {"uniform": honest_line("uniform", 1.07), "text": honest_line("text", 1.2)}
    assert judge_together(runs(lines)) == []


def half_line(name: str) -> str:
    end = middle(TARGETS + 1) - 1
    return scored(stream(name).nats[1 : end + 1] + 4.0, bytes_of(name)[:end])


@pytest.mark.parametrize("with_swapped", [False, True])
def test_half_an_evaluation_shows_by_its_bytes(with_swapped):
    names = ["halves", "halves-swapped"] if with_swapped else ["halves", "text"]
    found = judge_together(runs({name: half_line(name) for name in names}))
    assert [(one.theme, one.verdict) for one in found] == [("coverage", INVALID)]
    assert "100% of the weight" in found[0].what
    assert judge_together(runs({name: honest_line(name) for name in names})) == []


@pytest.mark.parametrize(
    ("targets", "stride", "windows"), [(8192, 64, 32), (8192, 96, 22), (TARGETS, 64, 128)]
)
@pytest.mark.parametrize("bos", [True, False])
def test_windows_that_the_end_cuts_are_no_uneven_halves(targets, stride, windows, bos):
    """Each of the last windows scores the last targets once more: 2,048 of them or more."""
    names = ("halves", "halves-swapped", "text")
    lines = {}
    for name in names:
        counted = np.ones(targets)
        counted[-stride:] = windows
        if not bos:
            counted[stream(name, targets).tokens[1:] == BOS] = 0
        losses = counted * (stream(name, targets).nats[1:] + 4.0)
        total_bytes = (counted * bytes_of(name, targets)).sum()
        lines[name] = line(losses.sum() / counted.sum(), losses.sum() / LN2 / total_bytes)
    found = judge_together({name: judged(name, lines[name], targets) for name in names})
    assert [one for one in found if one.theme == "coverage"] == []


@pytest.mark.parametrize("targets", [8192, TARGETS])
def test_what_the_referee_cut_short_refutes_nothing(targets):
    """A script that ends early since its clock was made small, or that was stopped."""
    lines = {}
    for name in ("halves", "halves-swapped"):
        half = targets // 2
        losses = stream(name, targets).nats[1 : half + 1] + 4.0
        lines[name] = scored(losses, bytes_of(name, targets)[:half])
    made = {name: judged(name, text, targets) for name, text in lines.items()}
    assert [one.verdict for one in judge_together(made)] == [INVALID]
    assert [one.verdict for one in judge_together(made, shortened=["halves"])] == [REMARK]
    same = runs({"halves": half_line("halves"), "halves-other-rest": half_line("halves")})
    found = judge_together(same, shortened=["halves-other-rest"])
    assert [(one.theme, one.verdict) for one in found] == [("coverage", REMARK)]


def test_a_look_at_a_part_before_the_score_of_all_is_a_remark():
    lines = {}
    for name in ("halves", "text"):
        lines[name] = half_line(name).replace(EXACT, "a_look_at_a_part") + honest_line(name)
    found = judge_together(runs(lines))
    assert [one.verdict for one in found] == [REMARK]


def test_a_rest_that_changes_nothing_is_not_scored():
    same = half_line("halves")
    found = judge_together(runs({"halves": same, "halves-other-rest": same}))
    assert [(one.theme, one.verdict) for one in found] == [("coverage", INVALID)]
    lines = {name: honest_line(name) for name in ("halves", "halves-other-rest")}
    assert judge_together(runs(lines)) == []


def test_equal_rests_show_nothing():
    """An untrained network scores two streams of equal bytes alike."""
    same = runs({"halves": half_line("halves"), "halves-other-rest": half_line("halves")})
    twin = Judgement("halves-other-rest", CONSISTENT, claims=same["halves"].claims)
    twin.readings = same["halves"].readings
    assert judge_together({"halves": same["halves"], "halves-other-rest": twin}) == []


def test_wrong_bytes_are_not_taken_for_a_part():
    lines = {name: honest_line(name, 0.7) for name in ("halves", "halves-swapped")}
    themes = {one.theme for one in judge_together(runs(lines)) if one.verdict == INVALID}
    assert "coverage" not in themes


# --- One score, printed twice or not at all ---


def test_the_same_score_counts_once():
    text = scored(stream("uniform").nats[1:], bytes_of("uniform"))
    assert len(judged("uniform", text * 8).judged) == 1


def test_a_score_printed_with_fewer_digits_counts_once():
    losses = stream("uniform").nats[1:] - 0.1
    short = scored(losses, bytes_of("uniform"), decimals=4, label="final")
    other = scored(losses - 0.001, bytes_of("uniform"), decimals=4, label="ttt")
    found = judged("uniform", short + scored(losses, bytes_of("uniform")) + other)
    assert [claim.label for claim in found.claims] == [EXACT, "ttt"]


@pytest.mark.parametrize("text", ["", "CUDA is required\n", "final val_bpb:nan\n"])
def test_without_a_score_nothing_is_judged(text):
    found = judged("uniform", text)
    assert found.verdict == NOT_RUN and found.lowest is None


# --- Byte-level vocabularies ---


@cache
def byte_stream(name: str) -> Known:
    return draw_streams(SOURCES[name], SEED, BYTE_LEVEL, TARGETS + 1, ()).validation


def judged_in_bytes(name: str, nats: np.ndarray, counted: np.ndarray) -> Judgement:
    source = SOURCES[name]
    text = scored(nats, counted)
    return judge_run(text, byte_stream(name), source, source.tokenizer(BYTE_LEVEL))


def ways_to_count_bytes(name: str) -> dict[str, np.ndarray]:
    tokens = byte_stream(name).tokens
    true = SOURCES[name].tokenizer(BYTE_LEVEL).byte_counts(tokens)[1:]
    return {"true bytes": true, "BOS is a byte": np.ones(TARGETS)}


@pytest.mark.parametrize("way", ["true bytes", "BOS is a byte"])
@pytest.mark.parametrize("name", ["uniform", "text", "halves", "documents"])
def test_byte_level_scripts_may_count_bos_or_not(name, way):
    nats = byte_stream(name).nats[1:]
    counted = ways_to_count_bytes(name)[way]
    assert judged_in_bytes(name, nats, counted).verdict == CONSISTENT
    assert judged_in_bytes(name, nats + 0.1, counted).verdict == CONSISTENT


@pytest.mark.parametrize("way", ["true bytes", "BOS is a byte"])
def test_a_byte_level_cheat_is_refuted(way):
    nats = byte_stream("uniform").nats[1:] - 0.2
    assert judged_in_bytes("uniform", nats, ways_to_count_bytes("uniform")[way]).verdict == INVALID


def test_halves_of_bytes_are_not_told_apart():
    """Every target is one byte, so that the ratio says nothing of which half was scored."""
    runs = {}
    for name in ("uniform", "halves", "halves-swapped"):
        counted = ways_to_count_bytes(name)["true bytes"]
        runs[name] = judged_in_bytes(name, byte_stream(name).nats[1:], counted)
    assert [found for found in judge_together(runs) if found.verdict == INVALID] == []
