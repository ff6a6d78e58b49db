"""Checks of the bytes: weights, script and their sum, against submission.json and the cap."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from eval.files import sha256_of
from eval.papers.checks.compression import compressed_sizes, looks_compressed
from eval.papers.checks.report import (
    Check,
    Evidence,
    Severity,
    cannot_tell,
    cite,
    fails,
    passes,
    policy,
    say,
)
from eval.papers.checks.shipments import (
    StatedSize,
    all_stated_sizes,
    shipment_of,
    shipments_of,
    stated_sizes,
)
from eval.papers.folder import Record
from eval.papers.logs.sizes import Kind, Shipment, Size
from eval.papers.submission.schema import TRACKS, SeedResult, Track

FEWEST_ZEROS = 3  # at the end of a number that its author rounded
MOST_ROUNDING = 5e-4  # of a size: more than 8 kB of 16 MB is another size


def check_bytes(record: Record) -> Iterator[Check]:
    """Total = weights + code in every log, the stated total is theirs, and the cap holds."""
    shipments = shipments_of(record)
    stated = stated_sizes(record)
    yield from _check_sums(record, shipments)
    yield _check_stated_total(record, shipments, stated)
    yield _check_cap(record, shipments, all_stated_sizes(record))


# --- Totals ---


def _check_sums(record: Record, shipments: dict[str, Shipment]) -> Iterator[Check]:
    """A total counts at least its parts. What it counts besides is on the safe side."""
    for name, shipment in shipments.items():
        counted = shipment.counted_code
        codes = [code.bytes for code in (shipment.code, shipment.packed_code) if code is not None]
        if counted is None or not codes or counted + shipment.total.unit // 2 >= min(codes):
            continue
        parts = f"{shipment.weights.bytes:,} + {min(codes):,}"
        detail = f"{name}: total {shipment.total.bytes:,} is less than weights + code ({parts})"
        log = record.logs[name]
        yield fails("bytes_total", detail, cite(log, shipment.total), cite(log, shipment.weights))


def _check_stated_total(
    record: Record, shipments: dict[str, Shipment], stated: list[StatedSize]
) -> Check:
    """Each stated size is a logged total, their mean, or the logged weights with the script."""
    totals = {name: s.total for name, s in shipments.items() if s.total is not None}
    lines = [cite(record.logs[name], total) for name, total in totals.items()]
    if not stated:
        logged = _listed([total.bytes for total in totals.values()]) or "none either"
        detail = f"submission.json states no total, the logs say {logged}"
        return cannot_tell("bytes_total", detail, *lines, severity=Severity.NOTE)
    lines = [*(size.line for size in stated), *lines]
    readings = _readings(record, shipments, totals)
    unmatched = [size for size in stated if _reading(size, readings) is None]
    if not unmatched:
        said = [f"{size.bytes:,} is {_reading(size, readings)}" for size in stated]
        return passes("bytes_total", "; ".join(dict.fromkeys(said)), *lines)
    open_questions = [_unproven(record, size, readings) for size in unmatched]
    if all(open_questions):
        detail = "; ".join(dict.fromkeys(open_questions))
        return cannot_tell("bytes_total", detail, *lines, severity=Severity.EXPLAIN)
    wrong = [s.bytes for s, why in zip(unmatched, open_questions, strict=True) if why is None]
    printed = list(chain.from_iterable(shipment.tried for shipment in shipments.values()))
    logged = [size.bytes for size in printed if size.kind is Kind.TOTAL]
    weights = [size.bytes for size in printed if size.kind is Kind.WEIGHTS]
    known = f"the logs say {_listed(logged or weights)}"
    if set(wrong) & set(weights):
        known = "which is the weights without the script"
    return fails("bytes_total", f"{_listed(wrong)} stated, {known}", *lines)


def _unproven(record: Record, size: StatedSize, readings: list["Reading"]) -> str | None:
    """Why no own log can say what a stated size is; None where they can, and say otherwise."""
    if not readings:
        return f"{size.bytes:,} stated, no log prints a size to hold it against"
    own_seeds = {log.seed for log in record.chosen.values()}
    if size.seed is not None and size.seed not in own_seeds:
        return f"{size.bytes:,} stated for seed {size.seed}, of which there is no log"
    others = {name: log for name, log in record.logs.items() if name not in record.chosen}
    for name, log in others.items():
        if any(printed.bytes == size.bytes for printed in shipment_of(record, log).tried):
            return f"{size.bytes:,} is of {name}, which the headline is not of"
    return None


@dataclass(frozen=True)
class Reading:
    """What a stated size may be: that many bytes, to within half a `unit`."""

    bytes: int
    words: str
    unit: int = 1
    is_total: bool = True

    def fits(self, stated: int) -> bool:
        """Whether a stated size is this one, to the digits that its author and the log give."""
        if abs(stated - self.bytes) <= self.unit // 2:
            return True
        if abs(stated - self.bytes) > MOST_ROUNDING * self.bytes:
            return False
        zeros = len(str(stated)) - len(str(stated).rstrip("0"))
        return zeros >= FEWEST_ZEROS and round(self.bytes, -zeros) == stated


def _readings(
    record: Record, shipments: dict[str, Shipment], totals: dict[str, Size]
) -> list[Reading]:
    """What a stated size may be; those that say most come first."""
    counts = [total.bytes for total in totals.values()]
    readings = []
    if len(counts) > 1:
        readings.append(Reading(max(counts), "the largest log's total"))
    for name, total in totals.items():
        readings.append(Reading(total.bytes, f"the total of {name}", total.unit))
    if len(counts) > 1:
        readings.append(Reading(round(statistics.fmean(counts)), "the mean total", unit=2))
    stated_code = record.submission.bytes_code if record.submission else None
    codes = {record.shipped_size: "the script as shipped", stated_code: "the stated code"}
    for name, shipment in shipments.items():
        if shipment.weights is None:
            continue
        weights = shipment.weights
        for code, words in codes.items():
            if code is not None:
                sum_of_both = f"the weights of {name} and {words}"
                readings.append(Reading(weights.bytes + code, sum_of_both, weights.unit))
        alone = f"the weights of {name} alone"
        readings.append(Reading(weights.bytes, alone, weights.unit, is_total=False))
    for name, shipment in shipments.items():
        for size in shipment.tried:
            is_total = size.kind is Kind.TOTAL
            words = f"a {size.kind} that {name} prints"
            readings.append(Reading(size.bytes, words, size.unit, is_total))
    return readings


def _reading(stated: StatedSize, readings: list[Reading]) -> str | None:
    possible = [reading for reading in readings if reading.is_total or stated.may_be_weights]
    exact = [reading for reading in possible if reading.bytes == stated.bytes]
    fitting = exact or [reading for reading in possible if reading.fits(stated.bytes)]
    if not fitting:
        return None
    first = fitting[0]
    return first.words if exact else f"{first.words}, {first.bytes:,}, rounded"


def _listed(sizes: list[int]) -> str:
    return ", ".join(f"{size:,}" for size in dict.fromkeys(sizes))


# --- The cap ---


@dataclass(frozen=True)
class Measured:
    """The weights of one log and the script as it lies in the folder. Sizes in bytes."""

    name: str
    shipment: Shipment
    script: int

    @property
    def weights(self) -> int:
        return self.shipment.weights.bytes

    @property
    def total(self) -> int:
        return self.weights + self.script

    @property
    def doubt(self) -> int:
        """By how much the total may be off where the log rounds."""
        return self.shipment.weights.unit // 2

    @property
    def parts(self) -> str:
        return f"weights {self.weights:,} + script {self.script:,} = {self.total:,}"


def _check_cap(record: Record, shipments: dict[str, Shipment], stated: list[StatedSize]) -> Check:
    track = TRACKS.get(record.track_name)
    cap = track.bytes_cap if track else Track.bytes_cap
    measured = _largest_measured(record, shipments)
    logged = _largest_total(shipments)
    evidence = [size.line for size in stated if size.bytes > cap]
    if logged is not None:
        name, total = logged
        evidence.append(cite(record.logs[name], total))
    if measured is not None:
        weights = measured.shipment.weights
        evidence += [cite(record.logs[measured.name], weights), _script_size(record)]
    over = [size for size in stated if size.bytes > cap]
    if over or (logged is not None and _surely(logged[1]) > cap):
        return _over_by_the_papers(over, logged, measured, cap, evidence)
    if measured is not None and measured.total - measured.doubt > cap:
        return _over_as_shipped(record, measured, cap, evidence)
    if measured is not None and measured.total + measured.doubt > cap:
        detail = f"largest {measured.parts} of {cap:,}, give or take {measured.doubt:,}"
        return cannot_tell("cap", detail, *evidence)
    if measured is not None:
        return passes("cap", f"largest {measured.parts} of {cap:,}", *evidence)
    if logged is not None:
        return _by_logged_total(record, logged[1], cap, evidence)
    return _by_statement_alone(stated, cap)


def _by_logged_total(record: Record, total: Size, cap: int, evidence: list[Evidence]) -> Check:
    detail = f"logged total {total.bytes:,} of {cap:,}"
    if total.bytes + total.unit // 2 > cap:
        detail += f", give or take {total.unit // 2:,}"
        return cannot_tell("cap", detail, *evidence)
    if record.shipped_size is None:
        return cannot_tell("cap", f"{detail}; the script is not here to measure", *evidence)
    return passes("cap", detail, *evidence)


def _surely(size: Size) -> int:
    """The fewest bytes that a printed size may stand for."""
    return size.bytes - size.unit // 2


def _largest_measured(record: Record, shipments: dict[str, Shipment]) -> Measured | None:
    if not record.shipped_size:
        return None
    found = []
    for name, shipment in shipments.items():
        if shipment.weights is not None:
            found.append(Measured(name, shipment, record.shipped_size))
    return max(found, key=lambda one: one.total, default=None)


def _largest_total(shipments: dict[str, Shipment]) -> tuple[str, Size] | None:
    """Of all totals that are of no other compression than the shipped one."""
    totals = []
    for name, shipment in shipments.items():
        shipped = [shipment.total] if shipment.total is not None else []
        totals += [(name, total) for total in (*shipped, *shipment.unexplained)]
    return max(totals, key=lambda pair: _surely(pair[1]), default=None)


def _script_size(record: Record) -> Evidence:
    return Evidence(file=record.script_name or "", text=f"{record.shipped_size} bytes")


def _over_by_the_papers(
    over: list[StatedSize],
    logged: tuple[str, Size] | None,
    measured: Measured | None,
    cap: int,
    evidence: list[Evidence],
) -> Check:
    """FAIL, unless the log counts another script than the one that is shipped."""
    said = [f"submission.json says {size.bytes:,}" for size in over]
    if logged is not None and _surely(logged[1]) > cap:
        said.append(f"{logged[0]} says {logged[1].bytes:,}")
    said = ", ".join(dict.fromkeys(said))
    counted = measured.shipment.counted_code if measured is not None else None
    own = measured is not None and logged is not None and logged[1] is measured.shipment.total
    other_script = own and counted is not None and counted > measured.script
    if not over and other_script and measured.total <= cap:
        detail = f"{said}, cap {cap:,}; but that counts {counted:,} bytes of code: {measured.parts}"
        return passes("cap", detail, *evidence)
    return fails("cap", f"{said}, cap {cap:,}", *evidence)


def _over_as_shipped(
    record: Record, measured: Measured, cap: int, evidence: list[Evidence]
) -> Check:
    """POLICY where the log counts the script compressed, though it is shipped as it is."""
    shipment = measured.shipment
    packed = shipment.packed_code
    counted = packed.bytes if packed is not None else shipment.counted_code
    if packed is not None:
        evidence.append(cite(record.logs[measured.name], packed))
    sizes = compressed_sizes(record.code) if counted and record.code else {}
    labelled = packed is not None and packed.bytes < measured.script
    if counted is None or not (labelled or looks_compressed(counted, sizes)):
        return fails("cap", f"largest {measured.parts}, cap {cap:,}", *evidence)
    here = ", ".join(f"{name} {size:,}" for name, size in sizes.items()) or "no script"
    best = min(sizes.values(), default=counted)
    detail = (
        f"with the script compressed ({counted:,} bytes logged) {measured.weights + counted:,}, "
        f"with the script as shipped {measured.total:,}, cap {cap:,}; compressed here: {here}"
    )
    if measured.weights + best > cap:
        return fails("cap", f"{detail}: over the cap under each of them", *evidence)
    return policy("cap", detail, *evidence)


def _by_statement_alone(stated: list[StatedSize], cap: int) -> Check:
    if not stated:
        return cannot_tell("cap", "neither a log nor submission.json states a size")
    largest = max(stated, key=lambda size: size.bytes)
    detail = f"submission.json states {largest.bytes:,} of {cap:,}; no log prints a size"
    return cannot_tell("cap", detail, largest.line)


# --- Artifacts ---


def check_artifacts(record: Record) -> Iterator[Check]:
    """Committed artifacts against size and hash in submission.json and logs."""
    submission = record.submission
    if submission is None or submission.origin != "packed":
        yield cannot_tell(
            "artifacts",
            "no artifact in the folder and no hash stated: the weights cannot be identified",
            severity=Severity.NOTE,
        )
        return
    if not TRACKS[submission.track].commits_artifacts:
        detail = "outside git; size and sha256 of every seed stated"
        yield passes("artifacts", detail, say(record, "artifact_sha256"))
        return
    rows = submission.seed_results
    complaints = [_artifact_complaint(record, seed, row) for seed, row in rows.items()]
    yield from (complaint for complaint in complaints if complaint is not None)
    if not any(complaints):
        names = ", ".join(row.artifact for row in rows.values())
        yield passes("artifacts", f"size and sha256 of {names} as stated and logged")


def _artifact_complaint(record: Record, seed: str, row: SeedResult) -> Check | None:
    name = row.artifact or f"artifact of seed {seed}"
    if name not in record.names:
        return fails("artifacts", f"{name} is missing", say(record, "artifact", seed))
    weights = record.files.read(name)
    sha256 = sha256_of(weights)
    if (len(weights), sha256) != (row.artifact_bytes, row.artifact_sha256):
        found = f"{len(weights):,} bytes, sha256 {sha256[:12]}…"
        stated = f"{row.artifact_bytes:,}, {row.artifact_sha256[:12]}…"
        line = say(record, "artifact_sha256", seed)
        return fails("artifacts", f"{name}: {found}, stated {stated}", line)
    log = record.by_seed.get(int(seed))
    if log is not None and log.text("artifact.sha256") != sha256:
        fact = log.facts.get("artifact.sha256")
        lines = [cite(log, fact)] if fact else []
        return fails("artifacts", f"{name} is not what {log.path.name} wrote", *lines)
    return None
