"""The fast paths do the plain mathematics, compile to one graph, and never make the host wait; the benchmark that compares them runs."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CLEAN_ENV, ROOT, TINY, flags
from torch.utils._python_dispatch import TorchDispatchMode

import train_gpt as tg

sys.path.append(str(ROOT / "bench"))  # last, so that bench/data.py does not hide the package data
import plain
import speed

CFG = dataclasses.replace(tg.Config(), **TINY)
OPTIONS = [
    {},
    {"mlp_negative_slope": 0.5, "phase_init": 1, "num_kv_heads": 4},
    {"encoder_recurrence": 1, "num_encoder_layers": 4, "xsa_layers": 4},
]


def train(cfg: tg.Config, side: str, steps: int) -> tuple[list[float], torch.Tensor]:
    rt = tg.Runtime()
    torch.manual_seed(0)
    model = (tg.GPT if side == "ours" else plain.PlainGPT)(cfg)
    optimizers = (
        tg.Optimizers(model, cfg, rt) if side == "ours" else plain.PlainOptimizers(model, cfg)
    )
    average = (tg.Average if side == "ours" else plain.PlainAverage)(model, cfg)
    loader = tg.Loader(tg.TokenStream([speed.synthetic_stream(cfg.vocab_size, 20_000)]), cfg, rt)
    losses = []
    for step in range(steps):
        losses.append(
            plain.plain_step(model, loader.next()).item()
            if side == "plain"
            else tg.training_step(model, loader.next(), optimizers.params, rt).item()
        )
        optimizers.step(step, 1.0)
        average.update(snapshot=False)
    ema = average.ema.values() if side == "plain" else average.ema
    return losses, torch.cat([t.flatten() for t in ema])


@pytest.mark.parametrize("options", OPTIONS)
def test_optimised_and_plain_training_have_the_same_losses(options):
    cfg = dataclasses.replace(CFG, **options)
    (a, ema_a), (b, ema_b) = train(cfg, "ours", 20), train(cfg, "plain", 20)
    np.testing.assert_allclose(a, b, rtol=1e-3)
    assert (ema_a - ema_b).norm() < 1e-2 * ema_b.norm()
    assert b[-1] < b[0] - 0.1


@pytest.mark.parametrize("options", OPTIONS)
def test_bfloat16_training_stays_near_float32_and_leaves_weights_and_scores_in_float32(
    options, monkeypatch
):
    """On any CPU: without instructions for them the products are slow, not wrong."""
    monkeypatch.setitem(tg.BF16_PAYS, "cpu", True)
    cfg = dataclasses.replace(CFG, **options)
    (a, ema_a), (b, ema_b) = (
        train(dataclasses.replace(cfg, bf16=1), "ours", 20),
        train(cfg, "ours", 20),
    )
    np.testing.assert_allclose(a, b, rtol=1e-2)
    assert a != b and 0 < (ema_a - ema_b).norm() < 0.2 * ema_b.norm()
    ids = torch.randint(cfg.vocab_size, (2, 32))
    model = tg.GPT(cfg)
    states = [
        model.hidden(ids)[0],
        model.hidden(ids, bf16=True)[0],
        model.double().hidden(ids, bf16=True)[0],
    ]
    assert [t.dtype for t in states] == [torch.float32, torch.bfloat16, torch.float64]


@pytest.mark.parametrize(
    ("bf16", "weights", "expected"),
    [(1, torch.float32, {"linear": torch.bfloat16, "newton_schulz": torch.bfloat16, "attention": torch.float32}),
     (0, torch.float32, dict.fromkeys(("linear", "newton_schulz", "attention"), torch.float32)),
     (1, torch.float64, dict.fromkeys(("linear", "newton_schulz", "attention"), torch.float64))],
)  # fmt: skip
def test_a_step_computes_in_the_precision_that_was_asked_for(bf16, weights, expected, monkeypatch):
    """What products, Newton-Schulz and, on a CPU, attention receive; and the weights keep every bit that they had."""
    monkeypatch.setitem(tg.BF16_PAYS, "cpu", True)
    seen: dict[str, set[torch.dtype]] = {name: set() for name in expected}
    for module, attribute, name in (
        (F, "linear", "linear"),
        (tg, "newton_schulz", "newton_schulz"),
        (F, "scaled_dot_product_attention", "attention"),
    ):
        whole = getattr(module, attribute)
        monkeypatch.setattr(
            module,
            attribute,
            lambda x, *rest, name=name, whole=whole, **options: (
                seen[name].add(x.dtype),
                whole(x, *rest, **options),
            )[1],
        )
    cfg, rt = (
        dataclasses.replace(CFG, bf16=bf16, micro_batch_tokens=CFG.train_batch_tokens),
        tg.Runtime(),
    )
    model = tg.GPT(cfg).to(weights)
    optimizers = tg.Optimizers(model, cfg, rt)
    optimizers.matrices = [(params, momenta.to(weights)) for params, momenta in optimizers.matrices]
    tg.training_step(
        model,
        tg.Loader(tg.TokenStream([speed.synthetic_stream(cfg.vocab_size, 2000)]), cfg, rt).next(),
        optimizers.params,
        rt,
    )
    optimizers.muon(0.02, 0.9)
    assert seen == {name: {dtype} for name, dtype in expected.items()}
    assert {p.dtype for p in model.parameters()} == {weights}


@pytest.mark.parametrize("options", OPTIONS)
def test_optimised_and_plain_scores_are_the_same(options):
    """Also where the last block is an encoder block, which the choice of scored positions does not reach."""
    cfg = dataclasses.replace(CFG, **options)
    models = [side(cfg) for side in (tg.GPT, plain.PlainGPT)]
    torch.manual_seed(1)
    with torch.no_grad():
        for p, q in zip(*(m.parameters() for m in models), strict=True):
            q.copy_(p.add_(0.1 * torch.randn_like(p)))
    stream = speed.synthetic_stream(cfg.vocab_size, 777)
    ours = tg.score_streams(models[0].requires_grad_(False), [stream], cfg, tg.Runtime())[0].nll
    np.testing.assert_allclose(
        ours.numpy(),
        plain.plain_scores(models[1], stream, cfg, torch.device("cpu")),
        rtol=0,
        atol=2e-5,
    )


def test_a_step_is_one_graph_that_is_never_compiled_again():
    rt, optimizers_of = tg.Runtime(), tg.Optimizers
    torch._dynamo.reset()
    model = tg.GPT(CFG)
    compute = torch.compile(
        model, fullgraph=True, dynamic=False, backend="aot_eager"
    )  # fullgraph: a graph break is an error
    optimizers, average = optimizers_of(model, CFG, rt), tg.Average(model, CFG)
    tokens = torch.randint(CFG.vocab_size, (32, 33))
    eager = tg.training_step(model, [(tokens[:, :-1], tokens[:, 1:])], optimizers.params, rt)
    model.zero_grad()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(4):
            loss = tg.training_step(
                compute, [(tokens[:, :-1], tokens[:, 1:])], optimizers.params, rt
            )
            assert step or loss.item() == pytest.approx(eager.item(), rel=1e-6)
            optimizers.step(step, 1.0)
            average.update(snapshot=False)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


class HostReads(TorchDispatchMode):
    """Operations whose result the host needs before it can go on: on a GPU each would drain its queue. Copies between devices, which a CPU
    cannot show, are left to the GPU tests."""

    names = (
        "_local_scalar_dense",
        "nonzero",
        "is_nonzero",
        "equal",
        "unique",
        "_unique",
        "masked_select",
    )

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        places = (
            args[1]
            if func.__name__.startswith("index") and isinstance(args[1], list | tuple)
            else []
        )
        by_mask = any(t is not None and t.dtype == torch.bool for t in places)
        if by_mask or any(func.__name__.startswith(name) for name in self.names):
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options", [{}, {"grad_clip": 0.5}, {"qat_lr_scale": 1.0}, {"micro_batch_tokens": 256}]
)
def test_no_step_makes_the_host_wait(options):
    cfg, rt = dataclasses.replace(CFG, **options), tg.Runtime()
    model = tg.GPT(cfg)
    tg.quantize_matrices(model, tg.export_formats(model, cfg) if cfg.qat_lr_scale else {})
    optimizers, average = tg.Optimizers(model, cfg, rt), tg.Average(model, cfg)
    loader = tg.Loader(tg.TokenStream([speed.synthetic_stream(cfg.vocab_size, 20_000)]), cfg, rt)
    with HostReads() as reads:
        for step in range(3):
            tg.training_step(model, loader.next(), optimizers.params, rt)
            optimizers.step(step, 1.0)
            average.update(snapshot=step == 2 and bool(average.swa))
        assert reads.found == []
        torch.ones(3)[torch.ones(3) > 0]
        assert reads.found.pop().startswith("index")
        checkpoints = tg.Checkpoints("", optimizers.state, cfg, rt)
        tg.log_step(
            1, torch.zeros(()), torch.ones(()), 1.0, 1.0, checkpoints, cfg, rt
        )  # which is why it does not run at every step
        assert reads.found


def test_flops_are_those_of_the_products():
    """Against torch's own counter, attention's full square apart: causal kernels do half of it."""
    from torch.utils.flop_counter import FlopCounterMode

    cfg = dataclasses.replace(CFG, train_seq_len=64)
    model, ids = plain.PlainGPT(cfg), torch.randint(cfg.vocab_size, (2, 64))
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model(ids, ids)
    other_half = cfg.num_layers * 2 * 2 * cfg.model_dim * 64 / 2
    assert counter.get_total_flops() / ids.numel() == pytest.approx(
        plain.flops_per_token(cfg) / 3 + other_half, rel=1e-3
    )


def test_the_benchmark_runs_and_writes_its_results(tmp_path):
    tiny = " ".join(flags(iterations=50))
    command = [
        sys.executable,
        ROOT / "bench/cpu.py",
        "--flags",
        tiny,
        "--steps",
        "4",
        "--whole-steps",
        "2",
        "--rounds",
        "1",
        "--score-tokens",
        "300",
    ]
    done = subprocess.run(
        [*command, "--out", tmp_path],
        capture_output=True,
        text=True,
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "cpu.json").read_text())
    assert (
        result["training"]["ours in float32"]["largest_relative_loss_difference"] < 1e-3
        and result["scoring"]["ours"]["relative_difference"] < 1e-6
    )
    assert (
        1 <= result["artifact"]["over_bound_without_header"] < 1.3
        and (tmp_path / "cpu.png").stat().st_size > 10_000
    )
    refused = subprocess.run(
        [sys.executable, ROOT / "bench/gpu.py", "--flags", tiny],
        capture_output=True,
        text=True,
        env=CLEAN_ENV | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert refused.returncode == 1 and "expected a cuda device, found cpu" in refused.stderr
