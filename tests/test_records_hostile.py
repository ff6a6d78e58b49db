"""Whatever a stranger's record folder holds, `check` ends in verdicts, never in a traceback."""

import json
import os
import re
import shutil

import pytest
from check_support import GOOD, public_folder, public_log, public_logs, verdicts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records_support import pack_three

from eval.papers.checks.run import check_folder
from eval.papers.checks.showing import format_report
from eval.papers.rendering.tables import aligned
from eval.rules import Verdict

KEYS = [
    "val_bpb",
    "val_loss",
    "seeds",
    "seed_results",
    "date",
    "track",
    "hardware",
    "artifact_bytes",
    "bytes_total",
    "bytes_code",
    "seed",
    "steps",
    "val_bpb_std",
    "train_steps_mean",
    "delta_vs_leaderboard_nats",
    "comparison_baseline_bpb",
    "torch_version",
    "name",
    "blurb",
    "mystery",
]
INNER_KEYS = st.sampled_from(["1", "2", "x", "val_bpb", "steps", "artifact_bytes"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(INNER_KEYS, inner, max_size=3),
    max_leaves=6,
)
NONSENSE = ["0", "-1", "nan", "1e999", "x", "", "7" * 400, "7" * 5000, "0.0"]
# Which number, counted from the end of the log, and by what: the result line has the last ones.
PLACES = st.integers(1, 15) | st.integers(1, 100)
CHANGES = st.tuples(PLACES, st.sampled_from(NONSENSE))
ONE_FOLDER = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_three(tmp_path_factory.mktemp("packed"))


@settings(max_examples=200, **ONE_FOLDER)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_no_public_submission_makes_check_fail(tmp_path, change):
    folder = tmp_path / "2026-05-01_Somebody"
    stated = GOOD | {"val_bpb": 1.1}
    if not folder.exists():
        public_folder(tmp_path, stated, public_logs({1: 1.1, 2: 1.1}))
    (folder / "submission.json").write_text(json.dumps(stated | change))
    report = check_folder(folder, with_audit=True)
    assert {check.name for check in report.checks} >= {"files", "json", "log", "headline"}
    format_report(report)


def with_nonsense(log: str, changes: list[tuple[int, str]]) -> str:
    """A log with some numbers behind its embedded source replaced."""
    head, mark, tail = log.rpartition("===== end source =====")
    parts = re.split(r"(?<=[:/ ])(\d+(?:\.\d+)?)", tail)
    numbers = len(parts) // 2
    for index, value in changes:
        parts[2 * (-index % numbers) + 1] = value
    return head + mark + "".join(parts)


@settings(max_examples=150, **ONE_FOLDER)
@given(st.lists(CHANGES, min_size=1, max_size=4))
def test_no_log_makes_check_fail(packed, tmp_path, changes):
    """Any number of a log, native or public, replaced by nonsense."""
    root = tmp_path / "fuzz"
    native = root / packed.parent.name / packed.name
    public = root / "2026-05-01_Somebody"
    if not root.exists():
        shutil.copytree(packed, native)
        results = {"1": {"val_bpb": 1.1, "steps": 9}}
        stated = {"val_bpb": 1.1, "val_loss": 1.9, "seeds": [1], "seed_results": results}
        public_folder(root, GOOD | stated, {})
    logs = {
        native / "train_seed42.log": (packed / "train_seed42.log").read_text(),
        public / "train_seed1.log": public_log(1, 1.1),
    }
    for path, text in logs.items():
        path.write_text(with_nonsense(text, changes))
        format_report(check_folder(path.parent, with_audit=True))


def test_hostile_files_end_in_verdicts(tmp_path):
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.1}, {"train.log": public_log(1, 1.1)})
    os.mkfifo(folder / "pipe.log")  # reading it would never end
    (folder / "folder.log").mkdir()
    (folder / "ngram_tilt.py").write_text("x = 1\n")
    assert "ngram_tilt.py" in verdicts(folder, Verdict.PASS)["uncounted"]  # nobody loads it
    for content in (
        "[" * 100_000,
        '{"name": "n", "val_bpb": 1' + "0" * 5000 + "}",
        "\ufeff{}",
        '{"name": "n", "val_bpb": 1.1, "val_bpb": 1e999}',
    ):
        (folder / "submission.json").write_text(content)
        assert "json" in verdicts(folder)


def test_unreadable_size_and_code_files(tmp_path):
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.1}, {"train.log": public_log(1, 1.1)})
    (folder / "train_gpt.py").write_bytes(b"\x00\xff")
    assert "compiles" in verdicts(folder)
    (folder / "train_gpt.py").unlink()
    (folder / "train_gpt.py.size").write_text("big\n")
    assert "files" in verdicts(folder)


RESULT_FIELDS = ("val_loss", "val_bpb", "nats", "scored_tokens", "scored_bytes")


@pytest.mark.parametrize("field", RESULT_FIELDS)
@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_a_result_line_of_nonsense_is_a_failed_check(packed, tmp_path, field, value):
    """A submission's log may hold anything; `check` says so and goes on."""
    folder = shutil.copytree(packed, tmp_path / packed.parent.name / packed.name)
    path = folder / "train_seed42.log"
    head, mark, tail = path.read_text().rpartition("===== end source =====")
    changed = re.sub(rf"(?m)(^result .*\b{field}:)\S+", rf"\g<1>{value}", tail)
    assert changed != tail
    path.write_text(head + mark + changed)
    assert any(check.verdict == "FAIL" for check in check_folder(folder).checks)


def test_a_table_hides_no_text():
    """Tabs, separators and escape codes: what follows them is printed, and nothing is obeyed."""
    cells = ["a\tb", "further\u2028file", "red \x1b[31m text\r gone"]
    line = aligned([cells])
    assert line == "a   b further\\u2028file red \\x1b[31m text\\r gone"
