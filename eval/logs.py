"""Training logs as evidence: every value read from a log keeps the line that states it.

Two dialects. *Native* logs start with `log_format:1`, embed their source byte for byte and end with one `result` line. *Public* logs are
those of the contest's scripts, which print what their authors liked; they are searched for the terms that all of them share (`val_bpb`,
`Code size`, …). Both arrive damaged: written by several ranks at once, coloured, with CRLF, cut short, with source code inside that
contains lines that look like results. Line order carries no meaning in a native log, so interleaving cannot change what is read;
contradictions are reported, never resolved.
"""

import ast
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from eval.errors import UserError
from eval.schema import Data, Environment, SeedResult

LOG_MARK = "log_format:1"
MAX_LOG_BYTES = 64 * 2**20  # the largest public log is 0.2 MB; more is no training log
MAX_LINE = 2000  # characters; lines that state a result are far shorter, and patterns may take the square of the length

ANSI = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
RANK_PREFIX = re.compile(rb"(?m)^\[(?:rank|default)?\d+\]:[ ]?")
RANK_BREAK = re.compile(r"\[(?:rank|default)\d+\]:\s?")
SOURCE_BEGIN = re.compile(
    rb"(?m)^===== source (?P<name>\S+) bytes:(?P<bytes>\d{1,12}) sha256:(?P<sha256>[0-9a-f]{64}) =====[ \t\r]*\n"
)
SOURCE_END = b"===== end source ====="
# Only where the source's stated length is of no use: the marker counts if the line that must follow it does.
SOURCE_END_LINE = re.compile(rb"\n===== end source =====[ \t\r]*\n(?=env )")
TOKEN = re.compile(r'(?<![\w/.-])([A-Za-z_][\w/.-]*):[ \t]*("(?:[^"\\]|\\.)*"|\S+)')
NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
DURATION = re.compile(rf"({NUMBER})(ms|s|m)?$")
STEP = re.compile(r"(?:step:\s*)?(\d{1,12})/(\d{1,12})\s+(?=(?:train|val)_(?:loss|bpb):)")
# Two writers without a newline between them: a step or result line may begin in the middle of another one.
BREAK = re.compile(
    rf"(?<!^)(?=step:\d+/\d+ (?:train|val)_loss:)|(?<!^)(?=result val_loss:{NUMBER} )"
)
UNBROKEN = ("config:", "config ", "env ", "data ")  # quoted values of these may hold anything

RESULT_TYPES = {
    "val_loss": float,
    "val_bpb": float,
    "nats": float,
    "scored_tokens": int,
    "scored_bytes": int,
    "steps": int,
    "train_s": float,
    "eval_s": float,
    "artifact_bytes": int,
    "code_bytes": int,
    "bytes_total": int,
    "code_sha256": str,
    "seed": int,
}
# Smallest value that each count can have.
COUNTS = dict.fromkeys(
    (
        "data.val_tokens",
        "data.val_bytes",
        "data.train_tokens",
        "result.scored_tokens",
        "result.scored_bytes",
    ),
    1,
)
COUNTS |= dict.fromkeys(("data.train_files", "env.world_size", "env.cores"), 1)
COUNTS |= dict.fromkeys(
    (
        "result.steps",
        "result.seed",
        "result.artifact_bytes",
        "result.code_bytes",
        "result.bytes_total",
        "artifact.bytes",
    ),
    0,
)
COUNTS |= dict.fromkeys(("result.code_bytes_packed", "model.parameters", "env.gpus"), 0)
MEASURES = {
    f"{head}{name}"
    for head in ("result.", "neural.", "final.pre_quant_")
    for name in ("val_loss", "val_bpb")
}
MEASURES |= {"result.nats", "result.train_s", "result.eval_s", "config.max_wallclock_seconds"}
NATIVE_HEADS = ("env", "data", "model", "artifact", "neural", "final", "result")


@dataclass(frozen=True)
class Fact:
    """A value and the line that states it (1-based; text without colour codes)."""

    value: str
    line: int
    text: str


@dataclass(frozen=True)
class Step:
    """One training-log point. Losses in nats per token, bpb in bits per byte, time in seconds since the clock started."""

    step: int
    of: int
    line: int
    text: str
    train_loss: float | None = None
    val_loss: float | None = None
    val_bpb: float | None = None
    train_s: float | None = None


@dataclass(frozen=True)
class Score:
    """A whole-set score printed after training. `label` is what the script calls it."""

    label: str
    val_bpb: float
    val_loss: float | None
    eval_s: float | None
    decimals: int
    line: int
    text: str

    @property
    def named_result(self) -> bool:
        return RESULT_LABEL.match(self.label) is not None

    def same_as(self, other: "Score") -> bool:
        """Equal bpb to the digits that both print."""
        return abs(self.val_bpb - other.val_bpb) <= 0.51 * 10.0 ** -min(
            self.decimals, other.decimals
        )


@dataclass(frozen=True)
class Phase:
    """A timed phase outside the training clock. Stage `export` lies before the artifact's size is printed, `eval` after it."""

    name: str
    seconds: float
    stage: str
    line: int
    text: str


@dataclass
class Log:
    path: Path
    sha256: str
    native: bool = False
    source: bytes | None = None
    facts: dict[str, Fact] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    resumes: list[Fact] = field(
        default_factory=list
    )  # where an interrupted run went on from a checkpoint; the value is its step
    problems: list[str] = field(default_factory=list)

    def text(self, name: str) -> str | None:
        """Value of a fact; the log's `none` reads as None."""
        fact = self.facts.get(name)
        return None if fact is None or fact.value == "none" else fact.value

    def number(self, name: str) -> float | None:
        return _float(self.text(name))

    def integer(self, name: str) -> int | None:
        return _integer(self.text(name))

    @property
    def seed(self) -> int | None:
        return self.integer("result.seed")

    @property
    def final(self) -> Score | None:
        """The score that the log ends on: the last one named a result or printed with a loss or a time, else the last val_bpb."""
        scores = sorted(self.scores, key=lambda score: score.line)
        measured = [
            s for s in scores if s.named_result or s.val_loss is not None or s.eval_s is not None
        ]
        return (measured or scores or [None])[-1]

    @property
    def candidates(self) -> list[Score]:
        """The last score named a result and the later ones that differ from it (a comparison, a minimum, one more kind of scoring). Where
        there are two or more, the log does not say which one is its result."""
        scores = sorted(self.scores, key=lambda score: score.line)
        start = next((i for i in reversed(range(len(scores))) if scores[i].named_result), None)
        if start is None:
            start = scores.index(self.final) if scores else 0
        found = scores[start : start + 1]
        for score in scores[start + 1 :]:
            if not any(score.same_as(other) for other in found):
                found.append(score)
        return found

    @property
    def ambiguous(self) -> bool:
        return len(self.candidates) > 1

    def _state(self, name: str, value: str, line: int, text: str) -> None:
        """Keep a fact; checks may rely on numbers being numbers. A second, different value for it is a contradiction."""
        if (complaint := _implausible(name, value)) is not None:
            self.problems.append(f"line {line}: {name} is {complaint}, found {value[:40]!r}")
            return
        known = self.facts.setdefault(name, Fact(value, line, text))
        if known.value != value:
            self.problems.append(
                f"line {line} says {name} = {value}, line {known.line} says {known.value}"
            )


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
    log = Log(path, hashlib.sha256(raw).hexdigest())
    plain = raw.replace(b"\r\n", b"\n")
    lead = ANSI.sub(b"", RANK_PREFIX.sub(b"", ANSI.sub(b"", plain[:4096])))
    log.native = re.search(rb"(?m)^log_format:1\s*$", lead) is not None
    rest = _cut_source(log, raw) if log.native else plain
    lines = _lines(rest)
    if log.native:
        _parse_native(log, lines)
    else:
        _parse_public(log, _without_public_source(lines))
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
        if len(body) == length and hashlib.sha256(body).hexdigest() == begin["sha256"].decode():
            log.source = body
            head = text[: begin.end()]
            line = head.count(b"\n")
            log._state(
                "source.sha256",
                begin["sha256"].decode(),
                line,
                begin[0].decode("utf-8", "replace").strip(),
            )
            log._state(
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


def _lines(text: bytes) -> list[tuple[int, str]]:
    """(line number, text) with colours and rank prefixes gone; a physical line on which several writers met gives several entries."""
    out = []
    for number, raw in enumerate(ANSI.sub(b"", text).decode("utf-8", "replace").split("\n"), 1):
        for part in raw.split("\r"):
            for piece in RANK_BREAK.split(part):
                pieces = [piece] if piece.startswith(UNBROKEN) else BREAK.split(piece)
                out += [(number, p.rstrip()) for p in pieces if p.strip()]
    return out


def _tokens(text: str) -> dict[str, str]:
    """`key:value` tokens of a line; values are bare words or JSON strings. A broken JSON string is kept as it stands."""
    out = {}
    for key, value in TOKEN.findall(text):
        if value.startswith('"'):
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                value = value.strip('"')
        out.setdefault(key, value)
    return out


def seconds(value: str) -> float | None:
    """`1234ms`, `0.8m`, `508.8s` or a bare number of seconds; None for anything else."""
    match = DURATION.match(value)
    number = _float(match[1]) if match else None
    return (
        None if number is None else number * {"ms": 1e-3, "s": 1.0, "m": 60.0, None: 1.0}[match[2]]
    )


def _float(value: str | None) -> float | None:
    """The finite number that a token is; None for anything else."""
    number = float(value) if value is not None and re.fullmatch(NUMBER, value) else math.inf
    return number if math.isfinite(number) else None


def _integer(value: str | None) -> int | None:
    """The integer that a token is, up to 18 digits: no count in a log needs more, and it fits a float's range with room to spare."""
    return int(value) if value is not None and re.fullmatch(r"[+-]?\d{1,18}", value) else None


def _implausible(name: str, value: str) -> str | None:
    """Why a value cannot be what its name says, None when it can. `none` is how a log says that there is no such thing."""
    if name in COUNTS:
        count = _integer(value)
        return (
            f"no integer from {COUNTS[name]}"
            if value != "none" and (count is None or count < COUNTS[name])
            else None
        )
    if name in MEASURES:
        measure = _float(value)
        return "no number from 0" if measure is None or measure < 0 else None
    return None


def _parse_step(number: int, text: str) -> Step | None:
    match = STEP.match(text)
    if match is None:
        return None
    tokens = {key: value.rstrip(",") for key, value in _tokens(text[match.end() :]).items()}
    return Step(
        step=int(match[1]),
        of=int(match[2]),
        line=number,
        text=text,
        train_loss=_float(tokens.get("train_loss")),
        val_loss=_float(tokens.get("val_loss")),
        val_bpb=_float(tokens.get("val_bpb")),
        train_s=seconds(tokens.get("train_time", "")),
    )


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


# --- Native logs ---


def _parse_native(log: Log, lines: list[tuple[int, str]]) -> None:
    inside_smi = False
    partial = None
    for number, text in lines:
        if text.startswith("===== nvidia-smi"):
            inside_smi = True
        elif text.startswith("===== end nvidia-smi"):
            inside_smi = False
        elif inside_smi:
            continue
        elif step := _parse_step(number, text):
            log.steps.append(step)
        elif resume := re.match(r"resume step:(\d{1,12}) ", text):
            log.resumes.append(Fact(resume[1], number, text))
        elif text.startswith("config:preset "):
            log._state("config.preset", text.split(" ", 1)[1].strip(), number, text)
        elif text.startswith("config:override "):
            override = text.removeprefix("config:override ")
            if override not in log.overrides:
                log.overrides.append(override)
        elif text.startswith("config sha256:"):
            log._state("config.sha256", text.removeprefix("config sha256:").strip(), number, text)
        elif text.startswith("result "):
            tokens = _tokens(text)
            if any(not _is(tokens.get(key), kind) for key, kind in RESULT_TYPES.items()):
                partial = (number, text)
            else:
                for key in RESULT_TYPES:
                    log._state(f"result.{key}", tokens[key], number, text)
                log.scores.append(
                    Score(
                        "result",
                        float(tokens["val_bpb"]),
                        float(tokens["val_loss"]),
                        float(tokens["eval_s"]),
                        8,
                        number,
                        text,
                    )
                )
        else:
            head = text.split(" ", 1)[0]
            if head in NATIVE_HEADS:
                for key, value in _tokens(text[len(head) :]).items():
                    log._state(f"{head}.{key}", value, number, text)
    if "result.val_bpb" not in log.facts:
        found = f"line {partial[0]} is cut: {partial[1][:80]!r}" if partial else "none"
        log.problems.append(f"truncated: expected one complete 'result …' line, found {found}")


def _is(value: str | None, kind: type) -> bool:
    read = {float: _float, int: _integer, str: lambda text: text or None}[kind]
    return read(value) is not None


def override_settings(log: Log) -> list[str]:
    """`name=value` of every override that makes a run another experiment, in log order; seed, places and checkpoints do not."""
    settings = [re.split(r" \(default ", text, maxsplit=1)[0] for text in log.overrides]
    return [
        text
        for text in settings
        if text.split("=", 1)[0] not in ("seed", "data_dir", "out", "checkpoint_every", "resume")
    ]


def other_machine(log: Log, resume: Fact) -> list[str]:
    """What a resume line says of the machine that went on, where it differs from the one that began: `gpu NVIDIA H200 after NVIDIA H100`."""
    told = _tokens(resume.text.partition(" env ")[2])
    keys = ("gpu", "gpus", "world_size", "cpu", "cores", "torch", "cuda", "python", "train_dtype")
    return [
        f"{k} {told[k]} after {log.facts[f'env.{k}'].value}"
        for k in keys
        if k in told and f"env.{k}" in log.facts and told[k] != log.facts[f"env.{k}"].value
    ]


def environment_of(log: Log) -> Environment:
    """Environment of a log of either dialect."""
    names = ("python", "torch", "cuda", "driver", "gpu", "cpu", "platform", "git_commit")
    counts = ("gpus", "cores", "world_size")
    return Environment(
        **{n: log.text(f"env.{n}") for n in names}, **{n: log.integer(f"env.{n}") for n in counts}
    )


def data_of(log: Log) -> Data:
    """Data section of a native log. Raises UserError naming the missing key."""
    text = ("corpus", "version", "dataset", "tokenizer_sha256", "manifest_sha256")
    counts = ("train_tokens", "val_tokens", "val_bytes", "train_files")
    missing = [name for name in (*text[:4], *counts) if log.text(f"data.{name}") is None]
    if missing:
        raise UserError(
            f"{log.path}: its data line lacks {', '.join(missing)}; train again with the current script"
        )
    return Data(
        **{n: log.text(f"data.{n}") for n in text}, **{n: log.integer(f"data.{n}") for n in counts}
    )


SEED_FACTS = {
    "nats": "result.nats",
    "scored_tokens": "result.scored_tokens",
    "scored_bytes": "result.scored_bytes",
    "steps": "result.steps",
    "train_s": "result.train_s",
    "eval_s": "result.eval_s",
    "parameters": "model.parameters",
    "artifact_bytes": "result.artifact_bytes",
    "artifact_sha256": "artifact.sha256",
    "bytes_total": "result.bytes_total",
    "pre_quant_val_loss": "final.pre_quant_val_loss",
    "pre_quant_val_bpb": "final.pre_quant_val_bpb",
    "neural_val_loss": "neural.val_loss",
    "neural_val_bpb": "neural.val_bpb",
}


def seed_result(log: Log) -> SeedResult | None:
    """What a log of either dialect proves about its seed; None when it holds no final score.

    Raises UserError when a value is malformed, such as a hash of the wrong length."""
    final = log.final
    if final is None:
        return None
    values = {name: log.text(fact) for name, fact in SEED_FACTS.items()}
    try:
        return SeedResult(
            val_loss=final.val_loss,
            val_bpb=final.val_bpb,
            log=log.path.name,
            log_sha256=log.sha256,
            **values,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(
            f"{log.path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}, found {problem['input']!r}; train again"
        ) from None


# --- Public logs ---

# Fact name -> patterns whose first group is the value. `env.*` and `result.*` are the native names, so that checks need one vocabulary.
PUBLIC_FACTS = {
    "result.seed": (r"^\s*seed:\s*(\d+)\b",),
    "env.world_size": (r"\bworld_size:\s*(\d+)",),
    "env.torch": (r"^Running PyTorch (\S+)",),
    "env.python": (r"^Running Python (\d[\w.]*)",),
    "env.driver": (r"Driver Version:\s*(\S+)",),
    "env.cuda": (r"CUDA Version:\s*([\d.]+)",),
    "env.gpu": (r"^\|\s+\d+\s+(NVIDIA .*?)\s+(?:On|Off)\s+\|",),
    "model.parameters": (r"^model_params:\s*(\d+)",),
    "data.val_tokens": (r"^val_loader:.*\btokens:\s*(\d+)", r"^val_tokens:\s*(\d+)"),
    "data.train_files": (r"\btrain_shards:\s*(\d+)",),
    "data.dataset": (r"^train_loader:dataset:(\S+)", r"^\s*datasets_dir:\s*\S*/([^/\s]+)/?$"),
    "data.tokenizer": (r"\btokenizer_path[=:]\s*(\S+)",),
    "config.max_wallclock_seconds": (r"\bmax_wallclock_seconds:\s*([\d.]+)",),
    "result.code_bytes": (r"^Code size(?: \(uncompressed\))?: (\d+) bytes",),
    "result.code_bytes_packed": (r"^Code size \(compressed\): (\d+) bytes",),
    "result.artifact_bytes": (r"^Serialized model (?!int8\+zlib \(|: )\S+: (\d+) bytes",),
    "result.peak_mib": (r"^peak memory allocated: (\d+) MiB",),
}
PUBLIC_PATTERNS = [
    (name, re.compile(pattern)) for name, patterns in PUBLIC_FACTS.items() for pattern in patterns
]
STOP = re.compile(r"^stopping_early:.*\btrain_time:\s*(\d+)ms step:\s*(\d+)/(\d+)")
TOTAL = re.compile(r"^Total submission size (\S+): (\d+) bytes")
VAL_BPB = re.compile(rf"\bval_bpb:\s*({NUMBER})(?=\s|$|,)")
VAL_LOSS = re.compile(rf"\bval_loss:\s*({NUMBER})(?=\s|$|,)")
EVAL_TIME = re.compile(r"\beval_time:\s*(\d+(?:\.\d+)?(?:ms|s|m)?)")
TIMED_END = re.compile(rf"(?<![\w.+-])(?P<seconds>{NUMBER})s\)?$")
TIMED_WORD = re.compile(r"\b(?:done|calibrated|collected|took)\b")
RESULT_LABEL = re.compile(
    r"final|quantized|result"
)  # how the contest's scripts name the score of the artifact
RULER = re.compile(r"^={40,}$")
CODE_HEAD = re.compile(r"^(?:import |from \w+|\"\"\"|'''|#|@|def |class )")


def _without_public_source(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Drop a source dump. Public scripts write their code between rulers of `=`; whatever between two rulers parses as Python is code. A
    ruler inside a docstring belongs to the code, so the longest stretch that parses wins."""
    rulers = [-1, *[i for i, (_, text) in enumerate(lines) if RULER.match(text)], len(lines)]
    for first in range(min(len(rulers) - 1, 6)):
        start = next(
            (i for i in range(rulers[first] + 1, len(lines)) if CODE_HEAD.match(lines[i][1])), None
        )
        if start is None:
            break
        for last in reversed(rulers[first + 1 : first + 7]):
            if (
                last - start >= 3
                and last < len(lines)
                and _is_python([text for _, text in lines[start:last]])
            ):
                return lines[:start] + lines[last:]
    return lines


def _is_python(lines: list[str]) -> bool:
    try:
        tree = ast.parse("\n".join(lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(
        isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)
        for node in tree.body
    )


def _parse_public(log: Log, lines: list[tuple[int, str]]) -> None:
    stage = "train"
    gpus = set()
    for number, text in lines:
        if len(text) > MAX_LINE:
            continue
        if step := _parse_step(number, text):
            log.steps.append(step)
            continue
        for name, pattern in PUBLIC_PATTERNS:
            if (match := pattern.search(text)) and name == "env.gpu":
                gpus.add(text.split()[1])
            if match:
                log._state(name, match[1], number, text)
        if match := STOP.match(text):
            log._state("result.train_s", f"{float(match[1]) / 1000}", number, text)
            log._state("result.steps", match[2], number, text)
            stage = "export"
        elif match := TOTAL.match(text):
            _state_total(log, match, number, text)
            stage = "eval"
        elif text.startswith("Traceback (most recent call last)"):
            log.problems.append(f"line {number}: the run raised an exception")
        elif match := VAL_BPB.search(text):
            _add_score(log, match, number, text, stage)
        elif stage != "train" and (timed := _timed(text)):
            log.phases.append(Phase(*timed, stage, number, text))
    if gpus:
        log._state("env.gpus", str(len(gpus)), log.facts["env.gpu"].line, log.facts["env.gpu"].text)
    if log.final is None:
        log.problems.append(
            "truncated: no score was printed after training (no val_bpb outside the step lines)"
        )
        return
    timed = [
        s
        for s in log.scores
        if s.eval_s is not None and abs(s.val_bpb - log.final.val_bpb) < 5.1e-5
    ]
    if timed:
        log._state("result.eval_s", f"{timed[-1].eval_s:g}", timed[-1].line, timed[-1].text)


def _timed(text: str) -> tuple[str, float] | None:
    """(phase, seconds) of a line like `compression done in 98.7s`."""
    match = TIMED_END.search(text)
    name = text[: match.start()] if match else ""
    spent = _float(match["seconds"]) if match and TIMED_WORD.search(name) else None
    return None if spent is None else (name.removesuffix("in ").strip(" (:"), spent)


def _state_total(log: Log, match: re.Match, number: int, text: str) -> None:
    """Several totals may be printed, one for each compression tried and under each name; the smallest is what was shipped."""
    total, known = _integer(match[2]), log.integer("result.bytes_total")
    if total is not None and (known is None or total < known):
        log.facts["result.bytes_total"] = Fact(match[2], number, text)


def _add_score(log: Log, match: re.Match, number: int, text: str, stage: str) -> None:
    if (bpb := _float(match[1])) is None:
        log.problems.append(f"line {number}: val_bpb is no finite number")
        return
    loss, time = VAL_LOSS.search(text), EVAL_TIME.search(text)
    decimals = len(match[1].partition(".")[2])
    start = min(match.start(), loss.start() if loss else match.start())
    eval_s = seconds(time[1]) if time else None
    label = text[:start].strip(" :")
    log.scores.append(
        Score(label, bpb, _float(loss[1]) if loss else None, eval_s, decimals, number, text)
    )
    if eval_s is not None and stage != "train":
        log.phases.append(Phase(label, eval_s, stage, number, text))
