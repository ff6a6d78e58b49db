"""Chooses the slices of text of the fresh-slice test."""

import ast
import importlib.metadata
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.text.corpus.bytes import BOS, FIRST_BYTE_ID, SPACE, ByteTable
from eval.text.corpus.dataset import Dataset, Split

SHORT = (100, 199)  # characters; the embedded corpus begins at 200
MAX_PARTS = 64  # of the official run behind its first part
FEWEST_TRAINING_DOCUMENTS = 8
TOKENS_PER_SHORT_DOCUMENT = 40  # about; says how many short documents are looked for
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
LN2 = float(np.log(2))
Scores = tuple[np.ndarray, np.ndarray]  # ids [N] and nats [N-1] of the targets 1..N-1
Span = tuple[int, int]  # [start, end) of a document in a stream


@dataclass(frozen=True)
class Saved:
    """Bits per byte below what was expected; `error` is its standard error over `documents`."""

    value: float
    error: float
    documents: int


def per_document(tokens: np.ndarray, nats: np.ndarray, table: ByteTable) -> np.ndarray:
    """float64 [documents, 2]: bits and bytes of each document's scored tokens.

    BOS targets are left out. `nats` [N-1] belongs to the targets 1..N-1 of `tokens` [N]."""
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
    error = np.sqrt((residual**2).sum() * n / (n - 1)) / length.sum()
    return Saved(value, float(error), n)


# --- Documents that are in neither split ---


def short_docstrings(provenance: dict, rng: np.random.Generator, wanted: int) -> list[str]:
    """Docstrings too short for the embedded corpus, from the packages that its manifest names.

    Distinct, in random order; `wanted` or a few more, fewer where there are no more."""
    files = _sources_of_the_corpus(provenance)
    found: dict[str, None] = {}  # a set in order
    for index in rng.permutation(len(files)):
        found |= dict.fromkeys(_short_docstrings_of(files[index]))
        if len(found) >= wanted:
            break
    return list(found)


def _sources_of_the_corpus(provenance: dict) -> list[Path]:
    recipe = provenance.get("recipe")
    packages = recipe.get("packages", {}) if isinstance(recipe, dict) else {}
    files: list[Path] = []
    for name in packages:
        try:
            listed = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        sources = [file for file in listed if file.suffix == ".py" and "test" not in str(file)]
        files += [Path(file.locate()) for file in sources]
    return files


def _short_docstrings_of(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return []
    documented = [node for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    texts = [ast.get_docstring(node) or "" for node in documented]
    shortest, longest = SHORT
    return [text for text in texts if shortest <= len(text) <= longest and SPACE not in text]


def encode(texts: list[str], dataset: Dataset) -> list[np.ndarray]:
    """Ids of each text behind a BOS, int64."""
    ids_of = _encoder(dataset)
    return [np.array([BOS, *ids_of(text)], np.int64) for text in texts]


def _encoder(dataset: Dataset) -> Callable[[str], list[int]]:
    if dataset.manifest.tokenizer.kind == "bytes":
        return _byte_ids
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(dataset.tokenizer_path)).encode


def _byte_ids(text: str) -> list[int]:
    return [FIRST_BYTE_ID + value for value in text.encode()]


# --- The slices ---


class Slices:
    """Chooses the slices of a dataset's text; `size` is the number of tokens in each, about.

    `x` int64 [N]: the validation stream; `val`: the documents of its first part.
    `drawn`: a part drawn by chance, see `_drawn`.
    `held_out`: training documents that the baseline must not see.
    `fresh_stream`: documents outside both splits; `short_val`: validation documents cut to their
    lengths, where they are short.
    `skipped`: why a slice is missing."""

    def __init__(
        self, dataset: Dataset, fresh: Dataset | None, tokens: int, rng: np.random.Generator
    ):
        self.dataset = dataset
        self.rng = rng
        self.table = dataset.table
        split = dataset.split("val")
        self.x = split.tokens
        fitting = documents_within(split, tokens)
        self.val = split.spans[: max(fitting, min(2, len(split.spans)))]
        self.size = self.val[-1][1]
        self.drawn = self._drawn(split.spans)
        self.held_out: list[np.ndarray] = []
        self.fresh_stream: np.ndarray | None = None
        self.short_val: np.ndarray | None = None
        self.skipped: list[str] = []
        if fresh is not None:
            self.fresh_stream = self._opening_of(fresh)
        elif dataset.manifest.corpus == "docs":
            self._choose_short_documents()
        else:
            self.skipped.append("no documents outside both splits (pass --fresh DIR)")

    def _drawn(self, spans: list[Span]) -> np.ndarray | None:
        """About `size` tokens from the beginning of a document drawn by chance.

        Behind the last document comes the first, so that every one is as likely to be in it. None
        where the first part is the whole split."""
        if len(self.val) == len(spans):
            return None
        begin, _ = spans[int(self.rng.integers(len(spans)))]
        return np.roll(self.x, -begin)[: self.size]

    def control(self) -> np.ndarray | None:
        """Held-out training documents for the long run.

        None where the first part is the whole split or there are none."""
        if self.drawn is None or not self.held_out:
            return None
        return np.concatenate(self.held_out)[: self.size]

    def later_parts(self) -> list[Span]:
        """[start, end) of the parts of the stream behind the first one, each of whole documents."""
        rest = self.dataset.split("val").spans[len(self.val) :]
        if not rest:
            return []
        as_long_as_the_first = round((len(self.x) - self.size) / self.size)
        count = min(MAX_PARTS, len(rest), max(1, as_long_as_the_first))
        edges = np.linspace(self.size, len(self.x), count + 1)[1:]
        ends = np.array([end for _, end in rest])
        nearest = [ends[np.abs(ends - edge).argmin()] for edge in edges]
        cuts = np.unique([self.size, *nearest])
        return list(itertools.pairwise(cuts.tolist()))

    def training_without_held_out(self, limit: int) -> np.ndarray | None:
        """Training stream of at most `limit` tokens without the held-out documents.

        Chooses those documents. None when there is no training split."""
        if not self.dataset.has("train"):
            self.skipped.append("no training shards here")
            return None
        tokens = self.dataset.split("train", limit).tokens
        starts = np.flatnonzero(tokens == BOS)
        if len(starts) < FEWEST_TRAINING_DOCUMENTS:
            self.skipped.append("fewer than eight training documents")
            return tokens
        spans = list(itertools.pairwise(starts.tolist()))  # the limit may cut the last document
        wanted = min(self.size, len(tokens) // 4)
        keep = np.ones(len(tokens), bool)
        self.held_out = []
        held = 0
        for index in self.rng.permutation(len(spans)):
            if held >= wanted:
                break
            begin, end = spans[index]
            self.held_out.append(tokens[begin:end])
            keep[begin:end] = False
            held += end - begin
        return tokens[keep]

    def _opening_of(self, fresh: Dataset) -> np.ndarray:
        """Whole documents of another dataset, about `size` tokens and at least one document."""
        splits = fresh.manifest.splits
        split = fresh.split("val" if "val" in splits else next(iter(splits)))
        fitting = max(documents_within(split, self.size), 1)
        _, end = split.spans[min(fitting, len(split.spans)) - 1]
        return split.tokens[:end]

    def _choose_short_documents(self) -> None:
        """Fresh documents of the packages that the corpus was made from, and validation documents
        cut to lengths like theirs."""
        wanted = self.size // TOKENS_PER_SHORT_DOCUMENT
        texts = short_docstrings(self.dataset.manifest.provenance, self.rng, wanted)
        fresh = encode(texts, self.dataset) if texts else []
        if sum(map(len, fresh)) < self.size // 4:
            self.skipped.append("too few fresh documents in this environment")
            return
        self.fresh_stream = np.concatenate(fresh)[: self.size]
        spans = self.dataset.split("val").spans
        lengths = self.rng.permutation([len(tokens) for tokens in fresh])
        cut = [
            self.x[start : min(end, start + length)]
            for (start, end), length in zip(spans, np.resize(lengths, len(spans)), strict=True)
        ]
        self.short_val = np.concatenate(cut)[: len(self.fresh_stream)]


def documents_within(split: Split, tokens: int) -> int:
    """Number of documents at the beginning of a split that end within so many tokens."""
    return int(np.searchsorted([end for _, end in split.spans], tokens, side="right"))
