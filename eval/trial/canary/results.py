"""Under which label a record states its own score: from its submission.json and its logs.

A canary that never sees that label may have judged everything but the score of the record.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from eval.papers.logs.lines import split_lines
from eval.trial.canary.claims import (
    MAX_LINE,
    SCORE,
    Claim,
    Named,
    Printed,
    is_finite,
    scores_of,
    shape,
)


@dataclass(frozen=True)
class Results:
    """`labels` as `claims.shape` has them; `line` is one of the lines, as the log has it.

    Both are empty where the record has no log, or none that states the score."""

    labels: frozenset[str] = frozenset()
    line: str = ""

    def are_among(self, claims: Iterable[Claim]) -> bool:
        """Whether some claim has the label of the score, or the record does not tell."""
        return not self.labels or any(shape(claim.label) in self.labels for claim in claims)


UNKNOWN_RESULTS = Results()


@dataclass(frozen=True)
class OwnWords:
    """What a record says: the text of its script, unwrapped, and where its score is stated."""

    script: str = ""
    results: Results = UNKNOWN_RESULTS


NO_WORDS = OwnWords()


def own_results(submission: str, logs: Iterable[str]) -> Results:
    """Where the logs print a `val_bpb` of submission.json: that of the record or of a seed."""
    stated = [
        Printed.of(match["number"])
        for match in SCORE.finditer(submission)
        if match["kind"] == "bpb" and "." in match["number"] and is_finite(match["number"])
    ]
    labels: set[str] = set()
    found_line = ""
    for log in logs:
        for named, line in _named_in(log):
            if _is_one_of(named, stated):
                labels.add(shape(named.label))
                found_line = line
    return Results(frozenset(labels), found_line)


def _named_in(log: str) -> Iterator[tuple[Named, str]]:
    for _, line in split_lines(log.encode()):
        if "bpb" in line and len(line) <= MAX_LINE:
            for named in scores_of(line):
                yield named, line.strip()


def _is_one_of(named: Named, stated: list[Printed]) -> bool:
    """Whether its bpb is one of the numbers, up to the digits that either was printed with."""
    text = named.numbers.get("bpb", "")
    if "." not in text or not is_finite(text):
        return False
    printed = Printed.of(text)
    return any(printed.rounds_to(one) or one.rounds_to(printed) for one in stated)
