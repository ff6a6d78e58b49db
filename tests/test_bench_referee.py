"""The count of refused sound records: it goes on where it was, and says what follows from none."""

import json

import pytest

from bench import referee


def row(trial: referee.Trial, verdict: str = "PASS") -> dict:
    told = {"number": trial.number, "fixture": trial.fixture, "verdict": verdict}
    return told | {"canary_bits": -2.0, "reasons": [], "seconds": 1.0}


def test_every_sound_fixture_has_its_turn_before_one_has_its_second():
    planned = referee.trials(50, first_seed=7)
    names = [trial.fixture for trial in planned]
    kinds = len(set(names))
    assert sorted(names[:kinds]) == sorted(set(names)) and kinds < 50
    assert planned[kinds].training_seed == planned[0].training_seed + 1
    assert len({trial.random_seed for trial in planned}) == 50


def test_a_run_that_was_ended_goes_on_where_it_was(tmp_path):
    planned = referee.trials(3, first_seed=0)
    out = tmp_path / "referee.json"
    out.write_text(json.dumps({"code_sha256": "a", "rows": [row(planned[1])]}))
    assert referee.held_rows(out, "b") == {}
    made: list[int] = []
    kept: list[int] = []

    def make(trial: referee.Trial) -> dict:
        made.append(trial.number)
        return row(trial)

    held = referee.held_rows(out, "a")
    rows = referee.run_all(planned, held, make, lambda rows: kept.append(len(rows)), at_once=1)
    assert made == [0, 2] and kept == [2, 3]
    assert [one["number"] for one in rows] == [0, 1, 2]


def test_none_refused_of_many_bounds_the_rate():
    planned = referee.trials(200, first_seed=0)
    sound = referee.summary([row(trial) for trial in planned])
    assert sound["refused"] == 0 and sound["rate_below"] == pytest.approx(0.0149, abs=1e-4)
    one_bad = [row(planned[0], "INVALID"), row(planned[1], "WARN")]
    found = referee.summary(one_bad)
    assert found["refused"] == 1 and "rate_below" not in found
    assert found["verdicts"] == {"INVALID": 1, "WARN": 1}
