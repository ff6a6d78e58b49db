"""The published tokenisations of the FineWeb validation split: what a log alone tells about the
bytes that its score was divided by.

Without numpy, so that checks of papers start quickly.
"""

import math
from dataclasses import dataclass

# Scored bytes of the full FineWeb validation split as the contest's table counts them.
FINEWEB_BYTES = 151_080_891
BYTES_TOLERANCE = 1e-3  # tails cut at a sequence boundary move the sum by less than 0.01 %
TOKENS_TOLERANCE = 1e-3  # of an export's number of tokens, for the same reason


@dataclass(frozen=True)
class KnownExport:
    """One published tokenisation of the FineWeb validation split.

    `val_tokens`: number of tokens, one for each published cut.
    `ratio`: val_loss / val_bpb in nats per bit-per-byte.
    `bytes`: scored bytes."""

    label: str
    val_tokens: tuple[int, ...]
    ratio: float
    bytes: float

    def has_as_many(self, val_tokens: int) -> bool:
        return any(abs(val_tokens - n) <= TOKENS_TOLERANCE * n for n in self.val_tokens)


KNOWN_EXPORTS = (
    KnownExport("SP1024", (62_021_632,), 1.68846, 151.081e6),
    KnownExport("SP4096", (45_508_608,), 2.30103, 151.074e6),
    KnownExport("SP8192", (40_540_160,), 2.58307, 151.076e6),
    KnownExport("SP8192 CaseOps with byte sidecar", (47_851_520,), 2.18837, 151.074e6),
    KnownExport("pure bytes", (151_076_864, 151_130_112), 0.69315, 151.08e6),
    KnownExport("SP1024, first export", (63_779_840,), 1.69288, 155.77e6),
)


def implied_bytes(val_tokens: int, val_loss: float, val_bpb: float) -> float:
    """Bytes by which a score was divided: tokens × (nats per token / bits per byte) / ln 2."""
    return val_tokens * (val_loss / val_bpb) / math.log(2)


def check_fineweb_bytes(
    val_tokens: int, val_loss: float, val_bpb: float
) -> tuple[KnownExport | None, float, str | None]:
    """(export of that many tokens, implied bytes, complaint) of a score on FineWeb.

    The complaint is None when the byte count is right to 0.1 %. The export is None when no
    published export has that many tokens (a cut or foreign validation set); the whole split is
    the yardstick then."""
    implied = implied_bytes(val_tokens, val_loss, val_bpb)
    fitting = [export for export in KNOWN_EXPORTS if export.has_as_many(val_tokens)]
    export = fitting[0] if fitting else None
    expected = export.bytes if export else FINEWEB_BYTES
    off = implied / expected - 1
    if abs(off) <= BYTES_TOLERANCE:
        return export, implied, None
    if export:
        yardstick = f"the {export.label} export holds {expected:,.0f}"
    else:
        yardstick = (
            f"no published export has {val_tokens:,} tokens; the split holds {expected:,.0f}"
        )
    complaint = (
        f"val_loss / val_bpb implies {implied:,.0f} bytes ({off:+.2%}); {yardstick}; "
        f"corrected val_bpb {val_bpb * (1 + off):.5f}"
    )
    return export, implied, complaint
