"""The n-gram benchmark on a tiny data set, and what it must show of the hashed estimator."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CLEAN_ENV, ROOT
from train_support import tiny

import train_gpt as tg
from bench.hashed_ngram import HashedConfig, hashed_mix, vocabulary_sums
from bench.mixing.scores import FEATURES, Scored, bayes_nll, without_feature


def test_hashed_tables_improve_as_they_shrink_because_their_numbers_exceed_one():
    """On random tokens nothing can be predicted.

    The published estimator claims otherwise, the more the smaller its tables.
    """
    vocab_size = 200
    tokens = np.random.default_rng(0).integers(1, vocab_size, 60_000)
    neural = np.full(len(tokens) - 1, np.log(199.0))
    confidence = np.ones_like(neural)
    claimed = {}
    for bits in (22, 8):
        cfg = HashedConfig(buckets=1 << bits)
        nll, tables = hashed_mix(tokens, neural, neural, confidence, cfg)
        claimed[bits] = nll.mean()
    assert claimed[22] > 0.95 * np.log(199.0)
    assert claimed[8] < 0.5 * claimed[22]
    sums, orders = vocabulary_sums(tables, tokens, np.arange(59_000, 59_050), vocab_size)
    assert (orders > 0).all()
    assert np.median(sums) > 50


@pytest.fixture(scope="module")
def scored():
    """Tokens that repeat themselves, and a model that knows little of them."""
    rng = np.random.default_rng(0)
    phrase = rng.integers(4, 60, 500)
    parts = [phrase[start : start + 20] for start in rng.integers(0, 480, 300)]
    stream = np.concatenate(parts).astype(np.uint16)
    columns = torch.from_numpy(rng.gamma(2.0, 1.5, (3, len(stream))))
    scores = tg.StreamScores(columns[0, :-1], columns[1], columns[2], {})
    return Scored(stream, 2 * len(stream), scores, tiny(ngram_order=6), tg.Ranks())


def test_the_own_buckets_give_the_reported_score(scored):
    nll = bayes_nll(scored, lambda buckets: buckets)
    assert torch.equal(nll, tg.final_scores(scored.scores, scored.stream, scored.cfg)[0])


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_taken_out_is_a_feature_without_edges(name, scored, monkeypatch):
    ablated = bayes_nll(scored, lambda buckets: without_feature(name, buckets))
    whole = tg.final_scores(scored.scores, scored.stream, scored.cfg)[0]
    monkeypatch.setattr(tg, f"{name.upper()}_EDGES", ())
    expected = tg.final_scores(scored.scores, scored.stream, scored.cfg)[0]
    assert torch.equal(ablated, expected)
    assert not torch.equal(ablated, whole)


def run_benchmark(*argv: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "bench/ngram.py", *map(str, argv)],
        capture_output=True,
        text=True,
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"},
        timeout=240,
    )


def test_the_benchmark_runs_and_writes_its_results(dataset, tmp_path):
    cfg = tiny()
    torch.manual_seed(0)
    artifact = tmp_path / "artifact.bin"
    artifact.write_bytes(tg.pack(tg.GPT(cfg.model), cfg, "0" * 64).data)
    out = tmp_path / "out"
    inputs = ("--artifact", artifact, "--dataset", dataset)
    once = ("--rounds", 1, "--length-rounds", 1)
    done = run_benchmark(*inputs, "--out", out, "--lengths", 2000, 8000, *once)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((out / "ngram.json").read_text())
    assert result["exact_bayes"] < result["neural"]
    assert result["by_order"]["0"] == result["neural"]
    assert result["by_order"]["12"] == result["exact_bayes"]
    assert len(result["hashed"]) == 6
    assert [row["tokens"] for row in result["speed"]["exact"]] == [2000, 8000]
    assert (out / "ngram.png").stat().st_size > 10_000
    committed = json.loads((ROOT / "bench/results/ngram.json").read_text())
    assert result.keys() == committed.keys()
    for key in ("without", "speed", "environment", "dataset"):
        assert result[key].keys() == committed[key].keys()


def test_an_artifact_of_another_script_is_refused_in_one_line(dataset, tmp_path):
    """A committed record's artifact belongs to the record's own train_gpt.py."""
    old = tmp_path / "artifact.bin"
    old.write_bytes(tg.ARTIFACT_MAGIC + (2).to_bytes(4, "little") + bytes(100))
    done = run_benchmark("--artifact", old, "--dataset", dataset)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "expected artifact version 3, found 2; use the train_gpt.py that wrote it" in done.stderr
