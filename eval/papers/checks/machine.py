"""Checks of the machine and the model: ranks of the track, parameters against the claim."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from eval.papers.checks.report import Check, Evidence, cannot_tell, cite, fails, passes, say
from eval.papers.folder import Record
from eval.papers.submission.schema import TRACKS

WORLD_SIZE = "env.world_size"
PARAMETERS = "model.parameters"
# Keys by which submission.json claims a number of parameters.
PARAMETER_KEYS = re.compile(
    r"(?:model_|num_|n_|total_)?(?:params?|parameters|param_count)(?:_count|_total|_m)?",
    re.IGNORECASE,
)
COUNT = re.compile(r"~?\s*(?P<number>\d[\d,_]*(?:\.\d+)?)\s*(?P<unit>[kKmMbB]?)(?:illion)?\b.*")
UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def check_world_size(record: Record) -> Iterator[Check]:
    """As many ranks as the track has GPUs, in every log."""
    track = TRACKS.get(record.track_name)
    if track is None or not track.gpus or not record.logs:
        return
    logs = record.chosen.values()
    telling = [log for log in logs if log.integer(WORLD_SIZE) is not None]
    wrong = [log for log in telling if log.integer(WORLD_SIZE) != track.gpus]
    lines = [cite(log, log.facts[WORLD_SIZE]) for log in wrong or telling]
    if wrong:
        sizes = ", ".join(dict.fromkeys(str(log.integer(WORLD_SIZE)) for log in wrong))
        detail = f"{sizes} rank(s); {record.track_name} is {track.gpus} GPUs"
        yield fails("world_size", detail, *lines)
    elif not telling:
        yield cannot_tell("world_size", "no log states the number of ranks")
    else:
        yield passes("world_size", f"{track.gpus} ranks", *lines)


# --- Parameters ---


@dataclass(frozen=True)
class Claim:
    """A stated number of parameters, to within `unit`: that of the last digit given."""

    value: float
    unit: float
    line: Evidence

    def fits_one(self, counts: Iterable[int]) -> bool:
        """Whether a counted number is the claimed one, rounded or cut to the digits given."""
        return any(abs(self.value - count) < max(self.unit, 1) for count in counts)


def check_parameters(record: Record) -> Iterator[Check]:
    """The logged number of parameters, and whether it is the claimed one."""
    counts: dict[int, Evidence] = {}
    for log in record.chosen.values():
        count = log.integer(PARAMETERS)
        if count is not None:
            counts.setdefault(count, cite(log, log.facts[PARAMETERS]))
    claims = list(_claims(record))
    if not counts:
        yield cannot_tell("parameters", "no log states the number of parameters")
        return
    logged = ", ".join(f"{count:,}" for count in counts)
    wrong = [claim for claim in claims if not claim.fits_one(counts)]
    lines = [*(claim.line for claim in wrong or claims), *counts.values()]
    if wrong:
        stated = ", ".join(f"{claim.value:,.0f}" for claim in wrong)
        yield fails("parameters", f"{stated} stated, the logs say {logged}", *lines)
        return
    yield passes("parameters", f"{logged}{' as stated' if claims else ''}", *lines)


def _claims(record: Record) -> Iterator[Claim]:
    for key, value in record.stated.items():
        if not PARAMETER_KEYS.fullmatch(key) or isinstance(value, bool):
            continue
        in_millions = key.lower().endswith("_m")
        scale = UNITS["m"] if in_millions else 1
        read = _count(str(value)) if isinstance(value, str | int | float) else None
        if read is not None:
            number, unit = read
            yield Claim(number * scale, unit * scale, say(record, key))


def _count(text: str) -> tuple[float, float] | None:
    """(value, worth of its last digit) of `26829913`, `26.8M` or `27,000,000`."""
    match = COUNT.fullmatch(text.strip())
    if match is None:
        return None
    digits = re.sub(r"[,_]", "", match["number"])
    unit = UNITS[match["unit"].lower()]
    whole, _, fraction = digits.partition(".")
    if fraction.strip("0"):
        return float(digits) * unit, unit / 10 ** len(fraction)
    zeros = len(whole) - len(whole.rstrip("0")) if int(whole) else 0
    return int(whole) * unit, unit * 10**zeros
