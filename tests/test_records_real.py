"""The root script's own run folders through the packager, the checks and the board."""

import pytest
from conftest import ROOT, flags, run_script
from records_support import cli

from eval.commands import board, pack
from eval.papers.checks.run import check_folder
from eval.papers.checks.showing import format_report
from eval.papers.logs.reading import parse_log
from eval.papers.rendering.board import BEGIN, END
from eval.papers.submission.reading import load_submission
from eval.rules import Verdict


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "x_seed42"
    done = run_script(*flags(seed=42), "--data-dir", dataset, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_real_log_is_read_without_loss(run):
    log = parse_log(run / "train.log")
    assert log.problems == []
    assert log.seed == 42
    assert log.source == (ROOT / "train_gpt.py").read_bytes()
    assert [step.step for step in log.steps if step.train_loss is not None] == [1, 2, 3, 4, 5]
    known = (
        "model.parameters",
        "config.sha256",
        "data.version",
        "artifact.sha256",
        "env.torch",
        "neural.val_bpb",
        "result.bytes_total",
    )
    assert all(log.text(name) for name in known)
    assert log.integer("artifact.bytes") == (run / "artifact.bin").stat().st_size


def test_a_real_run_becomes_a_record(run, dataset, tmp_path, capsys):
    identity = ["--name", "Tiny", "--date", "2026-11-24", "--author", "a", "--github-id", "b"]
    places = ["--dataset", dataset, "--records-dir", tmp_path / "records"]
    assert cli(pack, run, *identity, *places) == 0
    folder = tmp_path / "records" / "track_docs_cpu" / "2026-11-24_tiny"
    report = check_folder(folder)
    failed = [check for check in report.checks if check.verdict is Verdict.FAIL]
    assert failed == [], format_report(report)
    submission = load_submission(folder)
    assert submission.seeds == [42]
    assert submission.data.corpus == "test"
    overrides = submission.config.overrides
    assert "iterations=5" in overrides
    assert not any(override.startswith("seed=") for override in overrides)
    assert "--iterations 5" in (folder / "README.md").read_text()
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    assert cli(board, "--root", tmp_path) == 0
    assert cli(board, "--root", tmp_path, "--check") == 0
