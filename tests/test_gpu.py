"""What only a CUDA device can show.

The same numbers as the CPU within bfloat16, one graph without breaks, and no host
synchronisation in a step.
"""

import numpy as np
import pytest
import torch
from conftest import flags, run_script
from runs_support import step_losses
from test_train_ngram import markov_stream
from train_support import awake, tiny

import train_gpt as tg

REASON = "needs a CUDA device; the CPU tests cover the same code"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason=REASON),
]
SIZE = {"model_dim": 256, "mlp_hidden": 512, "bf16": 1}
BASE = tiny(**SIZE)
STREAM = np.random.default_rng(0).integers(1, 260, 500).astype(np.uint16)


def on_gpu() -> tg.Ranks:
    bf16 = torch.bfloat16
    return tg.Ranks(device=torch.device("cuda"), train_dtype=bf16, score_dtype=bf16)


def nll_on(
    ranks: tg.Ranks, stream: np.ndarray, dtype: torch.dtype = torch.float32, **changes: object
) -> torch.Tensor:
    """float64 [M], nats, on the CPU, by a model whose weights are of `dtype`."""
    model = awake(BASE, dtype=dtype).to(ranks.device)
    cfg = tiny(**(SIZE | changes)).scoring
    return tg.score_streams(model, [stream], cfg, ranks)[0].nll.cpu()


@pytest.fixture(scope="module")
def exact():
    """The scores in float64."""
    return nll_on(tg.Ranks(), STREAM, torch.float64)


@pytest.fixture(scope="module")
def bfloat16_errors(exact):
    """What rounding to bfloat16 does to the scores on a CPU: the measure of all limits here."""
    return nll_on(tg.Ranks(score_dtype=torch.bfloat16), STREAM) - exact


@pytest.mark.parametrize("batch_tokens", [32, 4096])
def test_scores_are_as_far_from_float64_as_bfloat16_is_on_a_cpu(
    batch_tokens, exact, bfloat16_errors
):
    """Twice as far at most: a GPU also rounds inside attention. The mean error is near 0."""
    errors = nll_on(on_gpu(), STREAM, eval_batch_tokens=batch_tokens) - exact
    assert errors.abs().mean() < 2 * bfloat16_errors.abs().mean()
    standard_error = bfloat16_errors.std() / len(errors) ** 0.5
    assert abs(errors.mean()) < abs(bfloat16_errors.mean()) + 6 * standard_error


def test_a_cut_moves_earlier_scores_by_rounding_alone(bfloat16_errors):
    """The number of scored rows differs, and with it the kernels that a library picks.

    Two orders of summation differ by less than float64 and bfloat16 do.
    """
    whole = nll_on(on_gpu(), STREAM)
    cut = nll_on(on_gpu(), STREAM[:311])
    difference = (cut - whole[:310]).abs()
    assert difference.max() < bfloat16_errors.abs().max()
    assert difference.mean() < bfloat16_errors.abs().mean()


def test_mixer_gives_the_cpu_numbers_on_the_gpu():
    stream, scores = markov_stream(20_000)
    cfg = tiny(vocab_size=50, ngram_order=9)
    on_device = [t.cuda() for t in (scores.nll, scores.entropy, scores.confidence)]
    moved = tg.StreamScores(*on_device, probes={})
    found = tg.final_scores(moved, stream, cfg)[0].cpu()
    expected = tg.final_scores(scores, stream, cfg)[0]
    assert (found - expected).abs().max() < 1e-9


@pytest.mark.parametrize("tail", [1, 12])
def test_attention_in_float32_is_that_of_the_cpu(tail):
    """Grouped queries have no fused kernel in float32: keys and values are repeated."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, tail, 4, 64, generator=generator)
    k, v = torch.randn(2, 2, 12, 2, 64, generator=generator)
    found = tg.attend(q.cuda(), k.cuda(), v.cuda()).cpu()
    assert (found - tg.attend(q, k, v)).abs().max() < 1e-3


def test_a_compiled_step_is_one_graph_that_never_recompiles_or_waits_for_the_host():
    ranks = on_gpu()
    cfg = tiny(**SIZE, compile=1, warmup_steps=2)
    torch._dynamo.reset()
    model = tg.GPT(cfg.model).cuda()
    compute = tg.compile_model(model, cfg.training, ranks)
    optimizers = tg.Optimizers(model, cfg.training, ranks)
    average = tg.Average(model, cfg.training)
    tg.warm_up(model, compute, optimizers, 32, cfg, tg.Log())
    tokens = torch.randint(260, (32, 33), device="cuda")
    batch = [(tokens[:, :-1], tokens[:, 1:])]
    stats = torch._dynamo.utils.counters["stats"]
    compiled = stats["unique_graphs"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            tg.training_step(compute, batch, optimizers.params, ranks)
            optimizers.step(step, 1.0)
            average.update(snapshot=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert stats["unique_graphs"] == compiled == 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_train_and_score_as_one_does(dataset, tmp_path):
    """Over NCCL, in float32: the same batches, and the gradients of their mean."""
    losses = []
    for nproc in (1, 2):
        out = tmp_path / str(nproc)
        settings = flags(data_dir=dataset, out=out, micro_batch_tokens=512)
        done = run_script(*settings, nproc=nproc)
        assert done.returncode == 0, done.stderr[-3000:]
        losses.append(step_losses(out))
    assert len(losses[0]) == 5
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
