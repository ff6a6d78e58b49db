"""The canary's streams: exact probabilities, equal beginnings, tokenizers that scripts accept."""

import itertools
import json
import time

import numpy as np
import pytest
import sentencepiece

from eval.errors import UserError
from eval.text.corpus.bytes import BOS, documents
from eval.text.language.generator import context_keys
from eval.trial.canary import sources
from eval.trial.canary.sources import (
    LONG_TARGETS,
    SHORT_PAGES,
    SOURCES,
    URN_MASS,
    WEB_PAGES,
    Known,
    Lengths,
    draw_streams,
    middle,
)
from eval.trial.canary.tokenizers import (
    BYTE_LEVEL,
    LARGEST_VOCABULARY,
    Tokenizer,
    english_tokenizer,
    even_tokenizer,
    typeset_documents,
)

VOCAB_SIZE = 1024
TOKENS = 2049
SIZES = (1024, 2048, 4096, 8192)
MOST_SIGMAS = 4.5  # of a sum whose law is known


def drawn(name: str, tokens: int = TOKENS, seed: int = 5) -> Known:
    return SOURCES[name].draw(np.random.default_rng(seed), tokens, VOCAB_SIZE)


# --- Every source ---


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_stream_begins_with_bos_and_every_target_costs_something(name):
    known = drawn(name)
    assert known.tokens.dtype == np.uint16
    assert known.tokens.shape == known.nats.shape == (TOKENS,)
    assert known.tokens[0] == BOS and known.nats[0] == 0.0
    assert (known.nats[1:] >= 0).all() and np.isfinite(known.nats).all()
    assert known.tokens.max() < VOCAB_SIZE
    assert known.entropy == pytest.approx(known.nats.sum())


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_one_seed_gives_one_stream(name):
    assert np.array_equal(drawn(name).tokens, drawn(name).tokens)
    assert not np.array_equal(drawn(name).tokens, drawn(name, seed=6).tokens)


@pytest.mark.parametrize("name", sorted(SOURCES))
@pytest.mark.parametrize("tokens", [2, 3, 17])
def test_the_shortest_streams(name, tokens):
    known = drawn(name, tokens)
    assert len(known.tokens) == tokens and np.isfinite(known.nats).all()


def test_a_stream_without_targets_is_refused():
    with pytest.raises(UserError, match="at least 2 tokens, found 1"):
        drawn("uniform", tokens=1)


def test_training_shards_are_other_draws_of_the_source():
    streams = draw_streams(SOURCES["text"], 3, VOCAB_SIZE, 500, (300, 400))
    assert [len(shard) for shard in streams.training] == [300, 400]
    assert not np.array_equal(streams.training[0], streams.validation.tokens[:300])
    again = draw_streams(SOURCES["text"], 3, VOCAB_SIZE, 500, (300, 400))
    assert np.array_equal(again.training[1], streams.training[1])


def test_four_million_tokens_take_seconds():
    started = time.process_time()
    known = drawn("long", SOURCES["long"].tokens)
    assert known.targets == LONG_TARGETS == 1 << 22
    assert time.process_time() - started < 10


# --- Exactness ---


def leaves(tokenizer: Tokenizer, ids: np.ndarray) -> list[int]:
    """The ids whose text begins no other's, by a list of all beginnings."""
    surface = tokenizer.table.surface
    beginnings = set()
    for index in ids:
        beginnings |= {surface[index][:end] for end in range(len(surface[index]))}
    return [index for index in ids if surface[index] not in beginnings]


def law_of_independent_tokens(name: str, place: int) -> np.ndarray:
    """float64 [V]: probability of each token at a place of a source of independent tokens."""
    tokenizer = SOURCES[name].tokenizer(VOCAB_SIZE)
    p = np.zeros(VOCAB_SIZE)
    if name == "uniform":
        allowed = [BOS, *range(5, VOCAB_SIZE)]
        p[allowed] = 1 / len(allowed)
        return p
    text = np.array([len(word) for word in tokenizer.table.surface])
    raw = ~tokenizer.byte_pieces & ~tokenizer.table.boundary
    if name == "alphabet":
        ids = leaves(tokenizer, np.flatnonzero(raw))[:32]
    elif place < middle(TOKENS):
        ids = leaves(tokenizer, np.flatnonzero(raw & (text <= 2)))[:64]
    else:
        ids = leaves(tokenizer, np.flatnonzero(raw & (text >= 4)))
    p[ids] = (1 - 1 / 1024) / len(ids)
    p[BOS] = 1 / 1024
    return p


@pytest.mark.parametrize("name", ["uniform", "alphabet", "halves"])
def test_independent_tokens_cost_what_their_law_says(name):
    known = drawn(name)
    for place in range(1, TOKENS, 23):
        p = law_of_independent_tokens(name, place)
        assert known.nats[place] == pytest.approx(-np.log(p[known.tokens[place]]), rel=1e-12)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", ["uniform", "alphabet", "halves", "halves-swapped", "documents"])
def test_bytes_can_be_cut_into_tokens_in_one_way_only(name):
    """So that an honest model of the bytes does not gain on the law of the tokens."""
    tokenizer = SOURCES[name].tokenizer(VOCAB_SIZE)
    known = drawn(name, 8193)
    cut = middle(8193)
    parts = [known.tokens[:cut], known.tokens[cut:]] if "halves" in name else [known.tokens]
    for part in parts:
        words = [word for word in np.unique(part).tolist() if word != BOS]
        assert leaves(tokenizer, np.array(words)) == words
        assert len(words) >= 32


def law_of_the_urn(document: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """float64 [V]: probability of the token behind a document that begins with BOS."""
    p = np.zeros(VOCAB_SIZE)
    words, counts = np.unique(document[1:], return_counts=True)
    p[ids] = URN_MASS / len(ids)
    p[words] += counts
    return with_bos(p / p.sum(), len(document), WEB_PAGES)


def with_bos(words: np.ndarray, length: int, pages: Lengths) -> np.ndarray:
    """The law of the next token, given that of the next word in a document of `length` tokens."""
    stop = pages.share[length] / pages.share[length:].sum()
    p = (1 - stop) * words
    p[BOS] = stop
    return p


def law_of_text(document: np.ndarray) -> np.ndarray:
    """The same for the n-gram model."""
    model = sources.language_model(VOCAB_SIZE)
    keys = context_keys(document, model.order - 1, model.bits)
    contexts = [np.full(VOCAB_SIZE, of_length[-1]) for of_length in keys]
    words = model.probabilities(contexts, np.arange(VOCAB_SIZE))
    return with_bos(words, len(document), SHORT_PAGES)


def laws(name: str, known: Known, places: np.ndarray) -> list[np.ndarray]:
    """The law of the token at each place, from the tokens before it alone."""
    tokenizer = english_tokenizer(VOCAB_SIZE)
    ids = np.array(leaves(tokenizer, sources.text_ids(tokenizer)))
    starts = np.flatnonzero(known.tokens == BOS)
    found = []
    for place in places:
        start = starts[starts < place][-1]
        document = known.tokens[start:place].astype(np.int64)
        found.append(law_of_text(document) if name == "text" else law_of_the_urn(document, ids))
    return found


@pytest.mark.parametrize("name", ["documents", "documents-swapped", "text"])
def test_each_token_costs_what_its_past_says(name):
    """By another way: the whole distribution, token by token."""
    known = drawn(name)
    at_bos = np.flatnonzero(known.tokens == BOS)[1:4]
    places = np.unique(np.concatenate([np.arange(1, 40), np.arange(50, TOKENS, 29), at_bos]))
    for place, p in zip(places, laws(name, known, places), strict=True):
        assert p.sum() == pytest.approx(1.0, abs=1e-9)
        assert known.nats[place] == pytest.approx(-np.log(p[known.tokens[place]]), rel=1e-9)


@pytest.mark.parametrize("name", ["documents", "text"])
def test_the_tokens_follow_their_law(name):
    """What was drawn costs its conditional entropy, up to luck."""
    known = drawn(name, tokens=1200)
    places = np.arange(1, 1200, 3)
    surprise = 0.0
    variance = 0.0
    for place, p in zip(places, laws(name, known, places), strict=True):
        nats = -np.log(p[p > 0])
        mean = p[p > 0] @ nats
        surprise += known.nats[place] - mean
        variance += p[p > 0] @ (nats - mean) ** 2
    assert abs(surprise) < MOST_SIGMAS * variance**0.5


@pytest.mark.parametrize("pages", [WEB_PAGES, SHORT_PAGES, Lengths(median=3, longest=9)])
def test_lengths_of_documents_have_the_shares_that_their_costs_say(pages):
    survival = np.exp(-np.cumsum(np.concatenate([[0.0], pages.go_on[2:-1]])))
    stop = np.exp(-pages.stop[2:])
    assert survival * stop == pytest.approx(pages.share[2:], rel=1e-9)
    assert pages.share.sum() == pytest.approx(1.0)
    assert pages.stop[-1] == 0.0 and pages.share[:2].tolist() == [0.0, 0.0]


def test_lengths_are_drawn_by_their_shares():
    pages = Lengths(median=3, longest=9)
    lengths = pages.draw(np.random.default_rng(1), 40_000)
    assert lengths.sum() >= 40_000 > lengths[:-1].sum()
    seen = np.bincount(lengths[:-1], minlength=10) / (len(lengths) - 1)
    assert seen == pytest.approx(pages.share, abs=MOST_SIGMAS * 0.5 / len(lengths) ** 0.5)


# --- Variations ---


def test_variations_of_halves_share_what_they_should():
    tokens = 4097
    cut = middle(tokens)
    streams = {}
    for name in ("halves", "halves-other-rest", "halves-swapped"):
        streams[name] = draw_streams(SOURCES[name], 9, VOCAB_SIZE, tokens, ()).validation
    plain, other = streams["halves"], streams["halves-other-rest"]
    assert np.array_equal(plain.tokens[:cut], other.tokens[:cut])
    assert not np.array_equal(plain.tokens[cut:], other.tokens[cut:])
    swapped = streams["halves-swapped"]
    assert plain.nats[1:cut].mean() == pytest.approx(swapped.nats[cut:].mean(), rel=0.02)
    counted = SOURCES["halves"].tokenizer(VOCAB_SIZE).byte_counts(plain.tokens)
    assert counted[1:cut].mean() <= 2.0 and counted[cut:].mean() > 4.0


def test_swapped_documents_are_the_same_documents_at_the_same_cost():
    plain, swapped = drawn("documents", 8193), drawn("documents-swapped", 8193)

    def texts(known: Known) -> list[bytes]:
        return [known.tokens[a:b].tobytes() for a, b in documents(known.tokens)]

    assert sorted(texts(plain)) == sorted(texts(swapped)) and texts(plain) != texts(swapped)
    assert texts(plain)[-1] == texts(swapped)[-1]
    assert swapped.entropy == pytest.approx(plain.entropy, rel=1e-12)


# --- Tokenizers ---


@pytest.mark.parametrize("vocab_size", SIZES)
@pytest.mark.parametrize("make", [english_tokenizer, even_tokenizer])
def test_sentencepiece_reads_a_tokenizer_as_the_contest_s(make, vocab_size):
    tokenizer = make(vocab_size)
    sp = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    assert sp.vocab_size() == vocab_size
    assert (sp.pad_id(), sp.bos_id(), sp.eos_id(), sp.unk_id()) == (0, 1, 2, 3)
    assert [sp.is_control(i) or sp.is_unknown(i) for i in range(5)] == [True] * 4 + [False]
    raw = sum(sp.is_byte(i) for i in range(vocab_size))
    assert raw == (256 if make is english_tokenizer else 0)
    assert sp.piece_to_id("\u2581") != sp.unk_id()
    assert len({sp.id_to_piece(i) for i in range(vocab_size)}) == vocab_size
    assert len(tokenizer.vocabulary.decode().splitlines()) == vocab_size
    assert tokenizer.vocabulary.decode().splitlines()[1].split("\t")[0] == "<s>"


@pytest.mark.parametrize("make", [english_tokenizer, even_tokenizer])
def test_a_public_table_of_bytes_counts_as_the_referee_does(make):
    """The contest's own rule: a leading space counts unless a control token precedes."""
    tokenizer = make(VOCAB_SIZE)
    sp = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, 5000)
    total = 0
    for before, target in itertools.pairwise(tokens.tolist()):
        if sp.is_control(target) or sp.is_unknown(target):
            continue
        piece = sp.id_to_piece(target)
        spaced = piece.startswith("\u2581") and not sp.is_byte(target)
        total += 1 if sp.is_byte(target) else len(piece.removeprefix("\u2581").encode())
        total += spaced and not (sp.is_control(before) or sp.is_unknown(before))
    assert tokenizer.byte_counts(tokens).sum() == total
    assert tokenizer.byte_counts(tokens)[0] == 0


def test_english_comes_back_byte_for_byte():
    tokenizer = english_tokenizer(VOCAB_SIZE)
    raw_bytes = 0
    for text in typeset_documents()[:16]:
        stream = np.array([BOS, *tokenizer.encode(text)])
        assert tokenizer.table.decode(stream).decode() == text
        assert tokenizer.byte_counts(stream).sum() == len(text.encode())
        raw_bytes += tokenizer.byte_pieces[stream].sum()
    assert raw_bytes > 0  # apostrophes and dashes


def test_all_pieces_of_the_even_tokenizer_are_four_bytes():
    tokenizer = even_tokenizer(VOCAB_SIZE)
    lengths = [len(surface) for surface in tokenizer.table.surface]
    assert lengths == [0] * 4 + [1] + [4] * (VOCAB_SIZE - 5)
    assert tokenizer.table.leading[5:].mean() == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize("vocab_size", [0, 259, 261, LARGEST_VOCABULARY + 1])
@pytest.mark.parametrize("make", [english_tokenizer, even_tokenizer])
def test_a_size_that_cannot_be_made_is_refused(make, vocab_size):
    with pytest.raises(UserError, match="VOCAB_SIZE with --env"):
        make(vocab_size)


@pytest.mark.parametrize("make", [english_tokenizer, even_tokenizer])
def test_the_largest_vocabulary_can_be_made(make):
    assert make(LARGEST_VOCABULARY).table.vocab_size == LARGEST_VOCABULARY


# --- Bytes ---


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"long"}))
def test_every_source_can_be_written_in_bytes(name):
    source = SOURCES[name]
    known = source.draw(np.random.default_rng(5), TOKENS, BYTE_LEVEL)
    tokenizer = source.tokenizer(BYTE_LEVEL)
    counted = tokenizer.byte_counts(known.tokens)
    assert known.tokens.max() < BYTE_LEVEL
    assert np.array_equal(counted[1:] == 1, known.tokens[1:] != BOS)
    assert np.isfinite(known.nats).all() and (known.nats[1:] >= 0).all()


def test_a_byte_level_tokenizer_writes_text_as_its_bytes():
    tokenizer = english_tokenizer(BYTE_LEVEL)
    ids = tokenizer.encode("aé ")
    surface = [tokenizer.table.surface[index] for index in ids]
    assert b"".join(surface).decode() == "aé "
    assert tokenizer.byte_pieces[ids].tolist() == [False, True, True, False]
    assert json.loads(tokenizer.model)["tokenizer_type"] == "pure_byte"
