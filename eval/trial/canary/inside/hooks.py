"""Hooks into Python's import system: changes after an import, and packages that stand in."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType


class ChangeAfterImport(importlib.abc.MetaPathFinder):
    """Calls `lead()` of the named modules of `package` when a module has been loaded."""

    def __init__(self, package: str, changes: Mapping[str, Sequence[str]]):
        self.package = package
        self.changes = changes

    def find_spec(self, name, path=None, target=None):
        """The ordinary spec of a module, with a loader that makes the changes."""
        if name not in self.changes:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            for theme in self.changes[name]:
                importlib.import_module(f"{self.package}.{theme}").lead()

        spec.loader.exec_module = load_and_change
        return spec


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules of `package` under the names of packages that cannot work here.

    Of the packages in `whole`, it finds every module below, too."""

    def __init__(self, package: str, names: Mapping[str, str], whole: Sequence[str]):
        self.package = package
        self.names = names
        self.whole = whole

    def _source(self, name: str) -> str | None:
        """The module of `package` that stands in for `name`, None for all others."""
        for outer in self.whole:
            if name.startswith(outer + "."):
                return self.names[outer]
        return self.names.get(name)

    def _import_source(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self.package}.{self._source(name)}")

    def find_spec(self, name, path=None, target=None):
        """A spec for the names that are stood in for. Each may have modules below it."""
        if self._source(name) is None:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        """A module of the kind that the one that stands in asks for."""
        kind = getattr(self._import_source(spec.name), "Module", ModuleType)
        return kind(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module with the public names of the one that stands in."""
        source = self._import_source(module.__name__)
        for name, value in vars(source).items():
            if not name.startswith("_"):
                setattr(module, name, value)
        module.__version__ = source.VERSION


def install(
    package: str,
    changes: Mapping[str, Sequence[str]],
    stand_ins: Mapping[str, str],
    whole: Sequence[str],
) -> None:
    """Put both finders before Python's own."""
    finders = [ChangeAfterImport(package, changes), StandIn(package, stand_ins, whole)]
    sys.meta_path[:0] = finders
