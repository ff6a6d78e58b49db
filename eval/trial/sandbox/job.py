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
    processes: int = 1024

    def fitted(self) -> "Limits":
        """The same with memory no more than 90 % of this machine's."""
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return replace(self, memory_bytes=min(self.memory_bytes, int(0.9 * machine)))


@dataclass(frozen=True)
class Job:
    """One run.

    `code` and `inputs` map file names to contents. Paths are copied, so the submission sees a
    snapshot. `argv` follows the interpreter; the words {code}, {in} and {out} become the folders
    of the sandbox. `collect` names the expected outputs. Folders of the environment in `emptied`
    are shown without content, except for what `binds` (target -> source on this machine) puts
    there."""

    code: Mapping[str, Path | bytes]
    inputs: Mapping[str, Path | bytes]
    argv: Sequence[str]
    collect: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
    binds: Mapping[str, Path] = field(default_factory=dict)
    emptied: Sequence[str] = ()


@dataclass
class Outcome:
    """What happened.

    `seconds` is by the referee's clock, from the start to the end of the last process.
    `problems` lists what broke a rule of the sandbox or would have. `seen` is what the audit hook
    reported, by kind and without repetition."""

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
