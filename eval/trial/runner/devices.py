"""On what a submission runs: this machine's GPUs, or its processor alone."""

from eval.errors import UserError
from eval.trial.sandbox.job import GIB, Job, Limits
from eval.trial.sandbox.machine import cuda_devices
from eval.trial.sandbox.running import run

# auto: the script sees the GPUs that the machine has, if any; cpu: it sees none; cuda: the referee
# insists on one that answers inside the sandbox.
DEVICES = ("auto", "cpu", "cuda")
LONGEST_START_S = 300
QUESTION = (
    "import torch; assert torch.cuda.is_available(), 'torch finds no CUDA device'; "
    "print(torch.cuda.get_device_name(), torch.ones(2, device='cuda').sum().item())"
)


def require_device(device: str, mechanism: str) -> None:
    """Raises UserError where `cuda` is wanted and no GPU answers to a run in the sandbox."""
    if device != "cuda":
        return
    advice = "run the audit on a machine with an NVIDIA driver, or leave --device out"
    if not cuda_devices():
        raise UserError(f"--device cuda: expected a GPU (/dev/nvidia*), found none; {advice}")
    limits = Limits(wall_seconds=LONGEST_START_S, memory_bytes=32 * GIB)
    outcome = run(Job({}, {}, ["-c", QUESTION], limits=limits), mechanism)
    if not outcome.ok:
        raise UserError(
            f"--device cuda: expected a GPU that answers inside the sandbox, "
            f"found {outcome.why()}; {advice}"
        )
