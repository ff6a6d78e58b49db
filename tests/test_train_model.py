"""The reference model: exact size, initialisation, gradients, causality and document starts at any option setting."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train_gpt as tg

BASE = dataclasses.replace(tg.Config(), **TINY)


def awake(cfg: tg.Config, seed: int = 0, dtype: torch.dtype = torch.float64) -> tg.GPT:
    """A model none of whose paths is silent: zero-initialised projections would hide any leak behind them."""
    torch.manual_seed(seed)
    model = tg.GPT(cfg)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(torch.randn_like(p) * (0.5 if p.ndim < 2 or name in ("skips",) else 0.2))
    return model.to(dtype)


OPTIONS = st.fixed_dictionaries(
    {
        "encoder_recurrence": st.integers(0, 1),
        "num_encoder_layers": st.integers(0, 4),
        "xsa_layers": st.integers(0, 4),
        "phase_init": st.integers(0, 1),
        "mlp_negative_slope": st.sampled_from([0.0, 0.5]),
        "num_kv_heads": st.sampled_from([1, 2, 4]),
        "logit_softcap": st.sampled_from([5.0, 30.0]),
    }
)


def test_reference_has_the_published_parameter_count():
    with torch.device("meta"):
        assert sum(p.numel() for p in tg.GPT(tg.Config()).parameters()) == 25_254_992


def test_initial_loss_is_that_of_a_uniform_guess():
    cfg = tg.Config()
    torch.manual_seed(0)
    ids = torch.randint(cfg.vocab_size, (1, 65))
    with torch.no_grad():
        loss = tg.GPT(cfg)(ids[:, :-1], ids[:, 1:]).item()
    assert abs(loss - math.log(cfg.vocab_size)) < 0.5


def test_overtone_init_reshapes_the_spectrum():
    s = torch.linalg.svdvals(tg.GPT(BASE).embed.detach().double())
    assert torch.allclose(
        s, s[0] * torch.arange(1, len(s) + 1, dtype=torch.float64).rsqrt(), rtol=1e-4
    )


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(OPTIONS)
def test_every_parameter_has_received_a_gradient_after_two_steps(options):
    cfg = tg.validate(dataclasses.replace(BASE, **options))
    torch.manual_seed(1)
    model = tg.GPT(cfg)
    optimizers = tg.Optimizers(model, cfg, tg.Runtime())
    seen: set[str] = set()
    for step in range(2):
        ids = torch.randint(cfg.vocab_size, (4, 33))
        tg.training_step(model, [(ids[:, :-1], ids[:, 1:])], optimizers.params, tg.Runtime())
        seen |= {
            n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0
        }
        optimizers.step(step, 1.0)
    assert seen == {n for n, p in model.named_parameters() if p.numel()}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(OPTIONS, st.integers(0, 23), st.integers(0, 1000))
def test_causality(options, at, seed):
    """A later token never changes earlier logits; the first token does change the last ones."""
    cfg = tg.validate(dataclasses.replace(BASE, **options))
    model = awake(cfg, seed)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, cfg.vocab_size, (1, 24), generator=generator)
    other = ids.clone()
    other[0, at] = (other[0, at] + 7) % (cfg.vocab_size - 2) + 2
    with torch.no_grad():
        a, b = (model.logits(model.hidden(x)[0]) for x in (ids, other))
    assert torch.equal(a[0, :at], b[0, :at])
    assert not torch.allclose(a[0, at], b[0, at], rtol=0, atol=1e-9)
    if at == 0:
        assert not torch.allclose(a[0, -1], b[0, -1], rtol=0, atol=1e-12)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(OPTIONS, st.integers(1, 10))
def test_the_stem_carries_nothing_over_a_document_start(options, at):
    """SmearGate and bigram table: the stem at a BOS is the stem of a BOS that opens the window, whatever came before."""
    cfg = tg.validate(
        dataclasses.replace(
            BASE, num_layers=1, **(options | {"num_encoder_layers": 0, "xsa_layers": 0})
        )
    )
    model = awake(cfg)
    ids = torch.randint(2, cfg.vocab_size, (1, 12))
    ids[0, at] = tg.BOS_ID
    changed = ids.clone()
    changed[0, at - 1] = (ids[0, at - 1] + 5) % (cfg.vocab_size - 2) + 2
    with torch.no_grad():
        deltas = [model.hidden(x)[1][0] for x in (ids, changed, torch.tensor([[tg.BOS_ID]]))]
    assert torch.equal(deltas[0][at:], deltas[1][at:])
    assert deltas[0][at] == pytest.approx(deltas[2][0].item(), rel=1e-6)
    assert deltas[0][at - 1] != deltas[1][at - 1]


def test_options_change_the_function():
    """An option that no code reads would pass every other test."""
    ids = torch.randint(2, 260, (1, 16), generator=torch.Generator().manual_seed(0))
    plain = awake(BASE)

    def loss(**options: object) -> float:
        model = tg.GPT(dataclasses.replace(BASE, **options)).double()
        model.load_state_dict(plain.state_dict())
        with torch.no_grad():
            return model(ids[:, :-1], ids[:, 1:]).item()

    reference = loss()
    for change in (
        {"encoder_recurrence": 1},
        {"xsa_layers": 0},
        {"mlp_negative_slope": 0.5},
        {"logit_softcap": 5.0},
        {"rope_base": 100.0},
    ):
        assert loss(**change) != pytest.approx(reference, abs=1e-9), change
    for change in ({"phase_init": 1}, {"q_gain_init": 2.0}, {"embed_init_std": 0.1}):
        torch.manual_seed(0)
        a = tg.GPT(BASE).state_dict()
        torch.manual_seed(0)
        b = tg.GPT(dataclasses.replace(BASE, **change)).state_dict()
        assert any(not torch.equal(a[k], b[k]) for k in a), change
    assert [b.attention.xsa for b in tg.GPT(dataclasses.replace(BASE, xsa_layers=1)).blocks] == [
        False,
        False,
        False,
        True,
    ]


def test_xsa_removes_the_own_value():
    """With one token attention returns its own value, and XSA leaves nothing of it."""
    cfg = dataclasses.replace(BASE, xsa_layers=4)
    attention = awake(cfg).blocks[0].attention
    rotary = tg.rotary_tables(torch.arange(1), 8, 1e4)
    x = torch.randn(1, 1, 32, dtype=torch.float64)
    with torch.no_grad():
        assert attention(x, rotary, 1).abs().max() < 1e-12
        attention.xsa = False
        assert attention(x, rotary, 1).abs().max() > 1e-3


@pytest.mark.parametrize("cap", [0.5, 30.0, 1000.0])
@pytest.mark.parametrize("rows", [7, 64])
def test_head_loss_and_its_gradients_are_those_of_the_plain_formula(monkeypatch, cap, rows):
    """In float64 to rounding; in float32 within what 2 cap s(2z / cap) - cap loses near 0, in bfloat16 within its products. Whatever the chunk."""
    monkeypatch.setitem(tg.HEAD_ELEMENTS, "cpu", rows * 50)
    generator = torch.Generator().manual_seed(0)
    x, embed = (torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (40, 50))
    targets = torch.randint(50, (40,), generator=generator)

    def run(loss, dtype, embed_dtype):
        leaves = [x.to(dtype).requires_grad_(), embed.to(embed_dtype).requires_grad_()]
        value = loss(*leaves)
        return [
            value.detach().double(),
            *(g.double() for g in torch.autograd.grad(3 * value, leaves)),
        ]

    expected = run(
        lambda x, e: F.cross_entropy(cap * torch.tanh(x @ e.T / cap), targets),
        torch.float64,
        torch.float64,
    )
    for dtype, embed_dtype, tolerance in (
        (torch.float64, torch.float64, 1e-11),
        (torch.float32, torch.float32, 1e-6 * max(1, cap)),
        (torch.bfloat16, torch.float32, 3e-2),
    ):
        found = run(lambda x, e: tg.HeadLoss.apply(x, e, targets, cap), dtype, embed_dtype)
        for a, b in zip(found, expected, strict=True):
            assert (a - b).norm() <= tolerance * b.norm(), (dtype, (a - b).norm() / b.norm())


def test_head_loss_is_finite_where_a_target_has_no_mass_left():
    x, embed = torch.full((1, 4), 100.0), torch.stack([torch.ones(4), -torch.ones(4)])
    assert tg.HeadLoss.apply(x, embed, torch.tensor([1]), 200.0).item() == pytest.approx(
        400 * math.tanh(2), rel=1e-5
    )


def test_generate_continues_past_the_context_and_greedy_is_deterministic():
    model = awake(BASE, dtype=torch.float32)
    pick = lambda logits: tg.sample(logits, 0.0, 0, 1.0, torch.Generator())  # noqa: E731
    runs = [list(tg.generate(model, [1, 5, 6], 20, context=8, pick=pick)) for _ in range(2)]
    assert runs[0] == runs[1] and len(runs[0]) == 20
    tokens = [1, 5, 6, *runs[0]]
    with torch.no_grad():
        for i in range(3, 23):  # every token by the full forward pass over the window before it
            assert (
                tokens[i]
                == model.logits(
                    model.hidden(torch.tensor([tokens[max(0, i - 8) : i]]))[0][0, -1]
                ).argmax()
            )


def test_sampling_filters():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    draw = lambda *a: {tg.sample(logits, *a, torch.Generator().manual_seed(i)) for i in range(200)}  # noqa: E731
    assert draw(0.0, 0, 1.0) == {0}
    assert draw(1.0, 2, 1.0) == {0, 1}
    assert draw(1.0, 0, 0.7) == {0, 1}
    assert draw(1.0, 0, 0.1) == {0}
    assert draw(1.0, 0, 1.0) == {0, 1, 2, 3}


def test_fake_quantisation_rounds_forward_and_passes_the_gradient():
    layer = tg.Linear(40, 5)
    layer.levels = 31
    q = layer.cast(torch.float32)
    q.sum().backward()
    scale = layer.weight.detach().abs().amax(-1, keepdim=True) / 31
    assert torch.allclose(q / scale, (q / scale).round(), atol=1e-4) and not torch.equal(
        q, layer.weight
    )
    assert torch.equal(layer.weight.grad, torch.ones_like(layer.weight))
