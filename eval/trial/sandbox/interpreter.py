"""The Python environment that a run uses: the referee's, or another one. Standard library only."""

import functools
import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from eval.errors import UserError

LONGEST_START_S = 60

# What an interpreter says of itself. `-I` keeps variables and the working folder out of it.
QUESTION = """
import json, sys, sysconfig
prefixes = (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
print(json.dumps([prefixes, sysconfig.get_paths()["stdlib"], sys.version_info[:2]]))
"""


@dataclass(frozen=True)
class Interpreter:
    """`executable` with the folders that make up its environment, and where its own modules lie."""

    executable: str
    prefixes: tuple[str, ...]
    stdlib: str
    version: tuple[int, int]


@functools.cache
def interpreter(path: Path | None = None) -> Interpreter:
    """The interpreter at `path`, or the one that runs the referee.

    Raises UserError when no Python answers there."""
    if path is None:
        prefixes = (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
        stdlib = sysconfig.get_paths()["stdlib"]
        return Interpreter(sys.executable, _folders(prefixes), stdlib, sys.version_info[:2])
    executable = os.path.abspath(path)
    try:
        done = subprocess.run(
            [executable, "-I", "-c", QUESTION],
            capture_output=True,
            text=True,
            check=True,
            timeout=LONGEST_START_S,
        )
        prefixes, stdlib, version = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UserError(
            f"{path}: expected a Python interpreter, found none that answers ({error}); "
            "name the python of an environment, such as .venv/bin/python"
        ) from None
    return Interpreter(executable, _folders(prefixes), stdlib, tuple(version))


def _folders(prefixes: tuple[str, ...]) -> tuple[str, ...]:
    """Each once, without symbolic links, and the environment's own as it is named."""
    return tuple(sorted({os.path.realpath(prefix) for prefix in prefixes} | {prefixes[0]}))
