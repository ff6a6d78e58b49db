"""Optimizers and loaders whose options ask for a GPU."""

import inspect

import torch
from torch.utils.data import DataLoader

from .replacing import nothing, wrap


def lead() -> None:
    """Change torch."""
    for optimizer in vars(torch.optim).values():
        if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
            options = inspect.signature(optimizer.__init__).parameters
            if "capturable" in options or "fused" in options:
                wrap(optimizer, "__init__", _without_gpu_options)
    # Before each step an optimizer asks the driver whether a graph is captured.
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        setattr(torch.optim.Optimizer, name, nothing)
    wrap(DataLoader, "__init__", _without_pinning)


def _without_gpu_options(original, self, params, *args, **kwargs):
    """`capturable` needs a GPU, and in some versions of torch `fused` does."""
    kwargs.pop("capturable", None)
    kwargs.pop("fused", None)
    return original(self, params, *args, **kwargs)


def _without_pinning(original, self, *args, **kwargs):
    kwargs.pop("pin_memory", None)
    kwargs.pop("pin_memory_device", None)
    return original(self, *args, **kwargs)
