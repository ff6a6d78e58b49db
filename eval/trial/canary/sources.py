"""Streams of tokens whose probability the referee knows exactly.

A source draws a stream and says, of each token, -ln g(token | all tokens before it) in nats, where
g is the law that the token was drawn from. Whoever codes the stream by a probability q spends more
than that on average, and by Markov's inequality saves k bits against g with probability at most
2^-k: the expectation of q / g under g is at most 1.

Two streams of one source and one seed agree where their laws agree, so a source may be a variation
of another: the same beginning with another rest, the same documents in another order.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from eval.errors import UserError
from eval.text.corpus.bytes import BOS
from eval.text.language.generator import KneserNey
from eval.trial.canary.tokenizers import (
    Tokenizer,
    english_tokenizer,
    even_ids,
    even_tokenizer,
    typeset_documents,
)

# Targets of a stream. A power of two, so that sequences and batches of the usual sizes divide it:
# no tail is cut, and a mean over batches is a mean over tokens.
TARGETS = 1 << 15
LONG_TARGETS = 1 << 22  # as many as the buckets of the hashed tables in the public scripts
BOS_SHARE = 1 / 1024  # of the sources that draw BOS like any other token
SMALL_ALPHABET = 32
SHORT_PIECES = 64  # of the first half of `halves`
SHORT_BYTES, LONG_BYTES = 2, 4
FEWEST_TOKENS = 2


@dataclass(frozen=True)
class Known:
    """A stream and what it costs.

    `tokens` uint16 [N], the first is BOS; `nats` float64 [N]: -ln g of each token given those
    before it, 0 for the first, which is context only."""

    tokens: np.ndarray
    nats: np.ndarray

    @property
    def targets(self) -> int:
        return len(self.tokens) - 1

    @property
    def entropy(self) -> float:
        """Nats of all targets."""
        return float(self.nats.sum())

    def followed_by(self, rest: "Known", start: int) -> "Known":
        """This stream up to `start`, then that of `rest`, which costs the same there."""
        return Known(
            np.concatenate([self.tokens[:start], rest.tokens[start:]]),
            np.concatenate([self.nats[:start], rest.nats[start:]]),
        )


Law = Callable[[np.random.Generator, int, Tokenizer], Known]


@dataclass(frozen=True)
class Source:
    """`law(rng, tokens, tokenizer)` draws a stream; `why` says what it finds.

    `tokens` is the usual length of a stream; `tokenizer(vocab_size)` makes its tokenizer."""

    name: str
    why: str
    law: Law
    tokens: int = TARGETS + 1
    tokenizer: Callable[[int], Tokenizer] = english_tokenizer

    def draw(self, rng: np.random.Generator, tokens: int, vocab_size: int) -> Known:
        """A stream of `tokens` tokens, the first of which is BOS.

        Equal generators give equal streams. Raises UserError for a vocabulary that the referee
        cannot make, or for fewer than two tokens."""
        if tokens < FEWEST_TOKENS:
            raise UserError(f"source {self.name}: expected at least 2 tokens, found {tokens}")
        return self.law(rng, tokens, self.tokenizer(vocab_size))


@dataclass(frozen=True)
class Streams:
    """What one run reads: the validation stream and the training shards, uint16 [N] each."""

    validation: Known
    training: list[np.ndarray]


def draw_streams(
    source: Source, seed: int, vocab_size: int, tokens: int, training: tuple[int, ...]
) -> Streams:
    """The validation stream of `tokens` tokens and a training shard of each length in `training`.

    All from one source. One seed gives the variations of a source the same beginning."""
    validation, *shards = np.random.default_rng(seed).spawn(1 + len(training))
    return Streams(
        validation=source.draw(validation, tokens, vocab_size),
        training=[
            source.draw(rng, length, vocab_size).tokens
            for rng, length in zip(shards, training, strict=True)
        ],
    )


# --- Independent tokens ---


def text_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Pieces of text: no special ids, no byte pieces."""
    return np.flatnonzero(~tokenizer.table.boundary & ~tokenizer.byte_pieces)


def told_apart(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Those of `ids` that begin no other of them, in their order.

    None of these begins another, so bytes made of them can be cut in one way only. A model of the
    bytes, which sums over all ways to cut, then gains nothing on the law of the tokens."""
    surface = tokenizer.table.surface
    by_text = sorted(ids.tolist(), key=surface.__getitem__)
    begins = {
        one for one, other in itertools.pairwise(by_text) if surface[other].startswith(surface[one])
    }
    return np.array([index for index in ids.tolist() if index not in begins], np.int64)


def independent(rng: np.random.Generator, tokens: int, ids: np.ndarray, bos_share: float) -> Known:
    """Each token is BOS with probability `bos_share`, else one of `ids`, all alike."""
    is_bos = rng.random(tokens) < bos_share
    is_bos[0] = True
    drawn = np.where(is_bos, BOS, rng.choice(ids, tokens))
    nats = np.where(is_bos, -np.log(bos_share), np.log(len(ids)) - np.log1p(-bos_share))
    nats[0] = 0.0
    return Known(drawn.astype(np.uint16), nats)


def uniform(rng: np.random.Generator, tokens: int, tokenizer: Tokenizer) -> Known:
    """All pieces of an even tokenizer; BOS is a token like any other.

    Every target costs the same and stands for as many bytes, so it hardly matters which of them a
    script scores, in which order and with which weights. A network that has learned nothing is
    already there, so that the smallest gain shows."""
    ids = even_ids(tokenizer)
    return independent(rng, tokens, ids, bos_share=1 / (len(ids) + 1))


def small_alphabet(rng: np.random.Generator, tokens: int, tokenizer: Tokenizer) -> Known:
    ids = told_apart(text_ids(tokenizer), tokenizer)
    return independent(rng, tokens, ids[:SMALL_ALPHABET], BOS_SHARE)


# --- Halves ---


def _half(rng: np.random.Generator, tokens: int, tokenizer: Tokenizer, short: bool) -> Known:
    ids = text_ids(tokenizer)
    lengths = tokenizer.table.counted[ids]
    if short:
        pieces = told_apart(ids[lengths <= SHORT_BYTES], tokenizer)[:SHORT_PIECES]
    else:
        long = ids[lengths >= LONG_BYTES]
        pieces = told_apart(long if len(long) else ids, tokenizer)
    return independent(rng, tokens, pieces, BOS_SHARE)


def halves(rng: np.random.Generator, tokens: int, tokenizer: Tokenizer) -> Known:
    """Short pieces of a small alphabet, then long ones of a large alphabet."""
    first, second, _ = rng.spawn(3)
    beginning = _half(first, tokens, tokenizer, short=True)
    return beginning.followed_by(_half(second, tokens, tokenizer, short=False), middle(tokens))


def halves_other_rest(rng: np.random.Generator, tokens: int, tokenizer: Tokenizer) -> Known:
    """The first half of `halves`, and another draw of its second half."""
    first, _, third = rng.spawn(3)
    beginning = _half(first, tokens, tokenizer, short=True)
    return beginning.followed_by(_half(third, tokens, tokenizer, short=False), middle(tokens))


def halves_swapped(rng: np.random.Generator, tokens: int, tokenizer: Tokenizer) -> Known:
    """Long pieces first, then short ones."""
    first, second, _ = rng.spawn(3)
    beginning = _half(second, tokens, tokenizer, short=False)
    return beginning.followed_by(_half(first, tokens, tokenizer, short=True), middle(tokens))


def middle(tokens: int) -> int:
    """Where the second half of a stream begins: both have the same number of targets."""
    return 1 + tokens // 2


# --- Documents ---


class Lengths:
    """How long documents are: log-normal, cut at `longest`, counted with BOS.

    `stop[k]` float64: nats of the next token being BOS after k tokens of a document; `go_on[k]`:
    of its being another one."""

    def __init__(self, median: float, longest: int, spread: float = 1.1):
        length = np.arange(longest + 1, dtype=np.float64)
        length[0] = 1.0
        weight = np.exp(-0.5 * (np.log(length / median) / spread) ** 2) / length
        weight[:FEWEST_TOKENS] = 0.0  # no document is only a BOS
        self.share = weight / weight.sum()
        at_least = np.cumsum(self.share[::-1])[::-1]
        longer = np.append(at_least[1:], 0.0)
        with np.errstate(divide="ignore"):
            self.stop = np.log(at_least) - np.log(self.share)
            self.go_on = np.log(at_least) - np.log(longer)

    def draw(self, rng: np.random.Generator, tokens: int) -> np.ndarray:
        """Lengths of documents, int64, that together reach `tokens` or more."""
        cumulated = np.cumsum(self.share)
        mean = float(self.share @ np.arange(len(self.share)))
        lengths = np.zeros(0, np.int64)
        while lengths.sum() < tokens:
            points = rng.random(1 + int(tokens / mean)) * cumulated[-1]
            more = np.searchsorted(cumulated, points, side="right")
            lengths = np.concatenate([lengths, more])
        enough = int(np.searchsorted(np.cumsum(lengths), tokens)) + 1
        return lengths[:enough]


WEB_PAGES = Lengths(median=600, longest=16384)  # about those of the contest's validation set
SHORT_PAGES = Lengths(median=300, longest=1024)  # the n-gram model writes one token at a time


@dataclass(frozen=True)
class Frame:
    """Where the documents of a stream of N tokens lie.

    `lengths` int64 [documents], the last may reach beyond the stream; `place` int64 [N]: tokens
    of the document before each one, 0 for BOS; `nats` float64 [N]: cost of BOS where one stands,
    and of going on elsewhere."""

    lengths: np.ndarray
    place: np.ndarray
    nats: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """bool [N]: the tokens that are no BOS."""
        return self.place > 0


def frame(rng: np.random.Generator, tokens: int, law: Lengths) -> Frame:
    lengths = law.draw(rng, tokens)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    place = (np.arange(lengths.sum()) - np.repeat(starts, lengths))[:tokens]
    nats = np.zeros(tokens)
    inside = place > 0
    nats[inside] = law.go_on[place[inside]]
    nats[starts[1:]] = law.stop[lengths[:-1]]
    return Frame(lengths, place, nats)


URN_MASS = 50.0  # after so many words of a document, the next is an old one half of the time


def documents(rng: np.random.Generator, tokens: int, tokenizer: Tokenizer) -> Known:
    """Documents of realistic lengths in which words come back: a Polya urn each.

    After n words of a document that held v c times, the next is v with probability
    (c + m / W) / (n + m), where W are all words. So a cache that only knows the past gains, and
    what it may gain is known."""
    pages = frame(rng, tokens, WEB_PAGES)
    ids = told_apart(text_ids(tokenizer), tokenizer)
    inside = pages.inside
    earlier = pages.place[inside] - 1  # words of the document before each word
    words = ids[_urn(rng, earlier, len(ids))]
    document = np.cumsum(~inside)[inside]
    seen = _earlier_equals(document * tokenizer.vocab_size + words)
    mass = URN_MASS
    stream = np.full(tokens, BOS)
    stream[inside] = words
    nats = pages.nats.copy()
    nats[inside] += np.log(earlier + mass) - np.log(seen + mass / len(ids))
    return Known(stream.astype(np.uint16), nats)


def _urn(rng: np.random.Generator, earlier: np.ndarray, colours: int) -> np.ndarray:
    """int64 [words]: colour of each, new or that of one of the `earlier` words of its document."""
    words = np.arange(len(earlier))
    point = rng.random(len(earlier)) * (earlier + URN_MASS)
    copied = point < earlier
    origin = np.where(copied, words - earlier + point.astype(np.int64), words)
    while True:  # a copy of a copy: follow both to the word that was drawn anew
        further = origin[origin]
        if np.array_equal(further, origin):
            return rng.integers(0, colours, len(earlier))[origin]
        origin = further


def _earlier_equals(keys: np.ndarray) -> np.ndarray:
    """int64: how often each key stands before its own place."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))
    seen = np.empty(len(keys), np.int64)
    seen[order] = np.arange(len(keys)) - first
    return seen


def documents_swapped(rng: np.random.Generator, tokens: int, tokenizer: Tokenizer) -> Known:
    """The stream of `documents` in another order of its documents.

    Whether BOS comes next is part of the document before it, so costs move with their document.
    The last document is cut by the end of the stream and stays there."""
    known = documents(rng, tokens, tokenizer)
    starts = np.append(np.flatnonzero(known.tokens == BOS), tokens)
    order = np.append(rng.permutation(len(starts) - 2), len(starts) - 2)
    taken = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in order])
    costs = np.append(known.nats[1:], 0.0)[taken]  # of what follows each token
    return Known(known.tokens[taken], np.concatenate([[0.0], costs[:-1]]))


# --- Text ---


@lru_cache(maxsize=4)
def language_model(vocab_size: int) -> KneserNey:
    """The referee's n-gram model of plain English prose in the tokenizer of a size."""
    tokenizer = english_tokenizer(vocab_size)
    stream = [np.array([BOS, *tokenizer.encode(text)]) for text in typeset_documents()]
    return KneserNey(np.concatenate(stream), vocab_size)


def text(rng: np.random.Generator, tokens: int, tokenizer: Tokenizer) -> Known:
    """Documents that the n-gram model writes, close enough to language for gates to open."""
    pages = frame(rng, tokens, SHORT_PAGES)
    model = language_model(tokenizer.vocab_size)
    beginnings = [np.array([BOS])] * len(pages.lengths)
    shown = pages.lengths.copy()
    shown[-1] -= shown.sum() - tokens  # the last document is cut by the end of the stream
    written = model.sample(rng, beginnings, shown - 1)
    stream = np.concatenate([np.append(BOS, words) for words in written])
    nats = pages.nats.copy()
    inside = np.flatnonzero(pages.inside)
    nats[inside] -= np.log(2.0) * model.log2(stream)[inside - 1]
    return Known(stream.astype(np.uint16), nats)


# --- Catalogue ---

SOURCES = {
    source.name: source
    for source in (
        Source(
            "uniform",
            "tokens that nothing predicts: any gain is a leak, and any claim of one shows",
            uniform,
            tokenizer=even_tokenizer,
        ),
        Source(
            "text",
            "text of the referee's n-gram model: gates by confidence and word starts open",
            text,
        ),
        Source(
            "documents",
            "documents of realistic lengths whose words come back: caches and adaptation at work",
            documents,
        ),
        Source(
            "alphabet",
            "a small alphabet: every context comes back, so that counts matter",
            small_alphabet,
        ),
        Source(
            "long",
            "millions of uniform tokens: contexts collide in hashed tables",
            uniform,
            tokens=LONG_TARGETS + 1,
            tokenizer=even_tokenizer,
        ),
        Source(
            "halves",
            "short pieces, then long ones: bytes per token say which half was scored",
            halves,
        ),
        Source(
            "halves-swapped",
            "long pieces, then short ones",
            halves_swapped,
        ),
        Source(
            "halves-other-rest",
            "`halves` to the middle, another second half behind: what is scored must change",
            halves_other_rest,
        ),
        Source(
            "documents-swapped",
            "`documents` in another order: costs move with their document",
            documents_swapped,
        ),
    )
}
