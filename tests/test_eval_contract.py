"""What the audit says of scorers of 30 lines: each breaks the contract, or is noisy, in one way."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from audit_support import judge, record, tiny
from sandbox_support import NEEDS_SANDBOX

from eval.papers.audits.report import TEST_NAMES
from eval.rules import load_rules
from eval.text.corpus.dataset import Dataset

__all__ = ["tiny"]  # a fixture

pytestmark = NEEDS_SANDBOX


def test_uniform_is_valid_and_its_bits_are_known(tmp_path, tiny):
    """log2 260 bits for each target: 8.022 bits per byte but for the BOS, which is no byte."""
    without_papers = [name for name in TEST_NAMES if name != "evidence"]
    report = judge(record(tmp_path / "r"), tiny, *without_papers)
    verdicts = {name: report[name].verdict for name in without_papers}
    assert verdicts == dict.fromkeys(without_papers, "PASS"), report
    split = Dataset(tiny).split("val")
    (score,) = report.scores
    assert score.scored_tokens == len(split.tokens) - 1
    assert score.scored_bytes == len(split.tokens) - 20
    bits = np.log2(260) * score.scored_tokens
    assert score.val_bpb == pytest.approx(bits / score.scored_bytes, rel=1e-12)
    assert report["normalisation"].figures["largest_sum"] == pytest.approx(1, abs=1e-12)


BROKEN = {
    "not a number": ("nll[3] = np.nan", "nll[3] is nan"),
    "infinite": ("nll[3] = np.inf", "nll[3] is inf"),
    "negative": ("nll[3] = -0.5", "nll[3] = -0.5 is negative: a probability above 1"),
    "short": ("nll = nll[:-1]", "nll has shape"),
    "long": ("nll = np.append(nll, 0)", "nll has shape"),
    "single precision": ("nll = nll.astype(np.float32)", "nll has dtype float32, expected float64"),
    "a pickle": ("nll = np.array([object()] * len(nll), dtype=object)", "is no plain array"),
    "not written": ("continue", "no nll file was written"),
    "a symbolic link": (
        "os.symlink('/etc/passwd', Path(a.out, path.stem + '.nll.npy')); continue",
        "nll file is a symbolic link",
    ),
    "failing": ("sys.exit(3)", "exit code 3"),
    "no rows": ("probes = {}", "no probe file was written"),
    "rows of another shape": ("row = row[:, :-1]", "probe has shape"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_output_is_invalid_and_said_plainly(tmp_path, tiny, kind):
    change, complaint = BROKEN[kind]
    report = judge(record(tmp_path / "r", change), tiny, "coverage", "normalisation")
    assert report.verdict == "INVALID"
    assert complaint in " ".join(f.found for f in report["coverage"].findings), report["coverage"]


def test_a_pickle_is_never_loaded(tmp_path, tiny):
    """An output that would write a file when unpickled: refused, and not executed."""
    trace = Path(tempfile.gettempdir()) / f"unpickled-{os.getpid()}"
    change = f"""
class Evil:
    def __reduce__(self):
        return (open, ({str(trace)!r}, "w"))
evil = np.array([Evil()], dtype=object)
np.save(Path(a.out, path.stem + ".nll.npy"), evil, allow_pickle=True)
continue"""
    assert judge(record(tmp_path / "r", change), tiny, "coverage").verdict == "INVALID"
    assert not trace.exists()


NOISE = "nll += np.random.default_rng().normal(0, {sigma}, len(nll))"


def test_noise_that_no_one_can_audit_is_invalid(tmp_path, tiny):
    folder = record(tmp_path / "r", NOISE.format(sigma=0.1))
    report = judge(folder, tiny, "future", "normalisation")
    assert report["future"].verdict == "INVALID"
    assert "the same run twice" in report["future"].reason


def test_small_noise_widens_the_tolerance_and_is_stated(tmp_path, tiny):
    """Noise of 0.002 nats, as kernels make that add in another order.

    It is accepted, with the measured floor in the report."""
    folder = record(tmp_path / "r", NOISE.format(sigma=0.002))
    report = judge(folder, tiny, "future", "normalisation", "documents")
    assert (report["future"].verdict, report["normalisation"].verdict) == ("PASS", "PASS"), report
    assert 0.004 < report["future"].figures["noise_floor_nats"] < 0.02
    assert "between reruns of equal streams" in report["future"].tolerance_source


def test_a_large_leak_does_not_hide_behind_small_noise(tmp_path, tiny):
    change = NOISE.format(sigma=0.002) + "\nnll[:-1] -= 0.3 * (x[2:] == 4 + 32)"
    assert judge(record(tmp_path / "r", change), tiny, "future").verdict == "INVALID"


JITTER = """
rng = np.random.default_rng()
nll += 0.04 * rng.choice([-1, 1], len(nll)) * (rng.random(len(nll)) < 0.02)
"""


def test_jitter_buys_no_room_for_a_gain(tmp_path, tiny):
    """Every single difference of 0.08 nats from the rows is within the scorer's own noise.

    Their mean is not."""
    report = judge(record(tmp_path / "r", JITTER + "nll -= 0.08"), tiny, "normalisation")
    wrong = report["normalisation"].findings
    assert any("mean of" in finding.where for finding in wrong), wrong
    assert not any("its own row" in finding.expected for finding in wrong), wrong


def test_a_small_look_ahead_in_jitter_shows_in_the_mean(tmp_path, tiny):
    """Pays less where the token after the next is ASCII.

    Real text is, and half of what the uniform row gives is not."""
    folder = record(tmp_path / "r", JITTER + "nll[:-1] -= 0.07 * (x[2:] < 4 + 128)")
    quick = load_rules().profile["quick"]  # a mean of few differences would not show it
    wrong = judge(folder, tiny, "future", profile=quick)["future"].findings
    assert any("mean of" in finding.where for finding in wrong), wrong


def test_jitter_beyond_bfloat16_is_a_warning(tmp_path, tiny):
    # As many places each time, so that between two runs more than 1 % and less than 5 % of the
    # losses differ, and none in short streams: a sweep over the vocabulary would add up its cost.
    jitter = """
count = int(0.012 * len(nll)) * (len(nll) > 1000)
nll[np.random.default_rng().choice(len(nll), count, replace=False)] += 0.07
"""
    report = judge(record(tmp_path / "r", jitter), tiny, "future", "normalisation")
    assert (report["future"].verdict, report["normalisation"].verdict) == ("WARN", "PASS"), report
    assert "more than bfloat16 kernels explain" in report["future"].reason


def test_running_without_a_sandbox_is_stated(tmp_path, tiny):
    report = judge(record(tmp_path / "r"), tiny, "isolation", "coverage", mechanism="none")
    assert report.sandbox == "none"
    assert report["isolation"].verdict == "NOT RUN"
    assert "--no-sandbox" in report["isolation"].reason
