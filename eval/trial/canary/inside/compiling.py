"""torch.compile and its settings: everything runs eagerly."""

import functools

import torch
from torch import nn
from torch.utils._config_module import ConfigModule

from .replacing import Idle, nothing, put, wrap


def lead() -> None:
    """Change torch."""
    torch.compile = _compile
    nn.Module.compile = nothing
    torch.jit.script = _itself
    put(
        torch.compiler,
        compile=_compile,
        disable=_decorator,
        allow_in_graph=_itself,
        cudagraph_mark_step_begin=nothing,
        reset=nothing,
        set_stance=_Stance,
    )
    wrap(ConfigModule, "__setattr__", _set)
    wrap(ConfigModule, "__getattr__", _get)


class Compiled(nn.Module):
    """A compiled module: the module itself, under the name that torch.compile gives it.

    Names of parameters get the prefix `_orig_mod.`, which scripts take off again."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._modules["_orig_mod"] = module
        del self.__dict__["training"]  # the module's own counts

    def forward(self, *args, **kwargs):
        return self._orig_mod(*args, **kwargs)

    def __getattr__(self, name):
        module = self.__dict__["_modules"]["_orig_mod"]
        return module if name == "_orig_mod" else getattr(module, name)

    def __setattr__(self, name, value):
        if "_modules" not in self.__dict__ or "_orig_mod" not in self._modules:
            super().__setattr__(name, value)
        else:
            setattr(self._orig_mod, name, value)

    def train(self, mode: bool = True):
        self._orig_mod.train(mode)
        return self


def _compile(model=None, **kwargs):
    """torch.compile as a function and as a decorator, with any options."""
    if model is None:
        return functools.partial(_compile, **kwargs)
    return Compiled(model) if isinstance(model, nn.Module) else model


def _itself(function=None, *args, **kwargs):
    return function


def _decorator(function=None, *args, **kwargs):
    return _itself if function is None else function


class _Stance(Idle):
    """torch.compiler.set_stance, as a call and as a context."""


# --- Settings that only other versions of torch have ---


def _set(original, config, name, value):
    try:
        original(config, name, value)
    except AttributeError:
        # Keep it, so that the script reads what it wrote.
        config.__dict__[name] = value


def _get(original, config, name):
    try:
        return original(config, name)
    except AttributeError:
        if name.startswith("__"):
            raise
        return None
