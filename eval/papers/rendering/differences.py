"""What a record changed against the record that it builds on: settings, script, score."""

import difflib
from dataclasses import dataclass
from itertools import islice
from typing import Any

from eval.papers.rendering.entries import Entry
from eval.papers.rendering.listing import settings_of

CONTEXT_LINES = 3
SHOWN_LINES = 2000  # of a difference; a rewritten script has more, and nobody reads them here
KINDS = {"+": "added", "-": "removed", "@": "place"}


@dataclass(frozen=True)
class ScriptDiff:
    """A unified difference as (kind, line) pairs, with the counts of all lines."""

    lines: list[tuple[str, str]]
    added: int = 0
    removed: int = 0
    cut: str = ""


def changed_settings(base: Entry, entry: Entry) -> list[tuple[str, str, str]]:
    """(name, the base's value, the record's value) of each setting that the papers differ in."""
    before = settings_of(base)
    after = settings_of(entry)
    rows = []
    for name in {**before, **after}:
        old = before.get(name, "not stated")
        new = after.get(name, "not stated")
        if old != new:
            rows.append((name, old, new))
    return rows


def script_diff(base: Entry, entry: Entry) -> ScriptDiff:
    """Line by line; empty where the scripts are equal or one is missing."""
    before = _lines(base)
    after = _lines(entry)
    unified = difflib.unified_diff(before, after, n=CONTEXT_LINES, lineterm="")
    lines = list(islice(unified, 2, None))  # without the two names
    kinds = [KINDS.get(line[:1], "same") for line in lines]
    left_out = max(0, len(lines) - SHOWN_LINES)
    cut = f"{left_out:,} further lines are left out." if left_out else ""
    shown = list(zip(kinds, lines, strict=True))[:SHOWN_LINES]
    return ScriptDiff(shown, kinds.count("added"), kinds.count("removed"), cut)


def _lines(entry: Entry) -> list[str]:
    return (entry.record.code or b"").decode("utf-8", "replace").splitlines()


def improvement(found: dict[str, Any] | None) -> str:
    """What `compare BASE RECORD` has `found`, in sentences; None: they are on different boards."""
    if found is None:
        return "The two are on different boards, so their scores are not on one scale."
    if "problem" in found:
        return f"The two cannot be compared: {found['problem']}."
    p = found["p_bar"]
    tested = "" if p is None else f", p {p:.2g} of a gain within the bar"
    return (
        f"It scores {_signed(found['gain'])} bits per byte. Is it (B) better than its base (A)? "
        f"{str(found['answer']).capitalize()}; {found['reason']}{tested}."
    )


def _signed(gain: float) -> str:
    return f"{abs(gain):.5f} {'more' if gain < 0 else 'fewer'}"
