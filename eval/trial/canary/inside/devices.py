"""Devices: whatever a script puts on a GPU is made on the CPU."""

import functools
from typing import Any

import torch
from torch import nn
from torch.utils._device import DeviceContext

from .replacing import nothing, put, wrap

CPU = torch.device("cpu")

FACTORIES = (
    *("arange", "eye", "linspace", "logspace", "randperm", "range", "scalar_tensor", "tensor"),
    *("empty", "empty_like", "empty_permuted", "empty_strided", "from_file"),
    *("full", "full_like", "ones", "ones_like", "zeros", "zeros_like"),
    *("normal", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like"),
    *("tril_indices", "triu_indices"),
    *("bartlett_window", "blackman_window", "hamming_window", "hann_window", "kaiser_window"),
    *("sparse_bsc_tensor", "sparse_bsr_tensor", "sparse_compressed_tensor"),
    *("sparse_coo_tensor", "sparse_csc_tensor", "sparse_csr_tensor"),
)
SHARING_FACTORIES = ("as_tensor", "asarray")  # these share the memory of what they are given
NEW_TENSORS = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")


def on_cpu(device: Any) -> Any:
    """The CPU where `device` names a GPU; all else as it is."""
    if isinstance(device, str):
        return "cpu" if device.partition(":")[0] == "cuda" else device
    if isinstance(device, torch.device):
        return CPU if device.type == "cuda" else device
    if isinstance(device, int) and not isinstance(device, bool):
        return CPU  # a bare number names a GPU
    return device


def lead() -> None:
    """Change torch."""
    _lead_factories()
    _lead_tensors()
    _lead_modules()
    put(
        torch,
        Generator=_Generator,
        set_default_device=nothing,
        set_default_tensor_type=nothing,
    )
    wrap(torch, "load", _load)
    wrap(torch.serialization, "load", _load)
    wrap(DeviceContext, "__init__", _enter_device)


# --- Factories ---


def _lead_factories() -> None:
    for name in FACTORIES:
        wrap(torch, name, _make)
    for name in SHARING_FACTORIES:
        wrap(torch, name, _make_apart)
    for name in NEW_TENSORS:
        wrap(torch.Tensor, name, _make)


def _make(original, *args, **kwargs):
    if kwargs.get("device") is not None:
        kwargs["device"] = on_cpu(kwargs["device"])
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False  # pinning asks the driver
    return original(*args, **kwargs)


def _make_apart(original, *args, **kwargs):
    """What goes to a GPU no longer shares memory with what it was made from."""
    moves = kwargs.get("device") is not None
    made = _make(original, *args, **kwargs)
    return made.clone() if moves else made


class _Generator(torch.Generator):
    """A generator for any device, of the CPU."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, on_cpu(device))


def _enter_device(original, self, device):
    """`with torch.device("cuda"):` makes tensors on the CPU."""
    return original(self, on_cpu(device))


def _load(original, *args, **kwargs):
    """torch.load with a `map_location` on the CPU, where the file may name a GPU."""
    kwargs.pop("map_location", None)
    arguments = args[:1] + args[2:]  # the second is map_location as well
    return original(*arguments, map_location=CPU, **kwargs)


# --- Tensors ---


def _lead_tensors() -> None:
    wrap(torch.Tensor, "to", _to)
    wrap(torch.Tensor, "cpu", _copy)
    wrap(torch.Tensor, "type", _type)
    put(
        torch.Tensor,
        cuda=functools.partialmethod(_copied),
        pin_memory=functools.partialmethod(_copied),
        is_pinned=_is_pinned,
        is_cuda=property(_is_cuda),
        get_device=_get_device,
        record_stream=nothing,
    )


def _copied(tensor, *args, **kwargs):
    """The same values in memory of their own, as after a move from one device to another.

    Scripts rely on it: `weight.detach().cpu()` keeps what a weight was before the next step. A
    parameter that is trained stays itself, since on its GPU it would not move."""
    if tensor.is_leaf and tensor.requires_grad and torch.is_grad_enabled():
        return tensor
    return tensor.clone()


def _copy(original, tensor, *args, **kwargs):
    return _copied(tensor)


def _to(original, tensor, *args, **kwargs):
    """Tensor.to(device), to(dtype), to(device, dtype), to(other), with the device by the CPU."""
    moves = kwargs.get("device") is not None
    if moves:
        kwargs["device"] = on_cpu(kwargs["device"])
    elif args and isinstance(args[0], str | torch.device | int):
        moves = True
        args = (on_cpu(args[0]), *args[1:])
    moved = original(tensor, *args, **kwargs)
    return _copied(tensor) if moves and moved is tensor else moved


def _type(original, tensor, dtype=None, *args, **kwargs):
    """`x.type("torch.cuda.FloatTensor")` names a type of the CPU."""
    if isinstance(dtype, str):
        dtype = dtype.replace("torch.cuda.", "torch.")
    return original(tensor, *([] if dtype is None else [dtype]), *args, **kwargs)


def _is_pinned(tensor, *args, **kwargs) -> bool:
    return False


def _is_cuda(tensor) -> bool:
    return True


def _get_device(tensor) -> int:
    return 0


# --- Modules ---


def _lead_modules() -> None:
    wrap(nn.Module, "to", _move_module)
    wrap(nn.Module, "to_empty", _make)
    nn.Module.cuda = _stay


def _move_module(original, module, *args, **kwargs):
    if "device" in kwargs:
        kwargs["device"] = on_cpu(kwargs["device"])
    return original(module, *[on_cpu(value) for value in args], **kwargs)


def _stay(module, *args, **kwargs):
    """Module.cuda(): its parameters are where they can be."""
    return module
