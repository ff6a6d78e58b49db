"""The one exception that means: the input is at fault, not the program; and what to type next.

Commands are as the reader of a message can type them: in his folder, with his interpreter.
"""

import os
import shlex
import shutil
import sys
from pathlib import Path

INSTALLED = "golf-referee"


class UserError(Exception):
    """Bad input. The message names the file, what was expected, what was found and what to do.

    The command line prints it and exits with code 2."""


def typed_python() -> str:
    """This interpreter: relative where it lies below the current folder, by name where PATH has it.

    Found elsewhere, its absolute path, which is for the terminal only: nothing that is published
    may name a folder of this machine.
    """
    path = Path(sys.executable)
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return path.name if shutil.which(path.name) == str(path) else str(path)


def typed_command(package: str, *words: object) -> str:
    """`python -m PACKAGE WORDS`, quoted for a shell; an installed referee has its own name."""
    texts = [typed_path(word) if isinstance(word, Path) else str(word) for word in words]
    if package == "eval" and Path(sys.argv[0]).name == INSTALLED:
        return shlex.join([INSTALLED, *texts])
    return shlex.join([typed_python(), "-m", package, *texts])


def dataset_command(folder: Path) -> str:
    """The command that makes a data set, which the name of its folder tells."""
    corpus, _, vocabulary = folder.name.rpartition("_sp")
    if corpus == "docs":
        return typed_command("data", "docs", "--vocab-size", vocabulary)
    if corpus == "fineweb10B":
        return typed_command("data", "fineweb", "--variant", f"sp{vocabulary}")
    return typed_command("data", "text", "FILES", "--name", corpus or folder.name)


def typed_path(path: Path) -> str:
    """A path as short as it can be typed here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative
