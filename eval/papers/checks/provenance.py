"""Check of the logs' origin: a log is what the script printed, not what somebody wrote down."""

import re
from collections.abc import Iterator

from eval.papers.checks.report import Check, Evidence, cannot_tell, fails, shorten
from eval.papers.folder import Record
from eval.papers.logs.log import Log
from eval.papers.logs.public import MAX_LINE

# What authors say in a log that they put together themselves.
WRITING = r"(?:captured|copied|written|recorded|entered|assembled|typed|transcribed|made|compiled)"
KEEPING = r"(?:saved|preserved|captured|kept|retained|recorded)"
SOURCES = r"(?:session|transcript|console|terminal|chat|screenshot|notes|memory(?=[\s.,;)]*$))"
ADMISSION = re.compile(
    rf"\b(?:logs?|output)\b.*\b{WRITING} by hand\b|\bmanually {WRITING}\b"
    r"|\b(?:extracted|copied|transcribed|captured|reconstructed|recovered|compiled) from\b"
    rf".*\b{SOURCES}\b"
    rf"|\b(?:logs?|output) (?:(?:was|were|is|are) )?(?:not|never) {KEEPING}\b"
    r"|\b(?:logs?|output) (?:was|were|got|is|are) lost\b"
    r"|\breconstructed (?:log|from)\b|\bplaceholder log\b",
    re.IGNORECASE,
)
REMARK = re.compile(r"^\s*(?:#|//|;|--|\*|note\b|nb\b|\[note\])", re.IGNORECASE)
REMARK_STARTS = set("#/;-*NnB[")  # quicker to look at, line by line, than the pattern
FEWEST_LINES = 40  # of a run's log; even a quiet script prints its settings and a few steps


def check_provenance(record: Record) -> Iterator[Check]:
    """No own log says that it was written by hand, or looks like it."""
    admissions: dict[str, Evidence] = {}
    bare: dict[str, Evidence] = {}
    for name, log in record.chosen.items():
        admission = written_by_hand(log)
        file = log.file or log.path.name
        if admission is not None:
            number, text = admission
            admissions[name] = Evidence(file=file, line=number, text=shorten(text))
        elif without_a_run(log):
            bare[name] = Evidence(file=file, text=f"{len(log.lines)} lines, no training step")
    if admissions:
        detail = "by its own words not what the script printed"
        yield fails("log", f"{', '.join(admissions)}: {detail}", *admissions.values())
    if bare:
        detail = "no training steps; is this what the script printed?"
        yield cannot_tell("log", f"{', '.join(bare)}: {detail}", *bare.values())


def written_by_hand(log: Log) -> tuple[int, str] | None:
    """The line in which a log says that it is no output of the script, with its number."""
    for number, text in log.lines:
        if text.lstrip()[:1] not in REMARK_STARTS or len(text) > MAX_LINE:
            continue
        if REMARK.match(text) and ADMISSION.search(text):
            return number, text
    return None


def without_a_run(log: Log) -> bool:
    """Whether a log has scores and nothing of the run that leads to them."""
    trained = any(step.train_loss is not None or step.train_s for step in log.steps)
    short = len(log.lines) + len(log.steps) < FEWEST_LINES
    return not log.native and not trained and short and log.source is None
