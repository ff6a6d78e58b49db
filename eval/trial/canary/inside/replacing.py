"""How a function of the environment is replaced by one of ours."""

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
