"""What the folder of a run says: its log, losses, result and checkpoints; changed scripts."""

import re
import subprocess
import sys
import time
from pathlib import Path

from conftest import CLEAN_ENV, ROOT
from warm_support import Started


def log_of(out: Path) -> str:
    return (out / "train.log").read_text().rpartition("===== end source =====")[2]


def steps_of(out: Path) -> list[str]:
    """Losses without times."""
    return re.findall(r"^(step:\d+/\d+ train_loss:\S+ lr_scale:\S+)", log_of(out), flags=re.M)


def result_of(out: Path) -> str:
    return re.search(r"^result .*?nats:\S+", log_of(out), flags=re.M)[0]


def checkpoints(out: Path) -> dict[int, Path]:
    return {int(p.name.split("_")[3]): p for p in sorted(out.glob("checkpoint_*.npz"))}


def wait_for(text: str, out: Path) -> None:
    """Until the log says it, at most 90 s."""
    until = time.monotonic() + 90
    while time.monotonic() < until:
        if (out / "train.log").exists() and text in log_of(out):
            return
        time.sleep(0.01)
    raise AssertionError(f"{text!r} does not come")


def step_losses(out: Path) -> list[float]:
    found = re.findall(r"^step:\d+/\d+ train_loss:(\S+)", log_of(out), flags=re.M)
    return [float(loss) for loss in found]


def result_field(out: Path, name: str) -> str:
    """A token of the result line, such as val_bpb."""
    return re.search(rf"^result .*\b{name}:(\S+)", log_of(out), flags=re.M)[1]


LAUNCHER = """\
import math, os, sys, time
sys.path.insert(0, {root!r})
import train_gpt
RANK = int(os.environ.get("RANK", 0))
{changes}
sys.exit(train_gpt.main(sys.argv[1:]))
"""


def changed_script(path: Path, changes: str = "") -> Path:
    """A script that runs train_gpt.py with some of its functions replaced.

    `changes` is Python that may use `train_gpt` and RANK.
    """
    path.write_text(LAUNCHER.format(root=str(ROOT), changes=changes))
    return path


def start_script(*settings: str, folder: Path) -> Started:
    """train_gpt.py in the background; what it prints goes to files in `folder`."""
    folder.mkdir(exist_ok=True)
    environment = CLEAN_ENV | {"OMP_NUM_THREADS": "1"}
    return Started([str(ROOT / "train_gpt.py"), *settings], environment, folder)


def start_torchrun(*settings: str, nproc: int) -> subprocess.Popen:
    """train_gpt.py under torchrun in the background, stderr within stdout."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={nproc}", str(ROOT / "train_gpt.py"), *settings]
    return subprocess.Popen(
        command,
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
