"""Runs a public script, unmodified, in the sandbox and collects every line that it wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.trial.canary.world import World
from eval.trial.sandbox.job import Limits, Outcome


@dataclass(frozen=True)
class Call:
    """How to start a script.

    `script` is its name in the world's working folder, `arguments` its command line, `variables`
    what is set in its environment. `python` names another interpreter than the referee's;
    `device` is `cpu` (CUDA is led to the CPU) or `cuda` (nothing is led anywhere)."""

    script: str
    arguments: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    world_size: int = 1
    python: Path | None = None
    device: str = "cpu"
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class ScriptRun:
    """What came of it.

    `text` is everything printed, then every log file that the script wrote, each under a line
    `==> NAME <==`. `files` holds those log files by their path from the working folder.
    `missing` names packages that the script could not import. `stopped_by` is the line that ended
    a run that did not end well, None where it did."""

    outcome: Outcome
    text: str
    files: Mapping[str, bytes]
    seconds: float
    missing: tuple[str, ...] = ()
    stopped_by: str | None = None

    @property
    def ok(self) -> bool:
        return self.outcome.ok


def launch(world: World, call: Call, mechanism: str) -> ScriptRun:
    """Run `call` in `world`, under a mechanism of the sandbox (see sandbox.running.choose).

    Returns when no process of the run is left, whatever the script did. Raises SandboxError when
    the sandbox could not be built, and UserError when `call.python` is no interpreter."""
    raise NotImplementedError
