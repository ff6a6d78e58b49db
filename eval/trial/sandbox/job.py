"""What the sandbox is asked to run, within which limits, and what came of it.

Standard library only.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from eval.errors import UserError

GIB = 1 << 30

# Kinds of events that the audit hook reports: paths outside the allowed set, paths below /tmp that
# the run never made, writes outside /out and /tmp, text of the environment read other than by
# importing it, addresses beyond loopback, and programs started.
EVENT_KINDS = ("outside", "absent", "write", "environment", "network", "program")

# Reasons for which a run is killed, as inside/jail.py names them.
WALL_CLOCK = "wall clock"
HOST_MEMORY = "memory of the machine"


@dataclass(frozen=True)
class Limits:
    """Bounds of one run: seconds, bytes, counts.

    `memory_bytes` bounds all processes and the memory file systems together."""

    wall_seconds: float = 600.0
    memory_bytes: int = 16 * GIB
    output_bytes: int = 2 * GIB  # /out, and /tmp, each
    file_bytes: int = 2 * GIB
    printed_bytes: int = 64 << 20
    kept_bytes: int = 1 << 16  # of stdout, of stderr, and of the gathered files together
    processes: int = 1024

    def fitted(self) -> "Limits":
        """The same with memory no more than 90 % of this machine's."""
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return replace(self, memory_bytes=min(self.memory_bytes, int(0.9 * machine)))


@dataclass(frozen=True)
class Tree:
    """A writable copy of a tree of files, in which the run starts.

    `files` maps paths below the tree to contents, `links` paths below it to paths below it, and
    `aliases` absolute paths that lead into it to paths below it, where the mechanism isolates.
    `folder` is the working folder. Of the files that the run makes there, those that match one of
    the patterns in `gather` come back, as far as `kept_bytes` allows."""

    files: Mapping[str, Path | bytes]
    folder: str = "."
    links: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    gather: Sequence[str] = ()


@dataclass(frozen=True)
class Job:
    """One run.

    `code` and `inputs` map file names to contents. Paths are copied, so the submission sees a
    snapshot. `argv` follows the interpreter; the words {code}, {in}, {out} and {tree} become the
    folders of the sandbox. `collect` names the expected outputs. Folders of the environment in
    `emptied` are shown without content, except for what `binds` (target -> source on this machine)
    puts there.

    The run starts in `code`, or in the folder of its `tree`. `variables` are added to its
    environment, with the same words in their values. `programs` stand before all others in PATH.
    Every Python interpreter of the run imports the packages of `startup` (name -> folder) first.
    `python` is another interpreter than the referee's. `gpu`: whether the run sees this machine's
    GPUs, where it has any."""

    code: Mapping[str, Path | bytes]
    inputs: Mapping[str, Path | bytes]
    argv: Sequence[str]
    collect: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
    binds: Mapping[str, Path] = field(default_factory=dict)
    emptied: Sequence[str] = ()
    tree: Tree | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, bytes] = field(default_factory=dict)
    startup: Mapping[str, Path] = field(default_factory=dict)
    python: Path | None = None
    gpu: bool = True


@dataclass
class Outcome:
    """What happened.

    `seconds` is by the referee's clock, from the start to the end of the last process.
    `problems` lists what broke a rule of the sandbox or would have. `seen` is what the audit hook
    reported, by kind and without repetition. `files` are the collected outputs, `gathered` the
    files of the tree by their path from its working folder."""

    mechanism: str
    returncode: int
    seconds: float
    killed: str | None = None
    cpu_seconds: float | None = None
    peak_memory: int = 0
    stdout: str = ""
    stderr: str = ""
    printed: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    gathered: dict[str, bytes] = field(default_factory=dict)
    listing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seen: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in EVENT_KINDS})

    @property
    def ok(self) -> bool:
        return self.returncode == 0 and self.killed is None

    def why(self) -> str:
        """One line on a run that did not end well."""
        if self.killed:
            return f"killed: {self.killed}"
        if self.returncode >= 0:
            ended = f"exit code {self.returncode}"
        else:
            ended = f"signal {signal.Signals(-self.returncode).name}"
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return f"{ended}: {lines[-1][:300]}" if lines else ended


class SandboxError(UserError):
    """The sandbox itself failed, not the submission."""
