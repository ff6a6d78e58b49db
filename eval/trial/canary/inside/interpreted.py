"""Triton's own interpreter computes its kernels on the CPU."""

import triton

from .replacing import wrap


def lead() -> None:
    """Change triton."""
    wrap(triton, "autotune", _first_configuration)


def _first_configuration(original, configs, *args, **kwargs):
    """Tuning measures on a GPU: the first configuration is taken as it is."""
    return original(configs[:1], *args, **kwargs)
