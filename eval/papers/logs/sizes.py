"""The sizes that a public log prints: weights, script and their total, under many labels.

A script may try several compressions and print a line for each, so a size counts only together with
its label. Which of them is the shipped one is settled by what the record states.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

COUNT = r"(\d{1,3}(?:,\d{3})+|\d{2,15})(?![\d.,]*\d)"
LABEL = r"(?P<label>[^:]{0,40}?)"
PACKED = re.compile(r"compressed|packed|minified", re.IGNORECASE)
UNPACKED = re.compile(r"uncompressed|unpacked", re.IGNORECASE)
RAW = re.compile(r"\(?raw\)?|torch|pickle|uncompressed", re.IGNORECASE)


class Kind(StrEnum):
    """What a size is the size of."""

    WEIGHTS = "weights"
    CODE = "code"
    PACKED_CODE = "compressed code"
    TOTAL = "total"


@dataclass(frozen=True)
class Size:
    """A size in bytes, and the line of the log that states it.

    `label` is the compression as the log calls it, empty where it names none. `unit` is what the
    last printed digit is worth: 10,000 where a log prints 15.92 MB.
    """

    kind: Kind
    label: str
    bytes: int
    line: int
    text: str
    unit: int = 1


# A line of each kind, as the contest's scripts and their descendants print it. A launcher may have
# put a time or a rank before it.
PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(rf"(?:^|[\]:]\s){pattern}", re.IGNORECASE))
    for kind, pattern in (
        (Kind.WEIGHTS, rf"Serialized[ _]model[ _]?{LABEL}:\s*{COUNT}(?: bytes| B\b)"),
        (Kind.TOTAL, rf"Total submission(?: size)?\s?{LABEL}:\s*{COUNT}(?: bytes| B\b)"),
        (Kind.TOTAL, rf"Submission size\s?{LABEL}:\s*{COUNT}(?: bytes| B\b)"),
        (Kind.CODE, rf"Code size\s?{LABEL}:\s*{COUNT}(?: bytes| B\b)"),
        (Kind.WEIGHTS, rf"artifact_bytes(?P<label>):\s*{COUNT}\b"),
        (Kind.CODE, rf"code_bytes(?P<label>):\s*{COUNT}\b"),
        (Kind.TOTAL, rf"(?:total_bytes|bytes_total)(?P<label>):\s*{COUNT}\b"),
        (Kind.TOTAL, rf"Artifact size(?P<label>):\s*{COUNT}(?: bytes| B\b)"),
    )
)
# The same totals in megabytes of 10^6 bytes: where an author means 2^20, they are larger still.
MEGABYTES = re.compile(
    rf"(?:^|[\]:]\s)(?:Total submission(?: size)?|Submission size|Artifact size)\s?{LABEL}:\s*"
    r"(?P<megabytes>\d{1,6}\.(?P<digits>\d{1,6}))\s?(?P<unit>MB|MiB)\b",
    re.IGNORECASE,
)
MEGABYTE = {"mb": 1_000_000, "mib": 1 << 20}
# Totals that nobody ships: limits, and what a size was before something was cut.
NOT_SHIPPED = re.compile(
    r"\b(?:before|un\w+|pre|raw|estimat\w*|without|initial|target|limit|cap|max|budget)\b",
    re.IGNORECASE,
)
RESULT = re.compile(rf"\bsize={COUNT}\s?B\b")
ROUNDED = re.compile(r"^artifact:(?P<megabytes>\d+\.(?P<digits>\d+))MB\b.*\bcode:(?P<code>\d+)\b")
# One line with several sizes: `artifact: 15470583 bytes  code: 58274 bytes  total: 15528857 bytes`.
PART = re.compile(
    r"\b(?P<part>artifact|model|code|total(?:_submission)?)[=:]\s*"
    rf"{COUNT}(?P<unit>\s?bytes)?(?=\W|$)"
)
LEAST_RAW = 32_000_000  # bytes: unlabelled weights of twice the contest's cap are not compressed


# What every line with a size has in it: most lines have none of it, and are passed over quickly.
WORDS = ("erialized", "ubmission", "ode size", "rtifact", "ode_bytes", "total", "size=")


def sizes_of(lines: Iterable[tuple[int, str]]) -> "Sizes":
    """The sizes that lines of a log state; each line is its number and its text."""
    found: list[Size] = []
    for number, text in lines:
        if any(word in text for word in WORDS):
            found += _read(number, text)
    return Sizes(tuple(found))


def _read(number: int, text: str) -> list[Size]:
    parts = _read_parts(number, text)
    if parts:
        return parts
    rounded = ROUNDED.search(text)
    if rounded:
        unit = 10 ** max(0, 6 - len(rounded["digits"]))
        weights = round(float(rounded["megabytes"]) * 1_000_000)
        code = Size(Kind.CODE, "", int(rounded["code"]), number, text)
        return [Size(Kind.WEIGHTS, "", weights, number, text, unit), code]
    result = RESULT.search(text)
    if result:
        return [Size(Kind.TOTAL, "", _count(result[1]), number, text)]
    for kind, pattern in PATTERNS:
        match = pattern.search(text)
        if match is None:
            continue
        label = match["label"].strip(" ()_")
        if kind is Kind.CODE:
            packed = PACKED.search(label) and not UNPACKED.search(label)
            kind_of_code = Kind.PACKED_CODE if packed else Kind.CODE
            return [Size(kind_of_code, "", _count(match.groups()[-1]), number, text)]
        raw = RAW.fullmatch(label)
        return [Size(kind, "" if raw else label, _count(match.groups()[-1]), number, text)]
    rounded_total = MEGABYTES.search(text)
    return [_rounded_total(rounded_total, number, text)] if rounded_total else []


def _rounded_total(match: re.Match[str], number: int, text: str) -> Size:
    """A total that is printed in megabytes, to the digits that are."""
    megabyte = MEGABYTE[match["unit"].lower()]
    count = round(float(match["megabytes"]) * megabyte)
    unit = max(1, megabyte // 10 ** len(match["digits"]))
    return Size(Kind.TOTAL, match["label"].strip(" ()_"), count, number, text, unit)


def _read_parts(number: int, text: str) -> list[Size]:
    """The sizes of a line that gives several. An artifact is the total unless the line has one."""
    found = {match["part"]: match for match in PART.finditer(text)}
    artifact = found.get("artifact")
    if artifact is None or (len(found) == 1 and not artifact["unit"]):
        return []
    has_total = any(part.startswith("total") for part in found)
    kinds = {"artifact": Kind.WEIGHTS if has_total else Kind.TOTAL, "code": Kind.CODE}
    label = text[: artifact.start()].strip(" :=")
    sizes = []
    for part, match in found.items():
        kind = kinds.get(part, Kind.WEIGHTS if part == "model" else Kind.TOTAL)
        own_label = "" if kind is Kind.CODE else label
        sizes.append(Size(kind, own_label, _count(match[2]), number, text))
    return sizes


def _count(text: str) -> int:
    return int(text.replace(",", ""))


@dataclass(frozen=True)
class Shipment:
    """What one run ships: weights, script and total as the log counts them; None: not printed.

    `tried` are all weights and totals that the log prints, but those of uncompressed weights.
    `unexplained` are the totals beside the shipped one that belong to no other printed weights.
    """

    weights: Size | None = None
    code: Size | None = None
    packed_code: Size | None = None
    total: Size | None = None
    tried: tuple[Size, ...] = ()
    unexplained: tuple[Size, ...] = ()

    @property
    def counted_code(self) -> int | None:
        """Bytes of everything in the total but the weights."""
        if self.total is None or self.weights is None:
            return None
        return self.total.bytes - self.weights.bytes


@dataclass(frozen=True)
class Sizes:
    """All sizes of a log, in its order."""

    all: tuple[Size, ...] = ()

    def of(self, kind: Kind) -> list[Size]:
        return [size for size in self.all if size.kind is kind]

    def stating(self, count: int) -> Size | None:
        """The first line that states a number of bytes, whatever it calls them."""
        return next((size for size in self.all if size.bytes == count), None)

    def shipment(self, stated: Collection[int] = ()) -> Shipment:
        """The sizes of what was shipped.

        Of several totals it is the one that the record states; where it states none, that of the
        stated weights; else the smallest. A total of uncompressed weights is none where a
        compression was printed too.
        """
        code = _last(self.of(Kind.CODE))
        packed = _last(self.of(Kind.PACKED_CODE))
        totals = self._shipped_totals()
        weights = self._shipped_weights()
        tried = (*weights, *totals)
        named = [size for size in totals if size.bytes in stated]
        if not named:
            told = [size for size in weights if size.bytes in stated]
            named = [total for total in totals if self._is_of_one(total, told)]
            weights = told or weights
        exact = [size for size in totals if size.unit == 1]
        total = min(named or exact or totals, key=lambda size: size.bytes, default=None)
        shipped = self._weights_of(total, weights)
        unexplained = self._unexplained(total, shipped)
        return Shipment(shipped, code, packed, total, tried, tuple(unexplained))

    def _unexplained(self, shipped: Size | None, weights: Size | None) -> list[Size]:
        """Totals beside the shipped one that are of no other compression and no other run."""
        others = [size for size in self.of(Kind.WEIGHTS) if size is not weights]
        found = []
        for total in self._shipped_totals():
            aside = NOT_SHIPPED.search(total.label) or RESULT.search(total.text)
            if total is shipped or aside or total.bytes >= LEAST_RAW:
                continue
            if not self._is_of_one(total, others):
                found.append(total)
        return found

    def _raw_weights(self) -> list[Size]:
        """Weights that are not compressed: unlabelled beside labelled ones, or far too large."""
        compressed = any(size.label for size in self.all)
        unlabelled = [size for size in self.of(Kind.WEIGHTS) if not size.label]
        return [size for size in unlabelled if compressed or size.bytes >= LEAST_RAW]

    def _shipped_weights(self) -> list[Size]:
        raw = self._raw_weights()
        return [size for size in self.of(Kind.WEIGHTS) if size not in raw]

    def _shipped_totals(self) -> list[Size]:
        """The totals without those of weights that are not compressed."""
        sums = set()
        for code in (0, *(size.bytes for size in self.of(Kind.CODE))):
            sums |= {weights.bytes + code for weights in self._raw_weights()}
        return [size for size in self.of(Kind.TOTAL) if size.label or size.bytes not in sums]

    def _is_of_one(self, total: Size, weights: list[Size]) -> bool:
        return any(self._pair(size, total) for size in weights)

    def _pair(self, weights: Size, total: Size) -> bool:
        """Whether a total is that of these weights: by its label, else by the sum."""
        if weights.label and weights.label == total.label:
            return True
        kinds = (Kind.CODE, Kind.PACKED_CODE)
        codes = [size.bytes for size in self.all if size.kind in kinds]
        rest = total.bytes - weights.bytes
        return any(abs(rest - code) <= total.unit // 2 for code in codes)

    def _weights_of(self, total: Size | None, weights: list[Size]) -> Size | None:
        if total is None:
            return min(weights, key=lambda size: size.bytes, default=None)
        paired = [size for size in weights if self._pair(size, total)]
        below = [size for size in weights if size.bytes <= total.bytes]
        return max(paired or below or weights, key=lambda size: size.bytes, default=None)


def _last(sizes: list[Size]) -> Size | None:
    return sizes[-1] if sizes else None
