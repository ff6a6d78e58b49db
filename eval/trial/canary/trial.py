"""What came of running one script on known streams: the facts that the report is written from."""

from dataclasses import dataclass, field

from eval.papers.submission.script import Version
from eval.trial.canary.plan import Setting
from eval.trial.canary.verdict import CONSISTENT, INVALID, NOT_RUN, Finding, Judgement


@dataclass(frozen=True)
class Attempt:
    """A run that failed and was made again with other settings: what stopped it, what changed."""

    stopped_by: str
    change: str
    seconds: float


@dataclass(frozen=True)
class TrialRun:
    """One source of tokens at one number of ranks.

    `settings` are those of the last try, `attempts` the tries before it. `stopped_by` is the line
    that ended it, None where it ended well, though its scores may have been printed before.
    `hints` say what would help, `behaviour` what the sandbox saw it try. `seconds` are those of
    the last try.
    """

    source: str
    world_size: int
    tokens: int
    judgement: Judgement
    settings: tuple[Setting, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    stopped_by: str | None = None
    hints: tuple[str, ...] = ()
    behaviour: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        return self.judgement.verdict


@dataclass
class Trial:
    """All runs of one script.

    `layers` is how its source was packed, `unreadable` why it could not be unpacked, `own_sources`
    the files that told the record's settings, `fixed` the sizes that nothing can make smaller.
    `together` are findings that several runs show. `left_out` says which runs were not made, and
    why. `seconds` covers everything.
    """

    script: str
    sha256: str
    vocab_size: int
    device: str
    mechanism: str
    layers: tuple[str, ...] = ()
    unreadable: str | None = None
    python_needed: Version | None = None
    own_sources: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    runs: list[TrialRun] = field(default_factory=list)
    together: list[Finding] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """INVALID where anything refutes the script, CONSISTENT where a run came to a score."""
        verdicts = {run.verdict for run in self.runs} | {found.verdict for found in self.together}
        return next((word for word in (INVALID, CONSISTENT) if word in verdicts), NOT_RUN)
