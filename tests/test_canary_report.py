"""The canary's report: what a reader, a program and a pull request see; and its picture."""

import importlib.util
import json

import pytest
from canary_scripts import VOCAB_SIZE
from conftest import ROOT

from eval.trial.canary.report import (
    FindingLine,
    Report,
    RunReport,
    SettingLine,
    as_json,
    as_markdown,
    as_text,
    outcome_of,
    verdict_of,
)
from eval.trial.canary.sources import SOURCES, draw_streams
from eval.trial.canary.verdict import CONSISTENT, INVALID, NOT_RUN, judge_run

HOSTILE = "\x1b[2Jfinal `x` | y"


def run_report(text: str, ended_well: bool = True, **fields: object) -> RunReport:
    source = SOURCES["uniform"]
    known = draw_streams(source, 1, VOCAB_SIZE, 1025, ()).validation
    found = judge_run(text, known, source, source.tokenizer(VOCAB_SIZE))
    facts = {
        "why": source.why,
        "world_size": 2,
        "targets": known.targets,
        "seconds": 12.3,
        "settings": [SettingLine(name="MODEL_DIM", value="64", own="512", origin="small")],
    }
    return RunReport(**(outcome_of(found, ended_well) | facts | fields))


CHEAT = f"step:1/1 train_loss:6.93\n{HOSTILE} val_loss:1.23456789\n"
HONEST = "step:1/1 train_loss:6.93\nfinal val_loss:6.99999999\n"


def report(*runs: RunReport, **fields: object) -> Report:
    facts = {"script": "train_gpt.py", "device": "cpu", "seconds": 30.0, "runs": list(runs)}
    return Report(**(facts | {"verdict": verdict_of(runs)} | fields))


def test_a_refutation_is_named_in_every_form():
    refuted = report(run_report(CHEAT), run_report(HONEST))
    assert refuted.verdict == INVALID and len(refuted.refutations) == 1
    assert refuted.certain_bits > 400
    for shown in (as_text(refuted), as_markdown(refuted)):
        assert "INVALID" in shown and "1.234568 nats/token" in shown
        assert "uniform, 2 ranks" in shown and "bits below" in shown
        assert "MODEL_DIM=64 (512)" in shown
    assert Report(**json.loads(as_json(refuted))) == refuted


def test_what_a_script_printed_cannot_act_on_a_reader():
    refuted = report(run_report(CHEAT, stopped_by=HOSTILE), run_report("", stopped_by=HOSTILE))
    assert "\x1b" not in as_text(refuted) + as_markdown(refuted) + as_json(refuted)
    assert "`x`" not in as_markdown(refuted)
    assert "stopped after 1 score by: \\x1b[2Jfinal" in as_text(refuted)


def test_a_consistent_script_is_not_called_valid():
    shown = as_text(report(run_report(HONEST)))
    assert "CONSISTENT (nothing found; this is no proof of validity)" in shown
    assert "bits above" in shown


def test_a_run_without_a_score_says_what_stopped_it_and_what_would_help():
    line = "ModuleNotFoundError: No module named 'zstandard'"
    stopped = run_report("", stopped_by=line, help="install zstandard", tries=["again"])
    nothing = report(stopped, left_out=["text, 1 rank: no time"], fixed=["heads = 8"])
    assert nothing.verdict == NOT_RUN and nothing.certain_bits is None
    for shown in (as_text(nothing), as_markdown(nothing)):
        assert line in shown and "install zstandard" in shown
    for words in ("tried again: again", "not run: text, 1 rank", "fixed in the script: heads = 8"):
        assert words in as_text(nothing) and words in as_markdown(nothing)


def test_a_run_that_was_stopped_never_speaks_for_a_script():
    """Its real score may have been still to come."""
    killed = {"stopped_by": "killed: the wall clock of 90 s", "ended_well": False}
    stopped = run_report(HONEST, **killed)
    assert stopped.verdict == NOT_RUN and len(stopped.scores) == 1
    nothing = report(stopped)
    assert nothing.verdict == NOT_RUN
    for shown in (as_text(nothing), as_markdown(nothing)):
        assert "stopped after 1 score by: killed: the wall clock of 90 s" in shown
        assert CONSISTENT not in shown
    assert verdict_of([stopped, run_report(HONEST)]) == CONSISTENT
    assert verdict_of([run_report(CHEAT, **killed)]) == INVALID
    unmarked = stopped.model_copy(update={"verdict": CONSISTENT})
    assert verdict_of([unmarked]) == NOT_RUN


def test_a_score_in_an_unknown_unit_speaks_for_nothing():
    unknown = run_report("final val_loss:3.21\n")
    assert unknown.verdict == NOT_RUN and unknown.scores == []
    shown = as_text(report(unknown))
    assert "stopped by: the end of the script, without a score whose unit is known" in shown


def test_markdown_says_all_that_the_text_says():
    stopped = run_report(
        HONEST + "final val_bpb:nan\n",
        stopped_by="RuntimeError: no space",
        attempts=["killed by the sandbox: memory", "asked for the network: 1.2.3.4"],
        tries=["width 128"],
        help="a larger machine",
    )
    whole = report(stopped, left_out=["text: no time"], fixed=["heads = 8"], notes=["packed"])
    shown = as_markdown(whole)
    for words in (
        "seen in the sandbox: killed by the sandbox: memory",
        "seen in the sandbox: asked for the network: 1.2.3.4",
        "tried again: width 128",
        "not judged, not finite: final val_bpb:nan",
        "stopped after 1 score by: RuntimeError: no space",
        "what would help: a larger machine",
        "not run: text: no time",
        "fixed in the script: heads = 8",
        "packed",
        "30 s on the cpu",
        "MODEL_DIM=64 (512)",
    ):
        assert words in shown and words in as_text(whole), words


@pytest.mark.parametrize(
    ("texts", "verdict"),
    [
        ((HONEST, CHEAT), INVALID),
        (("", HONEST), CONSISTENT),
        (("", ""), NOT_RUN),
        ((), NOT_RUN),
    ],
)
def test_the_worst_run_decides(texts, verdict):
    assert verdict_of([run_report(text) for text in texts]) == verdict


def test_a_finding_of_several_runs_decides_too():
    finding = FindingLine(theme="coverage", verdict=INVALID, what="half of it")
    runs = [run_report(HONEST)]
    assert verdict_of(runs, [finding]) == INVALID
    assert "all runs: INVALID coverage: half of it" in as_text(report(*runs, findings=[finding]))


# --- The picture ---


def picture():
    spec = importlib.util.spec_from_file_location("picture", ROOT / "bench" / "canary_picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(label: str, verdict: str, *runs: tuple[str, float]) -> dict:
    rows = [{"source": source, "claimed": claimed, "needed": 7.0} for source, claimed in runs]
    return {"label": label, "verdict": verdict, "runs": rows}


def test_the_picture_has_a_point_for_each_script_that_ran(tmp_path, capsys):
    scripts = [
        script("11", "CONSISTENT", ("uniform", 7.07), ("text", 0.7)),
        script("22", "INVALID", ("uniform", 7.0), ("long", 0.7)),
        script("33", "NOT RUN"),
        {"label": "44", "verdict": "NOT RUN", "runs": [{"source": "uniform"}]},
    ]
    results = tmp_path / "canary.json"
    results.write_text(json.dumps({"scripts": scripts}))
    module = picture()
    assert [tuple(point) for point in module.points({"scripts": scripts})] == [
        ("22", pytest.approx(0.1), True),
        ("11", pytest.approx(1.01), False),
    ]
    assert module.main(["--results", str(results)]) == 0
    assert (tmp_path / "canary.png").stat().st_size > 5000
    assert "2 scripts, 1 refuted" in capsys.readouterr().out
    assert module.main(["--results", str(tmp_path / "none.json")]) == 2
