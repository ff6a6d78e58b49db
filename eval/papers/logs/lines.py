"""Physical lines of a log made into clean ones: no colours, no rank prefixes, one writer each."""

import re

from eval.papers.logs.log import Step
from eval.papers.logs.values import NUMBER, number_of, seconds, tokens_of

ANSI = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
RANK_PREFIX = re.compile(rb"(?m)^\[(?:rank|default)?\d+\]:[ ]?")
RANK_BREAK = re.compile(r"\[(?:rank|default)\d+\]:\s?")
STEP = re.compile(r"(?:step:\s*)?(\d{1,12})/(\d{1,12})\s+(?=(?:train|val)_(?:loss|bpb):)")

# Two writers without a newline between them: a step or result line may begin in the middle of another one.
BREAK = re.compile(
    rf"(?<!^)(?=step:\d+/\d+ (?:train|val)_loss:)|(?<!^)(?=result val_loss:{NUMBER} )"
)

UNBROKEN = ("config:", "config ", "env ", "data ")  # quoted values of these may hold anything


def split_lines(text: bytes) -> list[tuple[int, str]]:
    """(line number, text) with colours and rank prefixes gone; a physical line on which several writers met gives several entries."""
    out = []
    for number, raw in enumerate(ANSI.sub(b"", text).decode("utf-8", "replace").split("\n"), 1):
        for part in raw.split("\r"):
            for piece in RANK_BREAK.split(part):
                pieces = [piece] if piece.startswith(UNBROKEN) else BREAK.split(piece)
                out += [(number, p.rstrip()) for p in pieces if p.strip()]
    return out


def parse_step(number: int, text: str) -> Step | None:
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
