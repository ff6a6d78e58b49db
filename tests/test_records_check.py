"""Evidence checks of packed records: an untouched one passes, every single change is caught."""

import json
import shutil

import pytest
from check_support import GOOD, leaves, named, public_folder, public_log, verdicts
from records_support import FakeRun, cli, pack_three

from eval.commands import check, pack
from eval.errors import UserError
from eval.papers.checks.run import check_folder
from eval.papers.checks.showing import format_report
from eval.papers.submission.reading import load_submission
from eval.rules import Verdict

LOG = "train_seed42.log"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_three(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def record(packed, tmp_path):
    folder = tmp_path / "records" / packed.parent.name / packed.name
    shutil.copytree(packed, folder)
    return folder


PASSING = {
    "files",
    "json",
    "date",
    "folder",
    "log",
    "seeds",
    "headline",
    "val_loss",
    "seed_results",
    "derived",
    "readme",
    "arithmetic",
    "code_bytes",
    "compiles",
    "source",
    "bytes_total",
    "cap",
    "artifacts",
    "comparable",
    "parameters",
    "implied_bytes",
}


def test_an_untouched_record_passes(record):
    assert verdicts(record) == {}
    assert set(verdicts(record, Verdict.CANNOT_TELL)) == {"audit"}  # nobody has audited it
    assert set(verdicts(record, Verdict.PASS)) >= PASSING


def changed(value):
    """A value of the same type that differs in the last digit."""
    if isinstance(value, bool | None):
        return value
    if isinstance(value, float):
        return value + 1e-8
    if isinstance(value, int):
        return value + 1
    return value[:-1] + ("0" if value[-1] != "0" else "1")


def with_leaf(document, where, value):
    """A copy of a JSON value with one leaf replaced."""
    altered = json.loads(json.dumps(document))
    holder = altered
    for key in where[:-1]:
        holder = holder[key]
    holder[where[-1]] = value
    return altered


# Free text is the author's.
FREE = {"author", "github_id", "name", "blurb", "rules_version", "base_record"}


def test_every_digit_of_submission_json_is_checked(record):
    """The last digit of each value in turn.

    Text that the README shows is caught there; the rest must be caught by the evidence itself."""
    path = record / "submission.json"
    original = json.loads(path.read_text())
    unnoticed = []
    for where, value in leaves(original):
        path.write_text(json.dumps(with_leaf(original, where, changed(value)), indent=2))
        failed = set(verdicts(record))
        free = len(where) == 1 and where[0] in FREE
        if not failed or (failed == {"readme"} and not free):
            unnoticed.append((".".join(map(str, where)), sorted(failed)))
    assert unnoticed == []


def test_each_failure_names_the_line(record):
    path = record / "submission.json"
    path.write_text(path.read_text().replace('"val_bpb": 1.03,', '"val_bpb": 1.02,'))
    failed = named(record, "seed_results", with_audit=True)
    assert failed.verdict is Verdict.FAIL
    assert all(text in failed.detail for text in ("seed 42", "1.02", "1.03"))
    stated, logged = failed.evidence
    assert stated.file == "submission.json"
    assert '"val_bpb": 1.02' in path.read_text().splitlines()[stated.line - 1]
    assert logged.file == LOG
    log = (record / LOG).read_text().splitlines()
    assert log[logged.line - 1].startswith("result val_loss:")


def replace_last(path, old: bytes, new: bytes):
    head, mark, tail = path.read_bytes().rpartition(old)
    assert mark
    path.write_bytes(head + new + tail)


def replace_first(path, old: bytes, new: bytes):
    head, mark, tail = path.read_bytes().partition(old)
    assert mark
    path.write_bytes(head + new + tail)


@pytest.mark.parametrize(
    ("file", "old", "new", "name"),
    [
        ("artifact_seed42.bin", b"w", b"W", "artifacts"),
        ("train_gpt.py", b"math.exp(-x)", b"math.exp(+x)", "source"),
        (LOG, b"val_bpb:1.03000000 nats", b"val_bpb:1.02000000 nats", "arithmetic"),
        (LOG, b"val_tokens:1001", b"val_tokens:1101", "coverage"),
        (LOG, b"val_bytes:2000", b"val_bytes:2001", "implied_bytes"),
        (LOG, b"version:aaaa", b"version:baaa", "comparable"),
        (LOG, b"train_dtype:float32", b"train_dtype:bfloat16", "comparable"),
        (LOG, b"steps:400", b"steps:401", "derived"),
        (LOG, b"step:100/400", b"step:101/400", "derived"),  # the log's hash moves
        (LOG, b" seed:42", b" seed:43", "seeds"),
        (LOG, b"result val_loss", b"result val_los", "log"),
    ],
)
def test_an_edited_file_is_caught(record, file, old, new, name):
    replace_last(record / file, old, new)
    assert name in verdicts(record), format_report(check_folder(record, with_audit=True))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("artifact_seed42.bin", "artifacts"),
        (LOG, "seeds"),
        ("README.md", "files"),
        ("score.png", "readme"),
        ("submission.json", "files"),
    ],
)
def test_a_missing_file_is_caught(record, file, name):
    (record / file).unlink()
    assert name in verdicts(record), format_report(check_folder(record, with_audit=True))


def add_log_of_another_seed(folder):
    shutil.copy(folder / LOG, folder / "train_seed7.log")
    replace_last(folder / "train_seed7.log", b" seed:42", b" seed:7")


def make_log_too_large(folder):
    log = folder / LOG
    log.write_bytes(log.read_bytes() + b"#" * 1_000_000)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda f: (f / "train_gpt.py").write_text("def f(:\n"), "compiles"),
        (lambda f: replace_first(f / "README.md", b"1.03000000", b"1.02000000"), "readme"),
        (lambda f: (f / "submission.json").write_text("{"), "json"),
        (lambda f: (f / "helper.py").write_text("x = 1\n"), "uncounted"),
        (add_log_of_another_seed, "seeds"),
        (make_log_too_large, "log_size"),
    ],
)
def test_damage_is_caught(record, damage, name):
    """`pack` wrote all of it: whatever disagrees was changed by somebody, and is blocking."""
    damage(record)
    report = check_folder(record, with_audit=True)
    failed = {check.name for check in report.checks if check.verdict is Verdict.FAIL}
    assert name in failed, format_report(report)
    assert report.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("track_docs_cpu/2026-11-25_example-record", "date"),
        ("track_docs_cpu/2026-11-24_Example_Record", "folder"),
        ("track_10min_16mb/2026-11-24_example-record", "folder"),
    ],
)
def test_a_record_in_the_wrong_place_is_caught(record, place, name):
    moved = record.parent.parent / place
    moved.parent.mkdir(exist_ok=True)
    shutil.move(record, moved)
    assert name in verdicts(moved), format_report(check_folder(moved, with_audit=True))


# --- clocks ---

EIGHT_RANKS = FakeRun().env.replace("world_size:1", "world_size:8")


def ten_minute_record(folder, **run):
    """A packed record of one seed in the contest's track."""
    written = FakeRun(**run).write(folder / "run")
    about = ["--name", "X", "--track", "track_10min_16mb", "--date", "2026-11-24"]
    assert cli(pack, written, *about, "--records-dir", folder / "records") == 0
    (packed,) = (folder / "records").glob("*/*")
    return packed


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({"train_s": 601.6, "eval_s": 600.0}, {"train_time"}),  # a step lasts 1.504 s
        ({"train_s": 601.4, "eval_s": 600.0}, set()),
        ({"train_s": 590.0, "eval_s": 600.9}, set()),
        ({"train_s": 590.0, "eval_s": 601.1}, {"eval_time"}),
        ({"train_s": 590.0, "eval_s": 600.0, "env": FakeRun().env}, {"world_size"}),
    ],
)
def test_clocks_of_the_ten_minute_track(tmp_path, run, expected):
    """600 s plus one step for training, 600 s plus one second for evaluation."""
    folder = ten_minute_record(tmp_path, **({"steps": 400, "env": EIGHT_RANKS} | run))
    assert set(verdicts(folder)) == expected


def test_a_resumed_run_is_said_to_be_one_where_there_is_a_clock(tmp_path):
    """Its clock leaves out the work that was lost: a person decides.

    Flags about checkpoints make no other experiment."""
    there = EIGHT_RANKS.replace("torch:2.13.0", "torch:2.14.0")
    extra = [
        "config:override resume=1 (default 0, from flag)",
        f"resume step:300 train_time:46000ms file:checkpoint_x.npz {there}",
    ]
    folder = ten_minute_record(tmp_path, env=EIGHT_RANKS, extra=extra)
    assert verdicts(folder) == {}
    unclear = verdicts(folder, Verdict.CANNOT_TELL)["train_time"]
    assert "resumed at step 300 (torch 2.14.0 after 2.13.0): its clock" in unclear
    assert load_submission(folder).config.overrides == []


# --- malformed records ---


def test_folders_in_place_of_files_are_verdicts(record):
    for name in ("submission.json", "audit.json"):
        (record / name).unlink(missing_ok=True)
        (record / name).mkdir()
    assert "json" in verdicts(record)
    assert "not audited" in verdicts(record, Verdict.CANNOT_TELL)["audit"]


def test_a_readme_in_another_encoding_is_a_verdict(record):
    (record / "README.md").write_bytes((record / "README.md").read_bytes() + b"\xff")
    assert "expected a UTF-8 text" in verdicts(record)["readme"]
    with pytest.raises(UserError, match="never overwrites"):
        cli(pack, "--refresh", record)


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [float("inf")]},
        {"seed_results": {"42": {}, "seed_42": {}}},
        {"seed_results": {"²": {"val_bpb": 1.1}}},
    ],
)
def test_impossible_seeds_are_a_verdict(tmp_path, change):
    stated = GOOD | {"val_bpb": 1.1} | change
    folder = public_folder(tmp_path, stated, {"train.log": public_log(1, 1.1)})
    (key,) = change
    assert key in verdicts(folder)["json"]


# --- output ---


def test_json_output_and_exit_codes(record, capsys):
    assert cli(check, record, "--json") == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "PASS"
    assert report["name"] == "Example record"
    assert len(report["checks"]) > 20
    (record / "artifact_seed42.bin").write_bytes(b"")
    assert cli(check, record) == 1
    out = capsys.readouterr().out
    assert "FAIL        artifacts" in out
    assert "submission.json:" in out
    with pytest.raises(UserError, match="expected a record folder, found nothing"):
        cli(check, record / "none")


def test_the_output_is_plain_text_whatever_the_terminal(record, capsys, monkeypatch):
    """No colours, and no line cut to the width of a narrow terminal."""
    cli(check, record)
    plain = capsys.readouterr().out
    for name, value in {"COLUMNS": "20", "FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    cli(check, record)
    assert capsys.readouterr().out == plain
    assert "\x1b" not in plain
