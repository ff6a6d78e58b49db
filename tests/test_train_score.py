"""Scoring: windows cover every position once, batching changes nothing, the contract holds."""

import json

import numpy as np
import pytest
import torch
from conftest import run_script, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st
from train_support import awake, tiny

import train_gpt as tg

BASE = tiny()


@pytest.mark.parametrize("seq_len", [1, 2, 3, 7, 16, 33])
def test_every_position_is_scored_in_exactly_one_window(seq_len):
    for stride in range(1, seq_len + 1):
        longest = tg.plan_windows(213, seq_len, stride).rows()
        for n in range(1, 201):
            windows = tg.plan_windows(n, seq_len, stride).rows()
            scored = []
            for _, start, first, end in windows:
                assert 0 <= start <= first < end <= start + seq_len
                scored += range(first, end)
            assert scored == list(range(n))
            # the grid does not depend on the end
            assert [w[:3] for w in windows] == [w[:3] for w in longest[: len(windows)]]


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
    seq_len, stride = shape
    cfg = tg.ScoringConfig(
        eval_seq_len=seq_len, eval_stride=stride, eval_batch_tokens=seq_len * rows
    )
    expected = []
    for stream, length in enumerate(lengths):
        expected += tg.plan_windows(length, seq_len, stride, stream).rows()
    planned = []
    for padded, windows in tg.plan_batches(lengths, cfg):
        assert padded * len(windows.rows()) <= max(cfg.eval_batch_tokens, padded)
        assert (windows.end - windows.start <= padded).all()
        planned += windows.rows()
    assert sorted(planned) == sorted(expected)


def one_window_at_a_time(model: tg.GPT, stream: np.ndarray, cfg: tg.ScoringConfig) -> np.ndarray:
    """The slow, obvious reference: ln p [N, V] from one unbatched float64 pass per window."""
    rows = []
    windows = tg.plan_windows(len(stream), cfg.eval_seq_len, cfg.eval_stride)
    for _, start, first, end in windows.rows():
        ids = torch.from_numpy(stream[start:end].astype(np.int64))
        with torch.no_grad():
            states = model.hidden(ids[None])[0][0, first - start :]
            rows.append(torch.log_softmax(model.logits(states), dim=-1))
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("batch_tokens", [32, 128, 4096])
def test_batched_scores_equal_the_reference_and_do_not_depend_on_batch_size(batch_tokens):
    model = awake(BASE)
    rng = np.random.default_rng(0)
    lengths = (1, 2, 31, 32, 33, 150, 333)
    streams = [rng.integers(1, 260, n).astype(np.uint16) for n in lengths]
    probes = [[n - 1, 0, n // 2] for n in lengths]
    cfg = tiny(eval_batch_tokens=batch_tokens).scoring
    found = tg.score_streams(model, streams, cfg, tg.Ranks(), probes)
    for stream, wanted, scores in zip(streams, probes, found, strict=True):
        log_p = one_window_at_a_time(model, stream, cfg)
        nll = -log_p[np.arange(len(stream) - 1), stream[1:].astype(int)]
        entropy = -(np.exp(log_p) * log_p).sum(-1)
        assert scores.nll.dtype == torch.float64 and len(scores.nll) == len(stream) - 1
        np.testing.assert_allclose(scores.nll.numpy(), nll, rtol=0, atol=1e-6)
        np.testing.assert_allclose(scores.entropy.numpy(), entropy, rtol=0, atol=1e-6)
        assert sorted(scores.probes) == sorted(set(wanted))
        for i, row in scores.probes.items():
            np.testing.assert_allclose(row.numpy(), log_p[i], rtol=0, atol=1e-6)


def test_head_chunking_changes_nothing(monkeypatch):
    model = awake(BASE)
    stream = np.random.default_rng(1).integers(1, 260, 100).astype(np.uint16)
    whole = tg.score_streams(model, [stream], BASE.scoring, tg.Ranks(), [[40]])[0]
    monkeypatch.setattr(tg, "CPU_LOGITS", 260 * 3)
    parts = tg.score_streams(model, [stream], BASE.scoring, tg.Ranks(), [[40]])[0]
    assert torch.allclose(whole.nll, parts.nll, atol=1e-10)
    assert torch.allclose(whole.probes[40], parts.probes[40], atol=1e-10)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "artifact.bin"
    path.write_bytes(tg.pack(awake(BASE, dtype=torch.float32), BASE, "0" * 64).data)
    return path


@pytest.fixture(scope="module")
def scored(artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    rng = np.random.default_rng(5)
    for name, n in (("a", 500), ("b", 70), ("c", 1)):
        write_shard(folder / f"{name}.bin", np.concatenate([[1], rng.integers(4, 260, n)])[:n])
    (folder / "p.json").write_text(json.dumps({"a": [499, 3, 250], "c": [0], "b": []}))
    streams = [folder / f"{name}.bin" for name in "abc"]
    command = ["score", "--artifact", artifact, "--tokens", *streams]
    command += ["--out", folder / "out", "--probes", folder / "p.json"]
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    return folder, command


def test_score_command_writes_the_contract(scored, artifact):
    folder, _ = scored
    nll = np.load(folder / "out" / "a.nll.npy")
    probe = np.load(folder / "out" / "a.probe.npy")
    assert (nll.dtype, nll.shape) == (np.float64, (499,))
    assert (probe.dtype, probe.shape) == (np.float64, (3, 260))
    np.testing.assert_allclose(np.exp(probe).sum(-1), 1, atol=1e-12)
    tokens = np.asarray(tg.open_shard(folder / "a.bin"))
    for row, i in ((1, 3), (2, 250)):
        assert probe[row, tokens[i + 1]] == pytest.approx(-nll[i], abs=1e-12)
    assert np.load(folder / "out" / "c.nll.npy").shape == (0,)
    assert np.load(folder / "out" / "c.probe.npy").shape == (1, 260)
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
    command = ("score", "--artifact", artifact, "--tokens", *streams, "--out", folder / "cuts")
    assert run_script(*command).returncode == 0
    whole = np.load(folder / "out" / "a.nll.npy")
    for n in (2, 33, 257, 499):
        cut = np.load(folder / "cuts" / f"cut{n}.nll.npy")
        np.testing.assert_allclose(cut, whole[: n - 1], rtol=0, atol=1e-5)


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
    command = ["score", "--artifact", artifact, "--tokens", folder / "a.bin"]
    done = run_script(*command, "--out", tmp_path / "o", "--probes", tmp_path / "p.json")
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
