"""What `check` makes of the referee's audit: it counts if it is one of this folder."""

import json
import shutil

import pytest
from check_support import named, verdicts
from records_support import audit, cli, pack_three, three_seeds

from eval.commands import pack
from eval.papers.audits.report import Finding, TestResult
from eval.papers.audits.standing import UNAUDITED, reason_of
from eval.papers.checks.run import check_folder
from eval.papers.folder import open_record
from eval.papers.rendering.audits import figure
from eval.rules import Verdict


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_three(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def record(packed, tmp_path):
    folder = tmp_path / "records" / packed.parent.name / packed.name
    shutil.copytree(packed, folder)
    return folder


def test_an_audited_record_passes_everything(record):
    audit(record, "PASS")
    assert "readme" in verdicts(record)  # the README does not show the verdict yet
    assert cli(pack, "--refresh", record) == 0
    assert check_folder(record, with_audit=True).verdict is Verdict.PASS
    assert (
        "**PASS** (`--quick`, referee rules `2026-11`; 10 of 10 tests"
        in (record / "README.md").read_text()
    )


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ("PASS", Verdict.PASS),
        ("WARN", Verdict.PASS),
        ("POLICY", Verdict.POLICY),
        ("INVALID", Verdict.FAIL),
    ],
)
def test_the_audit_decides(record, verdict, expected):
    audit(record, verdict)
    cli(pack, "--refresh", record)
    outcome = named(record, "audit", with_audit=True)
    assert outcome.verdict is expected
    assert outcome.detail.startswith(f"{verdict}, level quick, rules 2026-11")
    assert set(verdicts(record)) == ({"audit"} if verdict == "INVALID" else set())
    if verdict != "PASS":
        assert "normalisation: sum of 512 tokens: expected 1, found 6.25" in outcome.detail
        assert f"* {verdict} normalisation: sum of 512 tokens" in (record / "README.md").read_text()
    assert '"verdict"' in outcome.evidence[0].text


def test_an_audit_may_rest_on_the_checks(record):
    """An INVALID verdict must not feed the next audit.

    Nor must a README that does not show the new one yet. Other edits still count."""
    audit(record, "INVALID")
    assert check_folder(record).verdict is Verdict.PASS
    readme = record / "README.md"
    readme.write_text(readme.read_text().replace("1.03000000", "1.02000000", 1))
    failed = [c.name for c in check_folder(record).checks if c.verdict is Verdict.FAIL]
    assert failed == ["readme"]


def test_an_audit_of_other_artifacts_does_not_count(record, tmp_path):
    other = pack_three(tmp_path / "other", artifact=b"other weights")
    audit(other, "PASS")
    for name in ("audit.json", "AUDIT.md"):
        shutil.copy(other / name, record / name)
    assert "artifact_sha256 of seed 1337: expected" in verdicts(record)["audit"]
    (record / "audit.json").write_text("{}")
    assert "audit the record again" in verdicts(record)["audit"]
    audit(record, "PASS")
    (record / "AUDIT.md").unlink()
    assert "AUDIT.md is missing" in verdicts(record)["audit"]


def rewrite_audit(folder, **change):
    path = folder / "audit.json"
    report = json.loads(path.read_text())
    path.write_text(json.dumps(report | change))


def changed_rows(folder, name, **change) -> list[dict]:
    return [row | change for row in json.loads((folder / "audit.json").read_text())[name]]


def test_an_audit_that_tells_too_little_refutes_nothing_and_gives_no_rank(record):
    """One seed of three at the level quick, or tests that did not run."""
    audit(record, "PASS")
    cli(pack, "--refresh", record)
    rewrite_audit(record, scores=changed_rows(record, "scores")[:1])
    assert verdicts(record) == {}
    open_questions = verdicts(record, Verdict.CANNOT_TELL)
    assert "level quick scored 1 of 3 seeds" in open_questions["audit"]
    tests = changed_rows(record, "tests")
    tests[0] |= {"verdict": "NOT RUN", "reason": "interrupted", "unfinished": "interrupted"}
    rewrite_audit(record, tests=tests, verdict="INCOMPLETE")
    assert "audit" not in verdicts(record)
    assert "future did not run" in verdicts(record, Verdict.CANNOT_TELL)["audit"]
    assert open_record(record).standing.status == UNAUDITED


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f: {"code_sha256": "0" * 64}, "code_sha256: expected that of train_gpt.py"),
        (
            lambda f: {"scores": []},
            "scores: expected one for each of the seeds 1337, 42, 2025, found none",
        ),
        (
            lambda f: {"scores": changed_rows(f, "scores")[:2], "level": "full"},
            "scores: expected one for each",
        ),
        (
            lambda f: {"scores": changed_rows(f, "scores", seed="7", artifact_sha256="0" * 64)},
            "seed: expected one of 1337, 42, 2025, found 7",
        ),
        (
            lambda f: {"scores": changed_rows(f, "scores", val_bpb=9.0)},
            "val_bpb of seed 1337: expected 1.00000000",
        ),
        (lambda f: {"corpus_version": "f" * 64}, "corpus_version: expected aaaaaaaaaaaa"),
        (
            lambda f: {"tests": changed_rows(f, "tests", verdict="INVALID")},
            "verdict: expected INVALID, the worst of its tests, found PASS",
        ),
        (
            lambda f: {"tests": changed_rows(f, "tests")[4:5], "level": "quick, only bytes"},
            "tests: expected all that every audit runs, found NOT RUN future",
        ),
        (lambda f: {"level": "quick, only everything"}, "level: expected quick or full"),
        (lambda f: {"level": "full"}, "audited: expected all of the scored seeds, found 1337"),
        (lambda f: {"audited": []}, "audited: expected some of the scored seeds, found none"),
        (lambda f: {"sandbox": "none"}, "sandbox: expected a run inside one, found none"),
        (
            lambda f: {"rules_version": "1999-01"},
            "rules_version: expected a rule set of this referee",
        ),
    ],
)
def test_an_audit_has_to_be_of_this_folder(record, change, text):
    audit(record, "PASS")
    cli(pack, "--refresh", record)
    assert verdicts(record) == {}
    rewrite_audit(record, **change(record))
    assert text in verdicts(record)["audit"]


def test_a_rejection_needs_one_violation_and_the_same_files(record):
    """A scorer that does not run has no score, and no verdict of the tests that need one.

    It is rejected all the same."""
    audit(record, "INVALID")
    rewrite_audit(
        record,
        scores=changed_rows(record, "scores")[:1],
        audited=[],
        tests=changed_rows(record, "tests")[1:2],
        sandbox="none",
    )
    assert verdicts(record)["audit"].startswith("INVALID, level quick")
    rewrite_audit(record, code_sha256="0" * 64)
    assert "is no audit of this folder" in verdicts(record)["audit"]


def test_an_audit_of_weights_outside_git_needs_one_score(tmp_path):
    """Big artifacts are given to the audit one at a time, perhaps without their seed."""
    folder = tmp_path / "records" / "track_non_record_16mb" / "2026-11-24_big"
    about = ["--name", "Big", "--track", "track_non_record_16mb", "--date", "2026-11-24"]
    runs = three_seeds(tmp_path / "runs")
    assert cli(pack, *runs, *about, "--records-dir", tmp_path / "records") == 0
    audit(folder, "PASS")
    cli(pack, "--refresh", folder)
    given = changed_rows(folder, "scores")[1] | {"seed": "given"}
    rewrite_audit(folder, scores=[given], audited=["given"])
    assert "audit" not in verdicts(folder)
    rewrite_audit(folder, scores=changed_rows(folder, "scores", artifact_sha256="0" * 64))
    assert "seed: expected one of 1337, 42, 2025, found given" in verdicts(folder)["audit"]
    rewrite_audit(folder, scores=[])
    assert "audit" in verdicts(folder)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1371156.0, "1,371,156"),
        (0.0, "0"),
        (-4574856.9162, "-4,574,856.9"),
        (969.0499999999978, "969.05"),
        (8.881784197001252e-16, "8.88178e-16"),
    ],
)
def test_counts_are_shown_to_the_last_digit(value, shown):
    assert figure(value) == shown


FINDING = Finding(
    verdict="INVALID",
    where="seed 42",
    expected="sum 1 ± 0.001",
    found="969.05; 498 of 507 rows above",
    rule="one distribution",
)
TOLD = TestResult(name="normalisation", verdict="INVALID", reason="seed 42: …", findings=[FINDING])


def test_a_reason_has_at_most_ten_words():
    reason = reason_of(TOLD)
    assert reason.brief == "normalisation: expected sum 1 ± 0.001, found 969.05"
    assert reason.anchor == "AUDIT.md#normalisation-invalid"
    wordy = TOLD.model_copy(update={"findings": [], "reason": "a b c d e f g h i, j k"})
    assert reason_of(wordy).brief == "normalisation: a b c d e f g h i …"


def test_an_incomplete_audit_is_called_so(record):
    """It does not count, and the board says what kind it is instead of PASS."""
    audit(record, "PASS")
    path = record / "audit.json"
    report = json.loads(path.read_text())
    report["verdict"] = "INCOMPLETE"
    for test in report["tests"]:
        if test["name"] == "fresh":
            test["verdict"] = "NOT RUN"
    path.write_text(json.dumps(report))
    standing = open_record(record).standing
    assert (standing.status, standing.label) == ("unaudited", "INCOMPLETE (quick)")
    assert standing.reasons
