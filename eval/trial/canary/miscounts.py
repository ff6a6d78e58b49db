"""Wrong ways to count bytes that the contest has seen, each computed on the referee's own stream.

`val_loss / val_bpb` states the bytes per target that a script divided by. Where it is none of the
honest readings, it may be exactly one of these.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from eval.text.corpus.bytes import SPACE
from eval.trial.canary.sources import Known
from eval.trial.canary.tokenizers import Tokenizer

REPLACEMENT_BYTES = len("\ufffd".encode())  # what a stray byte decodes to
FIRST_STRAY_BYTE = 0x80


@dataclass(frozen=True)
class WrongCount:
    """`bytes_per_target` that a script would find on the whole stream, and how it went wrong."""

    how: str
    bytes_per_target: float


def wrong_counts(known: Known, tokenizer: Tokenizer) -> Iterator[WrongCount]:
    targets = known.tokens[1:].astype(np.int64)
    counted = tokenizer.byte_counts(known.tokens)[1:]
    table = tokenizer.table
    spaces = _spaces(tokenizer)[targets]
    yield WrongCount(
        "the leading space is counted twice",
        float((counted + table.leading[targets]).mean()),
    )
    yield WrongCount(
        "U+2581 is counted as three bytes where it stands for a space",
        float((counted + (len(SPACE.encode()) - 1) * spaces).mean()),
    )
    yield WrongCount(
        "byte pieces are counted as U+FFFD, three bytes each",
        float((counted + _stray_bytes(known, tokenizer)).mean()),
    )


def _stray_bytes(known: Known, tokenizer: Tokenizer) -> np.ndarray:
    """Bytes too many for each target, int64 [targets], where tokens are decoded one by one."""
    values = [text[0] if text else 0 for text in tokenizer.table.surface]
    stray = tokenizer.byte_pieces & (np.array(values) >= FIRST_STRAY_BYTE)
    return (REPLACEMENT_BYTES - 1) * stray[known.tokens[1:].astype(np.int64)]


def _spaces(tokenizer: Tokenizer) -> np.ndarray:
    """int64 [V]: spaces in each piece that is text."""
    text = ~tokenizer.byte_pieces
    found = [surface.count(b" ") for surface in tokenizer.table.surface]
    return np.array(found) * text
