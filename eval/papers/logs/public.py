"""The public dialect: logs of the contest's scripts, which print what their authors liked."""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from eval.papers.logs.lines import parse_step
from eval.papers.logs.log import Fact, Log, LoggedScore, Phase
from eval.papers.logs.values import NUMBER, integer_of, number_of, seconds

# In characters. Lines that state a result are far shorter, and a pattern may need time that grows
# with the square of the length.
MAX_LINE = 2000


def compiled(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(map(re.compile, patterns))


# Patterns of each fact, whose first group is the value. `env.*` and `result.*` are the native
# names, so that the checks need one vocabulary.
PUBLIC_PATTERNS = {
    "result.seed": compiled(r"^\s*seed:\s*(\d+)\b"),
    "env.world_size": compiled(r"\bworld_size:\s*(\d+)"),
    "env.torch": compiled(r"^Running PyTorch (\S+)"),
    "env.python": compiled(r"^Running Python (\d[\w.]*)"),
    "env.driver": compiled(r"Driver Version:\s*(\S+)"),
    "env.cuda": compiled(r"CUDA Version:\s*([\d.]+)"),
    "env.gpu": compiled(r"^\|\s+\d+\s+(NVIDIA .*?)\s+(?:On|Off)\s+\|"),
    "model.parameters": compiled(r"^model_params:\s*(\d+)"),
    "data.val_tokens": compiled(r"^val_loader:.*\btokens:\s*(\d+)", r"^val_tokens:\s*(\d+)"),
    "data.train_files": compiled(r"\btrain_shards:\s*(\d+)"),
    "data.dataset": compiled(
        r"^train_loader:dataset:(\S+)", r"^\s*datasets_dir:\s*\S*/([^/\s]+)/?$"
    ),
    "data.tokenizer": compiled(r"\btokenizer_path[=:]\s*(\S+)"),
    "config.max_wallclock_seconds": compiled(r"\bmax_wallclock_seconds:\s*([\d.]+)"),
    "result.code_bytes": compiled(r"^Code size(?: \(uncompressed\))?: (\d+) bytes"),
    "result.code_bytes_packed": compiled(r"^Code size \(compressed\): (\d+) bytes"),
    "result.artifact_bytes": compiled(r"^Serialized model (?!int8\+zlib \(|: )\S+: (\d+) bytes"),
    "result.peak_mib": compiled(r"^peak memory allocated: (\d+) MiB"),
}
STOP = re.compile(r"^stopping_early:.*\btrain_time:\s*(\d+)ms step:\s*(\d+)/(\d+)")
TOTAL = re.compile(r"^Total submission size (\S+): (\d+) bytes")
EXCEPTION = "Traceback (most recent call last)"
VAL_BPB = re.compile(rf"\bval_bpb:\s*({NUMBER})(?=\s|$|,)")
VAL_LOSS = re.compile(rf"\bval_loss:\s*({NUMBER})(?=\s|$|,)")
EVAL_TIME = re.compile(r"\beval_time:\s*(\d+(?:\.\d+)?(?:ms|s|m)?)")
TIMED_END = re.compile(rf"(?<![\w.+-])(?P<seconds>{NUMBER})s\)?$")
TIMED_WORD = re.compile(r"\b(?:done|calibrated|collected|took)\b")
RULER = re.compile(r"^={40,}$")
CODE_HEAD = re.compile(r"^(?:import |from \w+|\"\"\"|'''|#|@|def |class )")
CODE_NODES = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
# A source dump stands near the top, has few rulers inside and more than a few lines.
MOST_RULERS = 6
FEWEST_CODE_LINES = 3
SAME_BPB = 5.1e-5  # bits per byte: equal to the 4 decimals that every script prints


# --- Source dumps ---


def without_public_source(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Drop a source dump: public scripts write their code between rulers of `=`.

    Whatever between two rulers parses as Python is code. A ruler inside a docstring belongs to the
    code, so the longest stretch that parses counts.
    """
    rulers = [i for i, (_, text) in enumerate(lines) if RULER.match(text)]
    bounds = [-1, *rulers, len(lines)]
    for i in range(min(len(bounds) - 1, MOST_RULERS)):
        start = _code_start(lines, bounds[i] + 1)
        if start is None:
            break
        for end in reversed(bounds[i + 1 : i + 1 + MOST_RULERS]):
            long_enough = end - start >= FEWEST_CODE_LINES
            if long_enough and end < len(lines) and _is_python(lines[start:end]):
                return lines[:start] + lines[end:]
    return lines


def _code_start(lines: list[tuple[int, str]], first: int) -> int | None:
    """Index of the first line from `first` on that could begin a script."""
    for i in range(first, len(lines)):
        if CODE_HEAD.match(lines[i][1]):
            return i
    return None


def _is_python(lines: list[tuple[int, str]]) -> bool:
    try:
        tree = ast.parse("\n".join(text for _, text in lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, CODE_NODES) for node in tree.body)


# --- Lines ---


@dataclass
class PublicReading:
    """A public log while it is read. `stage` is `train`, `export` or `eval`."""

    log: Log
    stage: str = "train"
    gpus: set[str] = field(default_factory=set)


def parse_public(log: Log, lines: list[tuple[int, str]]) -> None:
    """Read clean lines into the log. A missing final score becomes a problem of the log."""
    reading = PublicReading(log)
    for number, text in lines:
        if len(text) <= MAX_LINE:
            _read_line(reading, number, text)
    if reading.gpus:
        named = log.facts["env.gpu"]
        log.state("env.gpus", str(len(reading.gpus)), named.line, named.text)
    if log.final is None:
        log.problems.append(
            "truncated: no score was printed after training (no val_bpb outside the step lines)"
        )
    else:
        _state_eval_time(log, log.final)


def _read_line(reading: PublicReading, number: int, text: str) -> None:
    """A step line states nothing else. Any other line may state facts and one event."""
    step = parse_step(number, text)
    if step is not None:
        reading.log.steps.append(step)
        return
    reading.log.lines.append((number, text))
    _read_facts(reading, number, text)
    for read in LINE_READERS:
        if read(reading, number, text):
            return


def _read_facts(reading: PublicReading, number: int, text: str) -> None:
    for name, patterns in PUBLIC_PATTERNS.items():
        for pattern in patterns:
            match = pattern.search(text)
            if match is None:
                continue
            if name == "env.gpu":
                reading.gpus.add(text.split()[1])  # the GPU's index in the table of nvidia-smi
            reading.log.state(name, match[1], number, text)


# --- Readers of one kind of event each: whether the line was of that kind ---


def _read_stop(reading: PublicReading, number: int, text: str) -> bool:
    match = STOP.match(text)
    if match is None:
        return False
    reading.log.state("result.train_s", f"{float(match[1]) / 1000}", number, text)
    reading.log.state("result.steps", match[2], number, text)
    reading.stage = "export"
    return True


def _read_total(reading: PublicReading, number: int, text: str) -> bool:
    """The smallest total is what was shipped.

    Several may be printed: one for each compression that was tried, and under several names.
    """
    match = TOTAL.match(text)
    if match is None:
        return False
    total = integer_of(match[2])
    known = reading.log.integer("result.bytes_total")
    if total is not None and (known is None or total < known):
        reading.log.facts["result.bytes_total"] = Fact(match[2], number, text)
    reading.stage = "eval"
    return True


def _read_exception(reading: PublicReading, number: int, text: str) -> bool:
    if not text.startswith(EXCEPTION):
        return False
    reading.log.problems.append(f"line {number}: the run raised an exception")
    return True


def _read_score(reading: PublicReading, number: int, text: str) -> bool:
    match = VAL_BPB.search(text)
    if match is None:
        return False
    bpb = number_of(match[1])
    if bpb is None:
        reading.log.problems.append(f"line {number}: val_bpb is no finite number")
        return True
    loss = VAL_LOSS.search(text)
    time = EVAL_TIME.search(text)
    begins = [match.start()] if loss is None else [match.start(), loss.start()]
    score = LoggedScore(
        label=text[: min(begins)].strip(" :"),
        val_bpb=bpb,
        val_loss=number_of(loss[1]) if loss else None,
        eval_s=seconds(time[1]) if time else None,
        decimals=len(match[1].partition(".")[2]),
        line=number,
        text=text,
    )
    reading.log.scores.append(score)
    if score.eval_s is not None and reading.stage != "train":
        phase = Phase(score.label, score.eval_s, reading.stage, number, text)
        reading.log.phases.append(phase)
    return True


def _read_phase(reading: PublicReading, number: int, text: str) -> bool:
    """A line like `compression done in 98.7s`, after training."""
    match = TIMED_END.search(text)
    if match is None or reading.stage == "train":
        return False
    what = text[: match.start()]
    spent = number_of(match["seconds"])
    if spent is None or not TIMED_WORD.search(what):
        return False
    name = what.removesuffix("in ").strip(" (:")
    reading.log.phases.append(Phase(name, spent, reading.stage, number, text))
    return True


LINE_READERS: tuple[Callable[[PublicReading, int, str], bool], ...] = (
    _read_stop,
    _read_total,
    _read_exception,
    _read_score,
    _read_phase,
)


def _state_eval_time(log: Log, final: LoggedScore) -> None:
    """The evaluation time is that of the last timed line with the final score."""
    for score in reversed(log.scores):
        if score.eval_s is not None and abs(score.val_bpb - final.val_bpb) < SAME_BPB:
            log.state("result.eval_s", f"{score.eval_s:g}", score.line, score.text)
            return
