"""What a run sees of the machine's GPUs, and what --device says where there is none.

Another device of this machine stands in for a GPU's."""

import os
from pathlib import Path

import pytest
from sandbox_support import ISOLATED

from eval.errors import UserError
from eval.trial.runner import devices
from eval.trial.sandbox import running, stage
from eval.trial.sandbox.job import GIB, Job, Limits, Outcome

PLACE = {name: f"/{name}" for name in stage.PLACES}


def stand_in() -> str:
    """A device of this machine that a run does not see anyway."""
    usual = {f"/dev/{name}" for name in stage.DEVICES}
    found = [path for path in Path("/dev").iterdir() if path.is_char_device()]
    hidden = sorted(str(path) for path in found if str(path) not in usual)
    return hidden[0] if hidden else pytest.skip("no other device here")


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_a_run_sees_the_gpu_unless_it_is_hidden(mechanism, monkeypatch):
    device = stand_in()
    monkeypatch.setattr(stage, "cuda_devices", lambda: [device])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    script = f"import os; print(os.path.exists({device!r}), os.environ['CUDA_VISIBLE_DEVICES'])"
    limits = Limits(wall_seconds=20, memory_bytes=GIB)
    for gpu, printed in ((True, "True 0\n"), (False, "False \n")):
        job = Job({}, {}, ["-c", script], limits=limits, gpu=gpu)
        assert running.run(job, mechanism).stdout == printed


def test_an_address_space_is_bounded_where_no_gpu_maps_it(monkeypatch):
    monkeypatch.setattr(stage, "cuda_devices", lambda: ["/dev/nvidia0"])
    for gpu, bounded in ((True, False), (False, True)):
        job = Job({}, {}, [], gpu=gpu)
        facts = stage.configuration(job, Path("/stage"), PLACE, "unshare", os.getuid())
        assert ("RLIMIT_AS" in facts["rlimits"]) == bounded
        assert ("/dev/nvidia0" in str(facts["mounts"])) == gpu


def test_cuda_is_refused_in_one_line_where_no_gpu_answers(monkeypatch):
    monkeypatch.setattr(devices, "cuda_devices", list)
    with pytest.raises(UserError, match=r"expected a GPU .*, found none; run the audit on"):
        devices.require_device("cuda", "none")
    silent = Outcome("none", 1, 0.1, stderr="AssertionError: torch finds no CUDA device")
    monkeypatch.setattr(devices, "cuda_devices", lambda: ["/dev/nvidia0"])
    monkeypatch.setattr(devices, "run", lambda job, mechanism: silent)
    with pytest.raises(UserError, match="answers inside the sandbox, found exit code 1"):
        devices.require_device("cuda", "none")
    for device in ("auto", "cpu"):
        devices.require_device(device, "none")
