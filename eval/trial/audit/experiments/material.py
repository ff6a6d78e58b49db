"""What the experiments on one artifact score: the real stream, and what is drawn around it."""

import numpy as np

from eval.rules import Profile
from eval.text.corpus.bytes import BOS
from eval.text.language.generator import KneserNey

LATEST_TAIL = 64  # the last tokens of the real stream, of which a part is replaced or cut
TRIES = 20  # draws of other text before the referee makes some up
SHARE_OF_OPENINGS = 0.25  # of the excerpts
SHARE_BEFORE_MIDDLES = 0.6  # of the excerpts: openings and beginnings of documents


class Material:
    """The validation stream `x`, int64 [N], and random draws of text and tokens.

    `generator` is the referee's own n-gram model; `vocab_size` the number of ids; `rng` the one
    source of chance. `official` holds the losses of the record's own run, float64 [N-1] nats, from
    that run on. `tail_point` is the last position that the probed run and the tail cut share with
    the real stream. `generator` may be None where nothing but the official run is wanted."""

    def __init__(
        self,
        x: np.ndarray,
        vocab_size: int,
        generator: KneserNey | None,
        profile: Profile,
        rng: np.random.Generator,
    ):
        self.x = x
        self.vocab_size = vocab_size
        self.generator = generator
        self.profile = profile
        self.rng = rng
        self.official: np.ndarray | None = None
        self.tail_point = len(x) - 2 - int(rng.integers(1, min(LATEST_TAIL, len(x) // 4)))
        starts = np.flatnonzero(x == BOS)
        whole = np.array([len(x)])
        self.document_lengths = np.diff(np.append(starts, len(x))) if len(starts) else whole

    def sampled(self, head: np.ndarray, length: int) -> np.ndarray:
        """`head` continued to `length` tokens by documents of the n-gram model.

        Document lengths are those of the real stream."""
        missing = length - len(head)
        sizes: list[int] = []
        while sum(sizes) + len(sizes) < missing + 1:
            sizes.append(int(self.rng.choice(self.document_lengths)))
        bos = np.array([BOS])
        prefixes = [head] + [bos] * (len(sizes) - 1)
        continuation, *documents = self.generator.sample(self.rng, prefixes, np.array(sizes))
        parts = [head, continuation]
        for document in documents:
            parts += [bos, document]
        return np.concatenate(parts)[:length]

    def other_token(self, log_row: np.ndarray | None, actual: int) -> int:
        """A token other than `actual`, drawn from the scorer's own distribution if it is known.

        `log_row` float64 [V] holds that distribution's logarithms."""
        if log_row is not None:
            p = np.exp(log_row - log_row.max())
            p[actual] = 0.0
            p[BOS] = 0.0  # a BOS would start a new document and change more than one token
            if p.sum() > 0:
                return int(self.rng.choice(len(p), p=p / p.sum()))
        p = self.generator.bottom.copy()
        p[actual] = 0.0
        return int(self.rng.choice(len(p), p=p / p.sum()))

    def other_tail(self, tail: np.ndarray) -> np.ndarray:
        """Real text from elsewhere, of the same length, that differs in its first token."""
        for _ in range(TRIES):
            start = int(self.rng.integers(0, len(self.x) - len(tail)))
            other = self.x[start : start + len(tail)].copy()
            if len(other) and other[0] != tail[0]:
                return other
        return (tail + 1) % self.vocab_size

    def excerpt(self, size: int, at_document: bool = False) -> np.ndarray:
        """Text of `size` tokens, or one less than the stream has, that begins with a BOS.

        It is the real opening, the beginning of a document, or the middle of one behind a BOS."""
        n = len(self.x)
        length = min(size, n - 1)
        starts = np.flatnonzero(self.x[: n - length] == BOS)
        kind = self.rng.random()
        if kind < SHARE_OF_OPENINGS:
            return self.x[:length]
        if len(starts) and (at_document or kind < SHARE_BEFORE_MIDDLES):
            begin = int(self.rng.choice(starts))
            return self.x[begin : begin + length]
        begin = int(self.rng.integers(0, n - length + 1))
        return np.concatenate([[BOS], self.x[begin : begin + length - 1]])
