"""Turns the physical lines of a log into clean ones: no colours, no rank prefixes, one writer."""

import re
from collections.abc import Iterator

from eval.papers.logs.log import Step
from eval.papers.logs.values import NUMBER, number_of, seconds, tokens_of

ANSI = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
RANK_PREFIX = re.compile(rb"(?m)^\[(?:rank|default)?\d+\]:[ ]?")
# Where another writer may begin inside a physical line: a progress bar, or another rank.
WRITER_BREAK = re.compile(r"\r|\[(?:rank|default)\d+\]:\s?")
# Two writers without a newline between them: a step or result line inside another line.
LINE_BREAK = re.compile(
    rf"(?<!^)(?=step:\d+/\d+ (?:train|val)_loss:)|(?<!^)(?=result val_loss:{NUMBER} )"
)
UNBROKEN = ("config:", "config ", "env ", "data ")  # quoted values of these may hold anything
STEP = re.compile(r"(?:step:\s*)?(\d{1,12})/(\d{1,12})\s+(?=(?:train|val)_(?:loss|bpb):)")


def split_lines(text: bytes) -> list[tuple[int, str]]:
    """(line number, text) of every clean line; blank ones are left out.

    A physical line on which several writers met gives several entries with the same number.
    """
    lines: list[tuple[int, str]] = []
    plain = ANSI.sub(b"", text).decode("utf-8", "replace")
    for number, physical in enumerate(plain.split("\n"), 1):
        lines += [(number, piece.rstrip()) for piece in _pieces(physical) if piece.strip()]
    return lines


def _pieces(physical: str) -> Iterator[str]:
    """What each writer wrote on a physical line."""
    for part in WRITER_BREAK.split(physical):
        if part.startswith(UNBROKEN):
            yield part
        else:
            yield from LINE_BREAK.split(part)


def parse_step(number: int, text: str) -> Step | None:
    """The training-log point that a line states; None for any other line."""
    match = STEP.match(text)
    if match is None:
        return None
    tokens = {key: value.rstrip(",") for key, value in tokens_of(text[match.end() :]).items()}
    return Step(
        step=int(match[1]),
        of=int(match[2]),
        line=number,
        text=text,
        train_loss=number_of(tokens.get("train_loss")),
        val_loss=number_of(tokens.get("val_loss")),
        val_bpb=number_of(tokens.get("val_bpb")),
        train_s=seconds(tokens.get("train_time", "")),
    )
