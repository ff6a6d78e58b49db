"""Asks a record's train_gpt.py for scores, through the contract and inside the sandbox.

Nothing that it writes is taken on trust. Names of streams are random, their order is shuffled, and
every run has the same command line, environment and limits. So a scorer cannot tell an audit from
the scoring of the record by anything but the tokens and probes that the contract needs.
"""

import functools
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval.papers.audits.report import ScorerRun
from eval.papers.submission.schema import CODE_FILE
from eval.rules import Rules
from eval.text.corpus.dataset import shard_bytes
from eval.trial.sandbox.job import GIB, Job, Limits, Outcome
from eval.trial.sandbox.machine import cores, cuda_devices
from eval.trial.sandbox.running import run_side_by_side

# Nats that stand for probability 0 in losses and, negated, in distributions, so that equal zeros
# have the difference 0. Far beyond any real loss: e to this power is no float.
ZERO_NATS = 1e4
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
MOST_AT_ONCE = 4  # runs
SHARED_CORES = 0.2  # part of a core that runs side by side may lack
SHARED_MEMORY = 0.5  # of the machine's, for all of them


@dataclass(frozen=True)
class Stream:
    """Ids [N] to score and, optionally, positions [K] in 0..N-1 to probe.

    At a probed position the whole next-token distribution is wanted."""

    tokens: np.ndarray
    probes: np.ndarray | None = None


@dataclass(frozen=True)
class Run:
    """Streams to score in one process. `threads`: another number than the usual one."""

    streams: Sequence[Stream]
    label: str
    threads: int | None = None


@dataclass
class Scored:
    """`nll` float64 [N-1] nats and `probe` float64 [K, V] log-probabilities.

    Each is None where it was not asked for, or broke the contract: see `problems`. `ruled_out`
    int64: places in `nll` whose target got probability 0; `nll` holds ZERO_NATS there."""

    nll: np.ndarray | None = None
    probe: np.ndarray | None = None
    problems: list[str] = field(default_factory=list)
    ruled_out: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def impossible(self) -> str | None:
        """The complaint about a text that the scorer rules out, None where it does not."""
        if not len(self.ruled_out):
            return None
        first = self.ruled_out[0]
        return f"nll[{first}] is inf, {len(self.ruled_out):,} such values: a token ruled out"


class RunFailed(Exception):
    """The scorer did not run to its end. `label` names the run; `outcome` is what is known."""

    def __init__(self, label: str, outcome: Outcome):
        super().__init__(f"{label}: {outcome.why()}")
        self.label = label
        self.outcome = outcome


class Scorer:
    """One artifact under one script. Every call of `score` is one run in a fresh sandbox."""

    def __init__(
        self,
        code: Path,
        artifact: Path,
        vocab_size: int,
        rules: Rules,
        mechanism: str,
        rng: np.random.Generator,
    ):
        self.code = code
        self.artifact = artifact
        self.vocab_size = vocab_size
        self.rules = rules
        self.mechanism = mechanism
        self.rng = rng
        self.nproc = 1
        self.gpu = True  # whether a run sees this machine's GPUs
        self.binds: dict[str, Path] = {}
        self.emptied: list[str] = []
        self.wall_seconds = rules.limits.wall_seconds
        self.runs: list[ScorerRun] = []
        self.outcomes: list[Outcome] = []

    def score(self, streams: Sequence[Stream], label: str) -> list[Scored]:
        """Scores of `streams`, in their order.

        Raises RunFailed when the process fails, is killed, or overruns."""
        (scored,) = self.score_apart([Run(streams, label)])
        return scored

    def score_apart(self, runs: Sequence[Run]) -> list[list[Scored]]:
        """Scores of the streams of each run, all runs side by side, each in a sandbox of its own.

        Raises RunFailed for the first that fails, is killed, or overruns."""
        named = [self._name(run) for run in runs]
        jobs = [self._job(one, run.threads) for one, run in zip(named, runs, strict=True)]
        outcomes = run_side_by_side(jobs, self.mechanism)
        for outcome, run in zip(outcomes, runs, strict=True):
            self.outcomes.append(outcome)
            self.runs.append(_described(outcome, run))
        return [
            self._take(outcome, one, run)
            for outcome, one, run in zip(outcomes, named, runs, strict=True)
        ]

    def at_once(self) -> int:
        """How many runs like the last one this machine has room for.

        On a GPU it is one: its memory and its clock are not shared."""
        last = self.outcomes[-1]
        if last.cpu_seconds is None or (self.gpu and cuda_devices()):
            return 1
        used = max(last.cpu_seconds / max(last.seconds, 1e-3), 1.0)
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        by_cores = int(cores() / used + SHARED_CORES)
        by_memory = int(SHARED_MEMORY * machine / max(last.peak_memory, 1))
        return max(1, min(by_cores, by_memory, MOST_AT_ONCE))

    def _name(self, run: Run) -> list[tuple[str, Stream]]:
        """The streams under random names, in the order of `run`."""
        drawn = self.rng.choice(1 << 47, size=len(run.streams), replace=False)
        return [(f"{v:012x}", stream) for v, stream in zip(drawn, run.streams, strict=True)]

    def _take(
        self, outcome: Outcome, named: Sequence[tuple[str, Stream]], run: Run
    ) -> list[Scored]:
        """What a run has left. Raises RunFailed where it did not end well."""
        if not outcome.ok:
            raise RunFailed(run.label, outcome)
        scored = [self._read(outcome, name, stream) for name, stream in named]
        outcome.files.clear()
        return scored

    def _job(self, named: Sequence[tuple[str, Stream]], threads: int | None) -> Job:
        """The run that the contract describes, with its inputs and expected outputs.

        The scorer meets the streams in an order drawn by chance."""
        named = [named[k] for k in self.rng.permutation(len(named))]
        inputs: dict[str, Path | bytes] = {"artifact.bin": self.artifact}
        collect: list[str] = []
        probes: dict[str, list[int]] = {}
        for name, stream in named:
            inputs[f"{name}.bin"] = shard_bytes(stream.tokens)
            collect.append(f"{name}.nll.npy")
            if stream.probes is not None:
                probes[name] = stream.probes.tolist()
                collect.append(f"{name}.probe.npy")
        argv = [*self._launcher(), "{code}/" + CODE_FILE, "score"]
        argv += ["--artifact", "{in}/artifact.bin", "--tokens"]
        argv += [f"{{in}}/{name}.bin" for name, _ in named]
        argv += ["--out", "{out}"]
        if probes:
            inputs["probes.json"] = json.dumps(probes).encode()
            argv += ["--probes", "{in}/probes.json"]
        return Job(
            {CODE_FILE: self.code},
            inputs,
            argv,
            collect,
            limits=self._limits([stream for _, stream in named]),
            binds=self.binds,
            emptied=self.emptied,
            gpu=self.gpu,
            variables={} if threads is None else dict.fromkeys(THREADS, str(threads)),
        )

    def _launcher(self) -> list[str]:
        if self.nproc == 1:
            return []
        return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.nproc)]

    def _limits(self, streams: Sequence[Stream]) -> Limits:
        limits = self.rules.limits
        outputs = 0
        for stream in streams:
            rows = 0 if stream.probes is None else len(stream.probes)
            outputs += 8 * len(stream.tokens) + 8 * self.vocab_size * rows + 4096
        room = GIB + 2 * outputs  # each array is written under a temporary name first
        return Limits(
            wall_seconds=self.wall_seconds,
            memory_bytes=limits.memory_gib * GIB,
            output_bytes=room,
            file_bytes=room,
            processes=limits.processes,
        )

    def _read(self, outcome: Outcome, name: str, stream: Stream) -> Scored:
        scored = Scored()
        shape = (len(stream.tokens) - 1,)
        scored.nll = self._array(outcome, f"{name}.nll.npy", shape, scored.problems)
        if scored.nll is not None and len(scored.nll):
            scored.ruled_out = np.flatnonzero(np.isposinf(scored.nll))
            scored.nll = np.where(np.isposinf(scored.nll), ZERO_NATS, scored.nll)
            worst = int(scored.nll.argmin())
            lowest = scored.nll[worst]
            if lowest < -self.rules.score.negative_nats:
                scored.problems.append(
                    f"nll[{worst}] = {lowest:.6g} is negative: a probability above 1"
                )
        if stream.probes is not None:
            shape_of_rows = (len(stream.probes), self.vocab_size)
            rows = self._array(outcome, f"{name}.probe.npy", shape_of_rows, scored.problems)
            if rows is not None:
                scored.probe = np.where(np.isneginf(rows), -ZERO_NATS, rows)
        return scored

    def _array(
        self,
        outcome: Outcome,
        name: str,
        shape: tuple[int, ...],
        problems: list[str],
    ) -> np.ndarray | None:
        """An output file as an array; None with a complaint in `problems` where it is no such one.

        An infinity that means probability 0 may stand there: inf in a loss, -inf in a row."""
        what = "nll" if len(shape) == 1 else "probe"
        raw = outcome.files.get(name)
        if raw is None:
            seen = next((p for p in outcome.problems if name in p), None)
            said = seen.replace(name, f"{what} file") if seen else f"no {what} file was written"
            problems.append(said)
            return None
        try:
            array = _array_of(raw, shape)
        except (ValueError, OSError, EOFError) as error:
            problems.append(f"the {what} file is no plain array: {str(error)[:120]}")
            return None
        if array.shape != shape:
            problems.append(f"{what} has shape {array.shape}, expected {shape}")
            return None
        if array.dtype != np.float64:
            problems.append(f"{what} has dtype {array.dtype}, expected float64")
            return None
        zero = np.inf if what == "nll" else -np.inf
        bad = ~np.isfinite(array) & (array != zero)
        if bad.any():
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            problems.append(
                f"{what}{list(place)} is {array[place]}, {int(bad.sum()):,} such values"
            )
            return None
        return array


@functools.lru_cache(maxsize=1 << 14)
def _header(shape: tuple[int, ...]) -> bytes:
    """The bytes before the values in a .npy file of float64, as NumPy writes it."""
    buffer = io.BytesIO()
    facts = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, facts)
    return buffer.getvalue()


def _array_of(raw: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The array of a .npy file. Raises ValueError, OSError or EOFError where it is no plain one.

    The usual header is compared, not parsed: an audit reads ten thousand small files."""
    head = _header(shape)
    if raw.startswith(head) and len(raw) == len(head) + 8 * math.prod(shape):
        return np.frombuffer(raw, "<f8", offset=len(head)).reshape(shape)
    return np.load(io.BytesIO(raw), allow_pickle=False)


def _described(outcome: Outcome, run: Run) -> ScorerRun:
    streams = run.streams
    return ScorerRun(
        label=run.label,
        streams=len(streams),
        tokens=sum(len(stream.tokens) for stream in streams),
        probes=sum(len(stream.probes) for stream in streams if stream.probes is not None),
        seconds=outcome.seconds,
        cpu_seconds=outcome.cpu_seconds,
        peak_memory=outcome.peak_memory,
    )
