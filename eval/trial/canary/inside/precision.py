"""Number formats: bfloat16 and autocast become float32, so that a run repeats to the last digit."""

import contextlib
import functools
import types

import torch
from torch import nn

from .replacing import nothing, put, wrap

# The nearest format, for versions of torch that do not know one.
NEAREST = {
    "float8_e4m3fn": "float16",
    "float8_e5m2": "float16",
    "float8_e4m3fnuz": "float16",
    "float8_e5m2fnuz": "float16",
    "float8_e8m0fnu": "float32",
    "uint16": "int32",
    "uint32": "int64",
    "uint64": "int64",
}
REAL_BFLOAT16 = torch.bfloat16


def lead() -> None:
    """Change torch."""
    for name, nearest in NEAREST.items():
        if not hasattr(torch, name):
            setattr(torch, name, getattr(torch, nearest))
    _make_tables()
    torch.bfloat16 = torch.float32
    torch.Tensor.bfloat16 = torch.Tensor.float
    nn.Module.bfloat16 = nn.Module.float
    wrap(torch.Tensor, "view", _view)
    _lead_autocast()
    _lead_inference_mode()
    # On a CPU these multiply in bfloat16 where it can.
    torch.set_float32_matmul_precision = nothing
    torch.backends.cuda.matmul = types.SimpleNamespace(allow_tf32=False, fp32_precision="ieee")
    torch._scaled_mm = _scaled_mm


def _make_tables() -> None:
    """Tables of dtypes that torch makes when it first saves or loads: with every dtype in them."""
    for owner, name in (
        (torch.storage, "_dtype_to_storage_type_map"),
        (torch.storage, "_storage_type_to_dtype_map"),
        (torch._weights_only_unpickler, "_get_allowed_globals"),
    ):
        getattr(owner, name, nothing)()


def _view(original, tensor, *sizes, **kwargs):
    """Tensor.view; the bits of a bfloat16 are read and written as 16-bit integers.

    Packers store a bfloat16 by its bits. Here that number is a float32: it is rounded to
    bfloat16 first, and made float32 again when the bits are read back."""
    dtype = sizes[0] if len(sizes) == 1 else kwargs.get("dtype")
    if isinstance(dtype, torch.dtype):
        bits = (torch.int16, getattr(torch, "uint16", torch.int16))
        if tensor.dtype is torch.float32 and dtype in bits:
            return original(tensor.to(REAL_BFLOAT16), dtype)
        if tensor.dtype in bits and dtype is torch.float32:
            return original(tensor, REAL_BFLOAT16).float()
    return original(tensor, *sizes, **kwargs)


# --- Autocast ---


class _NoAutocast(contextlib.ContextDecorator):
    """torch.autocast of any device: computes in the dtypes that are there, all float32."""

    def __init__(self, *args, **kwargs):
        self.device = "cpu"
        self.fast_dtype = torch.float32

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


class _NoGradScaler:
    """A gradient scaler that scales by one."""

    def __init__(self, *args, **kwargs):
        pass

    def scale(self, outputs):
        return outputs

    def unscale_(self, optimizer):
        pass

    def step(self, optimizer, *args, **kwargs):
        return optimizer.step(*args, **kwargs)

    def update(self, *args):
        pass

    def get_scale(self):
        return 1.0

    def is_enabled(self):
        return False

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def _lead_autocast() -> None:
    for owner in (torch, torch.amp, torch.amp.autocast_mode, torch.cuda.amp, torch.cpu.amp):
        put(owner, autocast=_NoAutocast)
    for owner in (torch.amp, torch.cuda.amp, torch.cpu.amp):
        put(owner, GradScaler=_NoGradScaler)


# --- Inference mode ---


class _Unchanged(contextlib.ContextDecorator):
    """inference_mode(False): gradients stay as they are."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def _inference_mode(mode=True):
    """no_grad instead: without torch.compile, tensors of inference mode reach autograd and fail."""
    if callable(mode):
        return torch.no_grad()(mode)
    return torch.no_grad() if mode else _Unchanged()


def _lead_inference_mode() -> None:
    put(torch, inference_mode=_inference_mode)
    put(torch.autograd, inference_mode=_inference_mode)
    put(torch.autograd.grad_mode, inference_mode=_inference_mode)


# --- Eight-bit products ---


def _scaled_mm(a, b, scale_a=None, scale_b=None, bias=None, *rest, out_dtype=None, **kwargs):
    """torch._scaled_mm: the product of two scaled matrices, in float32.

    a [M, K] and b [K, N] are eight-bit floats; the scales are numbers, or one a row of `a` and
    one a column of `b`."""
    factors = [scale for scale in (scale_a, scale_b) if scale is not None]
    product = a.float() @ b.float()
    scaled = functools.reduce(torch.mul, factors, product)
    if bias is not None:
        scaled = scaled + bias
    return scaled.to(out_dtype or torch.float32)
