"""Training: data order, schedules, averaging, and the same numbers for every number of ranks."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, flags, run_script
from hypothesis import given, settings
from hypothesis import strategies as st

import train_gpt as tg

BASE = dataclasses.replace(tg.Config(), **TINY)


def step_losses(log: Path) -> list[float]:
    return [
        float(x) for x in re.findall(r"^step:\d+/\d+ train_loss:(\S+)", log.read_text(), flags=re.M)
    ]


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """Five steps of the same configuration on 1, 2, 4 and 8 processes, with 10 digits of loss."""
    folder = tmp_path_factory.mktemp("ranks")
    script = (
        folder / "precise.py"
    )  # the root script, printing losses with more digits than a person wants to read
    script.write_text(
        (tg.Path(tg.__file__).read_text()).replace(
            "train_loss:{mean_loss:.4f}", "train_loss:{mean_loss:.10f}"
        )
    )
    for n in (1, 2, 4, 8):
        done = run_script(
            *flags(data_dir=dataset, out=folder / str(n), micro_batch_tokens=128),
            nproc=n,
            script=script,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_losses_and_score_do_not_depend_on_the_number_of_ranks(runs, ranks):
    alone, together = (
        step_losses(runs / "1" / "train.log"),
        step_losses(runs / str(ranks) / "train.log"),
    )
    assert len(alone) == 5
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    results = [
        re.search(
            r"^result .*val_bpb:(\S+)", (runs / str(n) / "train.log").read_text(), flags=re.M
        )[1]
        for n in (1, ranks)
    ]
    assert float(results[0]) == pytest.approx(
        float(results[1]), rel=1e-3
    )  # quantisation turns 1e-7 into an occasional step


def test_ranks_train_in_one_precision_and_agree_in_it(runs, dataset, tmp_path):
    """Also where one rank's CPU multiplies bfloat16 fast and another's does not."""
    can, losses = 'bool(getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16"))', {}
    for name, instead, nproc in (
        ("one", "True", 1),
        ("both", "True", 2),
        ("mixed", 'os.environ["RANK"] == "0"', 2),
    ):
        script = tmp_path / f"{name}.py"
        script.write_text((text := (runs / "precise.py").read_text()).replace(can, instead))
        assert text.count(can) == 1
        done = run_script(
            *flags(data_dir=dataset, out=tmp_path / name, bf16=1, micro_batch_tokens=128),
            nproc=nproc,
            script=script,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        dtype = re.search(
            r"^env .*train_dtype:(\S+)",
            log := (tmp_path / name / "train.log").read_text(),
            flags=re.M,
        )[1]
        assert (
            dtype == ("float32" if name == "mixed" else "bfloat16")
            and "config:override bf16" not in log
        )
        losses[name] = step_losses(tmp_path / name / "train.log")
    np.testing.assert_allclose(losses["both"], losses["one"], rtol=1e-4)
    np.testing.assert_allclose(losses["mixed"], step_losses(runs / "2" / "train.log"), rtol=1e-6)
    assert max(abs(a - b) for a, b in zip(losses["both"], losses["mixed"], strict=True)) > 1e-6


def test_micro_batches_do_not_change_the_losses(runs, dataset, tmp_path):
    done = run_script(
        *flags(data_dir=dataset, out=tmp_path / "o", micro_batch_tokens=1024),
        script=runs / "precise.py",
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        step_losses(tmp_path / "o" / "train.log"), step_losses(runs / "1" / "train.log"), rtol=1e-4
    )


def test_threads_change_neither_the_order_nor_the_number_of_threads_left():
    cpu, threads, seen = torch.device("cpu"), torch.get_num_threads(), []

    def job(item: int) -> int:
        seen.append(torch.get_num_threads())
        if item == 99:
            raise tg.UserError("bad item")
        return -item

    try:
        for available, items, inside in (
            (4, range(3), {1}),
            (4, range(2), {2}),
            (16, range(9), {2}),
            (4, range(1), {4}),
            (1, range(3), {1}),
            (4, [], set()),
        ):
            torch.set_num_threads(available)
            seen.clear()
            assert list(tg.parallel(job, items, cpu)) == [-i for i in items] and set(seen) == inside
            assert torch.get_num_threads() == available
        with pytest.raises(tg.UserError, match="bad item"):
            list(tg.parallel(job, [1, 99, 2], cpu))
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bf16", [0, 1])
def test_gradients_do_not_depend_on_which_micro_batch_is_first_done(bf16, monkeypatch):
    """Micro-batches in threads against the same one after another, bit by bit; one core each, as a product's bits may depend on its threads."""
    monkeypatch.setitem(tg.BF16_PAYS, "cpu", True)
    cfg, threads = (
        dataclasses.replace(BASE, micro_batch_tokens=128, bf16=bf16),
        torch.get_num_threads(),
    )
    torch.manual_seed(0)
    model, results = tg.GPT(cfg), []
    params, ids = [p for p in model.parameters() if p.numel()], torch.randint(2, 260, (8, 4, 33))
    batch = [(micro[:, :-1], micro[:, 1:]) for micro in ids]
    try:
        for available in (1, 4, 2, 8):
            torch.set_num_threads(available)
            loss = tg.training_step(model, batch, params, tg.Runtime())
            results.append(torch.cat([loss[None], *(p.grad.flatten() for p in params)]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(r, results[0]) for r in results) and results[0].abs().max() > 0
    whole = torch.autograd.grad(
        model(ids[..., :-1].flatten(0, 1), ids[..., 1:].flatten(0, 1)), params
    )
    difference = torch.cat([g.flatten() for g in whole]) - results[0][1:]
    assert difference.norm() < (3e-2 if bf16 else 1e-5) * results[0].norm()


def test_the_same_seed_gives_the_same_score_and_another_seed_another(dataset, tmp_path):
    lines = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = run_script(
            *flags(data_dir=dataset, out=tmp_path / name, iterations=3), env={"SEED": str(seed)}
        )
        assert done.returncode == 0, done.stderr
        lines.append(
            re.search(r"val_bpb:(\S+) nats", (tmp_path / name / "train.log").read_text())[1]
        )
    assert lines[0] == lines[1] != lines[2]


def test_all_ranks_stop_on_the_same_step_under_skewed_clocks(dataset, tmp_path):
    """Rank 1's clock runs 50 times too fast; left to itself it would stop alone and rank 0 would wait for it for ever."""
    skewed = tmp_path / "skewed.py"
    skewed.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(tg.__file__).parent)!r})\n"
        "real, speed = time.perf_counter, 1 + 49 * int(os.environ['RANK'])\n"
        "time.perf_counter = lambda: speed * real()\n"
        "import train_gpt\n"
        "steps = train_gpt.train\n"
        "def train(*args):\n"
        "    result = steps(*args)\n"
        "    sys.stdout.write(f'rank {os.environ[\"RANK\"]} stopped after {result[0]} steps\\n')\n"
        "    return result\n"
        "train_gpt.train = train\n"
        "code = train_gpt.main(sys.argv[1:])\n"
        "tasks = Path('/proc/self/task').glob('*/comm')\n"
        "left = [name for task in tasks if 'gloo' in (name := task.read_text().strip())]\n"
        "sys.stdout.write(f'left running: {left}\\n')\n"  # in one piece: the ranks share the pipe
        "sys.exit(code)\n"
    )
    done = run_script(
        *flags(
            data_dir=dataset,
            out=tmp_path / "o",
            iterations=100_000,
            train_seconds=2.0,
            warmdown_steps=20,
        ),
        nproc=2,
        script=skewed,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stopped = dict(re.findall(r"rank (\d) stopped after (\d+) steps", done.stdout))
    assert set(stopped) == {"0", "1"} and stopped["0"] == stopped["1"] and int(stopped["0"]) > 1
    # a thread of the process group that outlives it can abort an exiting rank
    assert re.findall(r"left running: (.*)", done.stdout) == ["[]", "[]"]


def test_state_after_warm_up_is_the_state_before(dataset):
    cfg = dataclasses.replace(BASE, warmup_steps=4, qat_lr_scale=0.5)
    torch.manual_seed(0)
    model = tg.GPT(cfg)
    optimizers, rt = tg.Optimizers(model, cfg, tg.Runtime()), tg.Runtime()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    tg.warm_up(model, model, optimizers, 4, cfg, rt)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert len(optimizers.state) > 10 and not any(t.any() for t in optimizers.state.values())
    assert all(p.grad is None for p in model.parameters())

    def two_steps(m: tg.GPT, o: tg.Optimizers) -> list[torch.Tensor]:
        ids = torch.arange(4 * 33).view(4, 33) % 260
        for step in range(2):
            tg.training_step(m, [(ids[:, :-1], ids[:, 1:])], o.params, rt)
            o.step(step, 1.0)
        return [p.detach().clone() for p in m.parameters()]

    torch.manual_seed(0)
    fresh = tg.GPT(cfg)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            two_steps(model, optimizers),
            two_steps(fresh, tg.Optimizers(fresh, cfg, rt)),
            strict=True,
        )
    )


def test_ema_and_swa_equal_their_closed_forms():
    cfg = dataclasses.replace(BASE, ema_decay=0.9, swa_every=2)
    model = torch.nn.Linear(2, 2).double()
    start = model.weight.detach().clone()
    average, history = tg.Average(model, cfg), []
    for i in range(6):
        with torch.no_grad():
            model.weight.add_(i + 1.0)
        history.append(model.weight.detach().clone())
        average.update(snapshot=i % 2 == 1)
    ema = 0.9**6 * start + sum(0.1 * 0.9 ** (5 - i) * w for i, w in enumerate(history))
    assert torch.allclose(average.ema[0], ema, atol=1e-12)
    average.copy_to_model()
    assert torch.allclose(model.weight, (ema + sum(history[1::2]) / 3) / 2, atol=1e-12)


def test_schedules():
    by_steps = dataclasses.replace(BASE, iterations=100, warmdown_steps=40, train_seconds=0.0)
    assert [tg.learning_rate_scale(s, 0.0, by_steps) for s in (0, 60, 80, 100)] == [
        1.0,
        1.0,
        0.5,
        0.0,
    ]
    by_clock = dataclasses.replace(
        BASE, iterations=10**6, warmdown_steps=40, train_seconds=100.0
    )  # one step a second
    assert [tg.learning_rate_scale(s, float(s), by_clock) for s in (0, 60, 80, 100, 101)] == [
        1.0,
        1.0,
        0.5,
        0.0,
        0.0,
    ]
    cfg = dataclasses.replace(
        BASE, muon_momentum_start=0.9, muon_momentum=0.98, muon_momentum_warmup_steps=10
    )
    model = tg.GPT(cfg)
    optimizers, seen = tg.Optimizers(model, cfg, tg.Runtime()), []
    optimizers.muon = lambda lr, momentum: seen.append((round(lr, 9), round(momentum, 6)))
    for step in (0, 5, 10, 99):
        model(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)).backward()
        optimizers.step(step, 0.5)
    assert seen == [(cfg.muon_lr / 2, m) for m in (0.9, 0.94, 0.98, 0.98)]


def test_newton_schulz_brings_singular_values_near_one():
    g = torch.randn(3, 24, 16, generator=torch.Generator().manual_seed(0))
    for x in (g, g.mT):
        s = torch.linalg.svdvals(tg.newton_schulz(x, 5))
        assert s.min() > 0.3 and s.max() < 1.3  # the quintic's fixed band (Jordan et al. 2024)
        assert torch.linalg.svdvals(tg.newton_schulz(x, 0)).min() < 0.1


def loader(
    length: int, rank: int = 0, world_size: int = 1, seed: int = 0, **changes: object
) -> tg.Loader:
    stream = tg.TokenStream(
        [np.arange(i, min(i + 700, length), dtype=np.uint16) for i in range(0, length, 700)]
    )
    return tg.Loader(
        stream,
        dataclasses.replace(BASE, seed=seed, **changes),
        tg.Runtime(rank=rank, world_size=world_size),
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(33, 5000), st.integers(0, 9))
def test_an_epoch_visits_every_row_once_and_stays_inside_the_stream(length, seed):
    it = loader(length, seed=seed)
    n = it.rows_per_epoch
    for epoch in range(2):
        starts = sorted(it.row_start(epoch * n + i) for i in range(n))
        assert len(set(starts)) == n and starts[0] >= 0 and starts[-1] + 33 <= length
        assert all(b - a == 32 for a, b in itertools.pairwise(starts))
    it.pool.shutdown()


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_read_disjoint_parts_of_the_same_global_batches(world_size):
    alone = loader(5000, micro_batch_tokens=256)
    peers = [loader(5000, rank, world_size, micro_batch_tokens=128) for rank in range(world_size)]
    for _ in range(7):  # 7 batches of 32 rows: more than an epoch
        expected = torch.cat([x for x, _ in alone.next()])
        batches = [peer.next() for peer in peers]
        assert torch.equal(torch.cat([x for batch in batches for x, _ in batch]), expected)
        assert all(torch.equal(x[:, 1:], y[:, :-1]) for batch in batches for x, y in batch)
    for it in (alone, *peers):
        it.pool.shutdown()


def test_streams_read_across_shard_borders():
    stream = tg.TokenStream([np.arange(0, 5), np.arange(5, 6), np.arange(6, 20)])
    assert all(
        (stream.read(a, b - a) == np.arange(a, b)).all()
        for a in range(20)
        for b in range(a + 1, 21)
    )


def test_grad_clip_and_qat_are_used(dataset):
    def weights(**changes: object) -> torch.Tensor:
        cfg = dataclasses.replace(BASE, iterations=2, **changes)
        torch.manual_seed(0)
        model = tg.GPT(cfg)
        data = tg.open_dataset(dataset, cfg, tg.Runtime())
        tg.train(model, data, cfg, tg.Runtime())
        assert not any(m.levels for m in model.modules() if isinstance(m, tg.Linear))
        return model.enrich_in.weight.detach().clone()

    plain = weights()
    assert torch.equal(plain, weights())
    for change in (
        {"grad_clip": 1e-3},
        {"qat_lr_scale": 2.0},
        {"swa_every": 1, "swa_lr_scale": 2.0},
        {"weight_decay": 0.5},
        {"newton_schulz_steps": 1},
    ):
        assert not torch.equal(plain, weights(**change)), change


def test_the_log_is_self_contained(runs):
    log = (runs / "1" / "train.log").read_text()
    header = re.search(r"===== source train_gpt.py bytes:(\d+) sha256:(\w+) =====\n", log)
    source = log[header.end() :].encode()[: int(header[1])]
    assert (
        source == (runs / "precise.py").read_bytes()
        and tg.hashlib.sha256(source).hexdigest() == header[2]
    )
    last = log.strip().splitlines()[-1]
    result = dict(token.split(":", 1) for token in last.split()[1:])
    assert last.startswith("result ") and int(result["bytes_total"]) == int(
        result["artifact_bytes"]
    ) + int(header[1])
    assert int(result["artifact_bytes"]) == (runs / "1" / "artifact.bin").stat().st_size
    bpb = float(result["nats"]) / np.log(2) / int(result["scored_bytes"])
    assert bpb == pytest.approx(float(result["val_bpb"]), abs=1e-8)


def test_the_result_line_reports_the_reloaded_artifact(runs, dataset, tmp_path):
    manifest = json.loads((dataset / "manifest.json").read_text())
    val = dataset / manifest["splits"]["val"]["files"][0]["name"]
    done = run_script(
        "score", "--artifact", runs / "1" / "artifact.bin", "--tokens", val, "--out", tmp_path / "o"
    )
    assert done.returncode == 0, done.stderr
    result = (runs / "1" / "train.log").read_text().strip().splitlines()[-1]
    assert np.load(tmp_path / "o" / f"{val.stem}.nll.npy").sum() == pytest.approx(
        float(re.search(r"nats:(\S+)", result)[1]), abs=1e-6
    )
