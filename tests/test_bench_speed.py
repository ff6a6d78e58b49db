"""The fast paths do the plain mathematics, in one graph, and never make the host wait.

The benchmark that compares them with bench/plain.py runs.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CLEAN_ENV, ROOT, flags
from torch.utils._python_dispatch import TorchDispatchMode
from train_support import tiny

import train_gpt as tg
from bench import plain
from bench.speed import picture
from bench.speed.measurements import synthetic_stream

CFG = tiny()
OPTIONS = [
    {},
    {"mlp_negative_slope": 0.5, "phase_init": 1, "num_kv_heads": 4},
    {"encoder_recurrence": 1, "num_encoder_layers": 4, "xsa_layers": 4},
]
IN_BFLOAT16 = tg.Ranks(train_dtype=torch.bfloat16)


def make_loader(cfg: tg.Config, length: int = 20_000) -> tg.Loader:
    stream = tg.TokenStream([synthetic_stream(cfg.model.vocab_size, length)])
    return tg.Loader(stream, cfg, tg.Ranks())


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def train_plain(cfg: tg.Config, steps: int) -> tuple[list[float], torch.Tensor]:
    """Losses in nats, and the averaged weights in one vector."""
    torch.manual_seed(0)
    model = plain.PlainGPT(cfg.model)
    optimizers = plain.PlainOptimizers(model, cfg.training)
    average = plain.PlainAverage(model, cfg.training)
    losses = []
    with contextlib.closing(make_loader(cfg)) as loader:
        for step in range(steps):
            losses.append(plain.plain_step(model, loader.next()).item())
            optimizers.step(step, 1.0)
            average.update(snapshot=False)
    return losses, flat(average.ema.values())


def train_ours(
    cfg: tg.Config, steps: int, ranks: tg.Ranks | None = None
) -> tuple[list[float], torch.Tensor]:
    """Losses in nats, and the averaged weights in one vector."""
    ranks = ranks or tg.Ranks()
    torch.manual_seed(0)
    model = tg.GPT(cfg.model)
    compute = tg.compile_model(model, cfg.training, ranks)
    optimizers = tg.Optimizers(model, cfg.training, ranks)
    average = tg.Average(model, cfg.training)
    losses = []
    with contextlib.closing(make_loader(cfg)) as loader:
        for step in range(steps):
            loss = tg.training_step(compute, loader.next(), optimizers.params, ranks)
            losses.append(loss.item())
            optimizers.step(step, 1.0)
            average.update(snapshot=False)
    return losses, flat(average.ema)


@pytest.mark.parametrize("options", OPTIONS)
def test_optimised_and_plain_training_have_the_same_losses(options):
    cfg = tiny(**options)
    ours, ours_ema = train_ours(cfg, 20)
    expected, expected_ema = train_plain(cfg, 20)
    np.testing.assert_allclose(ours, expected, rtol=1e-3)
    assert (ours_ema - expected_ema).norm() < 1e-2 * expected_ema.norm()
    assert expected[-1] < expected[0] - 0.1


@pytest.mark.parametrize("options", OPTIONS)
def test_bfloat16_training_stays_near_float32_and_leaves_weights_and_scores_in_float32(options):
    """On any CPU: without instructions for them the products are slow, not wrong."""
    cfg = tiny(**options)
    rounded, rounded_ema = train_ours(cfg, 20, IN_BFLOAT16)
    exact, exact_ema = train_ours(cfg, 20)
    np.testing.assert_allclose(rounded, exact, rtol=1e-2)
    assert rounded != exact
    assert 0 < (rounded_ema - exact_ema).norm() < 0.2 * exact_ema.norm()
    ids = torch.randint(cfg.model.vocab_size, (2, 32))
    model = tg.GPT(cfg.model)
    assert model.hidden(ids)[0].dtype == torch.float32
    assert model.hidden(ids, dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert model.double().hidden(ids, dtype=torch.bfloat16)[0].dtype == torch.float64
    assert tg.Ranks().score_dtype == torch.float32


class Inputs:
    """The dtypes of the first argument that functions are called with, by the name given here."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.dtypes: dict[str, set[torch.dtype]] = {}

    def watch(self, module, attribute: str, name: str) -> None:
        whole: Callable = getattr(module, attribute)
        self.dtypes[name] = set()

        def watched(x, *rest, **options):
            self.dtypes[name].add(x.dtype)
            return whole(x, *rest, **options)

        self.monkeypatch.setattr(module, attribute, watched)


IN_FLOAT32 = dict.fromkeys(("linear", "newton_schulz", "attention"), torch.float32)
IN_FLOAT64 = dict.fromkeys(IN_FLOAT32, torch.float64)
MIXED = {
    "linear": torch.bfloat16,
    "newton_schulz": torch.bfloat16,
    "attention": torch.float32,
}


@pytest.mark.parametrize(
    ("activations", "weights", "expected"),
    [
        (torch.bfloat16, torch.float32, MIXED),
        (torch.float32, torch.float32, IN_FLOAT32),
        (torch.bfloat16, torch.float64, IN_FLOAT64),
    ],
)
def test_a_step_computes_in_the_precision_that_was_asked_for(
    activations, weights, expected, monkeypatch
):
    """What products, Newton-Schulz and, on a CPU, attention receive.

    The weights keep every bit that they had.
    """
    seen = Inputs(monkeypatch)
    seen.watch(F, "linear", "linear")
    seen.watch(tg, "newton_schulz", "newton_schulz")
    seen.watch(F, "scaled_dot_product_attention", "attention")
    cfg = tiny(micro_batch_tokens=CFG.training.train_batch_tokens)
    ranks = tg.Ranks(train_dtype=activations)
    model = tg.GPT(cfg.model).to(weights)
    optimizers = tg.Optimizers(model, cfg.training, ranks)
    for bank in optimizers.banks:
        bank.momenta = bank.momenta.to(weights)
    compute = tg.compile_model(model, cfg.training, ranks)
    with contextlib.closing(make_loader(cfg, 2000)) as loader:
        tg.training_step(compute, loader.next(), optimizers.params, ranks)
    optimizers.muon(0.02, 0.9)
    assert seen.dtypes == {name: {dtype} for name, dtype in expected.items()}
    assert {p.dtype for p in model.parameters()} == {weights}


@pytest.mark.parametrize("options", OPTIONS)
def test_optimised_and_plain_scores_are_the_same(options):
    """Also where the last visit is to an encoder block."""
    cfg = tiny(**options)
    ours = tg.GPT(cfg.model)
    reference = plain.PlainGPT(cfg.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for p, q in zip(ours.parameters(), reference.parameters(), strict=True):
            p.add_(0.1 * torch.randn_like(p))
            q.copy_(p)
    stream = synthetic_stream(cfg.model.vocab_size, 777)
    nll = tg.score_streams(ours, [stream], cfg.scoring, tg.Ranks())[0].nll
    expected = plain.plain_scores(reference, stream, cfg.scoring, tg.Ranks())
    np.testing.assert_allclose(nll.numpy(), expected, rtol=0, atol=2e-5)


def test_a_step_is_one_graph_that_is_never_compiled_again():
    ranks = tg.Ranks()
    torch._dynamo.reset()
    model = tg.GPT(CFG.model)
    # fullgraph: a graph break is an error
    compute = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    optimizers = tg.Optimizers(model, CFG.training, ranks)
    average = tg.Average(model, CFG.training)
    tokens = torch.randint(CFG.model.vocab_size, (32, 33))
    batch = [(tokens[:, :-1], tokens[:, 1:])]
    eager = tg.training_step(model, batch, optimizers.params, ranks)
    model.zero_grad()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(4):
            loss = tg.training_step(compute, batch, optimizers.params, ranks)
            if step == 0:
                assert loss.item() == pytest.approx(eager.item(), rel=1e-6)
            optimizers.step(step, 1.0)
            average.update(snapshot=False)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


class HostReads(TorchDispatchMode):
    """Operations whose result the host needs before it can go on.

    On a GPU each would drain its queue. Copies between devices, which a CPU cannot show, are left
    to the GPU tests.
    """

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
        reads = func.__name__.startswith(self.names)
        if reads or self.indexes_by_mask(func.__name__, args):
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def indexes_by_mask(name: str, args: tuple) -> bool:
        if not name.startswith("index") or not isinstance(args[1], list | tuple):
            return False
        return any(t is not None and t.dtype == torch.bool for t in args[1])


@pytest.mark.parametrize(
    "options", [{}, {"grad_clip": 0.5}, {"qat_lr_scale": 1.0}, {"micro_batch_tokens": 256}]
)
def test_no_step_makes_the_host_wait(options):
    cfg = tiny(**options)
    ranks = tg.Ranks()
    model = tg.GPT(cfg.model)
    quantised = cfg.training.qat_lr_scale > 0
    tg.quantize_matrices(model, tg.export_formats(model, cfg) if quantised else {})
    optimizers = tg.Optimizers(model, cfg.training, ranks)
    average = tg.Average(model, cfg.training)
    health = tg.Health(ranks, 0)
    with contextlib.closing(make_loader(cfg)) as loader, HostReads() as reads:
        for step in range(3):
            loss = tg.training_step(model, loader.next(), optimizers.params, ranks)
            health.observe(loss, optimizers.params)
            optimizers.step(step, 1.0)
            average.update(snapshot=step == 2 and bool(average.swa))
        assert reads.found == []
        # the next two show that the reads of the host would have been noticed
        torch.ones(3)[torch.ones(3) > 0]
        assert reads.found.pop().startswith("index")
        checkpoints = tg.Checkpoints("", optimizers.state(), cfg, ranks)
        progress = tg.Progress(cfg, step=3, seconds=1.0)
        tg.log_step(progress, health, checkpoints, tg.Log(active=False))
        assert reads.found  # which is why it does not run at every step


def test_flops_are_those_of_the_products():
    """Against torch's own counter.

    That counts attention's full square; causal kernels do half of it.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model = plain.PlainGPT(CFG.model)
    ids = torch.randint(CFG.model.vocab_size, (2, 64))
    one_kernel = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, one_kernel:
        model(ids, ids)
    other_half = CFG.model.num_layers * 2 * 2 * CFG.model.model_dim * 64 / 2
    forward = plain.flops_per_token(CFG.model, seq_len=64) / 3
    assert counter.get_total_flops() / ids.numel() == pytest.approx(forward + other_half, rel=1e-3)


def run_benchmark(script: str, *argv: object, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "bench" / script, *map(str, argv)],
        capture_output=True,
        text=True,
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"} | env,
        timeout=240,
    )


@pytest.mark.parametrize(("step", "text"), [(20.0, " 20 ms a step"), (10.0, "15 where each")])
def test_pieces_add_up_to_the_bar_that_is_drawn(step, text):
    """Of a step of 20 ms 5 were not timed apart; of one of 10 ms the bar says that it is longer."""
    pieces = {"forward and backward": 12.0, "optimizer": 2.0, "averaging": 1.0}
    row = {"pieces_ms": pieces, "step_ms": step}
    drawn = picture.pieces_of(row)
    assert sum(drawn.values()) == max(step, 15.0)
    assert text in picture.step_text(row, sum(drawn.values()))


TINY_FLAGS = " ".join(flags(iterations=50))


def keys(value: object) -> object:
    """The same tree of dictionaries, without what they hold."""
    if isinstance(value, dict):
        return {key: keys(entry) for key, entry in value.items()}
    return None


def test_the_benchmark_runs_and_writes_its_results(tmp_path):
    sizes = ("--steps", 4, "--whole-steps", 2, "--rounds", 1, "--score-tokens", 300)
    done = run_benchmark("cpu.py", "--flags", TINY_FLAGS, *sizes, "--out", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "cpu.json").read_text())
    assert result["training"]["ours in float32"]["largest_relative_loss_difference"] < 1e-3
    assert result["scoring"]["ours"]["relative_difference"] < 1e-6
    assert 1 <= result["artifact"]["over_bound_without_header"] < 1.3
    assert (tmp_path / "cpu.png").stat().st_size > 10_000
    committed = json.loads((ROOT / "bench/results/cpu.json").read_text())
    result["config"]["peak_flops"] = {}  # by the precisions that the CPU has
    committed["config"]["peak_flops"] = {}
    assert keys(result) == keys(committed)


def test_another_device_is_refused():
    done = run_benchmark("gpu.py", "--flags", TINY_FLAGS, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "expected a cuda device, found cpu" in done.stderr


def test_an_artifact_of_another_script_is_refused_in_one_line(tmp_path):
    """A committed record's artifact belongs to the record's own train_gpt.py."""
    old = tmp_path / "artifact.bin"
    old.write_bytes(tg.ARTIFACT_MAGIC + (2).to_bytes(4, "little") + bytes(100))
    done = run_benchmark("cpu.py", "--flags", TINY_FLAGS, "--artifact", old)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "expected artifact version 3, found 2; use the train_gpt.py that wrote it" in done.stderr
