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
SEED = re.compile(r"\bseed\s*[:=#`*_]*\s*(\d{1,12})\b", re.IGNORECASE)
# A number in README is the headline if it is so close, in bits per byte.
SAME_FIGURE = 1e-4
FIGURE = re.compile(r"(?<![\d.])\d\.\d{3,10}(?!\d)")


@dataclass(frozen=True)
class Naming:
    """The logs that a line of README names as those of the headline; 1-based."""

    logs: tuple[str, ...]
    line: int
    text: str


def named_in_readme(readme: str, logs: dict[str, Log], headline: float | None) -> Naming | None:
    """The line that states the headline together with one log's name, or says of one seed that it
    is the one that counts.
    """
    if headline is None:
        return None
    for number, line in enumerate(readme.splitlines(), 1):
        figures = [float(figure) for figure in FIGURE.findall(line)]
        if not any(abs(figure - headline) <= SAME_FIGURE for figure in figures):
            continue
        files = {log.file for log in logs.values()}
        by_file = {file for file in files if file.rpartition("/")[2] in line}
        if len(by_file) == 1:
            names = tuple(name for name, log in logs.items() if log.file in by_file)
            return Naming(names, number, line)
        seeds = {int(seed) for seed in SEED.findall(line)}
        if len(seeds) == 1 and CLAIMING.search(line):
            names = tuple(name for name, log in logs.items() if log.seed in seeds)
            if names:
                return Naming(names, number, line)
    return None
