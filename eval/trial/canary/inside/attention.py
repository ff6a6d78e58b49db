"""Attention: the choice among a GPU's kernels has no effect."""

import torch

from .replacing import Idle, nothing, put

SWITCHES = ("enable_cudnn_sdp", "enable_flash_sdp", "enable_math_sdp", "enable_mem_efficient_sdp")
QUESTIONS = ("cudnn_sdp_enabled", "flash_sdp_enabled", "math_sdp_enabled")


class _AnyKernel(Idle):
    """sdpa_kernel(...) and sdp_kernel(...): the CPU's kernel computes it, whatever is allowed."""


def _yes(*args, **kwargs) -> bool:
    return True


def lead() -> None:
    """Change torch."""
    # Scripts turn the CPU's only kernel off.
    put(torch.backends.cuda, **dict.fromkeys(SWITCHES, nothing))
    put(torch.backends.cuda, **dict.fromkeys(QUESTIONS, _yes))
    torch.backends.cuda.sdp_kernel = _AnyKernel
    torch.nn.attention.sdpa_kernel = _AnyKernel
