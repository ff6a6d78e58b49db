"""Tells the runs apart that wrote into one log file."""

import itertools
import re

from eval.papers.logs.lines import STEP, STEP_BEGINS

Lines = list[tuple[int, str]]

# What every public script prints once, before it trains.
HEADER = re.compile(r"^(?:world_size[:=]\s*\d|seed[:=]\s*\d|train_loader:dataset)")
HEADER_BEGINS = ("world_size", "seed", "train_loader:dataset")
# What a run has printed when another one begins.
RESULT = re.compile(
    r"bpb\s*[:=]\s*\d|^(?:Serialized model|Total submission|Traceback \(most recent call last\))"
)


def split_runs(lines: Lines) -> list[Lines]:
    """The lines of each run. A run that was written twice is one run."""
    headers = [
        i
        for i, (_, text) in enumerate(lines)
        if text.startswith(HEADER_BEGINS) and HEADER.match(text)
    ]
    begins = [0]
    for previous, header in itertools.pairwise(headers):
        last = _last_result(lines, previous + 1, header)
        if last is not None:
            begins.append(last + 1)
    ends = [*begins[1:], len(lines)]
    runs: list[Lines] = []
    for begin, end in zip(begins, ends, strict=True):
        part = lines[begin:end]
        if runs and not _steps(part):
            runs[-1] = runs[-1] + part  # a second header of the same run, for its evaluation
        else:
            runs.append(part)
    return _distinct(runs)


def _last_result(lines: Lines, begin: int, end: int) -> int | None:
    """Index of the last line in between that a run prints once it trains."""
    for i in range(end - 1, begin - 1, -1):
        text = lines[i][1]
        is_step = text[:1] in STEP_BEGINS and STEP.match(text) is not None
        if is_step or RESULT.search(text):
            return i
    return None


def _steps(lines: Lines) -> tuple[str, ...]:
    """The step lines of a run."""
    return tuple(text for _, text in lines if text[:1] in STEP_BEGINS and STEP.match(text))


def _distinct(runs: list[Lines]) -> list[Lines]:
    """Each run once: a launcher may copy to the end what the script has written before."""
    if len(runs) == 1:
        return runs
    longest: dict[tuple[str, ...], Lines] = {}
    for run in runs:
        results = (text for _, text in run if RESULT.search(text))
        key = (*_steps(run), *results)
        if key not in longest or len(run) > len(longest[key]):
            longest[key] = run
    return list(longest.values())
