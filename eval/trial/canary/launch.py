"""Runs a public script, unmodified, in the sandbox and collects every line that it wrote."""

import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.errors import UserError
from eval.trial.canary.world import ALIASES, World
from eval.trial.sandbox.job import GIB, Job, Limits, Outcome, Tree
from eval.trial.sandbox.running import run

SHIM = Path(__file__).resolve().parent / "inside"
SHIM_NAME = "cuda_on_the_cpu"
LOGS = ("*.txt", "*.log", "*.out")  # names of the files in which scripts keep what they print
DEVICES = ("cpu", "cuda")
LIMITS = Limits(
    wall_seconds=180.0,
    memory_bytes=12 * GIB,
    output_bytes=4 * GIB,
    kept_bytes=16 << 20,
)

# What nvidia-smi prints on the machine that the contest runs on, as far as scripts read it.
NVIDIA_SMI = b"""#!/bin/sh
case "$*" in
  *csv*) echo "NVIDIA H100 80GB HBM3, 570.124.06, 81559 MiB" ;;
  *) echo "NVIDIA-SMI 570.124.06    Driver Version: 570.124.06    CUDA Version: 12.8"
     echo "0  NVIDIA H100 80GB HBM3" ;;
esac
"""

# Of glibc (mallopt(3) and its tunables): all from one heap, nothing given back, in large pages.
# Large tensors otherwise get new pages at each step, which took half of the time of scoring 16,384
# tokens at once.
MEMORY_IS_KEPT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 * GIB),
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

# Before a line of a rank's traceback, and the last line of a traceback.
RANK = re.compile(r"^\[rank\d+\]: ?")
ENDS_A_TRACEBACK = re.compile(r"^(?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception|Interrupt|Exit)\b")
OF_TORCHRUN = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError"
MISSING = re.compile(r"No module named '([A-Za-z_]\w*)")

# Kinds of events that an honest script has no use for, and how the report calls them.
ATTEMPTS = {
    "network": "asked for the network",
    "outside": "opened a path outside its world",
    "write": "wrote outside its working folder",
}


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
    limits: Limits = LIMITS


@dataclass(frozen=True)
class ScriptRun:
    """What came of it.

    `text` is everything printed, then of every log file that the script wrote the lines that were
    not printed and are no source, under a line `==> NAME <==`. `files` holds those log files by
    their path from the working folder. `missing` names packages that the script could not import.
    `stopped_by` is the line that ended a run that did not end well, None where it did.
    `attempts` says what the script tried that its task does not need."""

    outcome: Outcome
    text: str
    files: Mapping[str, bytes]
    seconds: float
    missing: tuple[str, ...] = ()
    stopped_by: str | None = None
    attempts: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.outcome.ok


def launch(world: World, call: Call, mechanism: str) -> ScriptRun:
    """Run `call` in `world`, under a mechanism of the sandbox (see sandbox.running.choose).

    Returns when no process of the run is left, whatever the script did. Raises SandboxError when
    the sandbox could not be built, and UserError when `call` asks for what does not exist."""
    outcome = run(_job(world, call, mechanism), mechanism)
    missing = set() if outcome.ok else set(MISSING.findall("\n".join(_errors(outcome.stderr))))
    return ScriptRun(
        outcome,
        _text(outcome, world),
        outcome.gathered,
        outcome.seconds,
        tuple(sorted(missing)),
        stopping_line(outcome),
        tuple(_attempts(outcome)),
    )


# --- What is started ---


def _job(world: World, call: Call, mechanism: str) -> Job:
    if call.device not in DEVICES:
        found = f"found {call.device!r}"
        raise UserError(f"--device: expected one of {', '.join(DEVICES)}, {found}; name one")
    if f"{world.folder}/{call.script}" not in world.files:
        raise UserError(
            f"{call.script}: expected a file of the record's folder, found none of that name; "
            "name the script by its path from there"
        )
    on_cpu = call.device == "cpu"
    tree = Tree(
        world.files,
        world.folder,
        world.links,
        {} if mechanism == "none" else ALIASES,
        LOGS,
    )
    return Job(
        {},
        {},
        _command(call),
        limits=call.limits,
        tree=tree,
        variables=_variables(world, call),
        programs={"nvidia-smi": NVIDIA_SMI} if on_cpu else {},
        startup={SHIM_NAME: SHIM} if on_cpu else {},
        python=call.python,
    )


def _command(call: Call) -> list[str]:
    """The words after the interpreter: the script alone, or torchrun for several ranks."""
    script = [call.script, *call.arguments]
    if call.world_size == 1:
        return script
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={call.world_size}"]
    return [*torchrun, "--master_addr=127.0.0.1", f"--master_port={_free_port()}", *script]


def _variables(world: World, call: Call) -> dict[str, str]:
    """The environment; what the call sets goes before all else.

    One rank gets what torchrun would tell it: some scripts read no default."""
    variables = {
        **MEMORY_IS_KEPT,
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",  # a run that is ended has printed its last line
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if call.world_size == 1:
        variables |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
    if call.device == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables | dict(world.variables) | dict(call.variables)


def _free_port() -> int:
    """A port that nobody listens on; without a sandbox the run shares the machine's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- What it wrote ---


def _text(outcome: Outcome, world: World) -> str:
    """Everything printed, then what stands in log files alone."""
    printed = outcome.stdout + "\n" + outcome.stderr
    known = set(printed.splitlines())
    for name, content in world.files.items():
        if name.startswith(world.folder) and name.endswith(".py"):
            source = content if isinstance(content, bytes) else content.read_bytes()
            known |= set(source.decode(errors="replace").splitlines())
    parts = [printed]
    for name, content in outcome.gathered.items():
        lines = content.decode(errors="replace").splitlines()
        own = [line for line in lines if line not in known]
        if own:
            parts += [f"==> {name} <==", *own]
    return "\n".join(parts) + "\n"


def _errors(stderr: str) -> list[str]:
    """The last line of each traceback in the order printed, without torchrun's own."""
    errors = []
    for line in stderr.splitlines():
        said = RANK.sub("", line)
        if ENDS_A_TRACEBACK.match(said) and not said.startswith(OF_TORCHRUN):
            errors.append(said)
    return errors


def stopping_line(outcome: Outcome) -> str | None:
    """The line that ended a run, of the rank that failed; None for a run that ended well."""
    if outcome.ok:
        return None
    errors = _errors(outcome.stderr)
    if outcome.killed or not errors:
        return outcome.why()
    return errors[-1][:500]


def _attempts(outcome: Outcome) -> Iterator[str]:
    for kind, said in ATTEMPTS.items():
        for what in outcome.seen[kind]:
            yield f"{said}: {what}"
    yield from outcome.problems
