"""GPT on nn.TransformerEncoder.

Every check is a function that is also run on a model with the bug planted.
"""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from systems_support import load_system
from torch import nn

module = load_system("transformer-encoder-gpt")
SMALL = module.Config(vocab_size=50, context=12, n_layers=3, n_heads=2, width=16, hidden=40)
IDS = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))


def build(cfg=SMALL, seed: int = 0) -> "module.EncoderGPT":
    torch.manual_seed(seed)
    return module.EncoderGPT(cfg)


@pytest.fixture(scope="module")
def paper() -> "module.EncoderGPT":
    return build(module.PRESETS["gpt2_small"])


def check_size(cfg) -> None:
    assert 80e6 <= sum(module.parameter_table(cfg).values()) <= 140e6


def check_output(model: nn.Module, ids: torch.Tensor = IDS) -> None:
    with torch.no_grad():
        logits = model(ids)
    assert logits.shape == (*ids.shape, model.cfg.vocab_size)
    assert logits.isfinite().all()


def check_initial_loss(model: nn.Module, ids: torch.Tensor = IDS) -> None:
    with torch.no_grad():
        loss = module.next_token_cross_entropy(model(ids), ids)
    assert abs(loss.item() - math.log(model.cfg.vocab_size)) < 2


def check_gradients(model: nn.Module) -> None:
    """Every float parameter receives a gradient that is not zero."""
    model.zero_grad()
    module.next_token_cross_entropy(model(IDS), IDS).backward()
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def check_causality(model: nn.Module) -> None:
    with torch.no_grad():
        logits = model(IDS)
        for t in range(1, 12):
            changed = IDS.clone()
            changed[:, t:] = (changed[:, t:] + 7) % 50
            torch.testing.assert_close(model(changed)[:, :t], logits[:, :t], rtol=0, atol=1e-6)
            assert not torch.allclose(model(changed)[:, t], logits[:, t])


def check_shift(loss_function: Callable) -> None:
    """Against a loop over (sequence, position): logits at t meet token t + 1.

    The last logit and the first token are left out.
    """
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(2))
    terms = []
    for row, targets in zip(logits, tokens[:, 1:], strict=True):
        for t, target in enumerate(targets):
            terms.append(row[t].logsumexp(0) - row[t, target])
    expected = torch.stack(terms).mean()
    found = loss_function(logits, tokens).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def check_distinct_layers(model: nn.Module) -> None:
    first, *others = [layer.linear1.weight for layer in model.encoder.layers]
    assert all(not torch.equal(first, other) for other in others)


def check_order_matters(model: nn.Module) -> None:
    """Without positions the last token sees a set: swapping two earlier ones changes nothing."""
    one = build(dataclasses.replace(model.cfg, n_layers=1))
    kept = one.state_dict().keys() & model.state_dict().keys()
    one.load_state_dict({name: model.state_dict()[name] for name in kept})
    one.positions = model.positions
    # At initialisation attention is too even, and writes too little, to see anything.
    attention = one.encoder.layers[0].self_attn
    attention.in_proj_weight.data.mul_(30)
    attention.out_proj.weight.data.mul_(100)
    swapped = IDS[:, [1, 0, *range(2, 12)]]
    assert (one(swapped)[:, -1] - one(IDS)[:, -1]).abs().max() > 1e-4


def test_gpt2_small_has_its_class_size():
    cfg = module.PRESETS["gpt2_small"]
    check_size(cfg)
    assert cfg.vocab_size == 16384
    embedding_and_head = 2 * 16384 * 768
    layers = 12 * (12 * 768**2 + 13 * 768)
    norm = 2 * 768
    assert sum(module.parameter_table(cfg).values()) == embedding_and_head + layers + norm
    with pytest.raises(AssertionError):
        check_size(dataclasses.replace(cfg, n_layers=6))


def test_gpt2_small_starts_as_a_uniform_guess(paper):
    ids = torch.randint(16384, (2, 9), generator=torch.Generator().manual_seed(3))
    check_output(paper, ids)
    check_initial_loss(paper, ids)


@pytest.mark.parametrize("norm_first", [0, 1])
@pytest.mark.parametrize(
    "check",
    [
        check_output,
        check_initial_loss,
        check_gradients,
        check_causality,
        check_distinct_layers,
        check_order_matters,
    ],
)
def test_small_model(check: Callable, norm_first: int):
    check(build(dataclasses.replace(SMALL, norm_first=norm_first)))


def test_loss_shifts_left():
    check_shift(module.next_token_cross_entropy)


def not_a_number(model):
    model.encoder.layers[1].linear1.weight.data[0, 0] = math.nan


def loud_head(model):
    model.head.weight.data *= 1000


def frozen_head(model):
    model.head.weight.requires_grad_(False)


def skipped_norm(model):
    model.norm = nn.Identity()
    model.forgotten = nn.LayerNorm(16)


def dead_layer(model):
    model.encoder.layers[2].linear2.weight.data.zero_()
    model.encoder.layers[2].linear2.weight.requires_grad_(False)


def no_mask(model):
    encoder = model.encoder.forward

    def forward(x, mask, is_causal):
        return encoder(x)

    model.encoder.forward = forward


def copied_layers(model):
    for layer in model.encoder.layers[1:]:
        layer.load_state_dict(model.encoder.layers[0].state_dict())


def no_positions(model):
    model.positions = torch.zeros_like(model.positions)


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (not_a_number, check_output),
        (loud_head, check_initial_loss),
        (frozen_head, check_gradients),
        (skipped_norm, check_gradients),
        (dead_layer, check_gradients),
        (no_mask, check_causality),
        (copied_layers, check_distinct_layers),
        (no_positions, check_order_matters),
    ],
)
def test_planted_bugs_are_noticed(plant: Callable, check: Callable):
    model = build()
    plant(model)
    with pytest.raises(AssertionError):
        check(model)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def without_shift(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, tokens)


def shifted_right(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits[:, 1:], tokens[:, :-1])


@pytest.mark.parametrize("wrong", [without_shift, shifted_right])
def test_planted_shifts_are_noticed(wrong: Callable):
    with pytest.raises(AssertionError):
        check_shift(wrong)


def test_norm_first_is_read_and_moves_the_norms():
    pre = build(dataclasses.replace(SMALL, norm_first=1))
    post = build(dataclasses.replace(SMALL, norm_first=0))
    for layer in pre.encoder.layers:
        layer.linear2.weight.data.mul_(100)
    post.load_state_dict(pre.state_dict())
    with torch.no_grad():
        assert not torch.allclose(pre(IDS), post(IDS), atol=1e-3)
        x = post.encoder(post.embedding(IDS))  # post-LN ends each layer with a norm
        torch.testing.assert_close(x.mean(-1), torch.zeros(2, 12), atol=1e-5, rtol=0)


def test_positions_are_the_sinusoids():
    table = module.sinusoids(9, 6)
    for position in range(9):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert "positions" not in build().state_dict()


def test_head_is_untied_and_training_changes_both():
    model = build()
    assert model.head.weight.data_ptr() != model.embedding.weight.data_ptr()
    names = {name for name, p in model.named_parameters() if set(p.shape) == {50, 16}}
    assert names == {"embedding.weight", "head.weight"}


def test_params_prints_every_preset(capsys):
    module.main(["params"])
    text = capsys.readouterr().out
    docs = sum(module.parameter_table(module.Config()).values())
    assert "gpt2_small: 110,221,824 = " in text
    assert f"docs: {docs:,} = " in text
