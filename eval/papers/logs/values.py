"""Numbers, durations and `key:value` tokens as logs print them."""

import json
import math
import re

TOKEN = re.compile(r'(?<![\w/.-])([A-Za-z_][\w/.-]*):[ \t]*("(?:[^"\\]|\\.)*"|\S+)')
NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
DURATION = re.compile(rf"({NUMBER})(ms|s|m)?$")


def tokens_of(text: str) -> dict[str, str]:
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
    number = number_of(match[1]) if match else None
    return (
        None if number is None else number * {"ms": 1e-3, "s": 1.0, "m": 60.0, None: 1.0}[match[2]]
    )


def number_of(value: str | None) -> float | None:
    """The finite number that a token is; None for anything else."""
    number = float(value) if value is not None and re.fullmatch(NUMBER, value) else math.inf
    return number if math.isfinite(number) else None


def integer_of(value: str | None) -> int | None:
    """The integer that a token is, up to 18 digits: no count in a log needs more, and it fits a float's range with room to spare."""
    return int(value) if value is not None and re.fullmatch(r"[+-]?\d{1,18}", value) else None
