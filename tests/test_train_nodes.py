"""Two nodes: two network namespaces of this machine joined by a cable, torchrun's c10d rendezvous between them, gloo across it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CLEAN_ENV, ROOT, flags
from runs_support import wait_for

NAMES = tuple(
    f"golf{os.getpid() % 100_000}{end}" for end in "ab"
)  # of namespaces and of their ends of the cable: at most 15 letters
ADDRESSES = "10.77.0.1", "10.77.0.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def nodes():
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and iproute2, to make network namespaces")
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no network namespaces")
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            NAMES[0],
            "netns",
            NAMES[0],
            "type",
            "veth",
            "peer",
            "name",
            NAMES[1],
            "netns",
            NAMES[1],
        )
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for node, name in enumerate(NAMES):
            unplug(node)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def start(node: int, port: int, *argv: str) -> subprocess.Popen:
    """torchrun with two ranks in one namespace."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-id=golf",
    ]
    address = [
        f"--rdzv-endpoint={ADDRESSES[0]}:{port}",
        f"--local-addr={ADDRESSES[node]}",
        f"--rdzv-conf=is_host={node == 0}",
    ]
    env = CLEAN_ENV | {"GLOO_SOCKET_IFNAME": NAMES[node], "OMP_NUM_THREADS": "1"}
    command = [
        "ip",
        "netns",
        "exec",
        NAMES[node],
        *launcher,
        *address,
        str(ROOT / "train_gpt.py"),
        *argv,
    ]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def unplug(node: int) -> None:
    """The launcher and its ranks, which are sessions of their own, die at once."""
    pids = subprocess.run(
        ["ip", "netns", "pids", NAMES[node]], capture_output=True, text=True, check=False
    ).stdout.split()
    for pid in map(int, pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def step_lines(log: Path) -> list[str]:
    return (
        [
            line.split(" lr_scale")[0]
            for line in log.read_text().splitlines()
            if line.startswith("step:")
        ]
        if log.exists()
        else []
    )


def test_two_nodes_have_the_losses_of_one(nodes, dataset, tmp_path):
    places = tmp_path / "two", tmp_path / "elsewhere"  # no machine needs the other's files
    both = [
        start(node, 29_411, *flags(data_dir=dataset, out=out)) for node, out in enumerate(places)
    ]
    output = [
        process.communicate(timeout=240)[0] for process in both
    ]  # the fixture ends what a timeout leaves
    assert [process.returncode for process in both] == [0, 0], output
    one = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=4",
        str(ROOT / "train_gpt.py"),
    ]
    subprocess.run(
        [*one, *flags(data_dir=dataset, out=tmp_path / "one")],
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=240,
    )
    assert (
        len(step_lines(tmp_path / "two/train.log")) == 5 and not (tmp_path / "elsewhere").exists()
    )
    assert step_lines(tmp_path / "two/train.log") == step_lines(tmp_path / "one/train.log")


def test_a_node_that_dies_ends_the_other_and_one_process_goes_on(nodes, dataset, tmp_path):
    settings = flags(
        data_dir=dataset, out=tmp_path / "run", iterations=10**6, log_every=100, checkpoint_every=20
    )
    both = [start(node, 29_412, *settings) for node in (0, 1)]
    until = time.monotonic() + 120
    while not list(tmp_path.glob("run/checkpoint_*.npz")) and time.monotonic() < until:
        time.sleep(0.2)
    assert list(tmp_path.glob("run/checkpoint_*.npz")), "training did not begin"
    unplug(1)
    output, _ = both[0].communicate(timeout=60)
    assert both[0].returncode != 0
    said = [
        line for line in output.splitlines() if "error: " in line and ADDRESSES[1] in line
    ]  # what the ranks say, and where the dead ones were
    assert said and 'train_gpt.py", line' not in output, output[
        -6000:
    ]  # torchrun has a traceback of its own, the script has none
    command = [sys.executable, str(ROOT / "train_gpt.py"), *settings, "--resume", "1"]
    alone = subprocess.Popen(
        command,
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for("resume step:", tmp_path / "run")
    alone.terminate()
    output, _ = alone.communicate(timeout=60)
    assert alone.returncode == 0 and "resume step:" in output and "stopped step:" in output, output
