"""Asks a record's train_gpt.py for scores, through the contract and inside the sandbox, and takes nothing it writes on trust.

Names of streams are random, their order is shuffled and every run has the same command line, environment and limits, so that a
scorer cannot tell an audit from the scoring of the record by anything but the tokens and probes that the contract needs.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval.papers.audits.report import ScorerRun
from eval.papers.submission.schema import CODE_FILE
from eval.rules import Rules
from eval.text.corpus.dataset import shard_bytes
from eval.trial.sandbox.job import GIB, Job, Limits, Outcome
from eval.trial.sandbox.running import run


@dataclass(frozen=True)
class Stream:
    """Ids [N] to score and, optionally, positions [K] in 0..N-1 at which the whole next-token distribution is wanted."""

    tokens: np.ndarray
    probes: np.ndarray | None = None


@dataclass
class Scored:
    """`nll` float64 [N-1] nats and `probe` float64 [K, V] log-probabilities, each None where the contract was broken: see `problems`."""

    nll: np.ndarray | None = None
    probe: np.ndarray | None = None
    problems: list[str] = field(default_factory=list)


class RunFailed(Exception):
    """The scorer did not run to its end. `outcome` holds what is known."""

    def __init__(self, label: str, outcome: Outcome):
        super().__init__(f"{label}: {outcome.why()}")
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
        self.code, self.artifact, self.vocab_size, self.rules = code, artifact, vocab_size, rules
        self.mechanism, self.rng = mechanism, rng
        self.nproc = 1
        self.binds: dict[str, Path] = {}
        self.emptied: list[str] = []
        self.wall_seconds = rules.limits.wall_seconds
        self.runs: list[ScorerRun] = []
        self.outcomes: list[Outcome] = []

    def score(self, streams: Sequence[Stream], label: str) -> list[Scored]:
        """Scores of `streams`, in their order. Raises RunFailed when the process fails, is killed, or overruns."""
        names = [
            f"{value:012x}" for value in self.rng.choice(1 << 47, size=len(streams), replace=False)
        ]
        order = self.rng.permutation(len(streams))
        inputs: dict[str, Path | bytes] = {"artifact.bin": self.artifact}
        argv = [
            *self._launcher(),
            "{code}/" + CODE_FILE,
            "score",
            "--artifact",
            "{in}/artifact.bin",
            "--tokens",
        ]
        collect, wanted = [], {}
        for index in order:
            inputs[f"{names[index]}.bin"] = shard_bytes(streams[index].tokens)
            argv.append(f"{{in}}/{names[index]}.bin")
            collect.append(f"{names[index]}.nll.npy")
            if streams[index].probes is not None:
                wanted[names[index]] = streams[index].probes.tolist()
                collect.append(f"{names[index]}.probe.npy")
        argv += ["--out", "{out}"]
        if wanted:
            inputs["probes.json"] = json.dumps(wanted).encode()
            argv += ["--probes", "{in}/probes.json"]
        job = Job(
            {CODE_FILE: self.code},
            inputs,
            argv,
            collect,
            self._limits(streams),
            self.binds,
            self.emptied,
        )
        outcome = run(job, self.mechanism)
        self.outcomes.append(outcome)
        tokens, probes = sum(len(s.tokens) for s in streams), sum(len(p) for p in wanted.values())
        self.runs.append(
            ScorerRun(
                label=label,
                streams=len(streams),
                tokens=tokens,
                probes=probes,
                seconds=outcome.seconds,
                cpu_seconds=outcome.cpu_seconds,
                peak_memory=outcome.peak_memory,
            )
        )
        if not outcome.ok:
            raise RunFailed(label, outcome)
        scored = [
            self._read(outcome, name, stream) for name, stream in zip(names, streams, strict=True)
        ]
        outcome.files.clear()
        return scored

    def _launcher(self) -> list[str]:
        if self.nproc == 1:
            return []
        return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.nproc)]

    def _limits(self, streams: Sequence[Stream]) -> Limits:
        limits = self.rules.limits
        scores = sum(
            8 * len(s.tokens)
            + 8 * self.vocab_size * (0 if s.probes is None else len(s.probes))
            + 4096
            for s in streams
        )
        room = GIB + 2 * scores  # each array is written under a temporary name first
        return Limits(
            self.wall_seconds, limits.memory_gib * GIB, room, room, processes=limits.processes
        )

    def _read(self, outcome: Outcome, name: str, stream: Stream) -> Scored:
        scored = Scored()
        scored.nll = self._array(
            outcome, f"{name}.nll.npy", (len(stream.tokens) - 1,), scored.problems
        )
        if (
            scored.nll is not None
            and len(scored.nll)
            and scored.nll.min() < -self.rules.score.negative_nats
        ):
            worst = int(scored.nll.argmin())
            scored.problems.append(
                f"nll[{worst}] = {scored.nll[worst]:.6g} is negative: a probability above 1"
            )
        if stream.probes is not None:
            shape = (len(stream.probes), self.vocab_size)
            scored.probe = self._array(
                outcome, f"{name}.probe.npy", shape, scored.problems, zero_probability=True
            )
        return scored

    def _array(
        self,
        outcome: Outcome,
        name: str,
        shape: tuple[int, ...],
        problems: list[str],
        zero_probability: bool = False,
    ) -> np.ndarray | None:
        what = "nll" if len(shape) == 1 else "probe"
        raw = outcome.files.get(name)
        if raw is None:
            complaint = next((p for p in outcome.problems if name in p), None)
            problems.append(
                complaint.replace(name, f"{what} file")
                if complaint
                else f"no {what} file was written"
            )
            return None
        try:
            array = np.load(io.BytesIO(raw), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            problems.append(f"the {what} file is no plain array: {str(error)[:120]}")
            return None
        if array.shape != shape:
            problems.append(f"{what} has shape {array.shape}, expected {shape}")
            return None
        if array.dtype != np.float64:
            problems.append(f"{what} has dtype {array.dtype}, expected float64")
            return None
        bad = ~np.isfinite(array)
        if zero_probability:
            bad &= array != -np.inf  # ln 0 is a legitimate entry of a distribution
        if bad.any():
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            problems.append(
                f"{what}{list(place)} is {array[place]}, {int(bad.sum()):,} such values"
            )
            return None
        return array
