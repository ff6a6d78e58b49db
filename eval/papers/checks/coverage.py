"""Checks of the text that was scored: all of it, none of it trained on, bytes rightly counted.

Sources of the fingerprints: the ratios of val_loss to val_bpb that public logs print, measured over
the merged records and over the pull requests whose byte counts were corrected in review.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from eval.papers.checks.report import (
    Check,
    Evidence,
    Severity,
    cannot_tell,
    cite,
    fails,
    passes,
    say,
    shorten,
)
from eval.papers.checks.scores import partner_loss
from eval.papers.folder import Record
from eval.papers.logs.log import Log, Step
from eval.papers.logs.public import MAX_LINE
from eval.text.corpus.exports import (
    BYTES_TOLERANCE,
    FINEWEB_BYTES,
    KNOWN_EXPORTS,
    KnownExport,
    check_fineweb_bytes,
    implied_bytes,
)

# --- Bytes ---

# Wrong byte counts by the ratio that they print, in nats per bit-per-byte.
WRONG_RATIOS = {
    1.987: "SP1024 with the leading space counted twice",
    2.253: "SP1024 whose leading-space mark is mojibake",
    3.040: "SP8192 with the leading space counted twice",
    2.384: "CaseOps shards counted with plain SP8192 pieces",
    2.9329: "SP4096 shards counted with the pieces of another tokenizer",
    1.787: "a tokenizer whose byte tokens count three bytes each",
}
WRONG_RATIO_TOLERANCE = 1.5e-3
MOST_BYTES = (1 + BYTES_TOLERANCE) * max(export.bytes for export in KNOWN_EXPORTS)


# Mixtures over bytes print bits that do not come from the loss beside them.
MIXTURE = re.compile(
    r"(?<![a-z])(?:ppm|n-?gram|knn|(?<!resid_)mix(?:er|ing|ture)?|blend(?:ed)?)(?![a-z])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Ratio:
    """nats per token over bits per byte of one score, and the line that states both.

    `of_log`: a log prints them. submission.json may pair the loss of one score with the bits of
    another.
    """

    loss: float
    bpb: float
    line: Evidence
    of_log: bool = True

    @property
    def value(self) -> float:
        return self.loss / self.bpb


def check_implied_bytes(record: Record) -> Iterator[Check]:
    """Does the denominator of the score belong to the text that was scored?

    From the papers alone: bytes = tokens · val_loss / val_bpb / ln 2.
    """
    submission = record.submission
    if not record.chosen and submission and submission.val_loss and submission.val_bpb:
        stated = Ratio(submission.val_loss, submission.val_bpb, say(record, "val_loss"))
        told = _without_tokens(record.json_file, stated)
        yield cannot_tell("implied_bytes", f"{told.detail}; no log proves it", *told.evidence)
    for name, log in record.chosen.items():
        scored = log.integer("result.scored_bytes")
        if scored is None or "data.val_bytes" not in log.facts:
            yield _from_published_sizes(record, name, log)
            continue
        size = log.integer("data.val_bytes")
        facts = ("result.scored_bytes", "data.val_bytes")
        lines = [cite(log, log.facts[fact]) for fact in facts]
        verdict = passes if scored == size else fails
        detail = f"{name}: {scored:,} bytes in the denominator, the split has {size:,}"
        yield verdict("implied_bytes", detail, *lines)


def _from_published_sizes(record: Record, name: str, log: Log) -> Check:
    """The implied bytes against those of the published export with as many tokens."""
    tokens = log.integer("data.val_tokens")
    ratio = _final_ratio(record, log)
    if ratio is None:
        return _without_loss(name, log)
    if tokens is None:
        return _without_tokens(name, ratio)
    evidence = [cite(log, log.facts["data.val_tokens"]), ratio.line]
    export, implied, complaint = check_fineweb_bytes(tokens, ratio.loss, ratio.bpb)
    if complaint is None:
        label = export.label if export else "the whole split"
        size = f"{implied / 1e6:.3f} MB"
        detail = f"{name}: {size} from {ratio.loss} nats and {ratio.bpb} bpb, as {label} has"
        return passes("implied_bytes", detail, *evidence)
    known = _wrong_count(ratio.value)
    if known is not None:
        complaint += f"; the ratio {ratio.value:.4f} is that of {known}"
    if export is None and implied > MOST_BYTES:
        detail = f"{name}: {complaint}; more than any published split holds"
        return fails("implied_bytes", detail, *evidence)
    if export is None:
        return cannot_tell("implied_bytes", f"{name}: {complaint}", *evidence)
    in_training = _training_ratio(log)
    if in_training is None or not _is_close(in_training.value, export.ratio):
        return fails("implied_bytes", f"{name}: {complaint}", *evidence)
    detail = f"{name}: {complaint}; in training the same tokens had {in_training.value:.4f}"
    evidence.append(in_training.line)
    if ratio.of_log and implied > export.bytes and not _mixes(log):
        return fails("implied_bytes", detail, *evidence)
    return cannot_tell("implied_bytes", f"{detail}: another quantity", *evidence)


def _mixes(log: Log) -> bool:
    """Whether a log speaks of a mixture, whose bits need no loss."""
    lines = [*log.lines, *((score.line, score.text) for score in log.scores)]
    return any(len(text) <= MAX_LINE and MIXTURE.search(text) for _, text in lines)


def _without_loss(name: str, log: Log) -> Check:
    """The validations in training tell how bytes are counted, not that the score counts them so."""
    detail = f"{name}: no loss is given beside the final bpb"
    in_training = _training_ratio(log)
    export = _export_of(log)
    if in_training is None or export is None or not _is_close(in_training.value, export.ratio):
        return cannot_tell("implied_bytes", detail)
    detail += f"; in training the bytes were those of {export.label}"
    return cannot_tell("implied_bytes", detail, in_training.line, severity=Severity.EXPLAIN)


def _final_ratio(record: Record, log: Log) -> Ratio | None:
    """That of the log's own score, else of the headline."""
    score = record.score(log)
    final = partner_loss(log, score) if score is not None else None
    if final is not None and final.val_bpb > 0:
        return Ratio(final.val_loss, final.val_bpb, cite(log, final))
    submission = record.submission
    if submission is None or not submission.val_loss or not submission.val_bpb:
        return None
    return Ratio(submission.val_loss, submission.val_bpb, say(record, "val_loss"), of_log=False)


def _training_ratio(log: Log) -> Ratio | None:
    """That of the last validation during training, before anything is mixed or adapted."""
    validations = [step for step in log.steps if _has_both(step)]
    if not validations:
        return None
    last = validations[-1]
    return Ratio(last.val_loss, last.val_bpb, cite(log, last))


def _has_both(step: Step) -> bool:
    return step.val_loss is not None and step.val_bpb is not None and step.val_bpb > 0


def _without_tokens(name: str, ratio: Ratio) -> Check:
    """The ratio alone tells the tokenizer, not how much was scored."""
    known = _wrong_count(ratio.value)
    fitting = [export.label for export in KNOWN_EXPORTS if _is_close(ratio.value, export.ratio)]
    what = f"{name}: {ratio.value:.5f} nats per bpb"
    if fitting:
        return passes("implied_bytes", f"{what}, as {fitting[0]} has", ratio.line)
    hint = f", that of {known}" if known else ""
    detail = f"{what}{hint}; nothing says how many tokens were scored"
    return cannot_tell("implied_bytes", detail, ratio.line)


def _wrong_count(ratio: float) -> str | None:
    for known, label in WRONG_RATIOS.items():
        if abs(ratio / known - 1) <= WRONG_RATIO_TOLERANCE:
            return label
    return None


def _is_close(ratio: float, known: float, tolerance: float = BYTES_TOLERANCE) -> bool:
    return abs(ratio / known - 1) <= tolerance


# --- Coverage ---

OF_EVALUATION = r"\b(?:eval|evaluat\w+|val|validation|scored?|scoring)\b"
# Of the text, not of each window.
UNIT = (
    r"(?P<unit>batches|tokens|windows|documents|docs|chunks|sequences)\b"
    r"(?! (?:of|in) (?:each|every|a)\b| per\b)"
)
COUNT = r"(?P<count>\d[\d,]*)"
# What was scored, with its number.
COUNTED = tuple(
    re.compile(f"{OF_EVALUATION}.*?{pattern}", re.IGNORECASE)
    for pattern in (
        rf"\b(?:limited to|subset of|(?:only )?(?:the )?first)\s+{COUNT}\s*{UNIT}",
        rf"\b(?:truncated to|capped at)\s+{COUNT}\s*(?P<unit>tokens|documents|docs)\b",
        rf"{COUNT}\s*{UNIT}\s*\((?:limited|partial|subset)\b",
        rf"{COUNT}\s*(?P<unit>tokens|documents|docs)\s*\((?:truncated|capped|sampled)\b",
        rf"\b(?P<unit>tokens|docs)[:=]\s*{COUNT}\s*"
        r"\((?:limited|partial|subset|truncated|capped|sampled)\b",
    )
)
HINT = re.compile(
    rf"{OF_EVALUATION}.*"
    r"(?:\((?:limited|partial|subset|truncated|capped|sampled)\b|"
    r"\b(?:limited|truncated|capped) (?:to|at) [\d,]+\s*\w)",
    re.IGNORECASE,
)
SCORED_PART = re.compile(r"\((?:limited|partial|subset|capped|sampled)\b", re.IGNORECASE)
# An evaluation that is no result: it warms up, collects statistics or looks in between.
NO_RESULT = re.compile(r"warm|calibrat|compil|quick|proxy|sanity|hessian|gptq", re.IGNORECASE)
PARTIAL_WORDS = ("limited", "partial", "subset", "truncated", "capped", "sampled", "first")
SPLIT_DOCUMENTS = 50_000
FEWEST_TOKENS = 20_000_000  # of the whole split; half of what any published tokenizer makes of it
SUBSET_RATIO_TOLERANCE = 1e-2  # a part of the split has other words than the whole
FEWEST_SHARE = 0.99  # of the split's tokens; tails that are cut at a sequence are far smaller
SCORED = re.compile(r"\bscored(?:_tokens)?[:=]\s*(\d+)")


def check_coverage(record: Record) -> Iterator[Check]:
    """The whole validation split is scored."""
    complaints = []
    for name, log in record.chosen.items():
        if not log.native:
            complaints += _coverage_complaints(record, name, log)
    yield from complaints
    if complaints:
        return
    whole = {}
    for name, log in record.chosen.items():
        export = _export_of(log)
        if export is not None:
            whole[name] = export
    if whole and len(whole) == len(record.chosen):
        lines = [cite(record.logs[name], record.logs[name].facts[TOKENS]) for name in whole]
        labels = ", ".join(dict.fromkeys(export.label for export in whole.values()))
        yield passes("coverage", f"as many validation tokens as {labels} has", *lines)


TOKENS = "data.val_tokens"


def _export_of(log: Log) -> KnownExport | None:
    tokens = log.integer(TOKENS)
    if tokens is None:
        return None
    return next((export for export in KNOWN_EXPORTS if export.has_as_many(tokens)), None)


def _coverage_complaints(record: Record, name: str, log: Log) -> Iterator[Check]:
    remark = _part_by_count(record, log)
    if remark is not None:
        yield fails("coverage", f"{name}: says that the evaluation was cut short", remark)
        return
    fewer = _fewer_tokens(record, name, log)
    if fewer is not None:
        yield fewer
        return
    hint = _hint_of_a_part(log)
    if hint is not None:
        detail = f"{name}: was the evaluation cut short? No count says so"
        yield cannot_tell("coverage", detail, hint, severity=Severity.EXPLAIN)
    tokens = log.integer(TOKENS)
    score = record.score(log)
    match = SCORED.search(score.text) if score is not None else None
    if match is None or tokens is None or int(match[1]) >= FEWEST_SHARE * tokens:
        return
    detail = (
        f"{name}: {int(match[1]):,} tokens scored of {tokens:,}, unless this is one rank's share"
    )
    yield cannot_tell("coverage", detail, cite(log, score), cite(log, log.facts[TOKENS]))


def _part_by_count(record: Record, log: Log) -> Evidence | None:
    """The line by which less than the whole split was scored."""
    score = record.score(log)
    if score is not None and len(score.text) <= MAX_LINE and SCORED_PART.search(score.text):
        return cite(log, score)
    for number, text in _lines_with(log, PARTIAL_WORDS):
        share = _share_of_split(log, text)
        if share is not None and share < FEWEST_SHARE and not NO_RESULT.search(text):
            return Evidence(file=log.file or log.path.name, line=number, text=shorten(text))
    return None


def _hint_of_a_part(log: Log) -> Evidence | None:
    """The first line that speaks of a part, and of no count that is the whole split's."""
    for number, text in _lines_with(log, PARTIAL_WORDS):
        if HINT.search(text) and (_share_of_split(log, text) or 0.0) < FEWEST_SHARE:
            return Evidence(file=log.file or log.path.name, line=number, text=shorten(text))
    return None


def _share_of_split(log: Log, text: str) -> float | None:
    """What share of the split a line says was scored; 0 where it counts batches or windows.

    None where no line of the kind has a number.
    """
    found = next(filter(None, (pattern.search(text) for pattern in COUNTED)), None)
    if found is None:
        return None
    count = int(found["count"].replace(",", ""))
    unit = found["unit"].lower()
    if unit in ("documents", "docs"):
        return count / SPLIT_DOCUMENTS
    if unit == "tokens":
        whole = log.integer(TOKENS) or 0
        return count / max(whole, FEWEST_TOKENS)
    return 0.0


def _fewer_tokens(record: Record, name: str, log: Log) -> Check | None:
    """A split with fewer tokens than the export whose ratio it has."""
    tokens = log.integer(TOKENS)
    ratio = _training_ratio(log) or _final_ratio(record, log)
    if tokens is None or ratio is None or _export_of(log) is not None:
        return None
    fitting = [
        export
        for export in KNOWN_EXPORTS
        if _is_close(ratio.value, export.ratio, SUBSET_RATIO_TOLERANCE)
    ]
    if not fitting:
        return None
    export = min(fitting, key=lambda known: min(known.val_tokens))
    whole = min(export.val_tokens)
    lines = [cite(log, log.facts[TOKENS]), ratio.line]
    share = f"{name}: {tokens:,} validation tokens, the whole {export.label} split has {whole:,}"
    implied = implied_bytes(tokens, ratio.loss, ratio.bpb)
    if tokens < FEWEST_SHARE * whole and implied < FEWEST_SHARE * FINEWEB_BYTES:
        return fails("coverage", f"{share}: {tokens / whole:.1%} was scored", *lines)
    if tokens > max(export.val_tokens) / FEWEST_SHARE:
        return cannot_tell("coverage", f"{share}: more than there is", *lines)
    return None


def _lines_with(log: Log, words: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """The lines that have one of the words in them. Overlong ones are no remarks."""
    said = [word for word in words if word in log.printed]
    for number, text in log.lines if said else ():
        if len(text) <= MAX_LINE and any(word in text for word in said):
            yield number, text


def _remark(log: Log, pattern: re.Pattern[str], words: tuple[str, ...]) -> Evidence | None:
    """The first line that fits a pattern; each that does has one of the words in it."""
    for number, text in _lines_with(log, words):
        if pattern.search(text):
            return Evidence(file=log.file or log.path.name, line=number, text=shorten(text))
    return None


# --- Training on the validation text ---

# What a log prints where validation text reached the training or the artifact.
ON_VALIDATION = {
    # The files belong to the key right before them: a line may name those of validation too.
    "trains on the validation shards": re.compile(
        r"\btrain\w*[=:]\s*[^\s=:]*fineweb_val_|"
        r"^\s*train_loader:\S* pattern=[^\s=:]*fineweb_val_|"
        r"^\s*training (?:on|from)[:=]?\s*[^\s=:]*fineweb_val_|"
        r"\btrain_on_val\w*[:=]\s*(?:1|true|yes)\b|"
        r"\btrain_loader:dataset:\S*val[_-]?only",
        re.IGNORECASE,
    ),
    "carries validation tokens in the artifact": re.compile(
        r"\bpaid[_ ]prefix[\w ]{0,20}[:=]\s*(?:loaded\s+)?[1-9]", re.IGNORECASE
    ),
}
PAID_PREFIX = re.compile(r"\bpaid[_ ]prefix", re.IGNORECASE)
NO_PAID_PREFIX = re.compile(
    r"\bpaid[_ ]prefix[\w ]{0,20}[:=]\s*(?:off|no|none|false|disabled|0)\b", re.IGNORECASE
)
VALIDATION_WORDS = ("_val", "valonly", "val-only", "VAL", "paid", "Paid", "PAID")
CASEOPS_TOKENS = 47_851_520
# A preparation script of CaseOps shards keeps 10,000 documents for validation unless told
# otherwise, where the published split has 50,000; it leaves this many training shards.
OVERLAPPING_SHARDS = 1499
DOUBLED_PATH = re.compile(r"\bdatasets/datasets\b")
FEW_DOCUMENTS = re.compile(rb"--val[-_]docs\"[^)]*default\s*=\s*10_?000\b", re.DOTALL)


def check_overlap(record: Record) -> Iterator[Check]:
    """No fingerprint of training on the validation text."""
    for name, log in record.chosen.items():
        for what, pattern in ON_VALIDATION.items():
            remark = _remark(log, pattern, VALIDATION_WORDS)
            if remark is not None:
                yield fails("overlap", f"{name}: {what}, by its own words", remark)
                break
        else:
            yield from _open_prefix(name, log)
        yield from _overlapping_shards(record, name, log)


def _open_prefix(name: str, log: Log) -> Iterator[Check]:
    """A log that speaks of a paid prefix, and does not say how much it holds."""
    for number, text in _lines_with(log, ("paid", "Paid", "PAID")):
        if PAID_PREFIX.search(text) and not NO_PAID_PREFIX.search(text):
            line = Evidence(file=log.file or log.path.name, line=number, text=shorten(text))
            detail = f"{name}: speaks of a paid prefix; does the artifact hold validation tokens?"
            yield cannot_tell("overlap", detail, line, severity=Severity.EXPLAIN)
            return


def _overlapping_shards(record: Record, name: str, log: Log) -> Iterator[Check]:
    """80 % of the validation documents lie in the training shards where two fingerprints meet."""
    if log.integer("data.train_files") != OVERLAPPING_SHARDS:
        return
    shards = cite(log, log.facts["data.train_files"])
    doubled = _remark(log, DOUBLED_PATH, ("datasets/datasets",))
    preparing = [
        Evidence(file=file, text="--val-docs defaults to 10,000 documents")
        for file in record.names
        if file.endswith(".py") and FEW_DOCUMENTS.search(record.files.read(file))
    ]
    whole = log.integer(TOKENS) == CASEOPS_TOKENS
    further = [line for line in (doubled, *preparing) if line is not None]
    detail = (
        f"{name}: {OVERLAPPING_SHARDS:,} training shards, as where validation documents from "
        "10,000 on are trained on"
    )
    verdict = fails if whole and preparing else cannot_tell
    yield verdict("overlap", detail, shards, *further)
