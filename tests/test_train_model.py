"""The reference model: exact size, initialisation, gradients, causality, document starts."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from train_support import awake, tiny

import train_gpt as tg

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
).filter(lambda options: options["num_encoder_layers"] or not options["encoder_recurrence"])


def test_reference_has_the_published_parameter_count():
    with torch.device("meta"):
        model = tg.GPT(tg.ModelConfig())
    assert sum(p.numel() for p in model.parameters()) == 25_254_992


def test_initial_loss_is_that_of_a_uniform_guess():
    cfg = tg.ModelConfig()
    torch.manual_seed(0)
    ids = torch.randint(cfg.vocab_size, (1, 65))
    with torch.no_grad():
        loss = tg.GPT(cfg)(ids[:, :-1], ids[:, 1:]).item()
    assert abs(loss - math.log(cfg.vocab_size)) < 0.5


def test_overtone_init_reshapes_the_spectrum():
    s = torch.linalg.svdvals(tg.GPT(tiny().model).embed.detach().double())
    expected = s[0] * torch.arange(1, len(s) + 1, dtype=torch.float64).rsqrt()
    assert torch.allclose(s, expected, rtol=1e-4)


def test_the_plan_is_a_u_net():
    """Encoder blocks push, decoder blocks pop what was pushed last."""
    plan = tg.plan_depth(tiny(num_layers=5, num_encoder_layers=2).model)
    assert [visit.layer for visit in plan] == [0, 1, 2, 3, 4]
    assert [visit.push for visit in plan] == [True, True, False, False, False]
    assert [visit.pop for visit in plan] == [None, None, 0, 1, None]


def test_the_plan_repeats_the_encoder_and_keeps_its_last_pass():
    plan = tg.plan_depth(tiny(num_layers=4, num_encoder_layers=2, encoder_recurrence=1).model)
    assert [visit.layer for visit in plan] == [0, 1, 0, 1, 2, 3]
    assert [visit.normalise for visit in plan] == [False, False, True, False, False, False]
    assert sum(visit.push for visit in plan) == 2
    assert [visit.push for visit in plan[:2]] == [False, False]


@pytest.mark.parametrize("encoder", range(5))
def test_every_plan_visits_each_layer_and_pops_no_more_than_it_pushed(encoder):
    for recurrence in (0, 1, 2) if encoder else (0,):
        cfg = tiny(num_encoder_layers=encoder, encoder_recurrence=recurrence).model
        kept = 0
        for visit in tg.plan_depth(cfg):
            kept -= visit.pop is not None
            assert kept >= 0
            kept += visit.push
        assert {visit.layer for visit in tg.plan_depth(cfg)} == set(range(4))


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(OPTIONS)
def test_every_parameter_has_received_a_gradient_after_two_steps(options):
    cfg = tiny(**options)
    torch.manual_seed(1)
    model = tg.GPT(cfg.model)
    optimizers = tg.Optimizers(model, cfg.training, tg.Ranks())
    seen: set[str] = set()
    for step in range(2):
        ids = torch.randint(cfg.model.vocab_size, (4, 33))
        tg.training_step(model, [(ids[:, :-1], ids[:, 1:])], optimizers.params, tg.Ranks())
        for name, p in model.named_parameters():
            if p.grad is not None and p.grad.abs().max() > 0:
                seen.add(name)
        optimizers.step(step, 1.0)
    assert seen == {name for name, p in model.named_parameters() if p.numel()}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(OPTIONS, st.integers(0, 23), st.integers(0, 1000))
def test_causality(options, at, seed):
    """A later token never changes earlier logits; the first token does change the last ones."""
    cfg = tiny(**options)
    model = awake(cfg, seed)
    vocab_size = cfg.model.vocab_size
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, vocab_size, (1, 24), generator=generator)
    other = ids.clone()
    other[0, at] = (other[0, at] + 7) % (vocab_size - 2) + 2
    with torch.no_grad():
        a, b = (model.logits(model.hidden(x)[0]) for x in (ids, other))
    assert torch.equal(a[0, :at], b[0, :at])
    assert not torch.allclose(a[0, at], b[0, at], rtol=0, atol=1e-9)
    if at == 0:
        assert not torch.allclose(a[0, -1], b[0, -1], rtol=0, atol=1e-12)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(OPTIONS, st.integers(1, 24))
def test_the_tail_alone_is_the_tail_of_all(options, tail):
    """What scoring asks for, the last positions alone, is what the whole pass says of them."""
    model = awake(tiny(**options))
    ids = torch.randint(2, 260, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, whole_delta = model.hidden(ids)
        part, part_delta = model.hidden(ids, tail)
    assert torch.allclose(part, whole[:, -tail:], rtol=0, atol=1e-12)
    assert torch.equal(part_delta, whole_delta[:, -tail:])


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(OPTIONS, st.integers(1, 10))
def test_the_stem_carries_nothing_over_a_document_start(options, at):
    """SmearGate and bigram table: the stem at a BOS is that of a BOS that opens the window."""
    one_layer = {"num_layers": 1, "num_encoder_layers": 0, "encoder_recurrence": 0}
    cfg = tiny(**(options | one_layer | {"xsa_layers": 0}))
    model = awake(cfg)
    vocab_size = cfg.model.vocab_size
    ids = torch.randint(2, vocab_size, (1, 12))
    ids[0, at] = tg.BOS_ID
    changed = ids.clone()
    changed[0, at - 1] = (ids[0, at - 1] + 5) % (vocab_size - 2) + 2
    alone = torch.tensor([[tg.BOS_ID]])
    with torch.no_grad():
        deltas = [model.hidden(x)[1][0] for x in (ids, changed, alone)]
    assert torch.equal(deltas[0][at:], deltas[1][at:])
    assert deltas[0][at] == pytest.approx(deltas[2][0].item(), rel=1e-6)
    assert deltas[0][at - 1] != deltas[1][at - 1]


CHANGES_FUNCTION = (
    {"encoder_recurrence": 1},
    {"xsa_layers": 0},
    {"mlp_negative_slope": 0.5},
    {"logit_softcap": 5.0},
    {"rope_base": 100.0},
)
CHANGES_WEIGHTS = ({"phase_init": 1}, {"q_gain_init": 2.0}, {"embed_init_std": 0.1})


@pytest.mark.parametrize("change", CHANGES_FUNCTION, ids=str)
def test_an_option_changes_the_function(change):
    """An option that no code reads would pass every other test."""
    ids = torch.randint(2, 260, (1, 16), generator=torch.Generator().manual_seed(0))
    plain = awake(tiny())

    def loss(**options: object) -> float:
        model = tg.GPT(tiny(**options).model).double()
        model.load_state_dict(plain.state_dict())
        with torch.no_grad():
            return model(ids[:, :-1], ids[:, 1:]).item()

    assert loss(**change) != pytest.approx(loss(), abs=1e-9)


@pytest.mark.parametrize("change", CHANGES_WEIGHTS, ids=str)
def test_an_option_changes_the_initial_weights(change):
    torch.manual_seed(0)
    a = tg.GPT(tiny().model).state_dict()
    torch.manual_seed(0)
    b = tg.GPT(tiny(**change).model).state_dict()
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_xsa_belongs_to_the_last_layers():
    blocks = tg.GPT(tiny(xsa_layers=1).model).blocks
    assert [block.attention.xsa for block in blocks] == [False, False, False, True]


def test_xsa_removes_the_own_value():
    """With one token attention returns its own value, and XSA leaves nothing of it."""
    attention = awake(tiny(xsa_layers=4)).blocks[0].attention
    rotary = tg.rotary_tables(torch.arange(1), 8, 1e4)
    x = torch.randn(1, 1, 32, dtype=torch.float64)
    with torch.no_grad():
        assert attention(x, rotary, 1).abs().max() < 1e-12
        attention.xsa = False
        assert attention(x, rotary, 1).abs().max() > 1e-3


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("tail", [1, 5, 12])
def test_attention_is_the_softmax_of_its_formula(heads, tail):
    """Against loops over positions and heads, for all positions and for the last ones."""
    num_heads, kv_heads = heads
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, tail, num_heads, 8, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, 12, kv_heads, 8, generator=generator, dtype=torch.float64)
    found = tg.attend(q, k, v)
    for i in range(tail):
        seen = 12 - tail + i + 1
        for head in range(num_heads):
            group = head // (num_heads // kv_heads)
            keys, values = k[0, :seen, group], v[0, :seen, group]
            weights = torch.softmax(keys @ q[0, i, head] / 8**0.5, 0)
            assert torch.allclose(found[0, i, head], weights @ values, atol=1e-12)


@pytest.mark.parametrize("cap", [0.5, 30.0, 1000.0])
@pytest.mark.parametrize("rows", [7, 64])
def test_head_loss_and_its_gradients_are_those_of_the_plain_formula(monkeypatch, cap, rows):
    """Whatever the chunk.

    In float64 to rounding, in float32 within what 2 cap s(2z / cap) - cap loses near 0, in
    bfloat16 within its products.
    """
    monkeypatch.setattr(tg, "CPU_LOGITS", rows * 50)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 16, generator=generator, dtype=torch.float64)
    embed = torch.randn(50, 16, generator=generator, dtype=torch.float64)
    targets = torch.randint(50, (40,), generator=generator)

    def plain(x, embed):
        return tg.head_loss_plain(x, embed, targets, cap)

    def fused(x, embed):
        return tg.HeadLoss.apply(x, embed, targets, cap)

    def run(loss, dtype, embed_dtype):
        leaves = [x.to(dtype).requires_grad_(), embed.to(embed_dtype).requires_grad_()]
        value = loss(*leaves)
        gradients = torch.autograd.grad(3 * value, leaves)
        return [value.detach().double(), *(g.double() for g in gradients)]

    expected = run(plain, torch.float64, torch.float64)
    for dtype, embed_dtype, tolerance in (
        (torch.float64, torch.float64, 1e-11),
        (torch.float32, torch.float32, 1e-6 * max(1, cap)),
        (torch.bfloat16, torch.float32, 3e-2),
    ):
        for a, b in zip(run(fused, dtype, embed_dtype), expected, strict=True):
            assert (a - b).norm() <= tolerance * b.norm(), (dtype, (a - b).norm() / b.norm())


def test_head_loss_is_finite_where_a_target_has_no_mass_left():
    x = torch.full((1, 4), 100.0)
    embed = torch.stack([torch.ones(4), -torch.ones(4)])
    loss = tg.HeadLoss.apply(x, embed, torch.tensor([1]), 200.0).item()
    assert loss == pytest.approx(400 * math.tanh(2), rel=1e-5)


def test_fake_quantisation_rounds_forward_and_passes_the_gradient():
    layer = tg.Linear(40, 5)
    layer.levels = 31
    q = layer.cast(torch.float32)
    q.sum().backward()
    scale = layer.weight.detach().abs().amax(-1, keepdim=True) / 31
    assert torch.allclose(q / scale, (q / scale).round(), atol=1e-4)
    assert not torch.equal(q, layer.weight)
    assert torch.equal(layer.weight.grad, torch.ones_like(layer.weight))
