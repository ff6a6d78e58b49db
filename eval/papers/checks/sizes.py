"""Checks of sizes: code, artifacts, the cap, and the bytes that the score was divided by."""

import statistics
from collections.abc import Iterable

from eval.files import sha256_of
from eval.papers.checks.report import Check, Evidence, cannot_tell, cite, fails, passes, say
from eval.papers.checks.scores import partner_loss
from eval.papers.folder import SIZE_FILE, Record
from eval.papers.logs.log import Log
from eval.papers.submission.schema import CODE_FILE, TRACKS, Track
from eval.text.corpus.exports import check_fineweb_bytes


def check_code(record: Record) -> Iterable[Check]:
    """Size and identity of the script: file, submission.json and every log."""
    stated = record.submission.bytes_code if record.submission else None
    shipped = record.shipped_size
    logged = {
        name: log
        for name, log in record.logs.items()
        if log.integer("result.code_bytes") is not None
    }
    evidence = [cite(log, log.facts["result.code_bytes"]) for log in logged.values()]
    evidence += [
        cite(log, log.facts["result.code_bytes_packed"])
        for log in logged.values()
        if "result.code_bytes_packed" in log.facts
    ]
    if stated is not None:
        evidence.insert(0, say(record, "bytes_code"))
    if shipped is None:
        yield cannot_tell("code_bytes", f"no {CODE_FILE} to measure", *evidence)
    else:
        source = Evidence(
            file=CODE_FILE if record.code is not None else SIZE_FILE, text=f"{shipped} bytes"
        )
        sizes = {log.integer("result.code_bytes") for log in logged.values()} | (
            {stated} if stated is not None else set()
        )
        if not sizes:
            yield cannot_tell(
                "code_bytes", f"the script has {shipped:,} bytes; nobody states a size", source
            )
        elif sizes == {shipped}:
            yield passes("code_bytes", f"{shipped:,} bytes everywhere", source, *evidence)
        else:
            others = ", ".join(f"{size:,}" for size in sorted(sizes - {shipped}))
            yield fails(
                "code_bytes",
                f"the script has {shipped:,} bytes, stated or logged {others}",
                source,
                *evidence,
            )
    if record.code is None:
        yield cannot_tell("compiles", f"no {CODE_FILE} here")
        return
    try:
        compile(record.code, CODE_FILE, "exec", dont_inherit=True)
        yield passes("compiles", f"{CODE_FILE} compiles")
    except (
        SyntaxError,
        ValueError,
        RecursionError,
        MemoryError,
    ) as error:  # the last two: nesting that no script needs
        yield fails(
            "compiles",
            f"{CODE_FILE}: {error}",
            Evidence(file=CODE_FILE, line=getattr(error, "lineno", None)),
        )
    yield from _check_source(record)


def _check_source(record: Record) -> Iterable[Check]:
    native = {name: log for name, log in record.logs.items() if log.native}
    if not native:
        yield cannot_tell("source", "the logs embed no source, so nothing ties them to this script")
        return
    sha256 = sha256_of(record.code)
    for name, log in native.items():
        if log.source != record.code:
            fact = log.facts.get("source.sha256")
            detail = (
                f"{name} was written by another script than {CODE_FILE} (sha256 {sha256[:12]}…)"
            )
            yield fails("source", detail, *([cite(log, fact)] if fact else []))
    if all(log.source == record.code for log in native.values()):
        lines = [cite(log, log.facts["source.sha256"]) for log in native.values()]
        yield passes(
            "source", f"{CODE_FILE} is byte for byte what {len(native)} log(s) embed", *lines
        )
    stated = record.submission.code_sha256 if record.submission else None
    if stated and stated != sha256:
        yield fails(
            "source",
            f"{CODE_FILE} has sha256 {sha256[:12]}…, submission.json states {stated[:12]}…",
            say(record, "code_sha256"),
        )


def check_bytes(record: Record) -> Iterable[Check]:
    """Total = artifact + code for every log, the stated total covers them, and the cap holds for the script that is shipped."""
    rows = [
        (n, log)
        for n, log in record.logs.items()
        if log.integer("result.artifact_bytes") and log.integer("result.bytes_total")
    ]
    stated = record.submission.bytes_total if record.submission else None
    if not rows:
        yield cannot_tell("bytes_total", "no log states artifact and total bytes")
        return
    totals = {name: log.integer("result.bytes_total") for name, log in rows}
    sums_wrong = [
        (n, log)
        for n, log in rows
        if totals[n] - log.integer("result.artifact_bytes") not in _logged_code_sizes(log)
    ]
    for name, log in sums_wrong:
        parts = (
            f"{log.integer('result.artifact_bytes'):,} + {log.integer('result.code_bytes') or 0:,}"
        )
        yield fails(
            "bytes_total",
            f"{name}: total {totals[name]:,} is not artifact + code ({parts})",
            cite(log, log.facts["result.bytes_total"]),
        )
    lines = [cite(log, log.facts["result.bytes_total"]) for _, log in rows]
    readings = {
        max(totals.values()): "the largest log",
        round(statistics.fmean(totals.values())): "the mean of the logs",
    }
    readings |= {total: name for name, total in totals.items() if total not in readings}
    if stated is None:
        yield fails("bytes_total", "submission.json states none", *lines)
    elif stated in readings:
        yield passes(
            "bytes_total",
            f"{stated:,} is that of {readings[stated]}" if len(rows) > 1 else f"{stated:,}",
            say(record, "bytes_total"),
            *lines,
        )
    else:
        yield fails(
            "bytes_total",
            f"{stated:,} stated, the logs say {', '.join(f'{t:,}' for t in totals.values())}",
            say(record, "bytes_total"),
            *lines,
        )
    yield from _check_cap(record, rows)


def _logged_code_sizes(log: Log) -> set[int | None]:
    return {log.integer("result.code_bytes"), log.integer("result.code_bytes_packed")}


def _check_cap(record: Record, rows: list[tuple[str, Log]]) -> Iterable[Check]:
    cap = TRACKS[record.track_name].bytes_cap if record.track_name in TRACKS else Track.bytes_cap
    _, log = max(rows, key=lambda row: row[1].integer("result.artifact_bytes"))
    artifact = log.integer("result.artifact_bytes")
    evidence = [cite(log, log.facts["result.artifact_bytes"])]
    if record.shipped_size is None:
        total = max(log.integer("result.bytes_total") for _, log in rows)
        verdict = cannot_tell if total <= cap else fails
        yield verdict(
            "cap",
            f"logged total {total:,} of {cap:,}; the script itself is not here to be measured",
            *evidence,
        )
        return
    evidence.append(
        Evidence(
            file=CODE_FILE if record.code is not None else SIZE_FILE,
            text=f"{record.shipped_size} bytes",
        )
    )
    total = artifact + record.shipped_size
    over = [n for n, other in rows if other.integer("result.bytes_total") > cap]
    if total <= cap and not over:
        yield passes(
            "cap",
            f"largest artifact {artifact:,} + script {record.shipped_size:,} = {total:,} of {cap:,}",
            *evidence,
        )
    else:
        packed = log.integer("result.code_bytes_packed")
        counted = (
            f"; the log counts the script compressed, {packed:,} bytes, which is not the file"
            if packed
            else ""
        )
        detail = f"largest artifact {artifact:,} + script as shipped {record.shipped_size:,} = {total:,}, cap {cap:,}{counted}"
        yield fails("cap", detail, *evidence)


def check_artifacts(record: Record) -> Iterable[Check]:
    """Committed artifacts against size and hash in submission.json and logs."""
    s = record.submission
    if s is None or s.origin != "packed":
        yield cannot_tell(
            "artifacts",
            "no artifact in the folder and no hash stated: the weights cannot be identified",
        )
        return
    if not TRACKS[s.track].commits_artifacts:
        yield passes(
            "artifacts",
            "outside git; size and sha256 of every seed stated",
            say(record, "artifact_sha256"),
        )
        return
    good = []
    for seed, row in s.seed_results.items():
        path = record.folder / (row.artifact or "")
        log = record.by_seed.get(int(seed))
        if not path.is_file():
            yield fails(
                "artifacts",
                f"{row.artifact or f'artifact of seed {seed}'} is missing",
                say(record, "artifact", seed),
            )
            continue
        weights = path.read_bytes()
        sha256 = sha256_of(weights)
        if (len(weights), sha256) != (row.artifact_bytes, row.artifact_sha256):
            detail = f"{path.name}: {len(weights):,} bytes, sha256 {sha256[:12]}…, stated {row.artifact_bytes:,}, {row.artifact_sha256[:12]}…"
            yield fails("artifacts", detail, say(record, "artifact_sha256", seed))
        elif log is not None and log.text("artifact.sha256") != sha256:
            yield fails(
                "artifacts",
                f"{path.name} is not what {log.path.name} wrote",
                cite(log, log.facts["artifact.sha256"]),
            )
        else:
            good.append(path.name)
    if len(good) == len(s.seed_results):
        yield passes("artifacts", f"size and sha256 of {', '.join(good)} as stated and logged")


def check_implied_bytes(record: Record) -> Iterable[Check]:
    """bytes = tokens · val_loss / val_bpb / ln 2, from the papers alone: does the denominator belong to the text that was scored?"""
    for name, log in record.logs.items():
        if (
            size := log.integer("result.scored_bytes")
        ) is not None and "data.val_bytes" in log.facts:
            lines = [
                cite(log, log.facts["result.scored_bytes"]),
                cite(log, log.facts["data.val_bytes"]),
            ]
            verdict = passes if size == log.integer("data.val_bytes") else fails
            yield verdict(
                "implied_bytes",
                f"{name}: {size:,} bytes in the denominator, the split has {log.integer('data.val_bytes'):,}",
                *lines,
            )
            continue
        yield _from_published_sizes(record, log)


def _from_published_sizes(record: Record, log: Log) -> Check:
    name, tokens = log.path.name, log.integer("data.val_tokens")
    if tokens is None:
        return cannot_tell("implied_bytes", f"{name}: no validation token count in the log")
    if log.ambiguous:
        return cannot_tell("implied_bytes", f"{name}: several scores could be its result")
    evidence = [cite(log, log.facts["data.val_tokens"])]
    final = log.final and partner_loss(log, log.final)
    if final and final.val_bpb > 0:
        loss, bpb = final.val_loss, final.val_bpb
        evidence.append(cite(log, final))
    elif record.submission and record.submission.val_loss:
        loss, bpb = record.submission.val_loss, record.submission.val_bpb
        evidence += [say(record, "val_loss"), say(record, "val_bpb")]
    else:
        return cannot_tell(
            "implied_bytes", f"{name}: no loss is given beside the final bpb", *evidence
        )
    export, implied, complaint = check_fineweb_bytes(tokens, loss, bpb)
    if complaint is None:
        label = export.label if export else "the whole split"
        return passes(
            "implied_bytes",
            f"{name}: {implied / 1e6:.3f} MB from {loss} nats and {bpb} bpb, as {label} has",
            *evidence,
        )
    if export is None:
        return cannot_tell("implied_bytes", f"{name}: {complaint}", *evidence)
    return fails(
        "implied_bytes", f"{name}: {complaint}, if loss and bpb are of one score at all", *evidence
    )
