"""The test `documents`: whether one document moves the scores of the next."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.text.corpus.bytes import BOS
from eval.trial.audit.experiments.comparisons import Comparisons
from eval.trial.audit.experiments.experiment import Experiment
from eval.trial.audit.experiments.material import Material
from eval.trial.runner.scorer import Scored, Stream

FEWEST_DOCUMENTS = 4
MOST_BORDERS = 8
REACH = 256  # tokens on each side of a border
NO_BOS = 2  # an id that stands in for a BOS inside the replaced document


@dataclass(frozen=True)
class DocumentPair:
    """Two streams of equal length that differ only before the BOS at `border`."""

    first: np.ndarray
    second: np.ndarray
    border: int


class DocumentBorders(Experiment):
    """Neighbouring documents A|B, and the same B behind another text of A's length."""

    def __init__(self, material: Material, compare: Comparisons):
        self.compare = compare
        self.pairs: list[DocumentPair] = []
        starts = np.flatnonzero(material.x == BOS)
        if len(starts) < FEWEST_DOCUMENTS:
            return
        whole = len(starts) - 2
        for k in material.rng.choice(whole, min(MOST_BORDERS, whole), replace=False).tolist():
            begin = max(int(starts[k]), int(starts[k + 1]) - REACH)
            border = int(starts[k + 1])
            end = min(int(starts[k + 2]), border + REACH)
            if border - begin >= 2:
                self.pairs.append(_draw_pair(material, begin, border, end))

    def streams(self) -> list[Stream]:
        streams: list[Stream] = []
        for pair in self.pairs:
            streams += [Stream(pair.first), Stream(pair.second)]
        return streams

    def judge(self, scored: Sequence[Scored]) -> None:
        into = self.compare.into["documents"]
        largest = 0.0
        place = 0
        for pair, first, second in zip(self.pairs, scored[::2], scored[1::2], strict=True):
            if first.nll is None or second.nll is None or len(first.nll) <= pair.border:
                continue
            into.ran_check()
            size = np.abs(first.nll - second.nll)[pair.border :]
            if size.max() > largest:
                largest = float(size.max())
                place = int(size.argmax()) + 1
        if not into.ran:
            into.skip("fewer than four documents in the stream")
            return
        into.figure("largest_effect_across_a_document_border_nats", largest)
        limit = self.compare.noise.limit
        if largest > limit and self.compare.policy.document_isolation:
            into.add(
                "POLICY",
                f"token {place} of a document",
                f"no effect of the document before it (± {limit:.2g})",
                f"{largest:.3g} nats",
                "rule set asks for document isolation",
            )


def _draw_pair(material: Material, begin: int, border: int, end: int) -> DocumentPair:
    x = material.x
    size = border - begin
    start = int(material.rng.integers(0, len(x) - size))
    other = x[start + 1 : start + size]
    first = x[begin:end]
    second = first.copy()
    second[1:size] = np.where(other == BOS, NO_BOS, other)
    return DocumentPair(first, second, size)
