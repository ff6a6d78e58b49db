"""What the referee says to a person: progress, commands to type next, and nothing private."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT
from records_support import audit, cli, pack_three

from eval.commands import pack
from eval.commands.score import expected_time
from eval.errors import dataset_command, typed_command
from eval.papers.folder import open_record
from eval.trial.runner import waiting as waits
from eval.trial.runner.scores import Score
from eval.trial.runner.waiting import Expected, describe, waiting


def test_the_commands_that_pack_prints_run_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    folder = pack_three(tmp_path)
    said = capsys.readouterr().out
    commands = re.search(r"^next +(.*)$", said, flags=re.M)[1].split("; ")
    words = [shlex.split(command) for command in commands]
    assert [command[3:] for command in words] == [
        ["check", str(folder)],
        ["audit", str(folder)],
        ["pack", "--refresh", str(folder)],
    ]
    done = subprocess.run(words[0], capture_output=True, text=True, cwd=ROOT)
    assert "not audited" not in done.stderr and "verdict" in done.stdout, done.stderr


def test_a_command_is_one_that_its_reader_can_type(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    python = tmp_path / ".venv/bin/python"
    monkeypatch.setattr(sys, "executable", str(python))
    record = tmp_path / "my records/one"
    command = typed_command("eval", "check", record)
    assert command == ".venv/bin/python -m eval check 'my records/one'"
    assert dataset_command(Path("x/docs_sp512")).endswith("-m data docs --vocab-size 512")
    assert dataset_command(Path("x/fineweb10B_sp1024")).endswith("fineweb --variant sp1024")
    assert dataset_command(Path("x/mine_sp512")).endswith("-m data text FILES --name mine")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/golf-referee"])
    assert typed_command("eval", "check", Path("a")) == "golf-referee check a"
    assert typed_command("data", "docs").startswith(".venv/bin/python -m data")


def test_an_audit_names_no_folder_of_its_machine(tmp_path, monkeypatch):
    """Neither the home, nor the interpreter, nor where the repository and the record lie."""
    folder = pack_three(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.chdir(tmp_path)
    places = f"/home/ann/secrets.txt, {sys.executable}, {ROOT}/data/x.bin, {folder}/train.log"
    audit(folder, "WARN", test="isolation", reason=f"opened {places}")
    cli(pack, "--refresh", folder)
    inside = folder.relative_to(tmp_path)
    for name in ("audit.json", "AUDIT.md", "README.md"):
        text = (folder / name).read_text()
        assert "opened ~/secrets.txt, python, data/x.bin, " in text, name
        assert f"{inside}/train.log" in text
        for private in ("/home/ann", str(ROOT), str(tmp_path), sys.prefix):
            assert private not in text, (name, private)
    json.loads((folder / "audit.json").read_text())


# --- progress -------------------------------------------------------------------------------------


def test_the_time_that_is_left_says_what_it_rests_on():
    expected = Expected(32.0, "seed 1337 took")
    text = describe("scoring", 12.2, expected)
    assert text == "scoring: 12 s, about 20 s left (seed 1337 took 32 s)"
    over = describe("scoring", 40.0, expected)
    assert over == "scoring: 40 s, longer than expected (seed 1337 took 32 s)"
    assert describe("scoring", 3.0, None) == "scoring: 3 s"


def test_the_expectation_is_the_record_at_first_and_then_our_own_clock(tmp_path):
    record = open_record(pack_three(tmp_path))
    first = expected_time(record, "1337", {})
    assert first.seconds == 4.25 and "the record took" in first.by
    measured = {"1337": Score(nats=1.0, tokens=1, bytes=1, seconds=9.5)}
    assert expected_time(record, "42", measured) == Expected(9.5, "seed 1337 took")
    assert expected_time(record, "42", None) is None


def test_waiting_tells_now_and_then_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(waits, "HEARTBEAT_S", 0.02)
    with waiting("scoring seed 42", None):
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3 and set(lines) == {"scoring seed 42: 0 s"}


def test_waiting_writes_one_line_over_and_over_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with waiting("scoring seed 42", Expected(60.0, "seed 1 took")):
        time.sleep(0.4)
    shown = terminal.getvalue()
    assert shown.count("scoring seed 42: 0 s, about 60 s left (seed 1 took 60 s)") >= 2
    assert "\x1b[2K" in shown  # the line goes away


def test_a_closed_pipe_is_silent(monkeypatch, capfd):
    from eval.__main__ import main

    reader, writer = os.pipe()
    os.close(reader)
    folder = ROOT / "records/track_docs_cpu/2026-11-24_wikigpt"
    with monkeypatch.context() as patch, os.fdopen(writer, "w") as pipe:
        patch.setattr(sys, "stdout", pipe)
        assert main(["check", str(folder)]) == 141
    assert capfd.readouterr().err == ""
