"""Significance of an improvement, by `check --against`."""

import math

import pytest
from check_support import GOOD, named, public_folder, public_logs
from records_support import cli, pack_three, upstream_records

from eval.commands import check
from eval.rules import Verdict

BASE = [1.10, 1.12, 1.14]  # bits per byte


def series(parent, name, bits, tokens=62_021_632):
    """A public record with a log for each score."""
    (parent / name).mkdir()
    stated = GOOD | {"val_bpb": sum(bits) / len(bits)}
    return public_folder(parent / name, stated, public_logs(dict(enumerate(bits)), tokens))


def against(folder, base):
    return named(folder, "significance", against=base)


def student_t_tail(t):
    """Probability above t of Student's distribution with 4 degrees of freedom, in closed form."""
    return 0.5 - 3 / 8 * t / math.sqrt(1 + t * t / 4) * (1 - t * t / (12 * (1 + t * t / 4)))


def test_significance_matches_a_hand_worked_welch_test(tmp_path):
    """Three seeds each, 0.02 bits apart: variance 4e-4 on both sides.

    So df = 4 and t = 0.1 / sqrt(2 * 4e-4 / 3)."""
    base = series(tmp_path, "base", BASE)
    better = series(tmp_path, "better", [1.00, 1.02, 1.04])
    outcome = against(better, base)
    assert outcome.verdict is Verdict.PASS
    assert len(outcome.evidence) == 6
    error = math.sqrt(2 * 4e-4 / 3)
    t = 0.1 / error
    assert f"t {t:.3f}, df 4.00, p {student_t_tail(t):.3g}" in outcome.detail
    assert "n 3 and 3" in outcome.detail
    tokens_per_byte = 62_021_632 / 151.081e6
    bar = 0.005 * tokens_per_byte / math.log(2)  # in bits per byte
    p_bar = student_t_tail((0.1 - bar) / error)
    assert f"bar 0.005 nats/token: p {p_bar:.3g}, wanted below 0.01" in outcome.detail
    per_byte = 0.1 * math.log(2)
    per_token = per_byte / tokens_per_byte
    gain = f"{per_byte:+.6f} nats/byte, {per_token:+.6f} nats/token over 2026-05-01_Somebody"
    assert gain in outcome.detail
    assert against(base, better).verdict is Verdict.FAIL  # the other way round it is a loss


BETTER = [1.00, 1.02, 1.04]


@pytest.mark.parametrize(
    ("bits", "tokens", "verdict", "text"),
    [
        # 0.002 nats/token: below the bar and lost in the spread.
        ([1.118, 1.119, 1.120], 62_021_632, Verdict.FAIL, "p 0."),
        ([1.02], 62_021_632, Verdict.CANNOT_TELL, "no test is possible"),
        (
            BETTER,
            63_779_840,
            Verdict.CANNOT_TELL,
            "different texts: 151,081,000 and 155,770,000 bytes",
        ),
        # Another tokenizer of the same text.
        (BETTER, 40_540_160, Verdict.PASS, "nats/token"),
        (BETTER, 1_000_000, Verdict.CANNOT_TELL, "how large the validation text is"),
    ],
)
def test_significance_needs_the_same_text_and_enough_seeds(tmp_path, bits, tokens, verdict, text):
    new = series(tmp_path, "new", bits, tokens)
    outcome = against(new, series(tmp_path, "base", BASE))
    assert outcome.verdict is verdict, outcome.detail
    assert text in outcome.detail


def test_significance_of_packed_records(tmp_path):
    record = pack_three(tmp_path / "record")
    assert against(record, record).verdict is Verdict.FAIL  # no gain over itself
    assert cli(check, record, "--against", record) == 1
    other = pack_three(tmp_path / "other", version="e" * 64)
    outcome = against(other, record)
    assert outcome.verdict is Verdict.CANNOT_TELL
    assert "different corpora" in outcome.detail


def test_significance_of_public_records():
    folders = sorted(path for path in upstream_records().iterdir() if path.is_dir())
    naive, hashed, *_, previous, best = folders
    # 1.06108 against 1.08562, three seeds and five.
    gain = against(best, previous)
    assert gain.verdict is Verdict.PASS
    assert "n 5 and 3" in gain.detail
    assert against(hashed, naive).verdict is Verdict.CANNOT_TELL
