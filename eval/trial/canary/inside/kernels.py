"""Kernels: custom operations are registered for the CPU, and Triton interprets its own."""

import os
import sys

import torch

from .replacing import put, wrap


def lead() -> None:
    """Change torch.library, and tell Triton before it is imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    wrap(torch.library, "custom_op", _for_every_device)
    wrap(torch.library, "register_kernel", _for_the_cpu)
    wrap(torch.library, "impl", _for_the_cpu)
    wrap(torch.library.Library, "impl", _dispatched_to_the_cpu)
    put(torch.library, wrap_triton=_itself)


def _itself(kernel):
    return kernel


def _for_every_device(original, *args, **kwargs):
    kwargs.pop("device_types", None)
    return original(*args, **kwargs)


def _cpu_for_cuda(names):
    """A device type, or several, with the CPU for CUDA."""
    if isinstance(names, str):
        return {"cuda": "cpu", "CUDA": "CPU"}.get(names, names)
    return names and [_cpu_for_cuda(name) for name in names]


def _for_the_cpu(original, operation, device_types=None, *args, **kwargs):
    return original(operation, _cpu_for_cuda(device_types), *args, **kwargs)


def _dispatched_to_the_cpu(original, self, name, function, dispatch_key="", **kwargs):
    """What a script registers for a GPU serves the CPU; torch's own kernels of the CPU stay."""
    caller = sys._getframe(2).f_globals.get("__name__", "")
    if caller.partition(".")[0] != "torch":
        dispatch_key = _cpu_for_cuda(dispatch_key)
    return original(self, name, function, dispatch_key, **kwargs)
