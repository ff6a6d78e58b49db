"""Numbers, durations and `key:value` tokens as logs print them."""

import json
import math
import re

TOKEN = re.compile(r'(?<![\w/.-])([A-Za-z_][\w/.-]*):[ \t]*("(?:[^"\\]|\\.)*"|\S+)')
NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
WHOLE_NUMBER = re.compile(NUMBER)
DURATION = re.compile(rf"({NUMBER})(ms|s|m)?$")
SECONDS_PER_UNIT = {"ms": 1e-3, "s": 1.0, "m": 60.0, None: 1.0}
# No count in a log needs more digits, and so many fit a float's range with room to spare.
INTEGER = re.compile(r"[+-]?\d{1,18}")


def tokens_of(text: str) -> dict[str, str]:
    """`key:value` tokens of a line; values are bare words or JSON strings.

    The first value of a key counts. A broken JSON string is kept as it stands.
    """
    tokens: dict[str, str] = {}
    for key, value in TOKEN.findall(text):
        tokens.setdefault(key, unquoted(value))
    return tokens


def unquoted(value: str) -> str:
    """The text of a JSON string; anything else as it is."""
    if not value.startswith('"'):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value.strip('"')


def seconds(value: str) -> float | None:
    """`1234ms`, `0.8m`, `508.8s` or a bare number of seconds; None for anything else."""
    match = DURATION.match(value)
    number = number_of(match[1]) if match else None
    return None if number is None else number * SECONDS_PER_UNIT[match[2]]


def number_of(value: str | None) -> float | None:
    """The finite number that a token is; None for anything else."""
    if value is None or not WHOLE_NUMBER.fullmatch(value):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def integer_of(value: str | None) -> int | None:
    """The integer of at most 18 digits that a token is; None for anything else."""
    return int(value) if value is not None and INTEGER.fullmatch(value) else None


def same_value(a: str, b: str) -> bool:
    """Whether two tokens are equal texts or equal numbers, such as 900 and 900.000."""
    if a == b:
        return True
    number = number_of(a)
    return number is not None and number == number_of(b)


def decimals(value: float) -> int:
    """Digits after the point that a JSON number is meant to have.

    JSON loses trailing zeros, so at least 4 count as meant.
    """
    return max(4, shown_decimals(value))


def shown_decimals(value: float) -> int:
    """Digits after the point that a JSON number shows."""
    return len(f"{value:.15g}".partition(".")[2])
