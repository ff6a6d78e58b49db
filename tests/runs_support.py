"""What a run's folder says: its log without the source in it, its losses, its result, its checkpoints."""

import re
import time
from pathlib import Path


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
