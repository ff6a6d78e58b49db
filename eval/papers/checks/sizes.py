"""Checks of the bytes: script, artifacts, their sum, and the text that a score divides by."""

import statistics
from collections.abc import Iterator

from eval.files import sha256_of
from eval.papers.checks.report import (
    Check,
    Evidence,
    Severity,
    cannot_tell,
    cite,
    fails,
    passes,
    say,
)
from eval.papers.checks.scores import partner_loss
from eval.papers.folder import SIZE_FILE, Record
from eval.papers.logs.log import Log
from eval.papers.submission.schema import CODE_FILE, TRACKS, SeedResult, Track
from eval.text.corpus.exports import check_fineweb_bytes

# --- The script ---


def check_code(record: Record) -> Iterator[Check]:
    """Size and identity of the script: file, submission.json and every log."""
    yield _check_code_size(record)
    yield _check_compiles(record)
    if record.code is not None:
        yield from _check_source(record, record.code)


def _check_code_size(record: Record) -> Check:
    stated = record.submission.bytes_code if record.submission else None
    logs = _logs_with(record, "result.code_bytes")
    packed = [log for log in logs if "result.code_bytes_packed" in log.facts]
    evidence = [cite(log, log.facts["result.code_bytes"]) for log in logs]
    evidence += [cite(log, log.facts["result.code_bytes_packed"]) for log in packed]
    sizes = {log.integer("result.code_bytes") for log in logs}
    if stated is not None:
        evidence.insert(0, say(record, "bytes_code"))
        sizes.add(stated)
    shipped = record.shipped_size
    if shipped is None:
        return cannot_tell("code_bytes", f"no {CODE_FILE} to measure", *evidence)
    evidence.insert(0, _measured(record))
    if not sizes:
        detail = f"the script has {shipped:,} bytes; nobody states a size"
        return cannot_tell("code_bytes", detail, *evidence)
    if sizes == {shipped}:
        return passes("code_bytes", f"{shipped:,} bytes everywhere", *evidence)
    others = ", ".join(f"{size:,}" for size in sorted(sizes - {shipped}))
    detail = f"the script has {shipped:,} bytes, stated or logged {others}"
    return fails("code_bytes", detail, *evidence)


def _measured(record: Record) -> Evidence:
    """The script's size as measured, or as its substitute states it."""
    file = SIZE_FILE if record.code is None else CODE_FILE
    return Evidence(file=file, text=f"{record.shipped_size} bytes")


def _logs_with(record: Record, fact: str) -> list[Log]:
    return [log for log in record.logs.values() if log.integer(fact) is not None]


def _check_compiles(record: Record) -> Check:
    if record.code is None:
        return cannot_tell("compiles", f"no {CODE_FILE} here")
    try:
        compile(record.code, CODE_FILE, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # The last two come from nesting that no script needs.
        place = Evidence(file=CODE_FILE, line=getattr(error, "lineno", None))
        return fails("compiles", f"{CODE_FILE}: {error}", place)
    return passes("compiles", f"{CODE_FILE} compiles")


def _check_source(record: Record, code: bytes) -> Iterator[Check]:
    """The script is the one that the logs embed and that submission.json states."""
    native = {name: log for name, log in record.logs.items() if log.native}
    if not native:
        yield cannot_tell(
            "source",
            "the logs embed no source, so nothing ties them to this script",
            severity=Severity.NOTE,
        )
        return
    sha256 = sha256_of(code)
    others = {name: log for name, log in native.items() if log.source != code}
    for name, log in others.items():
        fact = log.facts.get("source.sha256")
        lines = [cite(log, fact)] if fact else []
        detail = f"{name} was written by another script than {CODE_FILE} (sha256 {sha256[:12]}…)"
        yield fails("source", detail, *lines)
    if not others:
        lines = [cite(log, log.facts["source.sha256"]) for log in native.values()]
        detail = f"{CODE_FILE} is byte for byte what {len(native)} log(s) embed"
        yield passes("source", detail, *lines)
    stated = record.submission.code_sha256 if record.submission else None
    if stated and stated != sha256:
        detail = f"{CODE_FILE} has sha256 {sha256[:12]}…, submission.json states {stated[:12]}…"
        yield fails("source", detail, say(record, "code_sha256"))


# --- Totals ---


def check_bytes(record: Record) -> Iterator[Check]:
    """Total = artifact + code in every log, the stated total covers them, and the cap holds.

    The cap holds for the script as it is shipped.
    """
    logs = {}
    for name, log in record.logs.items():
        if log.integer("result.artifact_bytes") and log.integer("result.bytes_total"):
            logs[name] = log
    if not logs:
        yield cannot_tell("bytes_total", "no log states artifact and total bytes")
        return
    yield from _check_sums(logs)
    yield _check_stated_total(record, logs)
    yield _check_cap(record, logs)


def _check_sums(logs: dict[str, Log]) -> Iterator[Check]:
    for name, log in logs.items():
        total = log.integer("result.bytes_total")
        artifact = log.integer("result.artifact_bytes")
        code = log.integer("result.code_bytes")
        if total - artifact not in (code, log.integer("result.code_bytes_packed")):
            parts = f"{artifact:,} + {code or 0:,}"
            detail = f"{name}: total {total:,} is not artifact + code ({parts})"
            yield fails("bytes_total", detail, cite(log, log.facts["result.bytes_total"]))


def _check_stated_total(record: Record, logs: dict[str, Log]) -> Check:
    """The stated total is that of the largest log, of some other one, or their mean."""
    lines = [cite(log, log.facts["result.bytes_total"]) for log in logs.values()]
    totals = {name: log.integer("result.bytes_total") for name, log in logs.items()}
    stated = record.submission.bytes_total if record.submission else None
    if stated is None:
        return fails("bytes_total", "submission.json states none", *lines)
    lines.insert(0, say(record, "bytes_total"))
    readings: dict[int, str] = {total: name for name, total in totals.items()}
    readings[max(totals.values())] = "the largest log"
    readings[round(statistics.fmean(totals.values()))] = "the mean of the logs"
    if stated not in readings:
        logged = ", ".join(f"{total:,}" for total in totals.values())
        return fails("bytes_total", f"{stated:,} stated, the logs say {logged}", *lines)
    of_which = f" is that of {readings[stated]}" if len(logs) > 1 else ""
    return passes("bytes_total", f"{stated:,}{of_which}", *lines)


def _check_cap(record: Record, logs: dict[str, Log]) -> Check:
    track = TRACKS.get(record.track_name)
    cap = track.bytes_cap if track else Track.bytes_cap
    largest = max(logs.values(), key=lambda log: log.integer("result.artifact_bytes"))
    artifact = largest.integer("result.artifact_bytes")
    evidence = [cite(largest, largest.facts["result.artifact_bytes"])]
    logged = max(log.integer("result.bytes_total") for log in logs.values())
    if record.shipped_size is None:
        verdict = cannot_tell if logged <= cap else fails
        detail = f"logged total {logged:,} of {cap:,}; the script itself is not here to be measured"
        return verdict("cap", detail, *evidence)
    evidence.append(_measured(record))
    total = artifact + record.shipped_size
    if total <= cap and logged <= cap:
        sizes = f"largest artifact {artifact:,} + script {record.shipped_size:,} = {total:,}"
        return passes("cap", f"{sizes} of {cap:,}", *evidence)
    sizes = f"largest artifact {artifact:,} + script as shipped {record.shipped_size:,} = {total:,}"
    packed = largest.integer("result.code_bytes_packed")
    counted = ""
    if packed:
        counted = f"; the log counts the script compressed, {packed:,} bytes, which is not the file"
    return fails("cap", f"{sizes}, cap {cap:,}{counted}", *evidence)


# --- Artifacts ---


def check_artifacts(record: Record) -> Iterator[Check]:
    """Committed artifacts against size and hash in submission.json and logs."""
    submission = record.submission
    if submission is None or submission.origin != "packed":
        yield cannot_tell(
            "artifacts",
            "no artifact in the folder and no hash stated: the weights cannot be identified",
            severity=Severity.NOTE,
        )
        return
    if not TRACKS[submission.track].commits_artifacts:
        detail = "outside git; size and sha256 of every seed stated"
        yield passes("artifacts", detail, say(record, "artifact_sha256"))
        return
    rows = submission.seed_results
    complaints = [_artifact_complaint(record, seed, row) for seed, row in rows.items()]
    yield from (complaint for complaint in complaints if complaint is not None)
    if not any(complaints):
        names = ", ".join(row.artifact for row in rows.values())
        yield passes("artifacts", f"size and sha256 of {names} as stated and logged")


def _artifact_complaint(record: Record, seed: str, row: SeedResult) -> Check | None:
    path = record.folder / (row.artifact or "")
    if not path.is_file():
        name = row.artifact or f"artifact of seed {seed}"
        return fails("artifacts", f"{name} is missing", say(record, "artifact", seed))
    weights = path.read_bytes()
    sha256 = sha256_of(weights)
    if (len(weights), sha256) != (row.artifact_bytes, row.artifact_sha256):
        found = f"{len(weights):,} bytes, sha256 {sha256[:12]}…"
        stated = f"{row.artifact_bytes:,}, {row.artifact_sha256[:12]}…"
        line = say(record, "artifact_sha256", seed)
        return fails("artifacts", f"{path.name}: {found}, stated {stated}", line)
    log = record.by_seed.get(int(seed))
    if log is not None and log.text("artifact.sha256") != sha256:
        line = cite(log, log.facts["artifact.sha256"])
        return fails("artifacts", f"{path.name} is not what {log.path.name} wrote", line)
    return None


# --- The text ---


def check_implied_bytes(record: Record) -> Iterator[Check]:
    """Does the denominator of the score belong to the text that was scored?

    From the papers alone: bytes = tokens · val_loss / val_bpb / ln 2.
    """
    for name, log in record.logs.items():
        scored = log.integer("result.scored_bytes")
        if scored is None or "data.val_bytes" not in log.facts:
            yield _from_published_sizes(record, log)
            continue
        size = log.integer("data.val_bytes")
        facts = ("result.scored_bytes", "data.val_bytes")
        lines = [cite(log, log.facts[fact]) for fact in facts]
        verdict = passes if scored == size else fails
        detail = f"{name}: {scored:,} bytes in the denominator, the split has {size:,}"
        yield verdict("implied_bytes", detail, *lines)


def _from_published_sizes(record: Record, log: Log) -> Check:
    """The implied bytes against those of the published export with as many tokens."""
    name = log.path.name
    tokens = log.integer("data.val_tokens")
    if tokens is None:
        return cannot_tell("implied_bytes", f"{name}: no validation token count in the log")
    if log.ambiguous:
        return cannot_tell("implied_bytes", f"{name}: several scores could be its result")
    evidence = [cite(log, log.facts["data.val_tokens"])]
    final = partner_loss(log, log.final) if log.final else None
    if final and final.val_bpb > 0:
        loss = final.val_loss
        bpb = final.val_bpb
        evidence.append(cite(log, final))
    elif record.submission and record.submission.val_loss:
        loss = record.submission.val_loss
        bpb = record.submission.val_bpb
        evidence += [say(record, "val_loss"), say(record, "val_bpb")]
    else:
        detail = f"{name}: no loss is given beside the final bpb"
        return cannot_tell("implied_bytes", detail, *evidence)
    export, implied, complaint = check_fineweb_bytes(tokens, loss, bpb)
    if complaint is None:
        label = export.label if export else "the whole split"
        size = f"{implied / 1e6:.3f} MB"
        detail = f"{name}: {size} from {loss} nats and {bpb} bpb, as {label} has"
        return passes("implied_bytes", detail, *evidence)
    if export is None:
        return cannot_tell("implied_bytes", f"{name}: {complaint}", *evidence)
    detail = f"{name}: {complaint}, if loss and bpb are of one score at all"
    return fails("implied_bytes", detail, *evidence)
