"""Turns the physical lines of a log into clean ones: no colours, no rank prefixes, one writer."""

import re
from collections.abc import Iterator

from eval.papers.logs.log import Step
from eval.papers.logs.values import NUMBER, number_of, seconds

ANSI = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
RANK_PREFIX = re.compile(rb"(?m)^\[(?:rank|default)?\d+\]:[ ]?")
# Where another writer may begin inside a physical line: a progress bar, or another rank.
WRITER_BREAK = re.compile(r"\r|\[(?:rank|default)\d+\]:\s?")
# Two writers without a newline between them: a step or result line inside another line.
LINE_BREAK = re.compile(
    rf"(?<!^)(?=step:\d+/\d+ (?:train|val)_loss:)|(?<!^)(?=result val_loss:{NUMBER} )"
)
UNBROKEN = ("config:", "config ", "env ", "data ")  # quoted values of these may hold anything
# `step:10/200 train_loss:…`, `10/200 val_loss: …`, and the short `s:10/200 tl:…`.
STEP = re.compile(
    r"(?:step:?\s*|s:)?(\d{1,12})/(\d{1,12})[\s|,]+"
    r"(?=(?:(?:train|val)_(?:loss|bpb)|[tv]l|bpb)\s?[:=])"
)
# What nearly every line of a long log is, for speed alone: STEP reads the same from it.
PLAIN_STEP = re.compile(
    r"step:(\d{1,12})/(\d{1,12}) (?:train_loss:(\d{1,9}\.\d{1,12})"
    r"|val_loss:(\d{1,9}\.\d{1,12}) val_bpb:(\d{1,9}\.\d{1,12}))"
    r"(?: (?!train_time)[a-z_]+:\S+){0,4} train_time:(\d{1,12})ms(?!\S)"
)
STEP_BEGINS = frozenset("s0123456789")
SHORT_KEYS = {"tl": "train_loss", "vl": "val_loss", "bpb": "val_bpb", "tt": "train_time"}
STEP_TOKEN = re.compile(r"(?<![\w.])([a-z_]+)\s?[:=]\s*([^\s,|]+)")


def split_lines(text: bytes) -> list[tuple[int, str]]:
    """(line number, text) of every clean line; blank ones are left out.

    A physical line on which several writers met gives several entries with the same number.
    """
    lines: list[tuple[int, str]] = []
    plain = (ANSI.sub(b"", text) if b"\x1b" in text else text).decode("utf-8", "replace")
    plain = plain.replace("\ufeff", "")
    several_writers = "\r" in plain or ("]:" in plain and WRITER_BREAK.search(plain) is not None)
    for number, physical in enumerate(plain.split("\n"), 1):
        if several_writers or _may_hold_two(physical):
            lines += [(number, piece.rstrip()) for piece in _pieces(physical) if piece.strip()]
        elif physical and not physical.isspace():
            lines.append((number, physical.rstrip()))
    return lines


def _pieces(physical: str) -> Iterator[str]:
    """What each writer wrote on a physical line."""
    parts = WRITER_BREAK.split(physical) if "]:" in physical else physical.split("\r")
    for part in parts:
        if part.startswith(UNBROKEN) or not _may_hold_two(part):
            yield part
        else:
            yield from LINE_BREAK.split(part)


def _may_hold_two(part: str) -> bool:
    return part.find("step:", 1) > 0 or part.find("result val_loss:", 1) > 0


def parse_step(number: int, text: str) -> Step | None:
    """The training-log point that a line states; None for any other line."""
    if text[:1] not in STEP_BEGINS:
        return None
    plain = PLAIN_STEP.match(text)
    if plain is not None:
        step, last, train_loss, val_loss, val_bpb, milliseconds = plain.groups()
        return Step(
            int(step),
            int(last),
            number,
            text,
            train_loss and float(train_loss),
            val_loss and float(val_loss),
            val_bpb and float(val_bpb),
            float(milliseconds) * 1e-3,
        )
    match = STEP.match(text)
    if match is None:
        return None
    tokens: dict[str, str] = {}
    for key, value in STEP_TOKEN.findall(text, match.end()):
        tokens.setdefault(SHORT_KEYS.get(key, key), value)
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
