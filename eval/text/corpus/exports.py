"""The published tokenisations of the FineWeb validation split: what a log alone tells about the
bytes that its score was divided by.

Without numpy, so that checks of papers start quickly.
"""

import math
from dataclasses import dataclass

FINEWEB_BYTES = 151_080_891  # scored bytes of the full FineWeb validation split as the contest's table counts them
BYTES_TOLERANCE = 1e-3  # tails cut at a sequence boundary move the sum by less than 0.01 %


@dataclass(frozen=True)
class KnownExport:
    """One published tokenisation of the FineWeb validation split: val_loss / val_bpb = `ratio` nats per bit-per-byte."""

    label: str
    val_tokens: tuple[int, ...]
    ratio: float
    bytes: float


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
    """(export of that many tokens, implied bytes, complaint). The complaint is None when the byte count is right to 0.1 %; the export is
    None when no published export has that many tokens (a cut or foreign validation set), and then the whole split is the yardstick."""
    implied = implied_bytes(val_tokens, val_loss, val_bpb)
    export = next(
        (e for e in KNOWN_EXPORTS if any(abs(val_tokens - n) <= 1e-3 * n for n in e.val_tokens)),
        None,
    )
    expected = export.bytes if export else FINEWEB_BYTES
    off = implied / expected - 1
    if abs(off) <= BYTES_TOLERANCE:
        return export, implied, None
    what = (
        f"the {export.label} export holds {expected:,.0f}"
        if export
        else f"no published export has {val_tokens:,} tokens; the split holds {expected:,.0f}"
    )
    return (
        export,
        implied,
        f"val_loss / val_bpb implies {implied:,.0f} bytes ({off:+.2%}); {what}; corrected val_bpb {val_bpb * (1 + off):.5f}",
    )
