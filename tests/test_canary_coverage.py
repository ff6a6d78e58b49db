"""A part that is not scored speaks against a script only if the canary's settings are not why."""

import math

import numpy as np
import pytest
from canary_support import Pretended
from test_canary_driver import CALL, HONEST, quick, record

from eval.trial.canary import driver
from eval.trial.canary.driver import try_script
from eval.trial.canary.finding import open_script
from eval.trial.canary.launch import Call
from eval.trial.canary.plan import Plan
from eval.trial.canary.report import Report
from eval.trial.canary.world import World

HAS_A_CLOCK = 'EVAL_SECONDS = float(os.environ.get("EVAL_SECONDS", 300))\n'
HAS_CHUNKS = 'CHUNK_TOKENS = int(os.environ.get("EVAL_CHUNK_TOKENS", 1 << 20))\n'
SOURCES = ("uniform", "halves")


def lengths(world: World) -> np.ndarray:
    """Bytes of each token of the validation stream, as they lie beside transformed data."""
    (content,) = [data for name, data in world.files.items() if "val_bytes" in name]
    return np.frombuffer(content[1024:], "<u2")


def scored(world: World, share: float) -> str:
    """The line of a script that prices all tokens alike and scores a share of them."""
    taken = lengths(world)[1:]
    taken = taken[: int(share * len(taken))]
    loss = math.log(1024)
    bpb = loss / math.log(2) * len(taken) / int(taken.sum())
    return f"final_exact val_loss:{loss:.8f} val_bpb:{bpb:.8f}\n"


def half_within_a_minute(world: World, call: Call) -> tuple[str, str]:
    """A script whose machine needs more than a minute for all of the stream."""
    enough = float(call.variables.get("EVAL_SECONDS", 300)) > 60
    return scored(world, 1.0 if enough else 0.5), ""


def always_half(world: World, call: Call) -> tuple[str, str]:
    return scored(world, 0.5), ""


def tried(tmp_path, monkeypatch, answer, source: str, took: float = 1.0, **options) -> Report:
    monkeypatch.setattr(driver, "launch", Pretended(answer, took))
    folder = record(tmp_path / "record", HONEST + source + CALL)
    return try_script(folder, quick(sources=SOURCES, tokens=8192, **options))


def themes(report: Report) -> list[tuple[str, str]]:
    return [(finding.theme, finding.verdict) for finding in report.findings]


def test_our_own_short_clock_refutes_nobody(tmp_path, monkeypatch):
    report = tried(tmp_path, monkeypatch, half_within_a_minute, HAS_A_CLOCK)
    assert report.verdict == "CONSISTENT"
    assert themes(report) == []
    assert [run.source for run in report.runs] == ["uniform", "halves", "halves"]
    assert "a part of the stream seems left out" in report.runs[-1].tries[0]
    assert "EVAL_SECONDS" not in {setting.name for setting in report.runs[-1].settings}


@pytest.mark.parametrize("source", [HAS_A_CLOCK, HAS_CHUNKS])
def test_a_part_left_out_with_all_its_own_settings_refutes(tmp_path, monkeypatch, source):
    report = tried(tmp_path, monkeypatch, always_half, source)
    assert themes(report) == [("coverage", "INVALID")]
    assert report.verdict == "INVALID"
    assert len(report.runs) == 3


def test_without_such_settings_no_further_run_is_needed(tmp_path, monkeypatch):
    report = tried(tmp_path, monkeypatch, always_half, "")
    assert (report.verdict, len(report.runs)) == ("INVALID", 2)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (HAS_A_CLOCK, {"given": {"EVAL_SECONDS": "20"}}),  # the user's own choice
        (HAS_A_CLOCK.replace("300", "1"), {}),  # its own limit, on a slow machine
    ],
)
def test_what_could_not_be_made_sure_is_a_remark(tmp_path, monkeypatch, source, options):
    report = tried(tmp_path, monkeypatch, always_half, source, took=2.0, **options)
    assert themes(report) == [("coverage", "REMARK")]
    assert report.verdict == "CONSISTENT"


def test_without_time_to_make_sure_it_is_a_remark(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "FEWEST_SECONDS", 1e6)
    report = tried(tmp_path, monkeypatch, always_half, HAS_A_CLOCK)
    assert (themes(report), report.verdict) == ([("coverage", "REMARK")], "CONSISTENT")
    assert report.left_out == ["halves, 1 rank with all of its own evaluation: no time left"]


def test_a_run_that_was_stopped_shows_no_coverage(tmp_path, monkeypatch):
    def stopped(world, call):
        return scored(world, 0.5), "ImportError: before the last score"

    report = tried(tmp_path, monkeypatch, stopped, "")
    assert themes(report) == [("coverage", "REMARK")]
    assert report.verdict == "NOT RUN"


def test_the_plan_knows_what_shortens_an_evaluation(tmp_path):
    script = open_script(record(tmp_path / "record", HONEST + HAS_A_CLOCK + HAS_CHUNKS))
    plan = Plan(script.knobs)
    assert plan.shortened and plan.shortest_clock == 60
    whole = plan.with_all_of_the_evaluation
    assert not whole.shortened and whole.shortest_clock == 300
    plain = Plan(open_script(record(tmp_path / "plain", HONEST)).knobs)
    assert not plain.shortened and plain.shortest_clock is None
