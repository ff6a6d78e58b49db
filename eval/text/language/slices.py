"""Chooses the slices of text of the fresh-slice test."""

import ast
import importlib.metadata
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.text.corpus.bytes import BOS, FIRST_BYTE_ID, ByteTable
from eval.text.corpus.dataset import Dataset

SHORT = (100, 199)  # characters; the embedded corpus begins at 200
MAX_PARTS = 64  # of the official run behind its first part
LN2 = float(np.log(2))
Scores = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Saved:
    """Bits per byte below what was expected; `error` its standard error over `documents` documents."""

    value: float
    error: float
    documents: int


def per_document(tokens: np.ndarray, nats: np.ndarray, table: ByteTable) -> np.ndarray:
    """[documents, 2]: bits and bytes of each document's scored tokens, BOS targets left out. `nats` [N-1] belongs to targets 1..N-1."""
    inside = tokens[1:] != BOS
    document = np.cumsum(tokens == BOS)[1:]
    size = int(document.max(initial=0)) + 1
    bits = np.bincount(document[inside], nats[inside] / LN2, size)
    length = np.bincount(document[inside], table.table_bytes(tokens)[inside].astype(float), size)
    return np.stack([bits, length], 1)[length > 0]


def ratio(bits: np.ndarray, length: np.ndarray) -> Saved:
    """Ratio estimator Σ bits / Σ bytes with its linearised standard error over documents."""
    n = len(bits)
    if n < 2:
        return Saved(float(bits.sum() / max(length.sum(), 1)), float("inf"), n)
    value = float(bits.sum() / length.sum())
    residual = bits - value * length
    return Saved(value, float(np.sqrt((residual**2).sum() * n / (n - 1)) / length.sum()), n)


def short_docstrings(provenance: dict, rng: np.random.Generator, wanted: int) -> list[str]:
    """Docstrings too short for the embedded corpus, from the packages that its manifest names; distinct, in random order."""
    packages = (
        provenance.get("recipe", {}).get("packages", {})
        if isinstance(provenance.get("recipe"), dict)
        else {}
    )
    files: list[Path] = []
    for name in packages:
        try:
            listed = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        files += [Path(f.locate()) for f in listed if f.suffix == ".py" and "test" not in str(f)]
    found: dict[str, None] = {}
    for index in rng.permutation(len(files)):
        try:
            tree = ast.parse(files[index].read_text("utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and SHORT[0] <= len(text) <= SHORT[1] and "\u2581" not in text:
                    found[text] = None
        if len(found) >= wanted:
            break
    return list(found)


def encode(texts: list[str], dataset: Dataset) -> list[np.ndarray]:
    """Ids of each text behind a BOS, int64."""
    one: Callable[[str], list[int]]
    if dataset.manifest.tokenizer.kind == "bytes":

        def one(text: str) -> list[int]:
            return [FIRST_BYTE_ID + b for b in text.encode()]
    else:
        import sentencepiece

        one = sentencepiece.SentencePieceProcessor(model_file=str(dataset.tokenizer_path)).encode
    return [np.array([BOS, *one(text)], np.int64) for text in texts]


class Slices:
    """Chooses the slices. `held_out` are training documents that the baseline must not see."""

    def __init__(
        self, dataset: Dataset, fresh: Dataset | None, tokens: int, rng: np.random.Generator
    ):
        self.dataset, self.rng = dataset, rng
        self.x = dataset.split("val").tokens
        self.table = dataset.table
        whole = dataset.split("val").spans
        count = max(
            int(np.searchsorted([end for _, end in whole], tokens, side="right")),
            min(2, len(whole)),
        )
        self.val = whole[:count]
        self.size = self.val[-1][1]
        self.drawn = self._drawn(whole)
        self.held_out: list[np.ndarray] = []
        self.fresh_stream: np.ndarray | None = None
        self.short_val: np.ndarray | None = None
        self.skipped: list[str] = []
        self._outside(fresh)

    def _drawn(self, spans: list[tuple[int, int]]) -> np.ndarray | None:
        """About `size` tokens from the beginning of a document drawn by chance; behind the last document comes the first, so that every one is
        as likely to be in it. None where the first part is the whole split."""
        if len(self.val) == len(spans):
            return None
        begin = spans[int(self.rng.integers(len(spans)))][0]
        return np.roll(self.x, -begin)[: self.size]

    def control(self) -> np.ndarray | None:
        """Held-out training documents for the long run, None where the first part is the whole split or there are none."""
        return (
            np.concatenate(self.held_out)[: self.size]
            if self.drawn is not None and self.held_out
            else None
        )

    def later_parts(self) -> list[tuple[int, int]]:
        """[start, end) of the parts of the stream behind the first one, each of whole documents."""
        rest = self.dataset.split("val").spans[len(self.val) :]
        count = (
            min(MAX_PARTS, len(rest), max(1, round((len(self.x) - self.size) / self.size)))
            if rest
            else 0
        )
        edges = np.linspace(self.size, len(self.x), count + 1)
        ends = np.array([end for _, end in rest])
        cuts = np.unique([self.size, *(ends[np.abs(ends - edge).argmin()] for edge in edges[1:])])
        return list(itertools.pairwise(cuts.tolist()))

    def training_without_held_out(self, limit: int) -> np.ndarray | None:
        """Training stream of at most `limit` tokens without the held-out documents, which are chosen here; None when there is no training split."""
        if not self.dataset.has("train"):
            self.skipped.append("no training shards here")
            return None
        tokens = self.dataset.split("train", limit).tokens
        starts = np.flatnonzero(tokens == BOS)
        if len(starts) < 8:
            self.skipped.append("fewer than eight training documents")
            return tokens
        ends = np.append(starts[1:], len(tokens))
        chosen, held = [], 0
        for k in self.rng.permutation(len(starts) - 1):  # the last document may be cut by the limit
            if held >= min(self.size, len(tokens) // 4):
                break
            chosen.append(k)
            held += ends[k] - starts[k]
        self.held_out = [tokens[starts[k] : ends[k]] for k in chosen]
        keep = np.ones(len(tokens), bool)
        for k in chosen:
            keep[starts[k] : ends[k]] = False
        return tokens[keep]

    def _outside(self, fresh: Dataset | None) -> None:
        if fresh is not None:
            split = fresh.split(
                "val" if "val" in fresh.manifest.splits else next(iter(fresh.manifest.splits))
            )
            cut = max(
                int(np.searchsorted([end for _, end in split.spans], self.size, side="right")), 1
            )
            self.fresh_stream = split.tokens[: split.spans[min(cut, len(split.spans)) - 1][1]]
        elif self.dataset.manifest.corpus == "docs":
            texts = short_docstrings(self.dataset.manifest.provenance, self.rng, self.size // 40)
            tokens = encode(texts, self.dataset) if texts else []
            if sum(map(len, tokens)) < self.size // 4:
                self.skipped.append("too few fresh documents in this environment")
                return
            self.fresh_stream = np.concatenate(tokens)[: self.size]
            lengths = self.rng.permutation([len(t) for t in tokens])
            cut = [
                self.x[start : min(end, start + n)]
                for (start, end), n in zip(
                    self.dataset.split("val").spans,
                    np.resize(lengths, len(self.dataset.split("val").spans)),
                    strict=True,
                )
            ]
            self.short_val = np.concatenate(cut)[: len(self.fresh_stream)]
        else:
            self.skipped.append("no documents outside both splits (pass --fresh DIR)")
