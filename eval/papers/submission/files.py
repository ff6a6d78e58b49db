"""The files of a record folder, wherever they lie: in a directory or in a commit."""

import os
from functools import cached_property
from pathlib import Path
from typing import Protocol

from eval.errors import UserError


class Files(Protocol):
    """What a record folder holds.

    Names are relative to the folder, with `/` between their parts. Only regular files count: a
    symbolic link could show a stranger's report what lies outside the folder, and reading a pipe
    never ends.
    """

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file by its name, in the order of names, those in subfolders included."""

    def read(self, name: str) -> bytes:
        """The file's bytes. Raises UserError where it is missing or cannot be read."""


class DirectoryFiles:
    """The files of a directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def sizes(self) -> dict[str, int]:
        found = {}
        for parent, _, names in os.walk(self.folder):
            for name in names:
                path = Path(parent, name)
                if path.is_file() and not path.is_symlink():
                    found[path.relative_to(self.folder).as_posix()] = path.stat().st_size
        return dict(sorted(found.items()))

    def read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path}: missing") from None
        except OSError as error:
            raise UserError(
                f"{path}: expected a readable file, found {error.strerror}; repair it or remove it"
            ) from None
