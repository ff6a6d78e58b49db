"""The package `kernels`, which fetches compiled kernels: it gives FlashAttention or nothing."""

from . import flash

VERSION = "0.0.0"


def get_kernel(repository, *args, **kwargs):
    """FlashAttention by its repository. Raises ImportError for any other kernel."""
    name = repository.lower().replace("_", "-")
    if "flash-attn" not in name and "flash-attention" not in name:
        raise ImportError(f"no kernel {repository} without a GPU")
    flash.flash_attn_interface = flash
    return flash


def has_kernel(repository, *args, **kwargs):
    """Whether `get_kernel` gives it."""
    return "flash" in repository.lower()
