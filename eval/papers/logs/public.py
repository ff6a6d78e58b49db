"""The public dialect: logs of the contest's scripts, which print what their authors liked."""

import bisect
import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from eval.papers.logs.lines import parse_step
from eval.papers.logs.log import RESULT_LABEL, Fact, Log, LoggedScore, Phase
from eval.papers.logs.values import NUMBER, integer_of, number_of, seconds

# In characters. Lines that state a result are far shorter, and a pattern may need time that grows
# with the square of the length.
MAX_LINE = 2000


@dataclass(frozen=True)
class Pattern:
    """Where a fact stands: the first group is its value. Only lines with `word` are searched."""

    fact: str
    word: str
    expression: re.Pattern[str]


def pattern(fact: str, word: str, expression: str) -> Pattern:
    return Pattern(fact, word, re.compile(expression))


# `env.*` and `result.*` are the native names, so that the checks need one vocabulary.
PUBLIC_PATTERNS = (
    pattern("result.seed", "seed", r"^\s*seed:\s*(\d+)\b"),
    pattern("env.world_size", "world_size", r"\bworld_size[:=]\s*(\d+)"),
    pattern("env.torch", "Running PyTorch", r"^Running PyTorch (\S+)"),
    pattern("env.python", "Running Python", r"^Running Python (\d[\w.]*)"),
    pattern("env.driver", "Driver Version", r"Driver Version:\s*(\S+)"),
    pattern("env.cuda", "CUDA Version", r"CUDA Version:\s*([\d.]+)"),
    pattern("env.gpu", "NVIDIA", r"^\|\s+\d+\s+(NVIDIA .*?)\s+(?:On|Off)\s+\|"),
    pattern("model.parameters", "params", r"^(?:model_params|params|n_params)[:=]\s*(\d+)"),
    pattern("data.val_tokens", "tokens", r"^val_loader:.*\btokens:\s*(\d+)"),
    pattern("data.val_tokens", "val_tokens", r"^val_tokens:\s*(\d+)"),
    pattern("data.train_files", "train_shards", r"\btrain_shards:\s*(\d+)"),
    pattern("data.dataset", "train_loader", r"^train_loader:dataset:(\S+)"),
    pattern("data.dataset", "datasets_dir", r"^\s*datasets_dir:\s*\S*/([^/\s]+)/?$"),
    pattern("data.tokenizer", "tokenizer_path", r"\btokenizer_path[=:]\s*(\S+)"),
    pattern(
        "config.max_wallclock_seconds",
        "max_wallclock_seconds",
        r"\bmax_wallclock_seconds:\s*([\d.]+)",
    ),
    pattern("config.iterations", "iterations", r"\biterations:\s*(\d+)"),
    pattern("config.train_seq_len", "train_seq_len", r"^train_batch_.*\btrain_seq_len:\s*(\d+)"),
    pattern("config.train_batch_tokens", "train_batch", r"\btrain_batch_tokens:\s*(\d+)"),
    pattern("result.code_bytes", "Code size", r"^Code size(?: \(uncompressed\))?: (\d+) bytes"),
    pattern("result.code_bytes_packed", "Code size", r"^Code size \(compressed\): (\d+) bytes"),
    pattern("result.peak_mib", "peak memory", r"^peak memory allocated: (\d+) MiB"),
)
# A seed that stands in another line, where no line of its own states one.
LOOSE_SEED = re.compile(r"(?:^|\s)(?:seed|SEED)\s?[:=]\s?(\d{1,12})(?=[\s,;]|$)")
STOP = re.compile(r"^stopping_early\b.*?\btrain_time[^:]*:\s*(\d+)ms step:\s*(\d+)/(\d+)")
TOTAL = re.compile(r"^Total submission size(?: (\S+))?: (\d+) bytes")
ARTIFACT = re.compile(r"^Serialized model (?!int8\+zlib \(|: )(\S+): (\d+) bytes")
EXCEPTION = "Traceback (most recent call last)"
# A script may print its path behind the number without a line break.
NUMBER_END = r"(?=[\s,;)\]|]|logs/|$)"
BPB = re.compile(rf"bpb\s?[:=]\s*({NUMBER}){NUMBER_END}")
VAL_LOSS = re.compile(rf"(?<![\w])(?:val_loss|vl)\s?[:=]\s*({NUMBER}){NUMBER_END}")
EVAL_TIME = re.compile(r"\beval_time:\s*(\d+(?:\.\d+)?(?:ms|s|m)?)")
# The same on a line of its own, for one evaluation or for all of them.
EVAL_CLOCK = re.compile(
    r"\b(?P<name>(?:total_|final_)?eval_(?:time|seconds))\s?[:=]\s*"
    r"(?P<time>\d{1,12}(?:\.\d+)?(?:ms|s|m)?)(?![\w.])"
)
LONGEST_BARE_TIME = 20_000  # a larger number without a unit is hardly one of seconds
SEED_IN_LABEL = re.compile(r"\bseed[ =:_]?\d{1,12}", re.IGNORECASE)
# A share of the text in percent, or a part of so many, but never all of it.
SHARE = r"(?<![\d.])(?!100(?:\.0*)?\s?%)\d[\d.]*\s?%"
PART_IN_BRACKETS = r"\[\s*\d[\d.]*\s*/"
# A score of a part of the text, while it is scored.
PROGRESS = re.compile(rf"{SHARE}|{PART_IN_BRACKETS}|running|progress|\b\w*chunk\b|(?<!\d)\d+/\d+ ")
# What shows it even in a line that begins as a result does.
PROGRESS_OF_RESULT = re.compile(rf"\[\s*(?:{SHARE})|{PART_IN_BRACKETS}")
# A format string that was never filled in: source.
UNFILLED = re.compile(r"\{[A-Za-z_][\w.]*(?:[\[(][^{}]*)?(?::[^{}]*)?\}")
TIMED_END = re.compile(rf"(?<![\w.+-])(?P<seconds>{NUMBER})s\)?$")
TIMED_WORDS = ("done", "calibrated", "collected", "took")
TIMED_WORD = re.compile(rf"\b(?:{'|'.join(TIMED_WORDS)})\b")
NO_RUN = "holds no run: neither training steps nor a val_bpb"
SAME_BPB = 5.1e-5  # bits per byte: equal to the 4 decimals that every script prints


@dataclass
class PublicReading:
    """A public log while it is read. `stage` is `train`, `export` or `eval`.

    `artifacts` are the compressed models that the log states, by the name of the compression,
    `exceptions` the lines that begin a traceback: what follows them may still be a score, and
    `progress` the lines with a score of a part of the text.
    """

    log: Log
    stage: str = "train"
    gpus: set[str] = field(default_factory=set)
    artifacts: dict[str, Fact] = field(default_factory=dict)
    total_label: str | None = None
    exceptions: list[int] = field(default_factory=list)
    progress: list[int] = field(default_factory=list)


# Whether a line was of the reader's kind.
Reader = Callable[[PublicReading, int, str], bool]


def parse_public(log: Log, lines: list[tuple[int, str]]) -> None:
    """Read clean lines into the log. A missing final score becomes a problem of the log."""
    reading = PublicReading(log)
    log.lines = []
    for number, text in lines:
        step = parse_step(number, text)
        if step is not None:
            log.steps.append(step)
        else:
            log.lines.append((number, text))
    for i, readers in sorted(_telling_lines([text for _, text in log.lines]).items()):
        number, text = log.lines[i]
        if len(text) <= MAX_LINE and not ("{" in text and UNFILLED.search(text)):
            _read_line(reading, readers, number, text)
    _settle(reading)


def _telling_lines(texts: list[str]) -> dict[int, list[Reader]]:
    """The readers of each line that holds one of their words, by its index.

    A search through the whole log is far quicker than one through each line.
    """
    whole = "\n".join(texts)
    ends = list(itertools.accumulate(len(text) + 1 for text in texts))
    readers: dict[int, list[Reader]] = {}
    for word, reader in READERS:
        place = whole.find(word)
        while place >= 0:
            i = bisect.bisect_right(ends, place)
            readers.setdefault(i, []).append(reader)
            place = whole.find(word, ends[i])
    return readers


def _settle(reading: PublicReading) -> None:
    """State what only the whole log tells."""
    log = reading.log
    if reading.gpus:
        named = log.facts["env.gpu"]
        log.state("env.gpus", str(len(reading.gpus)), named.line, named.text)
    artifacts = list(reading.artifacts.values())
    if artifacts:
        chosen = reading.artifacts.get(reading.total_label, artifacts[-1])
        log.state("result.artifact_bytes", chosen.value, chosen.line, chosen.text)
    if "result.seed" not in log.facts:
        _state_loose_seed(log)
    if "result.train_s" not in log.facts:
        _state_last_step(log)
    for number in reading.exceptions:
        known = log.final is not None
        complaint = f"line {number}: the run raised an exception"
        (log.doubts if known else log.problems).append(complaint)
    if log.final is None and reading.progress:
        # No truncation for certain: what looks like progress may be a result in other words.
        last = reading.progress[-1]
        told = (
            f"only progress lines state a val_bpb outside the step lines, the last is line {last}"
        )
        if log.steps:
            log.doubts.insert(0, told)
        else:
            log.problems.append(told)
    elif log.final is None and log.steps:
        log.problems.append(
            "truncated: no score was printed after training (no val_bpb outside the step lines)"
        )
    elif log.final is None:
        log.problems.append(NO_RUN)
    else:
        _state_eval_time(log, log.final)


def _state_loose_seed(log: Log) -> None:
    for number, text in log.lines:
        named = len(text) <= MAX_LINE and ("seed" in text or "SEED" in text)
        match = LOOSE_SEED.search(text) if named else None
        if match is not None and not UNFILLED.search(text):
            log.state("result.seed", match[1], number, text)
            return


def _state_last_step(log: Log) -> None:
    """Where no line says that training stopped, the clock of the last step does."""
    timed = [step for step in log.steps if step.train_s is not None]
    if timed:
        last = max(timed, key=lambda step: step.step)
        log.state("result.train_s", f"{last.train_s:.3f}", last.line, last.text)
        log.state("result.steps", str(last.step), last.line, last.text)


def _read_line(reading: PublicReading, readers: list[Reader], number: int, text: str) -> None:
    """A line may state facts and one event."""
    for read in readers:
        if read(reading, number, text):
            return


def _read_fact(entry: Pattern, reading: PublicReading, number: int, text: str) -> bool:
    """A line with a fact may still hold others, and an event."""
    match = entry.expression.search(text)
    if match is not None:
        if entry.fact == "env.gpu":
            reading.gpus.add(text.split()[1])  # the GPU's index in the table of nvidia-smi
        reading.log.state(entry.fact, match[1], number, text)
    return False


# --- Readers of one kind of event each: whether the line was of that kind ---


def _read_stop(reading: PublicReading, number: int, text: str) -> bool:
    match = STOP.match(text)
    if match is None:
        return False
    log = reading.log
    known = log.number("result.train_s")
    spent = float(match[1]) / 1000
    log.state("result.train_s", f"{spent}", number, text)
    log.state("result.steps", match[2], number, text)
    if known is not None and spent > known:
        log.facts["result.train_s"] = Fact(f"{spent}", number, text)
        log.facts["result.steps"] = Fact(match[2], number, text)
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
        reading.total_label = match[1]
    reading.stage = "eval"
    return True


def _read_artifact(reading: PublicReading, number: int, text: str) -> bool:
    match = ARTIFACT.match(text)
    if match is None:
        return False
    reading.artifacts[match[1]] = Fact(match[2], number, text)
    return True


def _read_exception(reading: PublicReading, number: int, text: str) -> bool:
    if not text.startswith(EXCEPTION):
        return False
    reading.exceptions.append(number)
    return True


def _read_score(reading: PublicReading, number: int, text: str) -> bool:
    found = _bits_per_byte(text)
    if found is None:
        return False
    begin, figure = found
    if _is_progress(text):
        reading.progress.append(number)
        return True
    bpb = number_of(figure)
    if bpb is None:
        reading.log.problems.append(f"line {number}: val_bpb is no finite number")
        return True
    loss = VAL_LOSS.search(text)
    time = EVAL_TIME.search(text)
    label_end = begin if loss is None else min(begin, loss.start())
    score = LoggedScore(
        label=SEED_IN_LABEL.sub("seed", text[:label_end].strip(" :=|,([-")),
        val_bpb=bpb,
        val_loss=number_of(loss[1]) if loss else None,
        eval_s=seconds(time[1]) if time else None,
        decimals=len(figure.partition(".")[2]),
        line=number,
        text=text,
        stage=reading.stage,
    )
    reading.log.scores.append(score)
    if score.eval_s is not None and reading.stage != "train":
        phase = Phase(score.label, score.eval_s, reading.stage, number, text)
        reading.log.phases.append(phase)
    return True


def _is_progress(text: str) -> bool:
    """Whether a line with a score is of a part of the text; results may quote any setting."""
    result = RESULT_LABEL.match(text) is not None
    return (PROGRESS_OF_RESULT if result else PROGRESS).search(text) is not None


def _bits_per_byte(text: str) -> tuple[int, str] | None:
    """Where `val_bpb` or `bpb` begins, and its number; None where no word is one of the two."""
    for match in BPB.finditer(text):
        prefix = "val_" if text.endswith("val_", 0, match.start()) else ""
        begin = match.start() - len(prefix)
        before = text[begin - 1 : begin]
        if not (before.isalnum() or before == "_"):
            return begin, match[1]
    return None


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


def _read_eval_clock(reading: PublicReading, number: int, text: str) -> bool:
    """A line like `total_eval_time:312.3s`; one during training times a validation."""
    match = EVAL_CLOCK.search(text)
    steps = reading.log.steps
    if match is None or (reading.stage == "train" and steps and number < steps[-1].line):
        return False
    spent = seconds(match["time"])
    bare = match["time"][-1].isdigit()
    if spent is None or (bare and spent > LONGEST_BARE_TIME):
        return False
    reading.log.phases.append(Phase(match["name"], spent, "eval", number, text))
    return True


# Readers by a word that every line holds which they may take, facts before events.
READERS: tuple[tuple[str, Reader], ...] = (
    *((entry.word, functools.partial(_read_fact, entry)) for entry in PUBLIC_PATTERNS),
    ("stopping_early", _read_stop),
    ("Total submission size", _read_total),
    ("Serialized model", _read_artifact),
    ("Traceback", _read_exception),
    ("bpb", _read_score),
    ("eval_time", _read_eval_clock),
    ("eval_seconds", _read_eval_clock),
    *((word, _read_phase) for word in TIMED_WORDS),
)


def _state_eval_time(log: Log, final: LoggedScore) -> None:
    """The evaluation time is that of the last timed line with the final score."""
    for score in reversed(log.scores):
        if score.eval_s is not None and abs(score.val_bpb - final.val_bpb) < SAME_BPB:
            log.state("result.eval_s", f"{score.eval_s:g}", score.line, score.text)
            return
