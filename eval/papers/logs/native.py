"""The native dialect: logs that start with `log_format:1` and end with one `result` line."""

import re
from collections.abc import Callable, Iterator

from eval.papers.logs.lines import parse_step
from eval.papers.logs.log import Fact, Log, LoggedScore
from eval.papers.logs.values import integer_of, number_of, tokens_of

# How each value of a complete result line is read; None from a reader means a broken value.
RESULT_READERS: dict[str, Callable[[str | None], object]] = {
    "val_loss": number_of,
    "val_bpb": number_of,
    "nats": number_of,
    "scored_tokens": integer_of,
    "scored_bytes": integer_of,
    "steps": integer_of,
    "train_s": number_of,
    "eval_s": number_of,
    "artifact_bytes": integer_of,
    "code_bytes": integer_of,
    "bytes_total": integer_of,
    "code_sha256": lambda text: text or None,
    "seed": integer_of,
}
RESULT_DECIMALS = 8
FACT_HEADS = ("env", "data", "model", "artifact", "neural", "final", "result")
RESUME = re.compile(r"resume step:(\d{1,12}) ")
SMI_BEGIN = "===== nvidia-smi"
SMI_END = "===== end nvidia-smi"


def parse_native(log: Log, lines: list[tuple[int, str]]) -> None:
    """Read clean lines into the log. A missing result becomes a problem of the log."""
    own_lines = list(without_smi(lines))
    for number, text in own_lines:
        if not any(read(log, number, text) for read in LINE_READERS):
            _read_facts(log, number, text)
    if "result.val_bpb" not in log.facts:
        log.problems.append(_missing_result(own_lines))


def _missing_result(lines: list[tuple[int, str]]) -> str:
    found = "none"
    for number, text in lines:
        if text.startswith("result ") and not is_complete_result(text):
            found = f"line {number} is cut: {text[:80]!r}"
    return f"truncated: expected one complete 'result …' line, found {found}"


def without_smi(lines: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The lines outside the listings of nvidia-smi."""
    inside = False
    for number, text in lines:
        if text.startswith(SMI_BEGIN):
            inside = True
        elif text.startswith(SMI_END):
            inside = False
        elif not inside:
            yield number, text


# --- Readers of one kind of line each: whether the line was of that kind ---


def _read_step(log: Log, number: int, text: str) -> bool:
    step = parse_step(number, text)
    if step is not None:
        log.steps.append(step)
    return step is not None


def _read_resume(log: Log, number: int, text: str) -> bool:
    match = RESUME.match(text)
    if match:
        log.resumes.append(Fact(match[1], number, text))
    return match is not None


def _read_preset(log: Log, number: int, text: str) -> bool:
    head = "config:preset "
    if not text.startswith(head):
        return False
    log.state("config.preset", text.removeprefix(head).strip(), number, text)
    return True


def _read_override(log: Log, number: int, text: str) -> bool:
    head = "config:override "
    if not text.startswith(head):
        return False
    override = text.removeprefix(head)
    if override not in log.overrides:  # several ranks may have written it
        log.overrides.append(override)
    return True


def _read_config_hash(log: Log, number: int, text: str) -> bool:
    head = "config sha256:"
    if not text.startswith(head):
        return False
    log.state("config.sha256", text.removeprefix(head).strip(), number, text)
    return True


def _read_result(log: Log, number: int, text: str) -> bool:
    """A cut result line is not used at all."""
    if not text.startswith("result "):
        return False
    if is_complete_result(text):
        tokens = tokens_of(text)
        for key in RESULT_READERS:
            log.state(f"result.{key}", tokens[key], number, text)
        score = LoggedScore(
            label="result",
            val_bpb=float(tokens["val_bpb"]),
            val_loss=float(tokens["val_loss"]),
            eval_s=float(tokens["eval_s"]),
            decimals=RESULT_DECIMALS,
            line=number,
            text=text,
        )
        log.scores.append(score)
    return True


def _read_facts(log: Log, number: int, text: str) -> None:
    """Lines like `env python:3.11 torch:2.13`: one fact for each token."""
    head = text.split(" ", 1)[0]
    if head not in FACT_HEADS:
        return
    for key, value in tokens_of(text[len(head) :]).items():
        log.state(f"{head}.{key}", value, number, text)


LINE_READERS: tuple[Callable[[Log, int, str], bool], ...] = (
    _read_step,
    _read_resume,
    _read_preset,
    _read_override,
    _read_config_hash,
    _read_result,
)


def is_complete_result(text: str) -> bool:
    """Whether a result line states every value, each of its type."""
    tokens = tokens_of(text)
    return all(read(tokens.get(key)) is not None for key, read in RESULT_READERS.items())
