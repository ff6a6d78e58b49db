"""The hand-written backward pass against autograd.

The witness is an independent model on torch's own functions, with random shapes, in float64.
"""

import ast
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from systems_support import SCRIPTS, load_system
from torch import Tensor

module = load_system("manual-backward-gpt1")
LR = 0.7


def reference_loss(flat: Tensor, tokens: Tensor, cfg) -> Tensor:
    """The model of the docstring, with torch's functions and its own slicing of the vector."""
    weights = FlatReader(flat)
    V = cfg.vocab_size
    D = cfg.width
    T = tokens.shape[1] - 1
    x = weights.take(V, D)[tokens[:, :-1]] + weights.take(cfg.context, D)[:T]
    for _ in range(cfg.n_layers):
        q, k, v, o, up, down = [weights.take(D, D) for _ in range(6)]
        heads = [split_heads(x @ w, cfg.n_heads) for w in (q, k, v)]
        attended = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = F.layer_norm(x + attended.transpose(1, 2).reshape(x.shape) @ o, (D,))
        x = F.layer_norm(x + F.gelu(x @ up) @ down, (D,))
    logits = x @ weights.take(D, V)
    assert weights.position == len(flat)
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """[N, T, D] to [N, heads, T, D / heads]"""
    return x.view(*x.shape[:2], n_heads, -1).transpose(1, 2)


class FlatReader:
    """Matrices off the front of a flat vector."""

    def __init__(self, flat: Tensor) -> None:
        self.flat = flat
        self.position = 0

    def take(self, *shape: int) -> Tensor:
        end = self.position + math.prod(shape)
        piece = self.flat[self.position : end].view(shape)
        self.position = end
        return piece


SIZES = {"vocab_size": 11, "context": 8, "n_layers": 2, "n_heads": 2, "width": 12}


def example(
    n: int = 3, t: int = 6, seed: int = 0, **sizes: int
) -> tuple[Tensor, Tensor, "module.Config"]:
    """Tokens [n, t + 1], flat float64 weights, configuration.

    The weights are large enough for every derivative to matter.
    """
    generator = torch.Generator().manual_seed(seed)
    cfg = module.Config(**(SIZES | sizes))
    tokens = torch.randint(cfg.vocab_size, (n, t + 1), generator=generator)
    flat = module.initial_weights(cfg, generator).double()
    spread = torch.randn(flat.shape, generator=generator, dtype=torch.float64)
    return tokens, flat + 0.3 * spread, cfg


def check_against_autograd(tokens: Tensor, flat: Tensor, cfg) -> None:
    """One step equals the step along autograd's gradient within 1e-10.

    So do loss and gradient. The input weights stay as they were.
    """
    leaf = flat.clone().requires_grad_()
    loss = reference_loss(leaf, tokens, cfg)
    loss.backward()
    before = flat.clone()
    losses: list[float] = []
    updated = module.pretraining_step(tokens, flat, cfg, LR, losses)
    assert torch.equal(flat, before)
    assert updated.shape == flat.shape
    assert updated.dtype == flat.dtype
    assert (updated - (flat - LR * leaf.grad)).abs().max() < 1e-10
    assert abs(losses[0] - loss.item()) < 1e-10
    own_loss, gradient = module.loss_and_gradient(tokens, flat, cfg)
    assert abs(own_loss - loss.item()) < 1e-10
    assert (gradient - leaf.grad).abs().max() < 1e-10


@st.composite
def examples(draw) -> tuple[Tensor, Tensor, "module.Config"]:
    """`example` in random shapes."""
    t = draw(st.integers(1, 9))
    heads = draw(st.integers(1, 4))
    return example(
        n=draw(st.integers(1, 7)),
        t=t,
        seed=draw(st.integers(0, 2**20)),
        vocab_size=draw(st.integers(2, 30)),
        context=t + draw(st.integers(0, 3)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=heads,
        width=heads * draw(st.integers(1, 5)),
    )


@settings(max_examples=40, deadline=None)
@given(case=examples())
def test_step_equals_autograd_on_random_shapes(case):
    check_against_autograd(*case)


@pytest.mark.parametrize("layers", [1, 4])
def test_flat_vector_has_the_stated_size_and_order(layers):
    _, flat, cfg = example(n_layers=layers, vocab_size=40)
    V = cfg.vocab_size
    T = cfg.context
    D = cfg.width
    assert len(flat) == V * D + T * D + layers * 6 * D * D + D * V
    assert len(flat) == sum(cfg.group_sizes.values())
    weights = module.unflatten(flat, cfg)
    pieces = [weights.embedding_VD, weights.positions_TD, *weights.blocks_L6DD, weights.head_DV]
    assert torch.equal(torch.cat([piece.flatten() for piece in pieces]), flat)


@pytest.mark.parametrize("layers", [1, 4])
def test_every_weight_in_use_has_a_gradient(layers):
    tokens, flat, cfg = example(n_layers=layers, vocab_size=40)
    _, gradient = module.loss_and_gradient(tokens, flat, cfg)
    slopes = module.unflatten(gradient, cfg)
    used = tokens.shape[1] - 1  # of eight positions
    assert (slopes.positions_TD[:used] != 0).all()
    assert (slopes.positions_TD[used:] == 0).all()
    idle = [i for i in range(cfg.vocab_size) if i not in tokens[:, :-1]]
    assert idle
    assert (slopes.embedding_VD[idle] == 0).all()
    assert (slopes.blocks_L6DD != 0).any(-1).any(-1).all()
    assert (slopes.head_DV != 0).all()


def test_initial_loss_is_that_of_a_guess():
    cfg = module.Config()
    tokens = torch.randint(cfg.vocab_size, (2, 33), generator=torch.Generator().manual_seed(1))
    weights = module.initial_weights(cfg, torch.Generator().manual_seed(0))
    loss, _ = module.loss_and_gradient(tokens, weights, cfg)
    assert abs(loss.item() - math.log(cfg.vocab_size)) < 0.5


def slope_without_density(u):
    y, _ = GELU(u)
    return y, torch.special.ndtr(u)


def norm_without_projection(dy, y, scale):
    return (dy - dy.mean(-1, keepdim=True)) * scale


def norm_without_mean(dy, y, scale):
    return (dy - y * (dy * y).mean(-1, keepdim=True)) * scale


def softmax_without_sum(dy, q, k, v, y, p):
    ds = (dy @ v.mT) * p
    return ds @ k, ds.mT @ q, p.mT @ dy


def softmax_of_dense_mask(dy, q, k, v, y, p):
    return ATTENTION(dy, q, k, v, y, p.softmax(-1))


def heads_in_another_order(x, n_heads):
    return x.unflatten(-1, (-1, n_heads)).transpose(1, 3).transpose(2, 3)


GELU = module.gelu_slope
ATTENTION = module.attention_backward


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gelu_slope", slope_without_density),
        ("layer_norm_backward", norm_without_projection),
        ("layer_norm_backward", norm_without_mean),
        ("attention_backward", softmax_without_sum),
        ("attention_backward", softmax_of_dense_mask),
        ("split_heads", heads_in_another_order),
    ],
)
def test_planted_errors_are_noticed(name: str, wrong: Callable, monkeypatch):
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises((AssertionError, RuntimeError)):
        check_against_autograd(*example(width=12, n_heads=3))


def test_a_loss_that_is_not_divided_by_all_positions_is_noticed(monkeypatch):
    """The mean of the parts of a batch is weighted by their sizes: five sequences in four parts."""
    right = module.loss_and_gradient
    check_against_autograd(*example(5))

    def wrong(tokens, flat, cfg):
        loss, gradient = right(tokens, flat, cfg)
        return loss * len(tokens), gradient * len(tokens)

    monkeypatch.setattr(module, "loss_and_gradient", wrong)
    with pytest.raises(AssertionError):
        check_against_autograd(*example(5))


def test_a_rate_per_weight_is_plain_sgd_per_weight():
    tokens, flat, cfg = example()
    _, gradient = module.loss_and_gradient(tokens, flat, cfg)
    rates = torch.rand(len(flat), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    updated = module.pretraining_step(tokens, flat, cfg, rates)
    assert (updated - (flat - rates * gradient)).abs().max() < 1e-12


DIFFERENTIATION = {
    "backward",
    "requires_grad",
    "requires_grad_",
    "autograd",
    "grad",
    "nn",
    "optim",
    "func",
}


def test_no_autograd_anywhere(monkeypatch):
    """Nothing of torch's differentiation is named in the source.

    With it out of order a step still works, on weights that ask for it.
    """
    names = set()
    imported = set()
    for node in ast.walk(ast.parse(SCRIPTS["manual-backward-gpt1"].read_text())):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imported.update(alias.name for alias in node.names)
    assert not names & DIFFERENTIATION
    assert imported >= {"Tensor", "torch"}

    def broken(*args, **kwargs):
        raise AssertionError("autograd was called")

    monkeypatch.setattr(torch.Tensor, "backward", broken)
    monkeypatch.setattr(torch.autograd, "grad", broken)
    tokens, flat, cfg = example()
    _, expected = module.loss_and_gradient(tokens, flat, cfg)
    asking = flat.clone().requires_grad_()
    loss, gradient = module.loss_and_gradient(tokens, asking, cfg)
    assert torch.equal(gradient, expected)
    assert loss.grad_fn is None
    assert gradient.grad_fn is None


def test_the_future_has_no_influence():
    tokens, flat, cfg = example(1, 8)
    weights = module.unflatten(flat, cfg)
    x, _ = module.features(tokens[:, :-1], weights, cfg.n_heads)
    for t in range(1, 8):
        changed = tokens[:, :-1].clone()
        changed[:, t:] = (changed[:, t:] + 1) % cfg.vocab_size
        y, _ = module.features(changed, weights, cfg.n_heads)
        assert torch.equal(x[:, :t], y[:, :t])
        assert not torch.equal(x[:, t:], y[:, t:])


def test_params_prints_the_groups(capsys):
    module.main(["params"])
    total = sum(module.Config().group_sizes.values())
    assert f"{total:,} = " in capsys.readouterr().out
