"""Two nodes: two network namespaces of this machine, joined by a cable.

torchrun's c10d rendezvous and gloo run between them.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CLEAN_ENV, ROOT, flags, run_script
from runs_support import start_script, step_losses, wait_for

# Of the namespaces and of their ends of the cable: at most 15 letters.
NAMES = tuple(f"golf{os.getpid() % 100_000}{end}" for end in "ab")
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def unplug(node: int) -> None:
    """The launcher and its ranks, which are sessions of their own, die at once."""
    command = ["ip", "netns", "pids", NAMES[node]]
    pids = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    for pid in map(int, pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def nodes():
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and iproute2, to make network namespaces")
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no network namespaces")
    a, b = NAMES
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", a, "netns", a, "type", "veth", "peer", "name", b, "netns", b)
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for node, name in enumerate(NAMES):
            unplug(node)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def start(node: int, port: int, *settings: str) -> subprocess.Popen:
    """torchrun with two ranks in one namespace."""
    rendezvous = [
        "--rdzv-backend=c10d",
        "--rdzv-id=golf",
        f"--rdzv-endpoint={ADDRESSES[0]}:{port}",
        f"--local-addr={ADDRESSES[node]}",
        f"--rdzv-conf=is_host={node == 0}",
    ]
    in_namespace = ["ip", "netns", "exec", NAMES[node]]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"]
    script = str(ROOT / "train_gpt.py")
    return subprocess.Popen(
        [*in_namespace, *launcher, *rendezvous, script, *settings],
        env=CLEAN_ENV | {"GLOO_SOCKET_IFNAME": NAMES[node], "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_nodes_have_the_losses_of_one(nodes, dataset, tmp_path):
    """No machine needs the other's files."""
    two, elsewhere = tmp_path / "two", tmp_path / "elsewhere"
    both = []
    for node, out in enumerate((two, elsewhere)):
        both.append(start(node, 29_411, *flags(data_dir=dataset, out=out)))
    # the fixture ends what a timeout leaves
    output = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    one = run_script(*flags(data_dir=dataset, out=tmp_path / "one"), nproc=4)
    assert one.returncode == 0, one.stderr[-2000:]
    assert not elsewhere.exists()
    assert len(step_losses(two)) == 5
    assert step_losses(two) == step_losses(tmp_path / "one")


def wait_for_a_checkpoint(out: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if list(out.glob("checkpoint_*.npz")):
            return
        time.sleep(0.2)
    raise AssertionError("training did not begin")


def test_a_node_that_dies_ends_the_other_and_one_process_goes_on(nodes, dataset, tmp_path):
    out = tmp_path / "run"
    schedule = {"iterations": 10**6, "log_every": 100, "checkpoint_every": 20}
    settings = flags(data_dir=dataset, out=out, **schedule)
    both = [start(node, 29_412, *settings) for node in (0, 1)]
    wait_for_a_checkpoint(out)
    unplug(1)
    output, _ = both[0].communicate(timeout=60)
    assert both[0].returncode != 0
    # what the ranks say, and where the dead ones were
    said = [line for line in output.splitlines() if "error: " in line and ADDRESSES[1] in line]
    # torchrun has a traceback of its own, the script has none
    assert said and 'train_gpt.py", line' not in output, output[-6000:]
    alone = start_script(*settings, "--resume", "1", folder=tmp_path / "printed")
    wait_for("resume step:", out)
    alone.terminate()
    output, error = alone.communicate(timeout=60)
    assert alone.returncode == 0, error
    assert "resume step:" in output and "stopped step:" in output, output
