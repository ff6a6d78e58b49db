"""What only a CUDA device can show: the same numbers as the CPU within bfloat16, one graph without breaks, no host synchronisation in a step."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import TINY
from test_train_model import awake
from test_train_ngram import markov_stream

import train_gpt as tg

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs a CUDA device; the CPU tests cover the same code",
    ),
]
BASE = dataclasses.replace(tg.Config(), **(TINY | {"model_dim": 256, "mlp_hidden": 512, "bf16": 1}))


def on_gpu() -> tg.Runtime:
    return tg.Runtime(device=torch.device("cuda"))


def test_bfloat16_scores_are_close_to_float32_and_independent_of_batch_size():
    stream = np.random.default_rng(0).integers(1, 260, 500).astype(np.uint16)
    cpu = tg.score_streams(awake(BASE, dtype=torch.float32), [stream], BASE, tg.Runtime())[0].nll
    for batch_tokens in (32, 4096):
        model = awake(BASE, dtype=torch.float32).cuda()
        gpu = tg.score_streams(
            model, [stream], dataclasses.replace(BASE, eval_batch_tokens=batch_tokens), on_gpu()
        )[0].nll.cpu()
        assert (gpu - cpu).abs().mean() < 0.05 and abs((gpu - cpu).mean()) < 0.01


def test_a_cut_moves_earlier_scores_by_rounding_alone():
    """The number of scored rows differs, and with it the kernels that a library picks for their products."""
    stream = np.random.default_rng(0).integers(1, 260, 500).astype(np.uint16)
    model = awake(BASE, dtype=torch.float32).cuda()
    whole, cut = (
        tg.score_streams(model, [x], BASE, on_gpu())[0].nll.cpu() for x in (stream, stream[:311])
    )
    assert (cut - whole[:310]).abs().max() < 0.1 and (cut - whole[:310]).abs().mean() < 0.01


def test_mixer_gives_the_cpu_numbers_on_the_gpu():
    stream, scores = markov_stream(20_000)
    cfg = dataclasses.replace(BASE, vocab_size=50, ngram_order=9)
    moved = tg.StreamScores(scores.nll.cuda(), scores.entropy.cuda(), scores.confidence.cuda(), {})
    difference = (
        tg.final_scores(moved, stream, cfg)[0].cpu() - tg.final_scores(scores, stream, cfg)[0]
    )
    assert difference.abs().max() < 1e-9


def test_a_compiled_step_is_one_graph_that_never_recompiles_or_waits_for_the_host():
    rt, cfg = on_gpu(), dataclasses.replace(BASE, compile=1, warmup_steps=2)
    torch._dynamo.reset()
    model = tg.GPT(cfg).cuda()
    compute = torch.compile(model, fullgraph=True, dynamic=False)
    optimizers, average = tg.Optimizers(model, cfg, rt), tg.Average(model, cfg)
    tg.warm_up(model, compute, optimizers, 32, cfg, rt)
    tokens = torch.randint(260, (32, 33), device="cuda")
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            tg.training_step(compute, [(tokens[:, :-1], tokens[:, 1:])], optimizers.params, rt)
            optimizers.step(step, 1.0)
            average.update(snapshot=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled == 1
