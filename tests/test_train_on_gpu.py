"""The code that runs on a GPU, as far as a CPU can show it.

Fake tensors say that they lie on a GPU, and meta tensors that they lie elsewhere than on the CPU.
Neither holds numbers, and torch checks their devices, shapes and dtypes as on a real GPU.
"""

import threading
import time
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from train_support import awake, tiny

import train_gpt as tg

GPU = torch.device("cuda", 0)
BF16 = tg.Ranks(device=GPU, train_dtype=torch.bfloat16, score_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("dtype", "grouped"), [(torch.bfloat16, True), (torch.float32, False)], ids=str
)
def test_a_gpu_gets_grouped_queries_only_in_bfloat16(dtype, grouped, monkeypatch):
    """In float32 only the slowest kernel knows them, so keys and values are repeated."""
    calls = []
    attention = F.scaled_dot_product_attention

    def watched(q, k, v, *rest, **options):
        calls.append((k.shape[1], options["enable_gqa"]))
        return attention(q, k, v, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    with FakeTensorMode():
        q = torch.empty(2, 12, 4, 64, dtype=dtype, device=GPU)
        k, v = torch.empty(2, 2, 12, 2, 64, dtype=dtype, device=GPU)
        found = tg.attend(q, k, v)
    assert calls == [(2 if grouped else 4, grouped)]
    assert (found.shape, found.dtype, found.device) == (q.shape, dtype, GPU)


@pytest.mark.parametrize("options", [{}, {"qat_lr_scale": 1.0, "encoder_recurrence": 1}])
def test_a_step_stays_on_its_device_and_reads_nothing(options):
    """On torch's meta device, which refuses what lies on another and what the host would read."""
    meta = torch.device("meta")
    ranks = tg.Ranks(device=meta, train_dtype=torch.bfloat16)
    cfg = tiny(**options)
    with meta:
        model = tg.GPT(cfg.model)
    tg.quantize_matrices(model, tg.export_formats(model, cfg) if options else {})
    params = list(model.parameters())
    tokens = torch.zeros(2, 4, 33, dtype=torch.int64, device=meta)
    batch = [(micro[:, :-1], micro[:, 1:]) for micro in tokens]
    compute = tg.compile_model(model, cfg.training, ranks)
    health = tg.Health(ranks, 0)
    average = tg.Average(model, cfg.training)
    loss = tg.training_step(compute, batch, params, ranks)
    health.observe(loss, params)
    average.update(snapshot=bool(average.swa))
    assert {(p.grad.device, p.grad.dtype) for p in params} == {(meta, torch.float32)}
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()  # how a read by the host would have shown
    with pytest.raises(RuntimeError, match=r"device|meta"):
        compute(tokens[0, :, :-1].cpu(), tokens[0, :, 1:])


def test_62_million_tokens_are_planned_in_a_second_and_100_megabytes():
    tracemalloc.start()
    try:
        started = time.process_time()
        plan = tg.plan_batches([62_021_846], tg.ScoringConfig())
        seconds = time.process_time() - started
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 1
    assert peak_bytes < 100e6
    assert sum(plan[i].windows.end.size for i in range(len(plan))) == len(plan.windows.start)
    assert plan.commonest_shape() == (64, 2048, 64)
    assert plan.windows.end.max() == 62_021_846


def test_batches_are_read_two_ahead_and_in_order():
    begun = []
    third = threading.Event()

    def read(number: int) -> int:
        begun.append(number)
        if number == 2:
            third.set()
        return 10 * number

    batches = tg.read_ahead(read, range(5))
    assert next(batches) == 0
    assert third.wait(20)
    assert 4 not in begun
    assert list(batches) == [10, 20, 30, 40]
    assert begun == list(range(5))


def test_only_the_commonest_shape_of_a_long_stream_is_compiled(monkeypatch):
    """Other batches run as written; both give the same scores."""
    cfg = tiny(eval_batch_tokens=64).scoring
    model = awake(tiny())
    stream = np.random.default_rng(3).integers(1, 260, 500).astype(np.uint16)
    plan = tg.plan_batches([len(stream)], cfg)
    expected = tg.score_streams(model, [stream], cfg, tg.Ranks())[0].nll
    compile_whole = torch.compile
    shapes = []

    def compiled(function, **options):
        fast = compile_whole(function, backend="aot_eager", **options)

        def counted(ids, tail, dtype):
            shapes.append((*ids.shape, tail))
            return fast(ids, tail, dtype)

        return counted

    monkeypatch.setattr(torch, "compile", compiled)
    assert tg.compile_hidden(model, plan, 1499, BF16) == model.hidden
    torch._dynamo.reset()
    hidden = tg.compile_hidden(model, plan, 1500, BF16)
    monkeypatch.setattr(tg, "compile_hidden", lambda *arguments: hidden)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = tg.score_streams(model, [stream], cfg, tg.Ranks())[0].nll
    assert set(shapes) == {plan.commonest_shape()}
    assert 0.5 * len(plan) < len(shapes) < len(plan)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_start_of_each_run_is_the_same_by_both_ways():
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 1000):
        keys = torch.randint(n, (n,), generator=generator).sort().values
        new = tg.run_starts(keys)
        index = torch.arange(n, dtype=torch.int32)
        expected = torch.searchsorted(keys, keys).to(torch.int32)
        for way in (tg.start_of_each_plain, tg.start_of_each_on_gpu):
            found = way(index, new)
            assert found.dtype == torch.int32
            assert torch.equal(found, expected)


def test_blocks_are_larger_on_a_gpu():
    for of in (tg.count_chunk, tg.gate_chunk):
        assert of(GPU) >= 64 * of(torch.device("cpu"))


def test_all_ranks_begin_with_the_weights_of_the_first(monkeypatch):
    """Two kinds of CPU may differ in the last bits of the initial embedding."""
    sent = []

    def from_first(tensor, source):
        sent.append(source)
        tensor.fill_(7)

    monkeypatch.setattr(tg.dist, "broadcast", from_first)
    model = tg.GPT(tiny().model)
    before = [p.detach().clone() for p in model.parameters()]
    tg.Ranks().share(model.parameters())
    assert all(map(torch.equal, before, model.parameters()))
    tg.Ranks(world_size=2).share(model.parameters())
    assert all((p == 7).all() for p in model.parameters())
    assert sent == [0] * len(before)
