"""The n-gram benchmark end to end on a tiny data set, and what it must show of the hashed estimator."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import torch
from conftest import CLEAN_ENV, ROOT, TINY

import train_gpt as tg

sys.path.append(str(ROOT / "bench"))  # last, so that bench/data.py does not hide the package data
from hashed_ngram import HashedConfig, hashed_mix, vocabulary_sums


def test_hashed_tables_improve_as_they_shrink_because_their_numbers_exceed_one():
    """On random tokens nothing can be predicted; the published estimator claims otherwise, the more the smaller its tables."""
    tokens, vocab = np.random.default_rng(0).integers(1, 200, 60_000), 200
    neural = np.full(len(tokens) - 1, np.log(199.0))
    claimed = {}
    for bits in (22, 8):
        nll, tables = hashed_mix(
            tokens, neural, neural, np.ones_like(neural), HashedConfig(buckets=1 << bits)
        )
        claimed[bits] = nll.mean()
    sums, orders = vocabulary_sums(tables, tokens, np.arange(59_000, 59_050), vocab)
    assert claimed[8] < 0.5 * claimed[22] and claimed[22] > 0.95 * np.log(199.0)
    assert (orders > 0).all() and np.median(sums) > 50


def test_the_benchmark_runs_and_writes_its_results(dataset, tmp_path):
    cfg = dataclasses.replace(tg.Config(), **TINY)
    torch.manual_seed(0)
    (tmp_path / "artifact.bin").write_bytes(tg.pack(tg.GPT(cfg), cfg, "0" * 64)[0])
    command = [
        sys.executable,
        ROOT / "bench/ngram.py",
        "--artifact",
        tmp_path / "artifact.bin",
        "--dataset",
        dataset,
        "--out",
        tmp_path / "out",
    ]
    done = subprocess.run(
        [*command, "--lengths", "2000", "8000"],
        capture_output=True,
        text=True,
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "out" / "ngram.json").read_text())
    assert (
        result["exact_bayes"] < result["neural"]
        and len(result["hashed"]) == 6
        and result["by_order"]["0"] == result["neural"]
    )
    assert [row["tokens"] for row in result["speed"]["exact"]] == [2000, 8000] and (
        tmp_path / "out" / "ngram.png"
    ).stat().st_size > 10_000
