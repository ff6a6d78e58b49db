"""A hostile script in the canary is contained, and the report names what it tried.

The scripts are small and need no torch. What they reach for is made by the tests."""

import os
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sandbox_support import ISOLATED, processes_with, wait_until
from test_canary_driver import quick, record

from eval.trial.canary.driver import try_script
from eval.trial.canary.launch import LIMITS, Call, ScriptRun, launch
from eval.trial.canary.report import as_text
from eval.trial.canary.world import Corpus, build_world

FEW = replace(LIMITS, wall_seconds=1.2, printed_bytes=1 << 20, file_bytes=1 << 24, processes=64)

NETWORK = """
import socket
try:
    socket.create_connection(("192.0.2.1", 80), 1)
except OSError as error:
    print("refused", type(error).__name__)
"""
# It reads what it was told to, and carries on.
READING = """
import os
for name in {names!r}:
    try:
        print("found", open(name).read() if os.path.isfile(name) else os.listdir(name))
    except OSError:
        print("refused", name)
"""
WRITING = """
for name in ("/usr/lib/x", "/tmp/../etc/x"):
    try:
        open(name, "w").write("x")
        print("written", name)
    except OSError:
        print("refused", name)
"""
ENDLESS = "while True: print('x' * 1000)\n"
FORKING = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.2)
"""
SLEEPING = "import time\nprint('val_loss:1.5')\ntime.sleep(1000)\n"
DAEMON = """
import subprocess
subprocess.Popen(["sleep", "{marker}"], start_new_session=True)
"""
FILLING = "open('x', 'wb').write(bytes(1 << 26))\n"


def run_code(code: str, mechanism: str, name: str = "train_gpt.py") -> ScriptRun:
    """The script in a world of a few tokens, with few means."""
    tokens = np.arange(1, 101, dtype=np.uint16)
    corpus = Corpus(1024, tokens, [tokens], np.full(100, 3, np.uint16), b"a model")
    world = build_world(corpus, {name: code.encode()})
    started = time.monotonic()
    run = launch(world, Call(name, limits=FEW), mechanism)
    assert time.monotonic() - started < 30
    return run


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_the_network_is_not_there(mechanism):
    run = run_code(NETWORK, mechanism)
    assert run.ok and "refused" in run.text
    assert any(said.startswith("asked for the network: ") for said in run.attempts)


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_nothing_outside_its_world_is_read(mechanism, tmp_path):
    """Not even what everybody may read."""
    secret = tmp_path / "secret.txt"
    secret.write_text("words that nobody prints")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    names = (str(secret), "/etc/shadow", "/home", str(Path(__file__).parent))
    run = run_code(READING.format(names=names), mechanism)
    assert run.ok, run.text
    assert "found" not in run.text and run.text.count("refused") == len(names)
    assert "opened a path outside its world: /home" in run.attempts
    assert f"opened a path outside its world: {names[-1]}" in run.attempts


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_nothing_outside_its_folder_is_written(mechanism):
    run = run_code(WRITING, mechanism)
    assert run.ok and "written" not in run.text
    assert "wrote outside its working folder: /usr/lib/x" in run.attempts


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_endless_output_is_ended_and_not_kept(mechanism):
    run = run_code(ENDLESS, mechanism)
    assert "printed more than" in run.stopped_by
    assert len(run.text) < 2 * FEW.printed_bytes


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_a_fork_bomb_ends_with_its_time(mechanism):
    name = f"bomb_{os.getpid()}.py"
    run = run_code(FORKING, mechanism, name)
    assert "wall clock" in run.stopped_by
    wait_until(lambda: not processes_with(name))


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_a_sleeping_script_ends_with_its_time(mechanism):
    run = run_code(SLEEPING, mechanism)
    assert "wall clock" in run.stopped_by
    assert "val_loss:1.5" in run.text  # what it printed before is kept


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_no_process_outlives_its_run(mechanism):
    marker = f"98{os.getpid()}"
    run = run_code(DAEMON.format(marker=marker), mechanism)
    assert any("left a process behind: sleep" in said for said in run.attempts), run.attempts
    wait_until(lambda: not processes_with(marker))


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_a_disk_is_not_filled(mechanism):
    run = run_code(FILLING, mechanism)
    assert re.search("File too large|No space left", run.stopped_by)


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_the_report_names_what_was_tried(mechanism, tmp_path):
    folder = record(tmp_path / "record", NETWORK + "raise SystemExit('the end')\n")
    report = try_script(folder, quick(mechanism=mechanism, seconds=5.0))
    assert report.verdict == "NOT RUN"
    assert "asked for the network" in as_text(report)
