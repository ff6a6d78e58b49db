"""Training logs as evidence: every value read from a log keeps the line that states it.

There are two dialects. *Native* logs start with `log_format:1`, embed their source byte for byte
and end with one `result` line. *Public* logs are those of the contest's scripts. They print what
their authors liked, and are searched for the terms that all of them share (`val_bpb`,
`Code size`, …).

Both arrive damaged: written by several ranks at once, coloured, with CRLF, cut short, or with
source code inside that contains lines like results. The order of lines has no meaning in a native
log, so interleaving cannot change what is read. Contradictions are reported, never resolved.
"""

import codecs
import contextlib
import gc
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from eval.errors import UserError
from eval.files import sha256_of
from eval.papers.logs.dump import code_lines, find_dumps
from eval.papers.logs.lines import ANSI, RANK_PREFIX, split_lines
from eval.papers.logs.log import Log, Step
from eval.papers.logs.native import parse_native
from eval.papers.logs.public import parse_public
from eval.papers.logs.runs import split_runs

MAX_LOG_BYTES = 64 * 2**20  # the largest public log is 0.2 MB; more is no training log
FORMAT_LINE = re.compile(rb"(?m)^log_format:1\s*$")
LEAD_BYTES = 4096  # the format line stands within so many, whatever a launcher printed before it
SOURCE_BEGIN = re.compile(
    rb"(?m)^===== source (?P<name>\S+) bytes:(?P<bytes>\d{1,12}) sha256:(?P<sha256>[0-9a-f]{64})"
    rb" =====[ \t\r]*\n"
)
SOURCE_END = b"===== end source ====="
# Used only where the stated length is wrong: the marker counts if the line that must follow does.
SOURCE_END_LINE = re.compile(rb"\n===== end source =====[ \t\r]*\n(?=env )")
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def parse_log(path: Path) -> Log:
    """Read the log of one run, of either dialect.

    Damage is listed in `problems`, never guessed around. Raises UserError when the file is
    missing, unreadable or larger than 64 MiB.
    """
    runs = parse_runs(_read(path), path)
    log = runs[0]
    if len(runs) > 1:
        log.problems.append(f"more than one run in this log: {len(runs)} of them")
    return log


def parse_runs(
    raw: bytes, path: Path, file: str | None = None, scripts: Sequence[bytes] = ()
) -> list[Log]:
    """Read every run that wrote into a log, of either dialect.

    `file` is the log's name in the record's folder. `scripts` may have written it: where a public
    log prints one of them, it is known at once.
    """
    log = Log(path, sha256_of(raw), file=path.name if file is None else file)
    text = as_utf8(raw)
    plain = text.replace(b"\r\n", b"\n")
    lead = ANSI.sub(b"", RANK_PREFIX.sub(b"", ANSI.sub(b"", plain[:LEAD_BYTES])))
    log.native = FORMAT_LINE.search(lead) is not None
    with _no_collection():
        if log.native:
            parse_native(log, split_lines(_take_source(log, text)))
            log.steps = _settle_steps(log)
            return [log]
        return _public_runs(log, plain, scripts)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without the garbage collector, which would walk through every line again and again.

    Nothing here makes circles.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _public_runs(log: Log, plain: bytes, scripts: Sequence[bytes]) -> list[Log]:
    """The runs of a public log, `log` being the first of them, not read so far."""
    lines = split_lines(plain)
    texts = [text for _, text in lines]
    dumps = find_dumps(texts, [code_lines(script) for script in scripts])
    sources = [_printed(plain, lines[dump.begin][0], lines[dump.end - 1][0]) for dump in dumps]
    for dump in reversed(dumps):
        del lines[dump.begin : dump.end]
    runs = []
    for i, part in enumerate(split_runs(lines), 1):
        run = replace(log, run=i, facts={}, steps=[], scores=[], phases=[], problems=[], doubts=[])
        parse_public(run, part)
        run.steps = _settle_steps(run)
        _take_printed(run, sources)
        runs.append(run)
    return runs


def _printed(plain: bytes, first: int, last: int) -> tuple[int, bytes]:
    """The first of the lines `first` to `last`, 1-based, and their text: a source."""
    printed = ANSI.sub(b"", plain).split(b"\n")[first - 1 : last]
    return first, b"\n".join(printed).removeprefix(codecs.BOM_UTF8)


def _take_printed(run: Log, sources: list[tuple[int, bytes]]) -> None:
    """Give a run the source that was printed last before its first step, else the first one."""
    begin = run.steps[0].line if run.steps else 0
    for line, source in sources:
        if run.source is None or line < begin:
            run.source_line = line
            run.source = source


def as_utf8(raw: bytes) -> bytes:
    """A log as UTF-8 without byte order mark: some shells write UTF-16."""
    if raw.startswith(UTF16_MARKS):
        return raw.decode("utf-16", "replace").encode()
    return raw.removeprefix(codecs.BOM_UTF8)


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_LOG_BYTES:
            raise UserError(f"{path}: {too_large(size)}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the train.log of a run"
        ) from None


def too_large(size: int) -> str:
    return f"expected a training log of at most {MAX_LOG_BYTES:,} bytes, found {size:,}"


# --- The embedded source of a native log ---


def _take_source(log: Log, raw: bytes) -> bytes:
    """Take the embedded source out of a native log, leaving as many blank lines.

    The stated length delimits the source, not the end marker, which the source itself may contain.
    The stated sha256 says which undoing of colour, CRLF and rank prefixes restores the original.
    """
    stated = None
    candidates = _undamaged(raw)
    for text in candidates:
        begin = SOURCE_BEGIN.search(text)
        if begin is None:
            continue
        stated = begin
        end = begin.end() + int(begin["bytes"])
        body = text[begin.end() : end]
        if end <= len(text) and sha256_of(body) == begin["sha256"].decode():
            log.source = body
            _state_source(log, begin)
            return text[: begin.end()] + b"\n" * body.count(b"\n") + text[end:]
    if stated is None:
        log.problems.append(
            "no embedded source: expected '===== source train_gpt.py bytes:N sha256:HEX ====='"
        )
        return candidates[-1]
    return _skip_broken_source(log, stated)


def _undamaged(raw: bytes) -> list[bytes]:
    """What the log may have been before a terminal or a launcher changed it."""
    no_colour = ANSI.sub(b"", raw)
    plain = no_colour.replace(b"\r\n", b"\n")
    return [raw, raw.replace(b"\r\n", b"\n"), no_colour, plain, RANK_PREFIX.sub(b"", plain)]


def _state_source(log: Log, begin: re.Match[bytes]) -> None:
    """Keep hash and size of the source that follows a header."""
    text = begin.string
    line = text.count(b"\n", 0, begin.end())
    header = begin[0].decode("utf-8", "replace").strip()
    size = int(begin["bytes"])
    log.state("source.sha256", begin["sha256"].decode(), line, header)
    log.state("source.bytes", str(size), line, header)
    if not text[begin.end() + size :].lstrip(b"\r\n").startswith(SOURCE_END):
        log.problems.append(
            f"the source that begins at line {line} is not followed by '{SOURCE_END.decode()}'"
        )


def _skip_broken_source(log: Log, header: re.Match[bytes]) -> bytes:
    """The log without a source that is not the one its header states."""
    text = header.string
    promised = f"{int(header['bytes']):,} bytes with sha256 {header['sha256'].decode()[:12]}…"
    log.problems.append(f"the embedded source is not the {promised} that its header states")
    begin = header.end()
    ends = list(SOURCE_END_LINE.finditer(text, begin))
    if not ends:
        log.problems.append("truncated: the embedded source has no end")
        return text[:begin]
    end = ends[-1].start()
    return text[:begin] + b"\n" * text.count(b"\n", begin, end) + text[end:]


def _settle_steps(log: Log) -> list[Step]:
    """Steps in order. A line written by several ranks counts once.

    Two different values for one step are a contradiction.
    """
    if _in_order(log.steps):
        return log.steps
    seen: dict[tuple[int, bool], Step] = {}
    nothing = (None, None)
    complaints = log.problems if log.native else log.doubts
    for step in log.steps:
        known = seen.setdefault((step.step, step.val_loss is None), step)
        both_stated = nothing not in (step.losses, known.losses)
        if both_stated and known.losses != step.losses:
            pair = f"lines {known.line} and {step.line}"
            complaints.append(
                f"{pair} give different losses for step {step.step}: more than one run in this log"
            )
    return sorted(seen.values(), key=lambda step: (step.step, step.val_loss is not None))


def _in_order(steps: list[Step]) -> bool:
    last = -1
    for step in steps:
        if step.step <= last:
            return False
        last = step.step
    return True
