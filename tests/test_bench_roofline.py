"""The model of the speed counts what the model computes, and the docs show what it prints."""

import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

import train_gpt as tg
from bench import plain, roofline

CFG = tg.Config()


def test_the_shape_is_that_of_the_reference_record():
    shape = roofline.REFERENCE
    model, training, scoring = CFG.model, CFG.training, CFG.scoring
    with torch.device("meta"):
        parameters = sum(p.numel() for p in tg.GPT(model).parameters())
    assert shape == roofline.Shape(
        vocab=model.vocab_size,
        dim=model.model_dim,
        layers=model.num_layers,
        heads=model.num_heads,
        kv_heads=model.num_kv_heads,
        hidden=model.mlp_hidden,
        enrich=model.pre_enrich_hidden,
        bigram_dim=model.bigram_dim,
        seq_len=training.train_seq_len,
        batch_tokens=training.train_batch_tokens,
        parameters=parameters,
        stride=scoring.eval_stride,
        window_batch_tokens=scoring.eval_batch_tokens,
    )


def test_operations_are_those_that_the_benchmark_counts():
    step = roofline.forward_backward(roofline.REFERENCE, 1000)
    counted = plain.flops_per_token(CFG.model, CFG.training.train_seq_len)
    assert (step.flops + step.attention_flops) / 1000 == pytest.approx(counted, rel=1e-12)


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_operations_of_newton_schulz_are_those_that_torch_counts(shape):
    with FlopCounterMode(display=False) as counter:
        tg.newton_schulz(torch.zeros(3, *shape), 5)
    assert counter.get_total_flops() == 3 * roofline.newton_schulz_flops(*shape)


def test_bytes_are_near_those_of_the_compiled_kernels():
    """Inductor's own kernels for an H100, read without one: 43.8 GB a step of 65,536 tokens,
    and 211 kB a window token of scoring."""
    shape = roofline.REFERENCE
    step = roofline.forward_backward(shape, 65_536)
    assert step.memory_bytes == pytest.approx(43.8e9, rel=0.05)
    tokens = 1_000_000
    scoring = roofline.evaluation(shape, 1, tokens)
    window_tokens = tokens / shape.stride * shape.seq_len
    assert scoring.memory_bytes / window_tokens == pytest.approx(211e3, rel=0.05)


def test_a_step_gets_faster_with_a_gpu_more_and_slower_between_machines():
    reached = roofline.Efficiency()
    gpu = roofline.GPUS[0]
    seconds = {}
    for ranks in roofline.RANKS:
        step = roofline.training_step(roofline.REFERENCE, ranks)
        seconds[ranks] = step.seconds(gpu, ranks, reached)
    assert seconds[1] > 1.9 * seconds[2] > 3.6 * seconds[4] > 7 * seconds[8]
    assert seconds[8] > seconds[16] > 0.6 * seconds[8]


def test_the_docs_show_the_tables_as_they_are_printed():
    speed = (ROOT / "docs" / "speed.md").read_text("utf-8").splitlines()
    kernels = (ROOT / "docs" / "kernels.md").read_text("utf-8").splitlines()
    shape, gpu = roofline.REFERENCE, roofline.GPUS[0]
    assert set(roofline.speed_table(shape)) <= set(speed)
    assert set(roofline.parts_table(shape, gpu, 8)) <= set(speed)
    assert set(roofline.savings_table(shape, gpu, 8)) <= set(kernels)
