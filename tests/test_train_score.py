"""Scoring: the plan covers every position once, batching changes nothing, and the contract holds for streams, probes and ranks."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import TINY, run_script, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train_model import awake

import train_gpt as tg

BASE = dataclasses.replace(tg.Config(), **TINY)


@pytest.mark.parametrize("seq_len", [1, 2, 3, 7, 16, 33])
def test_every_position_is_scored_in_exactly_one_window(seq_len):
    for stride in range(1, seq_len + 1):
        for n in range(1, 201):
            windows = tg.plan_windows(n, seq_len, stride)
            assert [t for _, first, end in windows for t in range(first, end)] == list(range(n))
            assert all(
                0 <= start <= first < end <= start + seq_len for start, first, end in windows
            )
            longer = tg.plan_windows(n + 13, seq_len, stride)
            assert [w[:2] for w in windows] == [
                w[:2] for w in longer[: len(windows)]
            ]  # the grid does not depend on the end


def test_a_stride_longer_than_the_window_is_refused():
    with pytest.raises(ValueError, match=r"stride must be in 1\.\.8, got 9"):
        tg.plan_windows(20, 8, 9)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=6),
    st.sampled_from([(64, 64), (64, 8), (32, 32), (200, 50)]),
    st.integers(1, 7),
)
def test_batches_hold_every_window_once(lengths, shape, rows):
    cfg = dataclasses.replace(
        BASE, eval_seq_len=shape[0], eval_stride=shape[1], eval_batch_tokens=shape[0] * rows
    )
    planned = [w for padded, windows in tg.plan_batches(lengths, cfg) for w in windows]
    assert sorted(planned) == sorted(
        (s, *w) for s, n in enumerate(lengths) for w in tg.plan_windows(n, *shape)
    )
    assert all(
        padded * len(windows) <= max(cfg.eval_batch_tokens, padded)
        for padded, windows in tg.plan_batches(lengths, cfg)
    )


def one_window_at_a_time(model: tg.GPT, stream: np.ndarray, cfg: tg.Config) -> np.ndarray:
    """The slow, obvious reference: ln p [N, V] from one unbatched float64 forward per window."""
    rows = []
    for start, first, end in tg.plan_windows(len(stream), cfg.eval_seq_len, cfg.eval_stride):
        ids = torch.from_numpy(stream[start:end].astype(np.int64))[None]
        with torch.no_grad():
            rows.append(
                torch.log_softmax(model.logits(model.hidden(ids)[0][0, first - start :]), dim=-1)
            )
    return torch.cat(rows).numpy()


def test_batched_scores_equal_the_reference_and_do_not_depend_on_batch_size():
    model = awake(BASE)
    rng = np.random.default_rng(0)
    streams = [rng.integers(1, 260, n).astype(np.uint16) for n in (1, 2, 31, 32, 33, 150, 333)]
    probes = [[len(s) - 1, 0, len(s) // 2] for s in streams]
    for batch_tokens in (32, 128, 4096):
        cfg = dataclasses.replace(BASE, eval_batch_tokens=batch_tokens)
        for stream, wanted, scores in zip(
            streams,
            probes,
            tg.score_streams(model, streams, cfg, tg.Runtime(), probes),
            strict=True,
        ):
            log_p = one_window_at_a_time(model, stream, cfg)
            expected = -log_p[np.arange(len(stream) - 1), stream[1:].astype(int)]
            assert scores.nll.dtype == torch.float64 and len(scores.nll) == len(stream) - 1
            np.testing.assert_allclose(scores.nll.numpy(), expected, rtol=0, atol=1e-6)
            np.testing.assert_allclose(
                scores.entropy.numpy(), -(np.exp(log_p) * log_p).sum(-1), rtol=0, atol=1e-6
            )
            for i in wanted:
                np.testing.assert_allclose(scores.probes[i].numpy(), log_p[i], rtol=0, atol=1e-6)


def test_head_chunking_changes_nothing(monkeypatch):
    model, stream = awake(BASE), np.random.default_rng(1).integers(1, 260, 100).astype(np.uint16)
    whole = tg.score_streams(model, [stream], BASE, tg.Runtime(), [[40]])[0]
    monkeypatch.setitem(tg.HEAD_ELEMENTS, "cpu", 260 * 3)
    parts = tg.score_streams(model, [stream], BASE, tg.Runtime(), [[40]])[0]
    assert torch.allclose(whole.nll, parts.nll, atol=1e-10) and torch.allclose(
        whole.probes[40], parts.probes[40], atol=1e-10
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    cfg = dataclasses.replace(BASE, vocab_size=260)
    path = tmp_path_factory.mktemp("artifact") / "artifact.bin"
    path.write_bytes(tg.pack(awake(cfg, dtype=torch.float32), cfg, "0" * 64)[0])
    return path


@pytest.fixture(scope="module")
def scored(artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    rng = np.random.default_rng(5)
    for name, n in (("a", 500), ("b", 70), ("c", 1)):
        write_shard(folder / f"{name}.bin", np.concatenate([[1], rng.integers(4, 260, n)])[:n])
    (folder / "p.json").write_text(json.dumps({"a": [499, 3, 250], "c": [0], "b": []}))
    command = [
        "score",
        "--artifact",
        artifact,
        "--tokens",
        *(folder / f"{n}.bin" for n in "abc"),
        "--out",
        folder / "out",
        "--probes",
        folder / "p.json",
    ]
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    return folder, command


def test_score_command_writes_the_contract(scored, artifact):
    folder, _ = scored
    nll, probe = np.load(folder / "out" / "a.nll.npy"), np.load(folder / "out" / "a.probe.npy")
    assert (nll.dtype, nll.shape, probe.dtype, probe.shape) == (
        np.float64,
        (499,),
        np.float64,
        (3, 260),
    )
    np.testing.assert_allclose(np.exp(probe).sum(-1), 1, atol=1e-12)
    tokens = np.asarray(tg.open_shard(folder / "a.bin"))
    for row, i in ((1, 3), (2, 250)):
        assert probe[row, tokens[i + 1]] == pytest.approx(-nll[i], abs=1e-12)
    assert np.load(folder / "out" / "c.nll.npy").shape == (0,) and np.load(
        folder / "out" / "c.probe.npy"
    ).shape == (1, 260)
    assert np.load(folder / "out" / "b.probe.npy").shape == (0, 260)


def test_score_command_is_identical_under_two_ranks(scored):
    folder, command = scored
    other = [folder / "out2" if c == folder / "out" else c for c in command]
    done = run_script(*other, nproc=2)
    assert done.returncode == 0, done.stderr[-2000:]
    for path in sorted((folder / "out").iterdir()):
        assert path.read_bytes() == (folder / "out2" / path.name).read_bytes(), path.name


def test_cutting_a_stream_does_not_move_earlier_scores(scored, artifact):
    folder, _ = scored
    tokens = np.asarray(tg.open_shard(folder / "a.bin"))
    for n in (2, 33, 257, 499):
        write_shard(folder / f"cut{n}.bin", tokens[:n])
    streams = [folder / f"cut{n}.bin" for n in (2, 33, 257, 499)]
    assert (
        run_script(
            "score", "--artifact", artifact, "--tokens", *streams, "--out", folder / "cuts"
        ).returncode
        == 0
    )
    whole = np.load(folder / "out" / "a.nll.npy")
    for n in (2, 33, 257, 499):
        np.testing.assert_allclose(
            np.load(folder / "cuts" / f"cut{n}.nll.npy"), whole[: n - 1], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize(
    ("probes", "expected"),
    [
        ("{", "expected JSON like"),
        ("[1]", "expected JSON like"),
        ('{"z": [0]}', "expected one of the streams ['a']"),
        ('{"a": [500]}', "positions 0..499"),
    ],
)
def test_bad_probes_are_refused(scored, artifact, tmp_path, probes, expected):
    folder, _ = scored
    (tmp_path / "p.json").write_text(probes)
    done = run_script(
        "score",
        "--artifact",
        artifact,
        "--tokens",
        folder / "a.bin",
        "--out",
        tmp_path / "o",
        "--probes",
        tmp_path / "p.json",
    )
    assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr
