"""How a function of the environment is replaced by one of ours."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any


def wrap(owner: Any, name: str, around: Callable) -> None:
    """Replace `owner.name` by a function that calls `around(original, *args, **kwargs)`.

    Names that this version of the environment does not have are left out."""
    original = getattr(owner, name, None)
    if original is None:
        return

    @functools.wraps(original)
    def replaced(*args, **kwargs):
        return around(original, *args, **kwargs)

    setattr(owner, name, replaced)


def put(owner: Any, **values: Any) -> None:
    """Set attributes of a module or class."""
    for name, value in values.items():
        setattr(owner, name, value)


def nothing(*args: Any, **kwargs: Any) -> None:
    """Takes anything and does nothing."""


class Idle(contextlib.ContextDecorator):
    """Takes anything, and as a context or a decorator does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __enter__(self) -> "Idle":
        return self

    def __exit__(self, *error: object) -> bool:
        return False
