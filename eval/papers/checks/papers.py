"""Checks of the derived papers: submission.json against the logs, README and audit."""

import re
from collections.abc import Iterator

from eval.errors import UserError, typed_command
from eval.papers.checks.report import (
    Check,
    Evidence,
    Severity,
    cannot_tell,
    cite_audit,
    fails,
    passes,
    policy,
    say,
    shorten,
)
from eval.papers.folder import LOSS_PICTURE, SCORE_PICTURE, Record
from eval.papers.logs.proof import derived_fields
from eval.papers.submission.schema import AUDIT_FILE, AUDIT_TEXT, TRACKS, Submission

README = "README.md"
AUDIT_SECTION = re.compile(r"^## Audit$.*?(?=^## Reproduce$)", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"(?<![\d.])\d\.\d+(?![\d.]*\d)")
FEWEST_DIGITS = 4  # of a number that may be the headline in fewer digits than stated
LONGEST_FINDINGS = 300  # characters of an audit's findings in a check's detail


def check_derived(record: Record) -> Iterator[Check]:
    """A packed submission.json follows from its logs: derive it again, compare every field."""
    submission = record.submission
    if submission is None or submission.origin != "packed":
        return
    logs = [record.by_seed.get(seed) for seed in submission.seeds]
    if any(log is None or log.problems for log in logs):
        yield cannot_tell("derived", "needs a complete log of every seed")
        return
    try:
        derived = derived_fields(TRACKS[submission.track], logs)
    except (UserError, ValueError) as error:
        yield fails("derived", str(error).splitlines()[0])
        return
    # This figure comes from the dataset's manifest.
    xz_bytes = submission.data.xz_bytes
    derived["data"] = derived["data"].model_copy(update={"xz_bytes": xz_bytes})
    differing = _differing(submission, derived)
    for name in differing:
        seed, _, key = name.rpartition(".")
        line = say(record, key, seed or None)
        yield fails("derived", f"{name} is not what the logs give", line)
    if not differing:
        count = len(logs)
        yield passes("derived", f"submission.json is what its {count} log(s) give, field by field")


def _differing(submission: Submission, derived: dict) -> list[str]:
    """Names of fields, and `SEED.FIELD` of results, that are not what the logs give."""
    names = []
    for name, value in derived.items():
        if name != "seed_results" and getattr(submission, name) != value:
            names.append(name)
    for seed, row in derived["seed_results"].items():
        stated = submission.seed_results[seed]
        names += [f"{seed}.{name}" for name, value in row if getattr(stated, name) != value]
    return names


def check_readme(record: Record) -> Iterator[Check]:
    """Ours is rendered from submission.json and audit.json; anybody's names the headline."""
    submission = record.submission
    text = record.readme
    if submission is None or not text:
        return
    if submission.origin == "packed":
        yield _check_rendered(record, submission, text)
    else:
        yield from _check_headline_named(record, submission, text)


def _check_rendered(record: Record, submission: Submission, text: str) -> Check:
    try:
        if README in record.names:
            record.files.read(README).decode()
    except UnicodeDecodeError as error:
        return fails("readme", f"{README}: expected a UTF-8 text, found {error}; repair it")
    from eval.papers.rendering.readme import changes_in, readme

    changes = changes_in(text)
    found = text
    expected = None
    if changes is not None:
        expected = readme(submission, record.folder, changes, record.audit)
        if not record.with_audit:
            found = AUDIT_SECTION.sub("", found)
            expected = AUDIT_SECTION.sub("", expected)
    refresh = f"run {typed_command('eval', 'pack', '--refresh', record.folder)}"
    if found != expected:
        papers = "submission.json and audit.json"
        line = _first_difference(found, expected or "")
        return fails("readme", f"differs from what {papers} give; {refresh}", line)
    pictures = (LOSS_PICTURE, SCORE_PICTURE)
    missing = [name for name in pictures if name not in record.names]
    if missing:
        return fails("readme", f"missing: {', '.join(missing)}; {refresh}")
    return passes("readme", "every figure is that of submission.json, pictures in place")


def _first_difference(found: str, expected: str) -> Evidence:
    """The first line of the README that is not as expected, else its first line."""
    lines = found.splitlines() or [""]
    pairs = zip(lines, expected.splitlines(), strict=False)
    differing = [i for i, (line, wanted) in enumerate(pairs) if line != wanted]
    place = differing[0] if differing else 0
    return Evidence(file=README, line=place + 1, text=shorten(lines[place]))


def _check_headline_named(record: Record, submission: Submission, text: str) -> Iterator[Check]:
    """The README names the stated score, to as many digits as it likes but at least 4."""
    headline = submission.val_bpb
    if headline is None or headline not in record.stated.values():
        return  # a mean that the import made of the seeds' scores
    for number, line in enumerate(text.splitlines(), 1):
        figures = FIGURE.findall(line)
        if any(_names(figure, headline) for figure in figures):
            place = Evidence(file=README, line=number, text=shorten(line))
            yield passes("readme", "names the headline", place)
            return
    yield fails("readme", f"nowhere names val_bpb {headline:.4f}", Evidence(file=README))


def _names(figure: str, headline: float) -> bool:
    """Whether a printed number is the headline, rounded or cut to its own digits."""
    if figure == str(headline):
        return True
    digits = len(figure.partition(".")[2])
    return digits >= FEWEST_DIGITS and abs(float(figure) - headline) < 10.0**-digits


def check_audit(record: Record) -> Iterator[Check]:
    """The referee's verdict, if it is one about these files.

    A policy is somebody's choice, so it decides nothing here.
    """
    audit = record.audit
    submission = record.submission
    advice = f"run {typed_command('eval', 'audit', record.folder)}"
    if record.audit_problem:
        yield fails("audit", record.audit_problem)
        return
    if audit is None or submission is None:
        yield cannot_tell("audit", f"not audited; {advice}", severity=Severity.NOTE)
        return
    if AUDIT_TEXT not in record.names:
        yield fails("audit", f"{AUDIT_TEXT} is missing beside {AUDIT_FILE}; audit again")
    from eval.papers.audits.reading import audit_findings, mismatch, too_little

    why = mismatch(audit, record.files, submission)
    short = too_little(audit, submission)
    if why and short and why.startswith(("tests:", "scores:")):
        told = f"{short}; {advice} --full"
        yield cannot_tell("audit", told, severity=Severity.NOTE)
        return
    if why:
        fact = cite_audit(record, why.partition(":")[0])
        yield fails(
            "audit", f"{AUDIT_FILE} is no audit of this folder as it stands: {why}; {advice}", fact
        )
        return
    detail = f"{audit.verdict}, level {audit.level}, rules {audit.rules_version}"
    findings = "; ".join(audit_findings(audit))
    if findings:
        detail += f": {shorten(findings, LONGEST_FINDINGS)}"
    verdict = {"INVALID": fails, "POLICY": policy}.get(audit.verdict, passes)
    yield verdict("audit", detail, cite_audit(record, "verdict"))
