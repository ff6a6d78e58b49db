"""Training: data order, schedules, averaging, what is due when, and threads that change nothing."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_support import tiny

import train_gpt as tg


@pytest.fixture
def torch_threads():
    """Gives back the number of threads that a test changes."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_threads_change_neither_the_order_nor_the_number_of_threads_left(torch_threads):
    seen = []

    def job(item: int) -> int:
        seen.append(torch.get_num_threads())
        if item == 99:
            raise tg.UserError("bad item")
        return -item

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
        assert list(tg.Ranks().map(job, items)) == [-i for i in items]
        assert set(seen) == inside
        assert torch.get_num_threads() == available
    with pytest.raises(tg.UserError, match="bad item"):
        list(tg.Ranks().map(job, [1, 99, 2]))
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_do_not_depend_on_which_micro_batch_is_first_done(dtype, torch_threads):
    """Micro-batches in threads against the same one after another, bit by bit.

    One core each, as a product's bits may depend on its threads.
    """
    cfg = tiny(micro_batch_tokens=128)
    torch.manual_seed(0)
    model = tg.GPT(cfg.model)
    params = [p for p in model.parameters() if p.numel()]
    ids = torch.randint(2, 260, (8, 4, 33))
    batch = [(micro[:, :-1], micro[:, 1:]) for micro in ids]
    ranks = tg.Ranks(train_dtype=dtype)
    compute = tg.compile_model(model, cfg.training, ranks)
    results = []
    for available in (1, 4, 2, 8):
        torch.set_num_threads(available)
        loss = tg.training_step(compute, batch, params, ranks)
        results.append(torch.cat([loss[None], *(p.grad.flatten() for p in params)]))
    assert results[0].abs().max() > 0
    assert all(torch.equal(result, results[0]) for result in results)
    whole_loss = compute(ids[..., :-1].flatten(0, 1), ids[..., 1:].flatten(0, 1))
    whole = torch.cat([g.flatten() for g in torch.autograd.grad(whole_loss, params)])
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
    assert (whole - results[0][1:]).norm() < tolerance * results[0].norm()


def two_steps(model: tg.GPT, optimizers: tg.Optimizers) -> list[torch.Tensor]:
    """The weights after two steps on fixed tokens."""
    ids = torch.arange(4 * 33).view(4, 33) % 260
    for step in range(2):
        tg.training_step(model, [(ids[:, :-1], ids[:, 1:])], optimizers.params, tg.Ranks())
        optimizers.step(step, 1.0)
    return [p.detach().clone() for p in model.parameters()]


def test_state_after_warm_up_is_the_state_before():
    cfg = tiny(warmup_steps=4, qat_lr_scale=0.5)
    torch.manual_seed(0)
    model = tg.GPT(cfg.model)
    optimizers = tg.Optimizers(model, cfg.training, tg.Ranks())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    tg.warm_up(model, model, optimizers, 4, cfg, tg.Log())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert len(optimizers.state()) > 10
    assert not any(t.any() for t in optimizers.state().values())
    assert all(p.grad is None for p in model.parameters())

    torch.manual_seed(0)
    fresh = tg.GPT(cfg.model)
    expected = two_steps(fresh, tg.Optimizers(fresh, cfg.training, tg.Ranks()))
    found = two_steps(model, optimizers)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_making_the_state_of_adamw_changes_no_weight():
    torch.manual_seed(0)
    model = tg.GPT(tiny().model)
    before = [p.detach().clone() for p in model.parameters()]
    optimizers = tg.Optimizers(model, tiny().training, tg.Ranks())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    kinds = {name.split(".")[-1] for name in optimizers.state() if name.startswith("adam.")}
    assert kinds == {"step", "exp_avg", "exp_avg_sq"}


def test_ema_and_swa_equal_their_closed_forms():
    model = torch.nn.Linear(2, 2).double()
    start = model.weight.detach().clone()
    average = tg.Average(model, tiny(ema_decay=0.9, swa_every=2).training)
    history = []
    for i in range(6):
        with torch.no_grad():
            model.weight.add_(i + 1.0)
        history.append(model.weight.detach().clone())
        average.update(snapshot=i % 2 == 1)
    ema = 0.9**6 * start + sum(0.1 * 0.9 ** (5 - i) * w for i, w in enumerate(history))
    assert torch.allclose(average.ema[0], ema, atol=1e-12)
    average.copy_to_model()
    swa = sum(history[1::2]) / 3
    assert torch.allclose(model.weight, (ema + swa) / 2, atol=1e-12)


def test_learning_rates_fall_by_steps_or_by_the_clock():
    by_steps = tiny(iterations=100, warmdown_steps=40, train_seconds=0.0).training
    found = [tg.learning_rate_scale(step, 0.0, by_steps) for step in (0, 60, 80, 100)]
    assert found == [1.0, 1.0, 0.5, 0.0]
    one_step_a_second = tiny(iterations=10**6, warmdown_steps=40, train_seconds=100.0).training
    steps = (0, 60, 80, 100, 101)
    found = [tg.learning_rate_scale(step, float(step), one_step_a_second) for step in steps]
    assert found == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_the_optimizer_uses_both_schedules():
    momenta = {"muon_momentum_start": 0.9, "muon_momentum": 0.98, "muon_momentum_warmup_steps": 10}
    cfg = tiny(**momenta)
    model = tg.GPT(cfg.model)
    optimizers = tg.Optimizers(model, cfg.training, tg.Ranks())
    seen = []

    def note(lr: float, momentum: float) -> None:
        seen.append((round(lr, 9), round(momentum, 6)))

    optimizers.muon = note
    ids = torch.zeros(1, 4, dtype=torch.long)
    for step in (0, 5, 10, 99):
        model(ids, ids).backward()
        optimizers.step(step, 0.5)
    lr = cfg.training.muon_lr / 2
    assert seen == [(lr, 0.9), (lr, 0.94), (lr, 0.98), (lr, 0.98)]


def test_newton_schulz_brings_singular_values_near_one():
    gradients = torch.randn(3, 24, 16, generator=torch.Generator().manual_seed(0))
    for x in (gradients, gradients.mT):
        s = torch.linalg.svdvals(tg.newton_schulz(x, 5))
        assert s.min() > 0.3 and s.max() < 1.3  # the quintic's fixed band (Jordan et al. 2024)
        assert torch.linalg.svdvals(tg.newton_schulz(x, 0)).min() < 0.1


def progress(step: int, resumed_at: int | None = None, **changes: object) -> tg.Progress:
    run = {"iterations": 40, "log_every": 15, "val_every": 20, "checkpoint_every": 30}
    return tg.Progress(tiny(**(run | changes)), step, resumed_at=resumed_at)


def due(**changes: object) -> dict[str, list[int]]:
    """The steps at which each thing is due in a run of 40."""
    runs = [progress(step, **changes) for step in range(41)]
    return {
        "log": [run.step for run in runs if run.should_log()],
        "validate": [run.step for run in runs if run.should_validate()],
        "save": [run.step for run in runs if run.should_save()],
    }


def test_what_is_due_when():
    first_ten = list(range(1, 11))
    assert due() == {
        "log": [*first_ten, 15, 30, 40],
        "validate": [0, 20, 40],
        "save": [30, 40],
    }
    never = due(val_every=0, checkpoint_every=0, log_every=1000)
    assert never == {"log": [*first_ten, 40], "validate": [], "save": []}


def test_the_step_of_a_checkpoint_is_not_done_twice():
    at_30 = progress(30, resumed_at=30)
    assert not (at_30.should_log() or at_30.should_validate() or at_30.should_save())
    assert progress(30).should_save()


def test_a_stop_saves_and_logs_whatever_is_due():
    stopping = progress(13)
    assert not stopping.should_save() and not stopping.should_log()
    stopping.stopping = True
    assert stopping.should_save() and stopping.should_log()
    begun = progress(0)
    begun.stopping = True
    assert not begun.should_save()


def test_the_clock_finishes_a_run():
    run = progress(5, train_seconds=2.0)
    run.seconds = 1.9
    assert not run.finished()
    run.seconds = 2.0
    assert run.finished()
    no_clock = progress(5)
    no_clock.seconds = 1e9
    assert not no_clock.finished()


def loader(
    length: int, rank: int = 0, world_size: int = 1, seed: int = 0, **changes: object
) -> tg.Loader:
    """Over the tokens 0, 1, 2 ... in shards of 700."""
    shards = []
    for start in range(0, length, 700):
        shards.append(np.arange(start, min(start + 700, length), dtype=np.uint16))
    cfg = tiny(seed=seed, vocab_size=65_536, **changes)
    return tg.Loader(tg.TokenStream(shards), cfg, tg.Ranks(rank=rank, world_size=world_size))


@settings(max_examples=25, deadline=None)
@given(st.integers(33, 5000), st.integers(0, 9))
def test_an_epoch_visits_every_row_once_and_stays_inside_the_stream(length, seed):
    reader = loader(length, seed=seed)
    n = reader.rows_per_epoch
    for epoch in range(2):
        starts = sorted(reader.row_start(epoch * n + i) for i in range(n))
        assert len(set(starts)) == n
        assert starts[0] >= 0 and starts[-1] + 33 <= length
        assert all(b - a == 32 for a, b in itertools.pairwise(starts))
    reader.close()


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_read_disjoint_parts_of_the_same_global_batches(world_size):
    alone = loader(5000, micro_batch_tokens=256)
    peers = [loader(5000, rank, world_size, micro_batch_tokens=128) for rank in range(world_size)]
    for _ in range(7):  # 7 batches of 32 rows: more than an epoch
        expected = torch.cat([inputs for inputs, _ in alone.next()])
        micro_batches = list(itertools.chain.from_iterable(peer.next() for peer in peers))
        assert torch.equal(torch.cat([inputs for inputs, _ in micro_batches]), expected)
        for inputs, targets in micro_batches:
            assert torch.equal(inputs[:, 1:], targets[:, :-1])
    for reader in (alone, *peers):
        reader.close()


def test_streams_read_across_shard_borders():
    stream = tg.TokenStream([np.arange(0, 5), np.arange(5, 6), np.arange(6, 20)])
    for start in range(20):
        for end in range(start + 1, 21):
            assert (stream.read(start, end - start) == np.arange(start, end)).all()


def trained_weights(dataset, **changes: object) -> torch.Tensor:
    """One matrix after two steps."""
    cfg = tiny(iterations=2, data_dir=str(dataset), **changes)
    torch.manual_seed(0)
    model = tg.GPT(cfg.model)
    tg.train(model, tg.open_dataset(cfg, tg.Ranks()), cfg, tg.Ranks(), tg.Log())
    assert not any(m.levels for m in model.modules() if isinstance(m, tg.Linear))
    return model.enrich_in.weight.detach().clone()


def test_settings_of_training_are_used(dataset):
    plain = trained_weights(dataset)
    assert torch.equal(plain, trained_weights(dataset))
    for change in (
        {"grad_clip": 1e-3},
        {"qat_lr_scale": 2.0},
        {"swa_every": 1, "swa_lr_scale": 2.0},
        {"weight_decay": 0.5},
        {"newton_schulz_steps": 1},
    ):
        assert not torch.equal(plain, trained_weights(dataset, **change)), change
