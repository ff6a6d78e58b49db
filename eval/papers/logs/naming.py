"""Which log README says the headline is of."""

import re
from dataclasses import dataclass

from eval.papers.logs.log import Log

# What an author says of the one run that counts.
CLAIMING = re.compile(
    r"submi|headline|best|official|chosen|selected|main run|this run|reported|record\b|final run"
    r"|primary|canonical",
    re.IGNORECASE,
)
SEED = re.compile(r"\bseed[\s:=#`*_(]{0,12}(\d{1,12})\b", re.IGNORECASE)
LONGEST_LINE = 2000  # characters of a line of README that may name a log
# A number in README is the headline if it is so close, in bits per byte.
SAME_FIGURE = 1e-4
FIGURE = re.compile(r"(?<![\d.])\d\.\d{3,10}(?!\d)")


@dataclass(frozen=True)
class Naming:
    """The logs that a line of README may name as those of the headline; 1-based."""

    logs: tuple[str, ...]
    line: int
    text: str


def named_in_readme(readme: str, logs: dict[str, Log], headline: float | None) -> list[Naming]:
    """Lines that name one log and the headline, or say of one log or seed that it counts.

    Whether the headline is of the named logs is for their scores to say.
    """
    if headline is None:
        return []
    found = []
    for number, line in enumerate(readme.splitlines(), 1):
        names = _logs_named(line, logs, headline) if len(line) <= LONGEST_LINE else ()
        if names:
            found.append(Naming(names, number, line))
    return found


def _logs_named(line: str, logs: dict[str, Log], headline: float) -> tuple[str, ...]:
    claims = CLAIMING.search(line) is not None
    figures = [float(figure) for figure in FIGURE.findall(line)]
    states_headline = any(abs(figure - headline) <= SAME_FIGURE for figure in figures)
    files = {log.file for log in logs.values() if log.file.rpartition("/")[2] in line}
    if len(files) == 1 and (claims or states_headline):
        return tuple(name for name, log in logs.items() if log.file in files)
    seeds = {int(seed) for seed in SEED.findall(line)}
    if len(seeds) == 1 and claims:
        return tuple(name for name, log in logs.items() if log.seed in seeds)
    return ()
