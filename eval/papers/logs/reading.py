"""Training logs as evidence: every value read from a log keeps the line that states it.

Two dialects. *Native* logs start with `log_format:1`, embed their source byte for byte and end with one `result` line. *Public* logs are
those of the contest's scripts, which print what their authors liked; they are searched for the terms that all of them share (`val_bpb`,
`Code size`, …). Both arrive damaged: written by several ranks at once, coloured, with CRLF, cut short, with source code inside that
contains lines that look like results. Line order carries no meaning in a native log, so interleaving cannot change what is read;
contradictions are reported, never resolved.
"""

import re
from pathlib import Path

from eval.errors import UserError
from eval.files import sha256_of
from eval.papers.logs.lines import ANSI, RANK_PREFIX, split_lines
from eval.papers.logs.log import Log, Step
from eval.papers.logs.native import parse_native
from eval.papers.logs.public import parse_public, without_public_source

LOG_MARK = "log_format:1"
MAX_LOG_BYTES = 64 * 2**20  # the largest public log is 0.2 MB; more is no training log

SOURCE_BEGIN = re.compile(
    rb"(?m)^===== source (?P<name>\S+) bytes:(?P<bytes>\d{1,12}) sha256:(?P<sha256>[0-9a-f]{64}) =====[ \t\r]*\n"
)

SOURCE_END = b"===== end source ====="

# Only where the source's stated length is of no use: the marker counts if the line that must follow it does.
SOURCE_END_LINE = re.compile(rb"\n===== end source =====[ \t\r]*\n(?=env )")


def parse_log(path: Path) -> Log:
    """Read a log of either dialect. Damage is listed in `problems`, never guessed around.

    Raises UserError when the file is missing, unreadable or larger than 64 MiB."""
    try:
        size = path.stat().st_size
        if size > MAX_LOG_BYTES:
            raise UserError(
                f"{path}: expected a training log of at most {MAX_LOG_BYTES:,} bytes, found {size:,}"
            )
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the train.log of a run"
        ) from None
    log = Log(path, sha256_of(raw))
    plain = raw.replace(b"\r\n", b"\n")
    lead = ANSI.sub(b"", RANK_PREFIX.sub(b"", ANSI.sub(b"", plain[:4096])))
    log.native = re.search(rb"(?m)^log_format:1\s*$", lead) is not None
    rest = _cut_source(log, raw) if log.native else plain
    lines = split_lines(rest)
    if log.native:
        parse_native(log, lines)
    else:
        parse_public(log, without_public_source(lines))
    log.steps = _settle_steps(log)
    return log


def _cut_source(log: Log, raw: bytes) -> bytes:
    """Take the embedded source out of a native log, leaving as many blank lines. The stated length delimits it, not the end marker, which
    the source itself may contain; the stated sha256 says which undoing of colour, CRLF and rank prefixes gives the original back."""
    no_colour = ANSI.sub(b"", raw)
    candidates = [raw, raw.replace(b"\r\n", b"\n"), no_colour, no_colour.replace(b"\r\n", b"\n")]
    candidates.append(RANK_PREFIX.sub(b"", candidates[-1]))
    stated = None
    for text in candidates:
        begin = SOURCE_BEGIN.search(text)
        if begin is None:
            continue
        stated, length = begin, int(begin["bytes"])
        body = text[begin.end() : begin.end() + length]
        if len(body) == length and sha256_of(body) == begin["sha256"].decode():
            log.source = body
            head = text[: begin.end()]
            line = head.count(b"\n")
            log.state(
                "source.sha256",
                begin["sha256"].decode(),
                line,
                begin[0].decode("utf-8", "replace").strip(),
            )
            log.state(
                "source.bytes", str(length), line, begin[0].decode("utf-8", "replace").strip()
            )
            if not text[begin.end() + length :].lstrip(b"\r\n").startswith(SOURCE_END):
                log.problems.append(
                    f"the source that begins at line {line} is not followed by '{SOURCE_END.decode()}'"
                )
            return head + b"\n" * body.count(b"\n") + text[begin.end() + length :]
    if stated is None:
        log.problems.append(
            "no embedded source: expected '===== source train_gpt.py bytes:N sha256:HEX ====='"
        )
        return candidates[-1]
    text = stated.string
    promised = f"{int(stated['bytes']):,} bytes with sha256 {stated['sha256'].decode()[:12]}…"
    log.problems.append(f"the embedded source is not the {promised} that its header states")
    ends = list(SOURCE_END_LINE.finditer(text, stated.end()))
    if not ends:
        log.problems.append("truncated: the embedded source has no end")
        return text[: stated.end()]
    begin, end = stated.end(), ends[-1].start()
    return text[:begin] + b"\n" * text.count(b"\n", begin, end) + text[end:]


def _settle_steps(log: Log) -> list[Step]:
    """Steps in order; a line written by several ranks counts once, two different values for one step are a contradiction."""
    seen: dict[tuple[int, bool], Step] = {}
    for step in log.steps:
        known = seen.setdefault((step.step, step.val_loss is None), step)
        complete = (step.train_loss, step.val_loss) != (None, None) and (
            known.train_loss,
            known.val_loss,
        ) != (None, None)
        if complete and (known.train_loss, known.val_loss) != (step.train_loss, step.val_loss):
            pair = f"lines {known.line} and {step.line}"
            log.problems.append(
                f"{pair} give different losses for step {step.step}: more than one run in this log"
            )
    return sorted(seen.values(), key=lambda step: (step.step, step.val_loss is not None))
