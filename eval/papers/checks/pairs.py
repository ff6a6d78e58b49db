"""Every two records of a board against each other, for the pages."""

from typing import Any

from eval.errors import UserError
from eval.papers.checks.contest import judge
from eval.papers.checks.statistics import LN2, Side, comparison_rules, side
from eval.papers.rendering.entries import Entry, boards


def contests(entries: list[Entry]) -> dict[tuple[str, str], dict[str, Any]]:
    """What `compare A B` says of each ordered pair of a board, by the places of A and B."""
    answers = {}
    for members in boards(entries).values():
        sides = {entry.place: side_of(entry) for entry in members}
        for a, side_a in sides.items():
            for b, side_b in sides.items():
                if a != b:
                    answers[a, b] = contest(side_a, side_b)
    return answers


def side_of(entry: Entry) -> Side | str:
    """What a record gives to comparisons, or why it gives nothing."""
    try:
        return side(entry.record)
    except UserError as error:
        return f"{entry.name}: {_after_the_path(error)}"


def _after_the_path(error: UserError) -> str:
    return str(error).rpartition(": ")[2]


def contest(a: Side | str, b: Side | str) -> dict[str, Any]:
    """`answer` with its `reason`, `gain` in bits per byte, `p` and `p_bar`; or the `problem`.

    Both p are None where no test is possible, or where an audit refutes a side.
    """
    if isinstance(a, str) or isinstance(b, str):
        return {"problem": a if isinstance(a, str) else b}
    try:
        found = judge(a, b, comparison_rules(a, b))
    except UserError as error:
        return {"problem": _after_the_path(error)}
    return {
        "answer": found.answer,
        "reason": found.reason,
        "gain": found.test.difference / LN2,
        "p": None if found.refuted else found.test.p,
        "p_bar": None if found.refuted else found.test.p_bar,
    }
