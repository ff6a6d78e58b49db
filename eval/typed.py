"""Commands as the reader of a message can type them: in his folder, with his interpreter."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from eval.files import REPOSITORY

INSTALLED = "golf-referee"


def python() -> str:
    """This interpreter: relative where it lies below the current folder, by name where PATH has it.

    Found elsewhere, its absolute path, which is for the terminal only: nothing that is published
    may name a folder of this machine.
    """
    path = Path(sys.executable)
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return path.name if shutil.which(path.name) == str(path) else str(path)


def module(package: str, *words: object) -> str:
    """`python -m PACKAGE WORDS`, quoted for a shell; an installed referee has its own name."""
    texts = [place(word) if isinstance(word, Path) else str(word) for word in words]
    if package == "eval" and Path(sys.argv[0]).name == INSTALLED:
        return shlex.join([INSTALLED, *texts])
    return shlex.join([python(), "-m", package, *texts])


def dataset(folder: Path) -> str:
    """The command that makes a data set, which the name of its folder tells."""
    corpus, _, vocabulary = folder.name.rpartition("_sp")
    if corpus == "docs":
        return module("data", "docs", "--vocab-size", vocabulary)
    if corpus == "fineweb10B":
        return module("data", "fineweb", "--variant", f"sp{vocabulary}")
    return module("data", "text", "FILES", "--name", corpus or folder.name)


def published(text: str) -> str:
    """Text that leaves this machine, without the places that its owner gave to things."""
    import tempfile

    names = {
        sys.executable: "python",
        f"{sys.prefix}/": "",
        f"{REPOSITORY}/": "",
        f"{Path.cwd()}/": "",
        f"{tempfile.gettempdir()}/": "",
        f"{Path.home()}/": "~/",
    }
    for private in sorted(names, key=len, reverse=True):
        if len(private) > 2:  # a home of `/` would be everywhere
            text = text.replace(private, names[private])
    return text


def place(path: Path) -> str:
    """A path as short as it can be typed here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative
