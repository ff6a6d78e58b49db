"""Checks of the script: its size, whether it is Python, and whether it wrote the logs."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from eval.files import sha256_of
from eval.papers.checks.compression import compressed_sizes, looks_compressed
from eval.papers.checks.loading import check_loaded
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
from eval.papers.checks.script import (
    Loaded,
    Script,
    loaded_by,
    logged_python,
    script_of,
)
from eval.papers.checks.shipments import shipments_of
from eval.papers.folder import SIZE_FILE, Record
from eval.papers.logs.log import Log
from eval.papers.submission.schema import CODE_FILE
from eval.papers.submission.script import Version, python_needed, text_of
from eval.rules import Verdict

NEWEST_PYTHON = (3, 14)  # whose grammar `python_needed` knows
FEWEST_SHOWN = 0.98  # of a script's lines; printing it may lose a few
MOST_PACKED = 0.5  # of a script's bytes are left of it under any compressor
COMMENT = re.compile(r"(?:^|\s)#[^\"']*$")  # behind it no string can hold the mark


def check_code(record: Record) -> Iterator[Check]:
    """Size, syntax and identity of the script, and what it loads."""
    script = script_of(record)
    if script is None:
        yield _check_code_size(record, {record.shipped_size: "everywhere"}, SIZE_FILE)
        yield cannot_tell("compiles", f"no {CODE_FILE} here")
        return
    loaded = loaded_by(record, script)
    yield _check_code_size(record, _readings(record, script, loaded), script.name)
    yield _check_compiles(record, script, loaded)
    yield from _check_source(record, script)
    yield from check_loaded(record, script, loaded)


# --- Size ---


def _check_code_size(record: Record, readings: dict[int | None, str], file: str) -> Check:
    """Every stated and logged size is that of the script, in one of the ways to count it."""
    sizes, evidence = _told_sizes(record)
    shipped = record.shipped_size
    if shipped is None:
        return cannot_tell("code_bytes", f"no {CODE_FILE} to measure", *evidence)
    evidence.insert(0, Evidence(file=file, text=f"{shipped} bytes"))
    if not sizes:
        detail = f"the script has {shipped:,} bytes; nobody states a size"
        return cannot_tell("code_bytes", detail, *evidence, severity=Severity.NOTE)
    compressed = _compressed(record, sizes - set(readings))
    unread = sizes - set(readings) - compressed
    if unread:
        others = ", ".join(f"{size:,}" for size in sorted(unread))
        detail = f"the script has {shipped:,} bytes, stated or logged {others}"
        return fails("code_bytes", detail, *evidence)
    words = readings | dict.fromkeys(compressed, "of the script compressed")
    told = ", ".join(f"{size:,} bytes {words[size]}" for size in sorted(sizes))
    return passes("code_bytes", told, *evidence)


def _compressed(record: Record, sizes: set[int]) -> set[int]:
    """Those of the sizes that the script has when it is compressed."""
    if record.code is None:
        return set()
    small = {size for size in sizes if size < MOST_PACKED * len(record.code)}
    packed = compressed_sizes(record.code) if small else {}
    return {size for size in small if looks_compressed(size, packed)}


def _told_sizes(record: Record) -> tuple[set[int], list[Evidence]]:
    """The sizes that submission.json and the record's logs give, and the lines that do."""
    sizes = set()
    evidence = []
    stated = record.submission.bytes_code if record.submission else None
    if stated is not None:
        sizes.add(stated)
        evidence.append(say(record, "bytes_code"))
    for name, shipment in shipments_of(record).items():
        for code in (shipment.code, shipment.packed_code):
            if code is not None:
                evidence.append(cite(record.logs[name], code))
        if shipment.code is not None:
            sizes.add(shipment.code.bytes)
        if stated is not None and shipment.packed_code is not None:
            sizes -= {shipment.packed_code.bytes} & {stated}
    return sizes, evidence


def _readings(record: Record, script: Script, loaded: Loaded) -> dict[int | None, str]:
    """The ways to count a script's bytes, with words for each."""
    code = script.shipped
    unix = code.replace(b"\r\n", b"\n")
    readings = {
        len(unix.replace(b"\n", b"\r\n")): "with the line ends of Windows",
        len(unix): "with the line ends of Unix",
    }
    if code:
        ended = code.endswith(b"\n")
        readings[len(code) + (-1 if ended else 1)] = (
            f"{'without' if ended else 'with'} a last line end"
        )
    if script.unwrapped.layers:
        readings[len(script.source)] = "of the source inside the wrapper"
    if loaded.imported:
        helpers = sum(record.names[name] for name in loaded.imported)
        readings[len(code) + helpers] = f"with {', '.join(loaded.imported)}"
    return readings | {len(code): "as shipped"}


# --- Syntax ---


def _check_compiles(record: Record, script: Script, loaded: Loaded) -> Check:
    """The script's innermost source is Python, and so is every file that it imports."""
    if _is_empty(script):
        return fails("compiles", f"{script.where} is empty", Evidence(file=script.name))
    answer = _compiles(record, script, list(loaded.imported))
    if answer.verdict is not Verdict.PASS:
        return answer
    for name in loaded.imported:
        inner = _compiles(record, Script(name, record.files.read(name)), [])
        if inner.verdict is Verdict.FAIL and name.endswith(".py"):
            return inner
    return answer


def _compiles(record: Record, script: Script, executed: list[str]) -> Check:
    """For the Python that the logs name, where it is newer than the referee's."""
    problem = script.problem
    logged = logged_python(record)
    older = logged is not None and logged < sys.version_info[:2]
    needed = python_needed(script.source) if problem is not None or older else None
    if needed is not None and logged is not None and logged < needed:
        detail = f"{script.where} needs Python {_dotted(needed)}, its log says {_dotted(logged)}"
        return fails("compiles", detail, Evidence(file=script.name))
    if problem is None and script.unwrapped.problem is None:
        size = f", {len(script.source):,} bytes," if script.unwrapped.layers else ""
        return passes("compiles", f"{script.where}{size} compiles")
    if problem is None and executed:
        return passes("compiles", f"{script.where} compiles and runs {', '.join(executed)}")
    if problem is None:
        unread = f"{script.where} runs a text that only running it shows"
        return cannot_tell("compiles", f"{unread}: {script.unwrapped.problem}")
    newer = needed is not None and needed > sys.version_info[:2]
    unknown = logged is not None and logged > NEWEST_PYTHON
    if newer or unknown:
        wanted = _dotted(needed if newer else logged)
        detail = f"{script.where} needs Python {wanted}, this is {_this_python()}"
        return cannot_tell("compiles", f"{detail}: {problem.msg}", severity=Severity.EXPLAIN)
    if logged is not None and logged > sys.version_info[:2]:
        detail = f"{script.where} is for Python {_dotted(logged)} by its log"
        return cannot_tell("compiles", f"{detail}, this is {_this_python()}: {problem.msg}")
    line = None if script.unwrapped.layers else getattr(problem, "lineno", None)
    return fails("compiles", f"{script.where}: {problem}", Evidence(file=script.name, line=line))


def _is_empty(script: Script) -> bool:
    """Whether a script has no statement but strings and `pass`."""
    if not script.source.strip():
        return True
    if script.tree is None:
        return False
    return all(_does_nothing(statement) for statement in script.tree.body)


def _does_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Pass):
        return True
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _this_python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


# --- Identity ---


def _check_source(record: Record, script: Script) -> Iterator[Check]:
    """The script is the one that the logs embed and that submission.json states."""
    embedding = {name: log for name, log in record.chosen.items() if log.native or log.source}
    if not embedding:
        detail = "the logs embed no source, so nothing ties them to this script"
        yield cannot_tell("source", detail, severity=Severity.NOTE)
    complaints = list(_source_complaints(embedding, script))
    yield from complaints
    if embedding and not complaints:
        native = [log for log in embedding.values() if log.native]
        lines = [cite(log, log.facts["source.sha256"]) for log in native]
        exact = "byte for byte" if len(native) == len(embedding) else "line by line"
        detail = f"{script.name} is {exact} what {len(embedding)} log(s) embed"
        yield passes("source", detail, *lines)
    sha256 = sha256_of(script.shipped)
    stated = record.submission.code_sha256 if record.submission else None
    if stated and stated != sha256:
        detail = f"{script.name} has sha256 {sha256[:12]}…, submission.json states {stated[:12]}…"
        yield fails("source", detail, say(record, "code_sha256"))


def _source_complaints(embedding: dict[str, Log], script: Script) -> Iterator[Check]:
    """What differs between the script and each source that logs embed."""
    by_source: dict[bytes | None, list[str]] = {}
    for name, log in embedding.items():
        by_source.setdefault(log.source, []).append(name)
    for source, names in by_source.items():
        log = embedding[names[0]]
        if log.native and source != script.shipped:
            yield _other_native(names, log, script)
        elif not log.native:
            yield from _other_public(names, log, script)


def _other_native(names: list[str], log: Log, script: Script) -> Check:
    fact = log.facts.get("source.sha256")
    lines = [cite(log, fact)] if fact else []
    sha256 = sha256_of(script.shipped)[:12]
    listed = ", ".join(names)
    detail = f"{listed} was written by another script than {script.name} (sha256 {sha256}…)"
    return fails("source", detail, *lines)


def _other_public(names: list[str], log: Log, script: Script) -> Iterator[Check]:
    """FAIL where no reading of the script holds the lines that the logs print.

    Where they are a part of the script, nothing is known of the rest.
    """
    embedded = _code_lines(log.source)
    candidates = [_code_lines(script.shipped)]
    if script.unwrapped.layers:
        candidates.append(_code_lines(script.source))
    if log.source is not None and log.source.isascii():
        candidates = [_in_ascii(lines) for lines in candidates]
    bare = _without_comments(embedded)
    stripped = [_without_comments(lines) for lines in candidates]
    held = [_held(lines, embedded) for lines in candidates]
    held += [_held(lines, bare) for lines in stripped]
    found = [part for part in held if part is not None]
    if not found:
        closest = max(stripped, key=lambda lines: _common_lines(lines, bare))
        yield _first_difference(names, log, script, closest)
        return
    most = max(found, key=lambda part: part.share)
    if most.share < FEWEST_SHOWN:
        detail = f"{', '.join(names)}: embeds {most} of {script.where}; the rest is not shown"
        yield cannot_tell("source", detail, severity=Severity.EXPLAIN)


NumberedLine = tuple[int, str]  # 1-based line number and text


def _code_lines(source: bytes) -> list[NumberedLine]:
    """The lines that say something: a log loses blank ones and spaces at line ends."""
    lines = enumerate(text_of(source).removeprefix("\ufeff").split("\n"), 1)
    return [(number, line.rstrip()) for number, line in lines if line.strip()]


def _in_ascii(lines: list[NumberedLine]) -> list[NumberedLine]:
    """The lines as a log shows them whose writer knows no other letters: each is a `?`."""
    return [(number, text.encode("ascii", "replace").decode()) for number, text in lines]


@dataclass(frozen=True)
class Held:
    """The part of a script that a log embeds: its line numbers, and its share of the lines."""

    first: int
    last: int
    of: int
    share: float

    def __str__(self) -> str:
        return f"lines {self.first}-{self.last} of {self.of}" if self.share else "no line"


def _held(shipped: list[NumberedLine], embedded: list[NumberedLine]) -> Held | None:
    """Where the embedded lines follow each other in the script; None where one differs."""
    if not shipped or not embedded:
        return None if embedded else Held(0, 0, 0, 0.0)
    texts = [text for _, text in shipped]
    wanted = [text for _, text in embedded]
    count = len(wanted)
    for i, text in enumerate(texts):
        if text == wanted[0] and texts[i : i + count] == wanted:
            last_line = shipped[-1][0]
            return Held(shipped[i][0], shipped[i + count - 1][0], last_line, count / len(texts))
    return None


def _without_comments(lines: list[NumberedLine]) -> list[NumberedLine]:
    bare = [(number, COMMENT.sub("", text).rstrip()) for number, text in lines]
    return [(number, text) for number, text in bare if text]


def _common_lines(shipped: list[NumberedLine], embedded: list[NumberedLine]) -> int:
    """How many lines both have in common before the first that differs."""
    count = 0
    for (_, ours), (_, theirs) in zip(shipped, embedded, strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def _first_difference(
    names: list[str], log: Log, script: Script, shipped: list[NumberedLine]
) -> Check:
    """FAIL with the first line in which the script and the embedded source differ."""
    embedded = _without_comments(_code_lines(log.source))
    place = _common_lines(shipped, embedded)
    ours = _line_at(shipped, place)
    theirs = _line_at(embedded, place)
    in_log = (log.source_line or 1) - 1 + theirs[0]
    listed = ", ".join(names)
    detail = f"{listed}: embeds another source than {script.where}, they part in line {ours[0]}"
    return fails(
        "source",
        detail,
        Evidence(file=script.name, line=ours[0], text=shorten(ours[1])),
        Evidence(file=log.file or log.path.name, line=in_log, text=shorten(theirs[1])),
    )


def _line_at(lines: list[NumberedLine], place: int) -> NumberedLine:
    """The line at that place; behind the end the last line's number."""
    if place < len(lines):
        return lines[place]
    return (lines[-1][0] if lines else 1, "(it ends here)")
