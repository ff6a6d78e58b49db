"""The fresh-slice test: does the artifact know the validation text better than it should?

How hard a text is, a plain baseline says: the referee's n-gram model, fitted on training text. On text of a control slice the submission's
loss of each token is regressed on the n-gram losses of all orders; the same line then says what the submission should pay for each
validation document. What it pays less is *excess*, in bits per byte. (One n-gram loss instead of the regression needs three times as
many documents for the same standard error: measured on the fixtures.) A scorer that learns from the stream does better the more it has read,
so both sides of a comparison come behind about equally much text.

* training: the control is documents of the training split that the baseline was not fitted on. The submission has trained on them and
  not on the validation text, so its excess on validation should be negative. It is positive for a scorer that holds validation text. The
  validation side is the official run's first part, and a slice as long that begins at a document drawn by chance, scored as its own stream.
* later: the rest of the official run, cut into parts of about that length, each against training documents that stand behind some 0.7 of the
  real stream, in a run that leaves it there (eval/behaviour.py, splice); and all of it together. Parts before that point have read less than the control, which
  makes the test milder there, and never harder.
* outside: the control is documents of neither split, if there are any (--fresh DIR; for the embedded corpus the shorter docstrings of the
  same packages, which the corpus leaves out, against validation documents cut to the same lengths).
* opening: the same validation documents behind another first document. Nothing should change; it does for text that is stored and found
  again by position or by how the stream opens. Said of the first part only: later ones are the better for what stands before them.

Standard errors are over documents (ratio estimator), so a few long documents do not decide."""

import ast
import importlib.metadata
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from eval.bytes import BOS, FIRST_BYTE_ID, ByteTable
from eval.dataset import Dataset
from eval.generator import KneserNey
from eval.report import Collector
from eval.rules import Rules
from eval.runner import Scored, Stream

SHORT = (100, 199)  # characters; the embedded corpus begins at 200
MAX_PARTS = 64  # of the official run behind its first part
FEWEST = 8  # documents of a control, for a standard error that means something
RULE = "the artifact was made without the validation text"
LN2 = float(np.log(2))
Scores = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Saved:
    """Bits per byte below what was expected; `error` its standard error over `documents` documents."""

    value: float
    error: float
    documents: int


class FreshSlices:
    """Chooses the slices, hands out streams to score, and judges. `held_out` are training documents that the baseline must not see."""

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

    def streams(self) -> list[Stream]:
        """Streams to score beside the official one: moved, training, drawn, fresh, short validation, as far as there are any."""
        self.named: dict[str, np.ndarray] = {}
        if len(self.val) > 2 and self.held_out:
            first = min(
                self.held_out, key=lambda t: abs(len(t) - (self.val[0][1] - self.val[0][0]))
            )
            self.named["moved"] = np.concatenate([first, self.x[self.val[1][0] : self.size]])
        if self.held_out:
            self.named["training"] = np.concatenate([t for t in self.held_out])[: self.size]
        if self.drawn is not None and self.held_out:
            self.named["drawn"] = self.drawn
        if self.fresh_stream is not None:
            self.named["fresh"] = self.fresh_stream
        if self.short_val is not None:
            self.named["short"] = self.short_val
        return [Stream(tokens) for tokens in self.named.values()]

    def judge(
        self,
        official: np.ndarray,
        scored: list[Scored],
        later: Scores | None,
        baseline: KneserNey,
        rules: Rules,
        into: Collector,
    ) -> None:
        """`scored` belong to `streams()`; `later` are the control documents behind the real stream, None where that run gave no scores."""
        losses = {
            name: result.nll
            for name, result in zip(self.named, scored, strict=True)
            if result.nll is not None
        }
        t = rules.tolerance
        for reason in self.skipped:
            into.skip(reason)
        into.tolerance = f"{t.fresh_bpb:g}, {t.fresh_opening_bpb:g} and {t.fresh_outside_bpb:g} bits per byte beyond {t.fresh_z:g} standard errors"
        into.tolerance_source = (
            "standard errors over documents, measured here; the floors are the rule set's"
        )
        val = self.x[: self.size], official[: self.size - 1]
        if "training" in losses:
            control = self.named["training"], losses["training"]
            self._compare(into, "training", {"": val}, control, baseline, t.fresh_bpb, t.fresh_z)
            if "drawn" in losses:
                self._compare(
                    into,
                    "training",
                    {"": (self.named["drawn"], losses["drawn"])},
                    control,
                    baseline,
                    t.fresh_bpb,
                    t.fresh_z,
                )
        if later is not None and np.count_nonzero(later[0] == BOS) >= FEWEST:
            parts = {
                f"tokens {begin:,} to {end:,}: ": (self.x[begin:end], official[begin : end - 1])
                for begin, end in self.later_parts()
            }
            self._compare(into, "training_later", parts, later, baseline, t.fresh_bpb, t.fresh_z)
        elif self.drawn is not None and self.held_out:
            into.skip(
                f"fewer than {FEWEST} control documents behind the real stream, so the official run was judged in its first part only"
            )
        if "fresh" in losses:
            inside = (self.named["short"], losses["short"]) if "short" in losses else val
            self._compare(
                into,
                "outside",
                {"": inside},
                (self.named["fresh"], losses["fresh"]),
                baseline,
                t.fresh_outside_bpb,
                t.fresh_z,
            )
        if "moved" in losses:
            self._opening(into, official, losses["moved"], t.fresh_opening_bpb, t.fresh_z)

    def _compare(
        self,
        into: Collector,
        name: str,
        parts: dict[str, Scores],
        control: Scores,
        baseline: KneserNey,
        floor: float,
        z_limit: float,
    ) -> None:
        """Regress on `control`, apply to each of the `parts` and to all of them together; control and parts are (ids [N], nats [N-1])."""
        inside = control[0][1:] != BOS
        line, *_ = np.linalg.lstsq(
            baseline.features(control[0])[inside], control[1][inside] / LN2, rcond=None
        )

        def saved(scores: Scores) -> np.ndarray:
            tokens, nats = scores
            return per_document(tokens, (baseline.features(tokens) @ line) * LN2 - nats, self.table)

        rows = {where: saved(scores) for where, scores in parts.items()}
        if len(rows) > 1:
            rows["the official run behind its first part: "] = np.concatenate(list(rows.values()))
        expected = ratio(*saved(control).T)
        text = (
            "text of neither split"
            if name == "outside"
            else "training text, which it has trained on,"
        )
        into.ran_check()
        for where, documents in rows.items():
            found = ratio(*documents.T)
            excess = found.value - expected.value
            z = excess / max(float(np.hypot(found.error, expected.error)), 1e-12)
            into.figure(f"excess_over_{name}_bpb", excess)
            into.figure(f"excess_over_{name}_standard_errors", z)
            if excess > floor and z > z_limit:
                into.add(
                    "INVALID", f"{where}{found.documents} validation documents",
                    f"the loss that {text} of the same difficulty has, - {floor:g} bits per byte",
                    f"{excess:.4f} bits per byte less ({z:.1f} standard errors)", RULE,
                )  # fmt: skip

    def _opening(
        self, into: Collector, official: np.ndarray, moved: np.ndarray, floor: float, z_limit: float
    ) -> None:
        begin = self.val[1][0]
        shift = len(self.named["moved"]) - self.size
        here, there = official[begin : self.size - 1], moved[begin + shift :]
        rows = per_document(self.x[begin : self.size], there - here, self.table)
        gain = ratio(rows[:, 0], rows[:, 1])
        z = gain.value / max(gain.error, 1e-12)
        into.ran_check()
        into.figure("gain_from_the_opening_bpb", gain.value)
        if gain.value > floor and z > z_limit:
            into.add(
                "INVALID", f"{gain.documents} validation documents", f"the same score behind another first document (± {floor:g} bits per byte)",
                f"{gain.value:.4f} better behind the real one ({z:.1f} standard errors)", RULE,
            )  # fmt: skip


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


# --- Documents that the embedded corpus leaves out ---


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
        one = sentencepiece.SentencePieceProcessor(model_file=str(dataset.tokenizer_path)).encode
    return [np.array([BOS, *one(text)], np.int64) for text in texts]
