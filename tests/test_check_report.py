"""What `check` says and to whom: severities, summary, many folders, commits, JSON and Markdown."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from check_support import GOOD, public_folder, public_logs
from records_support import cli

from eval.commands import check
from eval.errors import UserError
from eval.papers.checks.many import Job, check_many, record_folders
from eval.papers.checks.report import (
    SEVERITIES,
    Check,
    Evidence,
    Report,
    Severity,
    cannot_tell,
    fails,
    passes,
    policy,
    verdict_of,
)
from eval.papers.checks.run import check_folder
from eval.papers.checks.showing import (
    LONGEST_COMMENT,
    SCHEMA,
    as_json,
    as_markdown,
    code,
    format_report,
    row,
)
from eval.rules import Verdict

ROOT = Path(__file__).resolve().parents[1]
CHECKS = ROOT / "eval" / "papers" / "checks"
ANSWERS = ("passes", "fails", "cannot_tell", "policy")


def report_of(*checks: Check, folder: str = "records/t/one", name: str = "One") -> Report:
    return Report(folder, name, verdict_of(checks), list(checks), val_bpb=1.1)


def three_folders(root: Path) -> list[Path]:
    """A sound record, one with a wrong headline, and a file where a folder should be."""
    found = []
    for name, stated in (("sound", 1.1), ("wrong", 0.9)):
        parent = root / name
        parent.mkdir()
        submission = GOOD | {"val_bpb": stated, "val_loss": 1.1 * 1.68846}
        found.append(public_folder(parent, submission, public_logs({1: 1.1, 2: 1.1, 3: 1.1})))
    file = root / "file"
    file.write_text("")
    return [*found, file]


# --- Severity ---


def test_every_check_has_a_default_severity():
    named = set()
    for path in CHECKS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            answers = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ANSWERS
            if answers and node.args and isinstance(node.args[0], ast.Constant):
                named.add(node.args[0].value)
    assert len(named) > 15
    assert named <= set(SEVERITIES)


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([], "PASS"),
        ([passes("headline", "")], "PASS"),
        ([fails("headline", ""), cannot_tell("cap", "")], "FAIL"),
        ([passes("headline", ""), cannot_tell("cap", "")], "CANNOT-TELL"),
        ([fails("date", ""), fails("readme", ""), policy("cap", "")], "PASS"),
        ([cannot_tell("artifacts", "", severity=Severity.NOTE)], "PASS"),
        ([fails("date", "", severity=Severity.BLOCKING)], "FAIL"),
        ([policy("cap", "", severity=Severity.BLOCKING)], "PASS"),
    ],
)
def test_blocking_lines_alone_decide(checks, verdict):
    assert verdict_of(checks) == verdict


def test_what_no_public_record_shows_lowers_nothing(tmp_path):
    sound, _, _ = three_folders(tmp_path)
    report = check_folder(sound, with_audit=True)
    unshown = [c.name for c in report.checks if c.severity is Severity.NOTE]
    assert {"artifacts", "audit"} <= set(unshown)
    lines = format_report(report).splitlines()
    assert sum(line.startswith("not shown, which lowers nothing:") for line in lines) == 1


# --- Text ---


def test_summary_then_failures_then_the_rest_on_request():
    report = report_of(
        passes("headline", "val_bpb 1.1 as logged"),
        fails("date", "another day"),
        fails("cap", "16,000,001 bytes", Evidence("a.log", 7, "Total: 16000001")),
        passes("train_time", "599 s"),
    )
    brief = format_report(report).splitlines()
    labels = [line.split()[0] for line in brief[:5]]
    assert labels == ["record", "verdict", "score", "bytes", "time"]
    assert brief[1] == "verdict  FAIL; blocking: cap; format: date"
    assert brief[3] == "bytes    FAIL: cap 16,000,001 bytes"
    text = "\n".join(brief)
    assert text.index("FAIL        cap") < text.index("a.log:7: Total") < text.index("another day")
    assert "PASS        train_time" not in text
    assert "2 further lines: --all" in text
    assert brief[-1] == "2 PASS, 0 POLICY, 0 CANNOT-TELL, 2 FAIL: FAIL"
    everything = format_report(report, everything=True)
    assert everything.index("another day") < everything.index("PASS        train_time")


def test_open_questions_are_shown_unasked():
    report = report_of(
        cannot_tell("headline", "no log"),
        cannot_tell("compiles", "wrapped in exec", severity=Severity.EXPLAIN),
        cannot_tell("date", "none stated"),
    )
    text = format_report(report)
    assert text.splitlines()[1] == "verdict  CANNOT-TELL; open: headline; to explain: compiles"
    assert "CANNOT-TELL headline" in text
    assert "CANNOT-TELL compiles" in text
    assert "CANNOT-TELL date" not in text


def test_much_evidence_is_cut_unless_all_is_wanted():
    lines = [Evidence("a.log", number, "x") for number in range(9)]
    report = report_of(fails("cap", "too large", *lines))
    assert format_report(report).count("| a.log") == 4
    assert "and 5 more: --all" in format_report(report)
    assert format_report(report, everything=True).count("| a.log") == 9


def test_no_text_of_strangers_reaches_the_terminal_raw():
    evil = "\x1b[2Jx\nPASS        headline"
    report = report_of(fails("headline", evil), folder=evil, name=evil)
    for text in (format_report(report), row(report)):
        assert "\x1b" not in text
    assert "\n" not in row(report)
    assert not re.search(r"^PASS", format_report(report), re.MULTILINE)


# --- Many folders ---


def test_one_row_for_each_folder_and_no_stop(tmp_path, capsys):
    sound, wrong, file = three_folders(tmp_path)
    assert cli(check, sound, file, wrong) == 2
    rows = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in rows[:3]] == ["PASS", "CANNOT-TELL", "FAIL"]
    assert "expected a record folder, found a file" in rows[1]
    assert "blocking: headline" in rows[2]
    assert rows[3] == "3 folders: 1 PASS, 1 FAIL, 1 CANNOT-TELL (1 of them cannot be read)"


def test_exit_codes(tmp_path, capsys):
    sound, wrong, file = three_folders(tmp_path)
    assert cli(check, sound) == 0
    assert cli(check, wrong) == 1
    assert cli(check, sound, wrong) == 1
    assert cli(check, file, "--json") == 2
    with pytest.raises(UserError, match="found a file"):
        cli(check, file)
    with pytest.raises(UserError, match="expected at least one FOLDER"):
        cli(check)


def test_a_folder_of_folders_means_the_records_in_it(tmp_path, capsys):
    sound, wrong, _ = three_folders(tmp_path)
    (sound.parent / "README.md").write_text("about the track")
    (sound / "logs").mkdir()
    (sound / "logs" / "train.txt").write_text("")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "helper.py").write_text("")
    assert record_folders(tmp_path) == [sound, wrong]
    assert record_folders(sound) == [sound]
    (sound / "submission.json").unlink()
    assert record_folders(sound) == [sound]
    assert record_folders(tmp_path / "none") == [tmp_path / "none"]


def test_processes_change_nothing(tmp_path):
    sound, wrong, file = three_folders(tmp_path)
    jobs = [Job(folder) for folder in (sound, wrong, file) * 4]
    assert list(check_many(jobs, processes=2)) == list(check_many(jobs, processes=1))


def test_a_fault_of_the_referee_stops_nobody_else(tmp_path, monkeypatch):
    sound, wrong, _ = three_folders(tmp_path)

    def faulty(record, base):
        if record.folder == sound:
            raise KeyError("oops")
        return check_record(record, base)

    from eval.papers.checks.many import check_record

    monkeypatch.setattr("eval.papers.checks.many.check_record", faulty)
    first, second = check_many([Job(sound), Job(wrong)])
    assert first.problem == "the referee failed, please report it: KeyError('oops')"
    assert second.verdict is Verdict.FAIL


def test_a_process_that_is_killed_stops_nobody_else(tmp_path, monkeypatch):
    sound, wrong, _ = three_folders(tmp_path)
    deadly = tmp_path / "deadly"
    shutil.copytree(sound, deadly)
    own = os.getpid()

    def killing(record, base):
        if record.folder == deadly:
            assert os.getpid() != own
            os.kill(os.getpid(), signal.SIGKILL)
        return report_of(folder=str(record.folder))

    monkeypatch.setattr("eval.papers.checks.many.check_record", killing)
    folders = [sound, wrong, sound, deadly, wrong, deadly, sound, wrong, sound]
    reports = list(check_many([Job(folder) for folder in folders], processes=2))
    assert [report.folder for report in reports] == list(map(str, folders))
    assert [report.problem is not None for report in reports] == [f == deadly for f in folders]
    assert "was killed" in reports[3].problem


def test_a_folder_that_takes_too_long_is_a_row_of_its_own(tmp_path, monkeypatch):
    """Nor does an expression end it that would search for ages."""
    sound, wrong, _ = three_folders(tmp_path)

    def endless(record, base):
        if record.folder == sound:
            try:
                re.match("(a*)*b", "a" * 100)
            except Exception:
                return report_of()
        return report_of(fails("cap", "too large"))

    monkeypatch.setattr("eval.papers.checks.many.check_record", endless)
    monkeypatch.setattr("eval.papers.checks.many.MOST_SECONDS", 0.2)
    first, second = check_many([Job(sound), Job(wrong)])
    assert "took more than 0.2 s" in first.problem
    assert second.verdict is Verdict.FAIL


# --- JSON ---


def test_json_has_a_schema_and_every_answer(tmp_path, capsys):
    sound, wrong, _ = three_folders(tmp_path)
    assert cli(check, sound, wrong, "--json") == 1
    first, second = json.loads(capsys.readouterr().out)
    assert first["schema"] == SCHEMA
    assert set(first) == {
        *("schema", "folder", "name", "verdict", "checks", "val_bpb", "problem", "commit")
    }
    headline = next(c for c in second["checks"] if c["name"] == "headline")
    assert headline["verdict"] == "FAIL"
    assert headline["severity"] == "blocking"
    assert {"file", "line", "text"} == set(headline["evidence"][0])


def test_json_is_ascii_whatever_it_quotes():
    report = report_of(fails("headline", "Ω 😀 \udce9"))
    text = as_json([report])
    assert text.isascii()
    assert json.loads(text)[0]["checks"][0]["detail"] == "Ω 😀 \udce9"


# --- Markdown ---


def outside_code(markdown: str) -> str:
    """Markdown without its code spans, as CommonMark finds them."""
    return re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", markdown)


@pytest.mark.parametrize("text", ["a", "`", "``a`", "a`b``c", "`a`", "", " ", "a\\", "\n\n# x"])
def test_a_code_span_holds_any_text(text):
    span = code(text)
    assert "\n" not in span
    assert outside_code(f"x {span} y") == "x  y"


def test_markdown_shows_failures_first_and_folds_the_rest():
    good = report_of(passes("headline", "fine"), folder="records/t/good")
    bad = report_of(
        passes("train_time", "599 s"), fails("cap", "too large"), folder="records/t/bad"
    )
    text = as_markdown([good, bad])
    assert text.index("`records/t/bad`") < text.index("`records/t/good`")
    assert text.index("**FAIL cap** `too large`") < text.index("<details>")
    assert text.index("<details>") < text.index("**PASS train_time**")
    assert text.count("<details>") == text.count("</details>") == 2


def test_markdown_obeys_no_stranger():
    """No mention, no link, no picture, no HTML, no heading out of what a record holds."""
    evil = "` @team <img src=x> ![](http://x) </details>\n# Heading `` | #12"
    report = report_of(fails("cap", evil, Evidence(evil, 1, evil)), folder=evil, name=evil)
    left = outside_code(as_markdown([report]))
    for sign in ("@", "<img", "http", "# Heading", "#12"):
        assert sign not in left
    assert left.count("</details>") == 1


def test_a_comment_is_never_too_long():
    lines = [Evidence("a.log", number, "x" * 140) for number in range(4)]
    reports = []
    for number in range(100):
        checks = [fails("cap", "y" * 300, *lines), *[passes("headline", "z" * 300, *lines)] * 9]
        reports.append(report_of(*checks, folder=f"records/t/{number}"))
    text = as_markdown(reports)
    assert len(text) < LONGEST_COMMENT + 500
    assert text.count("<details>") == text.count("</details>")
    assert "too long" in text


@pytest.mark.parametrize("name", ["records/track_10min_16mb/2026-05-01_a-record", "`" * 200])
def test_a_list_of_very_many_folders_ends_in_a_number(name):
    good = [report_of(passes("headline", "fine"), folder=f"{name}{i}") for i in range(1200)]
    bad = [report_of(fails("cap", "too large"), folder=f"bad{i}") for i in range(30)]
    text = as_markdown([*good, *bad])
    assert len(text) < 65_536
    listed = text.partition("###")[0].splitlines()
    assert [line for line in listed if line.startswith("* **FAIL**")] == listed[2:32]
    shown = sum(line.startswith("* **") for line in listed)
    assert 30 < shown <= 100
    assert f"* and {1230 - shown} further folders: {1230 - shown} PASS" in listed


# --- Commits ---


IDENTITY = {
    "GIT_AUTHOR_NAME": "Tester",
    "GIT_AUTHOR_EMAIL": "tester@example.org",
    "GIT_COMMITTER_NAME": "Tester",
    "GIT_COMMITTER_EMAIL": "tester@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
}


def git_in(root: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", *args],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | IDENTITY,
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A repository with an old and a later record on main, and one in pull request 7."""
    root = tmp_path_factory.mktemp("repository")
    track = root / "records" / "track_10min_16mb"
    track.mkdir(parents=True)

    def commit_record(name: str, stated: float = 1.1) -> None:
        submission = GOOD | {"val_bpb": stated, "val_loss": 1.1 * 1.68846}
        made = public_folder(track, submission, public_logs({1: 1.1, 2: 1.1, 3: 1.1}))
        made.rename(track / name)
        git_in(root, "add", ".")
        git_in(root, "commit", "-q", "-m", name)

    git_in(root, "init", "-q", "-b", "main")
    commit_record("2026-05-01_Old")
    git_in(root, "checkout", "-q", "-b", "new")
    commit_record("2026-05-01_New", stated=0.9)
    git_in(root, "update-ref", "refs/pull/7/head", "new")
    git_in(root, "checkout", "-q", "main")
    git_in(root, "branch", "-q", "-D", "new")
    commit_record("2026-05-01_Later")
    return root


@pytest.fixture
def copy(repository, tmp_path) -> Path:
    """A copy to change."""
    return shutil.copytree(repository, tmp_path / "copy")


@pytest.mark.parametrize("ref", ["7", "#7", "refs/pull/7/head"])
def test_a_pull_request_is_read_without_a_checkout(repository, capsys, ref):
    status = git_in(repository, "status", "--porcelain")
    assert cli(check, "--git", repository, ref, "--json") == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert report["folder"] == "records/track_10min_16mb/2026-05-01_New"
    assert report["commit"] == git_in(repository, "rev-parse", "refs/pull/7/head")
    assert not (repository / report["folder"]).exists()
    assert git_in(repository, "status", "--porcelain") == status
    failed = {c["name"] for c in report["checks"] if c["verdict"] == "FAIL"}
    assert "headline" in failed
    assert "files" not in failed


def test_a_commit_says_what_the_directory_says(repository):
    folder = Path("records/track_10min_16mb/2026-05-01_Old")
    (read,) = check_many([Job(folder, repository, git_in(repository, "rev-parse", "main"))])
    checked_out = check_folder(repository / folder, with_audit=True)
    for mine, theirs in zip(read.checks, checked_out.checks, strict=True):
        assert (mine.name, mine.verdict, mine.severity) == (
            theirs.name,
            theirs.verdict,
            theirs.severity,
        )
    assert read.verdict is Verdict.PASS


def test_folders_that_are_named_are_read(repository, capsys):
    old = "records/track_10min_16mb/2026-05-01_Old"
    assert cli(check, "--git", repository, "main", old) == 0
    assert capsys.readouterr().out.startswith(f"record   {old}")
    with pytest.raises(UserError, match=r"expected a folder of commit .*, found none"):
        cli(check, "--git", repository, "main", "records/none")


def test_a_merged_pull_request_keeps_its_folders(copy, capsys):
    git_in(copy, "merge", "-q", "--no-ff", "-m", "merge", "refs/pull/7/head")
    assert cli(check, "--git", copy, "7") == 1
    assert "2026-05-01_New" in capsys.readouterr().out


def test_a_link_in_a_commit_shows_nothing_of_this_machine(copy, capsys):
    folder = copy / "records" / "track_10min_16mb" / "2026-05-01_Later"
    (folder / "train_seed4.log").symlink_to("/etc/hostname")
    git_in(copy, "add", ".")
    git_in(copy, "commit", "-q", "-m", "link")
    cli(check, "--git", copy, "HEAD", folder.relative_to(copy), "--all")
    assert "train_seed4" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["12"], "expected 12 to be a commit, found none; fetch it: git fetch origin refs/pull/12"),
        (["nothing"], "expected nothing to be a commit, found none; fetch it or name another"),
        (["main"], "adds no record folder to the default branch; name the folders"),
    ],
)
def test_a_ref_that_means_nothing(repository, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        cli(check, "--git", repository, *arguments)


def test_no_repository(tmp_path):
    with pytest.raises(UserError, match="expected a git repository, found none"):
        cli(check, "--git", tmp_path, "main")
