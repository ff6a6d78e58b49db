"""torch._dynamo and torch._inductor, where nothing is compiled.

Scripts set their options, reset them and decorate with them. torch itself asks torch._dynamo to
leave functions alone. The real packages would take seconds to import, and trip over what this
package has changed."""

import importlib
from types import ModuleType

VERSION = ""
SUBMODULES = ("config", "eval_frame", "utils")  # used without an import of their own


class Anything:
    """Takes every use: called, decorated with, entered, read from. It is false and empty."""

    def __call__(self, *args, **kwargs):
        return args[0] if args and callable(args[0]) else self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __setattr__(self, name, value):
        self.__dict__[name] = value

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def __bool__(self):
        return False

    def __iter__(self):
        return iter(())

    def __getitem__(self, key):
        return self

    def __setitem__(self, key, value):
        pass


class Module(ModuleType):
    """A module of these packages. What nobody has set takes every use, and is kept."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name in SUBMODULES:
            return importlib.import_module(f"{self.__name__}.{name}")
        if name == "OptimizedModule":
            return importlib.import_module(f"{__package__}.compiling").Compiled
        made = Anything()
        setattr(self, name, made)
        return made


def is_compiling() -> bool:
    """Never."""
    return False


def is_dynamo_supported() -> bool:
    """Not here."""
    return False
