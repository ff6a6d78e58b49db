"""The records as data: `records.json` for programs, and what the page of all records knows."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

from eval.papers.logs.log import Log, Step
from eval.papers.rendering.entries import Entry, boards, with_ranks
from eval.papers.rendering.tables import printable

JSON_SCHEMA = 1  # changes when a key changes its meaning
# Per seed. That is finer than a phone's pixels; a hundred records still make a page of a few MB.
CURVE_POINTS = 240
LONGEST_SETTING = 100  # characters of a value inside an artifact, which anybody may have written

# What `compare A B` says of two records of a board, by the places of A and B below records/.
Contests = dict[tuple[str, str], dict[str, Any]]


def page_name(entry: Entry) -> str:
    """Its page, below records/."""
    return f"pages/{entry.place}.html"


def records_json(entries: list[Entry]) -> str:
    """Every board with its records, in their order there."""
    shown = []
    for board, members in boards(entries).items():
        rows = list(itertools.starmap(_machine_row, with_ranks(members)))
        shown.append({"board": board, "records": rows})
    return json.dumps({"schema": JSON_SCHEMA, "boards": shown}, indent=1, ensure_ascii=False) + "\n"


def _machine_row(entry: Entry, rank: str) -> dict[str, Any]:
    submission = entry.submission
    standing = entry.standing
    reasons = [{"test": reason.test, "text": reason.text} for reason in standing.reasons]
    row = {
        "folder": entry.place,
        "page": page_name(entry),
        "rank": int(rank) if rank.isdecimal() else None,
        "name": entry.name,
        "blurb": submission.blurb,
        "author": submission.author,
        "github_id": submission.github_id,
        "date": submission.date.isoformat() if submission.date else None,
        "base_record": submission.base_record,
        "val_bpb": submission.val_bpb,
        "val_bpb_std": submission.val_bpb_std,
        "val_bpb_by_seed": {s: row.val_bpb for s, row in submission.seed_results.items()},
        "neural_val_bpb": entry.neural,
        "parameters": entry.largest("parameters"),
        "bytes_total": submission.bytes_total,
        "bytes_code": submission.bytes_code,
        "bytes_artifact": submission.bytes_artifact,
        "train_s": entry.largest("train_s"),
        "eval_s": entry.largest("eval_s"),
        "settings": settings_of(entry),
    }
    audit = {"status": standing.status, "label": standing.label, "reasons": reasons}
    return row | {"audit": audit}


# --- What the page of all records knows ---


def page_data(entries: list[Entry], contests: Contests) -> dict[str, Any]:
    """Its rows, and `contests` by the places of A and B among the rows."""
    rows = []
    for members in boards(entries).values():
        for entry, rank in with_ranks(members):
            rows.append(page_row(entry) | {"rank": rank})
    number = {row["id"]: i for i, row in enumerate(rows)}
    answers = {f"{number[a]}|{number[b]}": answer for (a, b), answer in contests.items()}
    return {"records": rows, "contests": answers}


def page_row(entry: Entry) -> dict[str, Any]:
    """What the page knows of one record."""
    submission = entry.submission
    return {
        "id": entry.place,
        "board": entry.board,
        "name": entry.name,
        "blurb": submission.blurb,
        "author": submission.author,
        "github": submission.github_id,
        "date": submission.date.isoformat() if submission.date else None,
        "base": submission.base_record,
        "bpb": submission.val_bpb,
        "sd": submission.val_bpb_std,
        "n": entry.seeds,
        "neural": entry.neural,
        "parameters": entry.largest("parameters"),
        "bytes": submission.bytes_total,
        "train": entry.largest("train_s"),
        "eval": entry.largest("eval_s"),
        "status": entry.status,
        "label": entry.standing.label,
        "reasons": [reason.brief for reason in entry.standing.reasons],
        "page": page_name(entry),
        "settings": settings_of(entry),
        "curves": curves(entry),
    }


def series(entry: Entry) -> dict[str, Any]:
    """What the chart of losses draws of a record."""
    return {"id": entry.place, "name": entry.name, "curves": curves(entry)}


def curves(entry: Entry) -> list[dict[str, Any]]:
    return [curve(log) for log in entry.logs if log.steps]


def curve(log: Log) -> dict[str, Any]:
    """Training and validation points as [step, seconds, nats per token], thinned."""
    train = [step for step in log.steps if step.train_loss is not None]
    validation = [step for step in log.steps if step.val_loss is not None]
    return {
        "seed": log.seed,
        "train": [[s.step, s.train_s, s.train_loss] for s in thin(train, CURVE_POINTS)],
        "val": [[s.step, s.train_s, s.val_loss] for s in thin(validation, CURVE_POINTS)],
    }


def thin(points: Sequence[Step], limit: int) -> Sequence[Step]:
    """At most `limit` points, evenly spaced by index, first and last kept."""
    if len(points) <= limit:
        return points
    last = len(points) - 1
    return [points[round(i * last / (limit - 1))] for i in range(limit)]


# --- Settings ---


def settings_of(entry: Entry) -> dict[str, str]:
    """Every setting that the papers state: preset, overrides, and those inside the artifact."""
    config = entry.submission.config
    settings = {}
    if config is not None:
        if config.preset:
            settings["preset"] = config.preset
        for override in config.overrides:
            name, _, value = override.partition("=")
            settings[name] = value
    inside = entry.artifact.settings if entry.artifact else {}
    for name, value in inside.items():
        shown = json.dumps(value, ensure_ascii=False)
        settings.setdefault(printable(str(name)), printable(shown[:LONGEST_SETTING]))
    return settings
