"""The public dialect: logs of the contest's scripts, which print what their authors liked."""

import ast
import re

from eval.papers.logs.lines import parse_step
from eval.papers.logs.log import Fact, Log, LoggedScore, Phase
from eval.papers.logs.values import NUMBER, integer_of, number_of, seconds

MAX_LINE = 2000  # characters; lines that state a result are far shorter, and patterns may take the square of the length

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
RULER = re.compile(r"^={40,}$")
CODE_HEAD = re.compile(r"^(?:import |from \w+|\"\"\"|'''|#|@|def |class )")


def without_public_source(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
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


def parse_public(log: Log, lines: list[tuple[int, str]]) -> None:
    stage = "train"
    gpus = set()
    for number, text in lines:
        if len(text) > MAX_LINE:
            continue
        if step := parse_step(number, text):
            log.steps.append(step)
            continue
        for name, pattern in PUBLIC_PATTERNS:
            if (match := pattern.search(text)) and name == "env.gpu":
                gpus.add(text.split()[1])
            if match:
                log.state(name, match[1], number, text)
        if match := STOP.match(text):
            log.state("result.train_s", f"{float(match[1]) / 1000}", number, text)
            log.state("result.steps", match[2], number, text)
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
        log.state("env.gpus", str(len(gpus)), log.facts["env.gpu"].line, log.facts["env.gpu"].text)
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
        log.state("result.eval_s", f"{timed[-1].eval_s:g}", timed[-1].line, timed[-1].text)


def _timed(text: str) -> tuple[str, float] | None:
    """(phase, seconds) of a line like `compression done in 98.7s`."""
    match = TIMED_END.search(text)
    name = text[: match.start()] if match else ""
    spent = number_of(match["seconds"]) if match and TIMED_WORD.search(name) else None
    return None if spent is None else (name.removesuffix("in ").strip(" (:"), spent)


def _state_total(log: Log, match: re.Match, number: int, text: str) -> None:
    """Several totals may be printed, one for each compression tried and under each name; the smallest is what was shipped."""
    total, known = integer_of(match[2]), log.integer("result.bytes_total")
    if total is not None and (known is None or total < known):
        log.facts["result.bytes_total"] = Fact(match[2], number, text)


def _add_score(log: Log, match: re.Match, number: int, text: str, stage: str) -> None:
    if (bpb := number_of(match[1])) is None:
        log.problems.append(f"line {number}: val_bpb is no finite number")
        return
    loss, time = VAL_LOSS.search(text), EVAL_TIME.search(text)
    decimals = len(match[1].partition(".")[2])
    start = min(match.start(), loss.start() if loss else match.start())
    eval_s = seconds(time[1]) if time else None
    label = text[:start].strip(" :")
    log.scores.append(
        LoggedScore(
            label, bpb, number_of(loss[1]) if loss else None, eval_s, decimals, number, text
        )
    )
    if eval_s is not None and stage != "train":
        log.phases.append(Phase(label, eval_s, stage, number, text))
