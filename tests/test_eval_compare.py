"""Statistics of `compare`: against a published example, against simulation, and what it refuses."""

import json
import math

import numpy as np
import pytest
from board_support import pack_one
from records_support import audit
from scipy import stats

from eval.__main__ import main
from eval.papers.checks.statistics import welch

LN2 = math.log(2)
HASH = "a" * 64
OTHER = "b" * 64


def test_welch_by_hand():
    """n = 3 each, variances 1e-4 and 4e-4: error² = 5e-4 / 3.

    df = (5e-4/3)² / ((1e-4/3)²/2 + (4e-4/3)²/2) = 25 / 8.5."""
    a = np.array([1.00, 1.01, 1.02])
    b = np.array([0.93, 0.95, 0.97])
    result = welch(a, b, level=0.01)
    assert result.difference == pytest.approx(0.06)
    assert result.df == pytest.approx(25 / 8.5)
    assert result.t == pytest.approx(0.06 / math.sqrt(5e-4 / 3))
    assert result.p == pytest.approx(stats.t.sf(result.t, result.df))
    assert result.bound == pytest.approx(0.06 - stats.t.ppf(0.99, result.df) * math.sqrt(5e-4 / 3))


def test_one_sided_in_the_right_direction():
    a = np.array([1.0, 1.001, 0.999])
    b = np.array([1.1, 1.101, 1.099])
    assert welch(a, b, 0.01).p > 0.99
    assert welch(b, a, 0.01).p < 0.01


def test_minimum_detectable_effect_is_found_with_the_stated_power():
    """Simulation: normal seeds with the stated effect as true difference.

    They are significant in 80 % of the cases."""
    n = 8
    rng = np.random.default_rng(1)
    unit = np.array([-1.0, 1.0] * (n // 2))
    unit /= unit.std(ddof=1)
    effect = welch(unit, unit, 0.05).detectable
    a = rng.normal(effect, 1, size=(20_000, n))
    b = rng.normal(0, 1, size=(20_000, n))
    found = stats.ttest_ind(a, b, axis=1, equal_var=False, alternative="greater").pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_the_bar_is_part_of_the_null_hypothesis():
    """0.0052 nats better with a standard error of 0.0008.

    Certainly better than nothing, not certainly better than 0.005."""
    a = np.array([1.0, 1.001, 0.999])
    result = welch(a, a - 0.0052, 0.01, bar=0.005)
    error = 0.001 * math.sqrt(2 / 3)
    assert result.p == pytest.approx(stats.t.sf(0.0052 / error, 4))
    assert result.p < 0.01
    assert result.p_bar == pytest.approx(stats.t.sf(0.0002 / error, 4))
    assert result.p_bar > 0.4
    assert result.detectable == pytest.approx(0.005 + welch(a, a - 0.0052, 0.01).detectable)


@pytest.mark.filterwarnings("error")
def test_equal_seeds_are_no_test():
    """Their mean is not exact in binary, so a variance of rounding errors is left."""
    result = welch(np.full(3, 1.0611), np.full(3, 1.0611) - 0.01, 0.01)
    assert (result.p, result.p_bar, result.t) == (None, None, None)


def test_one_seed_is_no_test():
    result = welch(np.array([1.0]), np.array([0.9, 0.91]), 0.01)
    assert (result.p, result.df, result.detectable) == (None, None, None)


DATA = {
    "corpus": "docs",
    "version": HASH,
    "dataset": "docs_sp1024",
    "tokenizer_sha256": HASH,
    "train_tokens": 1000,
    "val_tokens": 501,
    "val_bytes": 1000,
    "train_files": 1,
}
ROW = {
    "val_loss": 1.0,
    "nats": 1.0,
    "scored_tokens": 500,
    "scored_bytes": 1000,
    "steps": 1,
    "train_s": 1,
    "eval_s": 1,
    "artifact_bytes": 1,
    "artifact_sha256": HASH,
    "bytes_total": 2,
    "log": "l",
    "log_sha256": HASH,
}
SUBMISSION = {
    "schema_version": 1,
    "origin": "packed",
    "author": "a",
    "github_id": "a",
    "date": "2026-11-24",
    "val_loss": 1.0,
    "bytes_total": 2,
    "bytes_code": 1,
    "bytes_artifact": 1,
    "code_sha256": HASH,
    "config": {"sha256": HASH},
    "environment": {"python": "3.11"},
}


def record(folder, name, values, version=HASH, rules="2026-11", track="track_docs_cpu"):
    """A packed record with these bits per byte, at half a token per byte; returns its path."""
    path = folder / name
    path.mkdir(parents=True)
    seeds = [1337, 42, 2025][: len(values)]
    results = {str(s): ROW | {"val_bpb": bits} for s, bits in zip(seeds, values, strict=True)}
    own = {
        "name": name,
        "track": track,
        "rules_version": rules,
        "val_bpb": float(np.mean(values)),
        "seeds": seeds,
        "seed_results": results,
        "data": DATA | {"version": version},
    }
    (path / "submission.json").write_text(json.dumps(SUBMISSION | own))
    return str(path)


def test_prints_every_number(tmp_path, capsys):
    a = record(tmp_path, "a", [1.50, 1.51, 1.52])
    b = record(tmp_path, "b", [1.40, 1.41, 1.42])
    assert main(["compare", a, b]) == 0
    shown = capsys.readouterr().out
    assert f"B scores lower by {0.1 * LN2:.6f} nats/byte (0.100000 bpb)" in shown
    for word in (
        "n 3",
        "mean",
        "sd",
        "df 4.00",
        "p 0.000",
        "minimum detectable effect",
        "0.005 nats/token = 0.002500 nats/byte",
        "p < 0.01: met",
    ):
        assert word in shown
    assert main(["compare", b, a]) == 1
    shown = capsys.readouterr().out
    assert f"B scores higher by {0.1 * LN2:.6f} nats/byte" in shown
    assert shown.endswith("verdict: not better; below the bar\n")


@pytest.mark.parametrize(
    ("gain", "code", "verdict"),
    [
        (0.0030, 0, "better; above the bar, p < 0.01: met"),
        (0.0024, 1, "not better; below the bar"),
    ],
)
def test_bar_counts_nats_per_token(tmp_path, capsys, gain, code, verdict):
    """0.0030 nats/byte at half a token per byte are 0.0060 nats/token: above the bar of 0.005.

    0.0024 nats/byte (0.0048 nats/token) are not."""
    values = [1.0, 1.00001, 1.00002]
    a = record(tmp_path, "a", values)
    b = record(tmp_path, "b", [bits - gain / LN2 for bits in values])
    assert main(["compare", a, b]) == code
    assert capsys.readouterr().out.endswith(f"verdict: {verdict}\n")


def test_an_improvement_just_above_the_bar_needs_more_seeds(tmp_path, capsys):
    """0.0026 nats/byte at half a token per byte are 0.0052 nats/token.

    The seeds spread by 0.0005 nats/byte."""
    values = [1.0, 1.0 + 0.0005 / LN2, 1.0 - 0.0005 / LN2]
    a = record(tmp_path, "a", values)
    b = record(tmp_path, "b", [bits - 0.0026 / LN2 for bits in values])
    assert main(["compare", a, b]) == 3
    shown = capsys.readouterr().out
    assert "p 0.0015" in shown
    assert "improvement above the bar: p 0.4" in shown
    assert shown.endswith("verdict: cannot tell; above the bar, p >= 0.01: not met\n")
    one = record(tmp_path, "one", values[:1])
    assert main(["compare", one, record(tmp_path, "much", [0.5])]) == 3
    assert capsys.readouterr().out.endswith("above the bar, significance not tested\n")


def test_an_audit_that_rejects_decides(tmp_path, capsys):
    """However low its numbers are, a refuted record beats none, and none is measured by it."""
    sound = pack_one(tmp_path, "Sound", 1.0)
    refuted = pack_one(tmp_path, "Refuted", 0.5)
    audit(sound, "PASS")
    audit(refuted, "INVALID")
    capsys.readouterr()
    assert main(["compare", str(sound), str(refuted)]) == 1
    shown = capsys.readouterr().out
    assert [line.rpartition("audit: ")[2] for line in shown.splitlines()[:2]] == [
        "PASS (quick)",
        "INVALID (quick)",
    ]
    assert "verdict: not better; B's audit says INVALID (quick)" in shown
    assert main(["compare", str(refuted), str(sound)]) == 3
    assert "verdict: cannot tell; A's audit says INVALID (quick)" in capsys.readouterr().out


def test_numbers_that_no_audit_covers_are_named(tmp_path, capsys):
    audited = pack_one(tmp_path, "Audited", 1.0)
    claimed = pack_one(tmp_path, "Claimed", 0.5)
    audit(audited, "WARN")
    capsys.readouterr()
    assert main(["compare", str(audited), str(claimed)]) == 0
    shown = capsys.readouterr().out
    assert f"no audit that counts: {claimed.name}; audit before you believe" in shown
    assert "audit: not audited" in shown
    (claimed / "audit.json").write_text("{")
    assert main(["compare", str(audited), str(claimed)]) == 0
    assert "audit: audit cannot be read" in capsys.readouterr().out


def test_json_holds_what_the_text_says(tmp_path, capsys):
    a = record(tmp_path, "a", [1.50, 1.51, 1.52])
    b = record(tmp_path, "b", [1.40, 1.41, 1.42])
    assert main(["compare", a, b, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "better"
    assert told["difference_bpb"] == pytest.approx(0.1)
    assert told["difference_nats_per_token"] == pytest.approx(0.2 * LN2)
    assert told["p_bar"] < told["level"] == 0.01
    assert told["a"]["values"] == pytest.approx([1.50 * LN2, 1.51 * LN2, 1.52 * LN2])
    assert (told["b"]["seeds"], told["b"]["audit"]) == (3, "unaudited")
    one = record(tmp_path, "one", [1.0])
    assert main(["compare", a, one, "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["p"], told["t"], told["b"]["sd"]) == (None, None, None)


def public(folder, name, bits, tokens):
    """A public record; its submission.json states other scores and no corpus."""
    path = folder / name
    path.mkdir()
    results = {str(seed): {"val_bpb": 0.5} for seed in range(len(bits))}
    stated = {"name": name, "val_bpb": 0.5, "seed_results": results}
    (path / "submission.json").write_text(json.dumps(stated))
    for seed, value in enumerate(bits):
        final = f"final_exact val_loss:2.0 val_bpb:{value:.8f}"
        (path / f"{seed}.log").write_text(f"val_tokens:{tokens}\nseed:{seed}\n{final}\n")
    return str(path)


def test_public_records_are_compared_by_their_logs(tmp_path, capsys):
    a = public(tmp_path, "a", [1.1, 1.11, 1.12], 62_021_632)
    b = public(tmp_path, "b", [1.0, 1.01, 1.02], 40_540_160)
    assert main(["compare", a, b]) == 0
    shown = capsys.readouterr().out
    assert "audit: not audited" in shown
    assert "(val_bpb 1.110000)" in shown
    assert "(val_bpb 1.010000)" in shown
    bar = 0.005 * 40_540_160 / 151.076e6
    assert f"contest bar: 0.005 nats/token = {bar:.6f} nats/byte" in shown


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [(63_779_840, "different texts"), (1_000_000, "how large the validation text is")],
)
def test_public_records_of_other_texts_are_refused(tmp_path, capsys, tokens, complaint):
    a = public(tmp_path, "a", [1.1, 1.11, 1.12], 62_021_632)
    b = public(tmp_path, "b", [1.0, 1.01], tokens)
    assert main(["compare", a, b]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": OTHER}, "different corpora"),
        ({"rules": "2026-10"}, "rule sets"),
        ({"track": "track_non_record_16mb"}, "tracks"),
    ],
)
def test_refuses_what_is_not_on_one_scale(tmp_path, capsys, change, complaint):
    values = [1.0, 1.1, 1.2]
    a = record(tmp_path, "a", values)
    b = record(tmp_path, "b", values, **change)
    assert main(["compare", a, b]) == 2
    assert complaint in capsys.readouterr().err


def test_seeds_that_agree_to_the_last_digit_print_no_warning(tmp_path, capfd):
    a = record(tmp_path, "a", [1.1, 1.1, 1.1])
    b = record(tmp_path, "b", [1.0, 1.01, 1.02])
    main(["compare", a, b])
    assert capfd.readouterr().err == ""
