"""What each run of a record ships, in bytes: by its log, by submission.json, and as measured."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eval.papers.checks.report import Evidence, say
from eval.papers.folder import Record
from eval.papers.logs.log import Fact, Log
from eval.papers.logs.sizes import Kind, Shipment, Size

FEWEST_BYTES = 10_000  # a smaller stated number is no size of weights or of a total
NATIVE_FACTS = {
    "weights": (Kind.WEIGHTS, "result.artifact_bytes"),
    "code": (Kind.CODE, "result.code_bytes"),
    "packed_code": (Kind.PACKED_CODE, "result.code_bytes_packed"),
    "total": (Kind.TOTAL, "result.bytes_total"),
}


def shipments_of(record: Record) -> dict[str, Shipment]:
    """What the record's own logs say was shipped, by the name of the log."""
    return {name: shipment_of(record, log) for name, log in record.chosen.items()}


def shipment_of(record: Record, log: Log) -> Shipment:
    """What one log says was shipped; of several sizes the one that submission.json states."""
    return _shipment(log, set(_large_integers(record.stated)))


def _shipment(log: Log, stated: set[int]) -> Shipment:
    if not log.native:
        return log.sizes.shipment(stated)
    parts = {}
    for part, (kind, fact) in NATIVE_FACTS.items():
        if log.integer(fact) is not None:
            parts[part] = _size(kind, log.facts[fact])
    tried = [parts[part] for part in ("weights", "total") if part in parts]
    return Shipment(**parts, tried=tuple(tried))


def _size(kind: Kind, fact: Fact) -> Size:
    return Size(kind, "", int(fact.value), fact.line, fact.text)


def _large_integers(value: Any) -> Iterator[int]:
    """Every integer in a JSON value that may be a size of weights or of a total."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _large_integers(inner)
    elif isinstance(value, int) and value >= FEWEST_BYTES:
        yield value


@dataclass(frozen=True)
class StatedSize:
    """A number of bytes in submission.json, and the line that has it.

    `seed` is the one that it is stated for, None for a whole record. `may_be_weights`: its author
    may mean the weights alone.
    """

    bytes: int
    line: Evidence
    seed: int | None = None
    may_be_weights: bool = False


def stated_sizes(record: Record) -> list[StatedSize]:
    """The sizes that submission.json states: the record's total, else those of its seeds.

    Authors call weights and totals alike `artifact_bytes`: only the logs tell which is meant.
    """
    return _stated_total(record) or _stated_by_seeds(record)


def all_stated_sizes(record: Record) -> list[StatedSize]:
    """The record's total and those of its seeds: a limit holds for each."""
    return [*_stated_total(record), *_stated_by_seeds(record)]


def _stated_total(record: Record) -> list[StatedSize]:
    submission = record.submission
    if submission is None or submission.bytes_total is None:
        return []
    return [StatedSize(submission.bytes_total, say(record, "bytes_total"))]


def _stated_by_seeds(record: Record) -> list[StatedSize]:
    if record.submission is None:
        return []
    found = []
    for name, row in record.submission.seed_results.items():
        key = name if name.isdecimal() else None
        seed = int(name) if name.isdecimal() else None
        if row.bytes_total is not None:
            found.append(StatedSize(row.bytes_total, say(record, "bytes_total", key), seed))
        elif row.artifact_bytes is not None:
            line = say(record, "artifact_bytes", key)
            found.append(StatedSize(row.artifact_bytes, line, seed, may_be_weights=True))
    return found
