"""The ways in which an honest script may have weighed the targets of a stream.

A printed loss is a weighted mean over targets. Scripts cut the tail to a multiple of the sequence,
leave the first token or every BOS out, or count the last window's targets several times. Each way
gives its own number of bytes per target, and `val_loss / val_bpb` states that number to many
digits, so the script itself says which way it took.

For fixed weights w that sum to 1, sum of w ln(q / g) exceeds a by chance with probability at most
exp(-a / max w): by Jensen's inequality the expectation of (q / g)^(w / max w) is at most 1. So a
weighing counts as 1 / max w targets, here the targets divided by `heaviest`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eval.text.corpus.bytes import BOS
from eval.trial.canary.sources import Known

# A weighing that nothing identifies: no target counts more than 16 times the mean. That is a
# sixteenth of the targets evaluated, or a last window scored at every sixteenth of its length.
UNKNOWN_HEAVIEST = 16
MOST_CUT = 2048  # targets at one end of the stream: a long sequence of the public scripts
REPEATED_TAILS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)  # targets: strides of sliding windows
MOST_REPEATS = 64
MOST_CHANCE = 0.01  # of a part of the stream to have the bytes per target of the whole
BLOCK_STEPS = 64  # places in each block's length at which a block may begin


@dataclass(frozen=True)
class Reading:
    """One way to weigh. `targets` counts repeats, `nats` and `bytes` are sums over them.

    `heaviest`: how often the target counts that counts most."""

    what: str
    targets: int
    nats: float
    bytes: float
    heaviest: int = 1

    @property
    def nats_per_target(self) -> float:
        return self.nats / self.targets

    @property
    def bytes_per_target(self) -> float:
        return self.bytes / self.targets

    @property
    def nats_per_byte(self) -> float:
        return self.nats / self.bytes if self.bytes else np.inf


@dataclass(frozen=True)
class Interval:
    """What a rounded number may have been, both ends included."""

    low: float
    high: float

    def holds(self, value: "float | np.ndarray") -> "bool | np.ndarray":
        return (self.low <= value) & (value <= self.high)

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    def widened(self, relative: float) -> "Interval":
        return Interval(self.low * (1 - relative), self.high * (1 + relative))


class Readings:
    """All ways for one stream. `nats` and `bytes` float64 [targets + 1]: running sums from 0."""

    def __init__(self, known: Known, byte_counts: np.ndarray):
        self.targets = known.targets
        self.nats = np.concatenate([[0.0], np.cumsum(known.nats[1:])])
        self.bytes = np.concatenate([[0.0], np.cumsum(byte_counts[1:], dtype=np.float64)])
        is_bos = known.tokens[1:] == BOS
        self.bos_targets = int(is_bos.sum())
        self.bos_nats = float(known.nats[1:][is_bos].sum())

    def between(self, start: int, end: int) -> Reading:
        """Targets start..end-1, counted from 0."""
        name = f"targets {start:,} to {end:,} of {self.targets:,}"
        if end - start == self.targets:
            name = f"all {self.targets:,} targets"
        return Reading(
            what=name,
            targets=end - start,
            nats=self.nats[end] - self.nats[start],
            bytes=self.bytes[end] - self.bytes[start],
        )

    @property
    def whole(self) -> Reading:
        return self.between(0, self.targets)

    @property
    def plain(self) -> tuple[Reading, Reading]:
        """All targets, and all that are no BOS."""
        without_bos = Reading(
            what=f"the {self.targets - self.bos_targets:,} targets that are no BOS",
            targets=self.targets - self.bos_targets,
            nats=self.whole.nats - self.bos_nats,
            bytes=self.whole.bytes,
        )
        return self.whole, without_bos

    def fitting(self, bytes_per_target: Interval) -> list[Reading]:
        """The readings with so many bytes per target; only the whole stream where it fits.

        None where too few digits were printed to tell one part of the stream from another."""
        if not self._tells(bytes_per_target):
            return []
        for plain in self.plain:
            if bytes_per_target.holds(plain.bytes_per_target):
                return [plain]
        return [*self._cut_readings(bytes_per_target), *self._repeated_tails(bytes_per_target)]

    def _tells(self, bytes_per_target: Interval) -> bool:
        """Whether a part of the stream, taken by chance, would hardly fit."""
        ratios = [counted / size for size, _, counted in self._blocks]
        spread = np.ptp(np.concatenate(ratios))
        return bytes_per_target.high - bytes_per_target.low < MOST_CHANCE * spread

    def _cut_readings(self, bytes_per_target: Interval) -> Iterator[Reading]:
        """A piece is missing at the end, or at the beginning."""
        most = min(MOST_CUT, self.targets // 4)
        cut = np.arange(1, most + 1)
        left = self.targets - cut
        for end in left[bytes_per_target.holds(self.bytes[left] / left)]:
            yield self.between(0, int(end))
        behind = (self.bytes[-1] - self.bytes[cut]) / left
        for start in cut[bytes_per_target.holds(behind)]:
            yield self.between(int(start), self.targets)

    def _repeated_tails(self, bytes_per_target: Interval) -> Iterator[Reading]:
        """The last targets count several times: windows that all end with the stream."""
        times = np.arange(2, MOST_REPEATS + 1)
        for tail in REPEATED_TAILS:
            last = self.between(max(self.targets - tail, 0), self.targets)
            targets = self.targets + (times - 1) * last.targets
            total_bytes = self.bytes[-1] + (times - 1) * last.bytes
            for found in times[bytes_per_target.holds(total_bytes / targets)]:
                more = int(found) - 1
                yield Reading(
                    what=f"all targets, the last {last.targets:,} counted {found} times",
                    targets=self.targets + more * last.targets,
                    nats=self.whole.nats + more * last.nats,
                    bytes=self.whole.bytes + more * last.bytes,
                    heaviest=int(found),
                )

    def cheapest_nats_per_target(self) -> float:
        """The least that a part of the stream costs; see `UNKNOWN_HEAVIEST`."""
        return min(float((nats / size).min()) for size, nats, _ in self._blocks)

    def cheapest_nats_per_byte(self) -> float:
        return min(
            float((nats / np.maximum(counted, 1)).min()) for _, nats, counted in self._blocks
        )

    @cached_property
    def _blocks(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """(targets, nats of each, bytes of each) of the blocks of one size, from all down."""
        blocks = []
        parts = 1
        while parts <= UNKNOWN_HEAVIEST:
            size = max(self.targets // parts, 1)
            step = max(size // BLOCK_STEPS, 1)
            starts = np.arange(0, self.targets - size + 1, step)
            nats = self.nats[starts + size] - self.nats[starts]
            counted = self.bytes[starts + size] - self.bytes[starts]
            blocks.append((size, nats, counted))
            parts *= 2
        return blocks
