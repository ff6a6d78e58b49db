"""The report of a canary: what ran, what was claimed, what is refuted; as text, JSON, Markdown."""

import textwrap
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict, Field

from eval.papers.rendering.tables import aligned, markdown_table, printable
from eval.trial.canary.verdict import (
    CONSISTENT,
    INVALID,
    NOT_RUN,
    Finding,
    Judged,
    Judgement,
    refuted_then_low,
)

FORMAT = 1
LONGEST_QUOTE = 160  # characters of a line that a script printed
MEANINGS = {
    INVALID: "refuted: no code does that",
    CONSISTENT: "nothing found; this is no proof of validity",
    NOT_RUN: "no run came to its end with a score, so nothing is said of it",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SettingLine(_Part):
    """A setting that the run was given. `own`: the record's value; `origin`: who chose."""

    name: str
    value: str
    own: str | None = None
    origin: str = ""


class ScoreLine(_Part):
    """One score that was printed, and the evidence against it.

    `claimed` and `needed` in `unit`. `bits_below` the entropy of the whole stream, negative above
    it; `certain_bits`: what is left when all that is uncertain is taken off."""

    label: str
    line: int
    step: int | None
    reading: str
    unit: str
    claimed: float
    needed: float
    bits_below: float
    certain_bits: float

    @classmethod
    def of(cls, judged: Judged) -> "ScoreLine":
        return cls(
            label=judged.claim.label,
            line=judged.claim.line,
            step=judged.claim.step,
            reading=judged.reading,
            unit=judged.unit,
            claimed=judged.claimed,
            needed=judged.needed,
            bits_below=judged.bits_below,
            certain_bits=judged.certain_bits,
        )


class FindingLine(_Part):
    """`theme`: entropy, bytes, coverage or scores; `verdict`: INVALID or REMARK.

    `line` as printed."""

    theme: str
    verdict: str
    what: str
    line: str = ""
    bits: float | None = None

    @classmethod
    def of(cls, finding: Finding) -> "FindingLine":
        return cls(
            theme=finding.theme,
            verdict=finding.verdict,
            what=finding.what,
            line=_quote(finding.line),
            bits=finding.bits,
        )


class RunReport(_Part):
    """One run of the script on one source.

    `tries`: what failed before, and what was changed. `stopped_by`: the line that ended a run
    that did not end well; `help`: what to do about it. `attempts`: what it tried to reach in vain.
    `set_aside`: printed numbers that were not judged, and why. A run that was stopped keeps its
    scores but is NOT RUN unless they refute it: the score of the record may not be among them."""

    source: str
    why: str
    world_size: int
    targets: int
    verdict: str
    seconds: float
    settings: list[SettingLine] = Field(default_factory=list)
    tries: list[str] = Field(default_factory=list)
    scores: list[ScoreLine] = Field(default_factory=list)
    findings: list[FindingLine] = Field(default_factory=list)
    set_aside: list[str] = Field(default_factory=list)
    attempts: list[str] = Field(default_factory=list)
    stopped_by: str | None = None
    help: str | None = None

    @property
    def name(self) -> str:
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        return f"{self.source}, {ranks}"

    @property
    def ended_well(self) -> bool:
        return self.stopped_by is None

    @property
    def lowest(self) -> ScoreLine | None:
        """A refuted score where there is one; of those, the furthest below the entropy."""
        return max(self.scores, key=refuted_then_low, default=None)


class Report(_Part):
    """All runs of one script.

    `findings` are those that need several runs. `left_out`: runs of the plan that were not made,
    and why. `fixed`: sizes that nothing outside the script can change. `notes`: how the script
    was read, and where its settings come from."""

    format: int = FORMAT
    script: str
    verdict: str
    device: str
    seconds: float
    runs: list[RunReport]
    findings: list[FindingLine] = Field(default_factory=list)
    left_out: list[str] = Field(default_factory=list)
    fixed: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @property
    def refutations(self) -> list[FindingLine]:
        found = list(self.findings)
        for run in self.runs:
            found += run.findings
        return [finding for finding in found if finding.verdict == INVALID]

    @property
    def certain_bits(self) -> float | None:
        """The most bits below the entropy that are certain; None where no score was judged."""
        lowest = [run.lowest for run in self.runs if run.lowest is not None]
        return max((score.certain_bits for score in lowest), default=None)


def outcome_of(judgement: Judgement, ended_well: bool = True) -> dict[str, object]:
    """The fields of a RunReport that a judgement fills.

    Scores of a run that did not end well may refute it, but they never speak for it. Nor do scores
    in a unit that is not known."""
    verdict = judgement.verdict
    if verdict == CONSISTENT and not (ended_well and judgement.judged):
        verdict = NOT_RUN
    return {
        "source": judgement.source,
        "verdict": verdict,
        "scores": [ScoreLine.of(judged) for judged in judgement.judged],
        "findings": [FindingLine.of(finding) for finding in judgement.findings],
        "set_aside": [_quote(line) for line in judgement.set_aside],
    }


def verdict_of(runs: Sequence[RunReport], findings: Sequence[FindingLine] = ()) -> str:
    """INVALID where anything is refuted, else CONSISTENT where a run that ended well was judged."""
    if INVALID in {run.verdict for run in runs} | {finding.verdict for finding in findings}:
        return INVALID
    ended_well = [run for run in runs if run.ended_well]
    return CONSISTENT if CONSISTENT in {run.verdict for run in ended_well} else NOT_RUN


def _quote(line: str) -> str:
    return textwrap.shorten(printable(line), LONGEST_QUOTE, placeholder=" …")


def as_json(report: Report) -> str:
    return report.model_dump_json(indent=2)


# --- For a terminal ---


def as_text(report: Report) -> str:
    parts = [f"{report.script}: {report.verdict} ({MEANINGS[report.verdict]})"]
    parts.append(aligned(map(_run_row, report.runs), gap=2, indent=2))
    for run in report.runs:
        lines = [*map(_finding_text, run.findings), *_remarks(run)]
        parts += [f"  {run.name}: {line}" for line in lines]
    parts += [f"  all runs: {_finding_text(finding)}" for finding in report.findings]
    parts += [f"  settings: {line}" for line in _settings(report)]
    parts += [f"  {line}" for line in _facts(report)]
    return "\n".join(part for part in parts if part) + "\n"


def _run_row(run: RunReport) -> list[str]:
    row = [run.verdict, run.name, f"{run.targets:,} targets"]
    lowest = run.lowest
    if lowest is None:
        return [*row, run.stopped_by or "no score whose unit is known"]
    claimed = f"{lowest.claimed:.6f} {lowest.unit} claimed"
    return [*row, claimed, f"{lowest.needed:.6f} needed", below(lowest), f"{run.seconds:.0f} s"]


def below(score: ScoreLine) -> str:
    """`77,600 bits below` or `1,200 bits above`, of the whole stream."""
    side = "below" if score.bits_below > 0 else "above"
    return f"{abs(score.bits_below):,.0f} bits {side}"


def _remarks(run: RunReport) -> Iterator[str]:
    """All that a run showed beside its scores and findings."""
    for attempt in run.attempts:
        yield f"seen in the sandbox: {printable(attempt)}"
    for line in run.tries:
        yield f"tried again: {printable(line)}"
    for line in run.set_aside:
        yield f"not judged, {line}"
    if _is_stopped(run):
        yield _stop(run)
    if run.help:
        yield f"what would help: {printable(run.help)}"


def _is_stopped(run: RunReport) -> bool:
    return run.verdict == NOT_RUN or not run.ended_well


def _stop(run: RunReport) -> str:
    count = len(run.scores)
    after = f" after {count} {'score' if count == 1 else 'scores'}" if count else ""
    line = run.stopped_by or "the end of the script, without a score whose unit is known"
    return f"stopped{after} by: {printable(line)}"


def _facts(report: Report) -> Iterator[str]:
    """What holds for all runs, beside their settings."""
    for line in report.left_out:
        yield f"not run: {printable(line)}"
    if report.fixed:
        yield f"fixed in the script: {printable(', '.join(report.fixed))}"
    for note in report.notes:
        yield printable(note)
    yield f"{report.seconds:.0f} s on the {report.device}"


def _finding_text(finding: FindingLine) -> str:
    quoted = f" [{finding.line}]" if finding.line else ""
    return f"{finding.verdict} {finding.theme}: {finding.what}{quoted}"


def _settings(report: Report) -> list[str]:
    """`NAME=value (own value)` of the first run, which all others share but for their tries."""
    shown = []
    for setting in report.runs[0].settings if report.runs else []:
        own = f" ({setting.own})" if setting.own not in (None, setting.value) else ""
        shown.append(f"{setting.name}={setting.value}{own}")
    return textwrap.wrap(printable(" ".join(shown)), 100, break_long_words=False)


# --- For a pull request ---


def as_markdown(report: Report) -> str:
    parts = [f"### Canary: {report.verdict}", f"`{_code(report.script)}`: {_summary(report)}"]
    head = ["verdict", "stream", "targets", "claimed", "needed", "bits below the entropy"]
    alignment = ["---", "---", "---:", "---:", "---:", "---:"]
    parts.append(markdown_table(head, map(_markdown_row, report.runs), alignment))
    findings = _markdown_findings("all runs", report.findings)
    for run in report.runs:
        findings += _markdown_findings(run.name, run.findings)
    if findings:
        parts.append("\n".join(findings))
    stopped = [f"* {run.name}: `{_code(_stop(run))}`" for run in report.runs if _is_stopped(run)]
    if stopped:
        parts.append("\n".join(stopped))
    parts.append(_explanation())
    parts.append(f"<details><summary>Details</summary>\n\n{_details(report)}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def _summary(report: Report) -> str:
    refutations = report.refutations
    if not refutations:
        return f"{MEANINGS[report.verdict]}."
    count = "1 finding" if len(refutations) == 1 else f"{len(refutations)} findings"
    return f"{MEANINGS[report.verdict]} ({count})."


def _markdown_row(run: RunReport) -> list[str]:
    row = [run.verdict, run.name, f"{run.targets:,}"]
    lowest = run.lowest
    if lowest is None:
        return [*row, "", "", ""]
    claimed = f"{lowest.claimed:.6f} {lowest.unit}"
    return [*row, claimed, f"{lowest.needed:.6f}", f"{lowest.bits_below:,.0f}"]


def _markdown_findings(name: str, findings: Sequence[FindingLine]) -> list[str]:
    lines = []
    for finding in findings:
        quoted = f" `{_code(finding.line)}`" if finding.line else ""
        lines.append(f"* {name}: **{finding.verdict}** {finding.theme}: {finding.what}{quoted}")
    return lines


def _details(report: Report) -> str:
    """All that the text has and the rest of the Markdown has not, as a list."""
    lines = []
    for run in report.runs:
        lines += [f"{run.name}: {line}" for line in _remarks(run)]
    lines += _facts(report)
    settings = " ".join(_settings(report))
    if settings:
        lines.append(f"settings: {settings}")
    return "\n".join(f"* `{_code(line)}`" for line in lines)


def _explanation() -> str:
    return (
        "The script ran unmodified on token streams whose probability is known. On average no "
        "code spends fewer bits than the entropy, and by chance it saves more than b bits at most "
        "once in 2^b runs."
    )


def _code(text: str) -> str:
    """Text that stays inside a Markdown code span and inside one table cell."""
    return printable(text).replace("`", "'").replace("|", "\\|")
