"""The hand-written backward pass against autograd: an independent model on torch's own functions, random shapes, float64."""

import ast
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_systems_contract import SCRIPTS, load_system
from torch import Tensor

module = load_system("manual-backward-gpt1")
LR = 0.7


def reference_loss(flat: Tensor, tokens: Tensor, cfg) -> Tensor:
    """The model of the docstring, written with torch's functions and its own slicing of the flat vector."""
    V, D, T, position = cfg.vocab_size, cfg.width, tokens.shape[1] - 1, 0

    def take(*shape: int) -> Tensor:
        nonlocal position
        piece = flat[position : position + torch.Size(shape).numel()].view(shape)
        position += piece.numel()
        return piece

    x = take(V, D)[tokens[:, :-1]] + take(cfg.context, D)[:T]
    for _ in range(cfg.n_layers):
        q, k, v, o, w1, w2 = (take(D, D) for _ in range(6))
        heads = [(x @ w).view(len(x), T, cfg.n_heads, -1).transpose(1, 2) for w in (q, k, v)]
        attended = (
            F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(x.shape)
        )
        x = F.layer_norm(x + attended @ o, (D,))
        x = F.layer_norm(x + F.gelu(x @ w1) @ w2, (D,))
    logits = x @ take(D, V)
    assert position == len(flat)
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def example(
    n: int = 3, t: int = 6, seed: int = 0, **sizes: int
) -> tuple[Tensor, Tensor, "module.Config"]:
    """Tokens [n, t + 1], flat float64 weights large enough for every derivative to matter, configuration."""
    generator = torch.Generator().manual_seed(seed)
    cfg = module.Config(
        **({"vocab_size": 11, "context": 8, "n_layers": 2, "n_heads": 2, "width": 12} | sizes)
    )
    tokens = torch.randint(cfg.vocab_size, (n, t + 1), generator=generator)
    flat = module.initial_weights(cfg, generator).double()
    return (
        tokens,
        flat + 0.3 * torch.randn(flat.shape, generator=generator, dtype=torch.float64),
        cfg,
    )


def check_against_autograd(tokens: Tensor, flat: Tensor, cfg) -> None:
    """One step equals the step along autograd's gradient within 1e-10, as do loss and gradient; the input weights stay as they were."""
    leaf = flat.clone().requires_grad_()
    loss = reference_loss(leaf, tokens, cfg)
    loss.backward()
    kept, losses = flat.clone(), []
    updated = module.pretraining_step(tokens, flat, cfg, LR, losses)
    assert torch.equal(flat, kept) and updated.shape == flat.shape and updated.dtype == flat.dtype
    assert (updated - (flat - LR * leaf.grad)).abs().max() < 1e-10
    assert abs(losses[0] - loss.item()) < 1e-10
    own_loss, gradient = module.loss_and_gradient(tokens, flat, cfg)
    assert abs(own_loss - loss.item()) < 1e-10 and (gradient - leaf.grad).abs().max() < 1e-10


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 7), t=st.integers(1, 9), spare=st.integers(0, 3), heads=st.integers(1, 4), head=st.integers(1, 5), layers=st.integers(1, 3),
    vocab=st.integers(2, 30), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_step_equals_autograd_on_random_shapes(n, t, spare, heads, head, layers, vocab, seed):
    sizes = {
        "vocab_size": vocab,
        "context": t + spare,
        "n_layers": layers,
        "n_heads": heads,
        "width": heads * head,
    }
    check_against_autograd(*example(n, t, seed, **sizes))


@pytest.mark.parametrize("layers", [1, 4])
def test_flat_vector_has_the_stated_size_and_order(layers):
    tokens, flat, cfg = example(n_layers=layers, vocab_size=40)
    V, T, D = cfg.vocab_size, cfg.context, cfg.width
    assert len(flat) == V * D + T * D + layers * 6 * D * D + D * V == sum(cfg.group_sizes.values())
    views = module.unflatten(flat, cfg)
    pieces = [
        views.embedding_VD,
        views.positions_TD,
        *(w for block in views.blocks_L6DD for w in block),
        views.head_DV,
    ]
    assert torch.equal(torch.cat([p.flatten() for p in pieces]), flat)
    _, gradient = module.loss_and_gradient(tokens, flat, cfg)
    views = module.unflatten(gradient, cfg)
    assert (views.positions_TD[:6] != 0).all() and (
        views.positions_TD[6:] == 0
    ).all()  # six of eight positions were used
    unused = [i for i in range(V) if i not in tokens[:, :-1]]
    assert unused and (views.embedding_VD[unused] == 0).all()
    assert (views.blocks_L6DD != 0).any(-1).any(-1).all() and (views.head_DV != 0).all()


def test_initial_loss_is_that_of_a_guess():
    cfg = module.Config()
    tokens = torch.randint(cfg.vocab_size, (2, 33), generator=torch.Generator().manual_seed(1))
    loss, _ = module.loss_and_gradient(
        tokens, module.initial_weights(cfg, torch.Generator().manual_seed(0)), cfg
    )
    assert abs(loss.item() - torch.tensor(cfg.vocab_size).log().item()) < 0.5


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


GELU, ATTENTION = module.gelu_slope, module.attention_backward


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gelu_slope", slope_without_density),
        ("layer_norm_backward", norm_without_projection),
        ("layer_norm_backward", norm_without_mean),
        ("attention_backward", softmax_without_sum),
        ("attention_backward", softmax_of_dense_mask),
        (
            "split_heads",
            lambda x, n_heads: x.unflatten(-1, (-1, n_heads)).transpose(1, 3).transpose(2, 3),
        ),
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
    monkeypatch.setattr(
        module,
        "loss_and_gradient",
        lambda tokens, flat, cfg: tuple(r * len(tokens) for r in right(tokens, flat, cfg)),
    )
    with pytest.raises(AssertionError):
        check_against_autograd(*example(5))


def test_a_rate_per_weight_is_plain_sgd_per_weight():
    tokens, flat, cfg = example()
    _, gradient = module.loss_and_gradient(tokens, flat, cfg)
    rates = torch.rand(len(flat), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert (
        module.pretraining_step(tokens, flat, cfg, rates) - (flat - rates * gradient)
    ).abs().max() < 1e-12


def test_no_autograd_anywhere(monkeypatch):
    """Nothing of torch's differentiation is named in the source; with it out of order a step still works, on weights that ask for it."""
    tree = ast.parse(SCRIPTS["manual-backward-gpt1"].read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not names & {
        "backward",
        "requires_grad",
        "requires_grad_",
        "autograd",
        "grad",
        "nn",
        "optim",
        "func",
    } and imported & {"Tensor", "torch"} == {
        "Tensor",
        "torch",
    }

    def broken(*args, **kwargs):
        raise AssertionError("autograd was called")

    monkeypatch.setattr(torch.Tensor, "backward", broken)
    monkeypatch.setattr(torch.autograd, "grad", broken)
    tokens, flat, cfg = example()
    expected = module.loss_and_gradient(tokens, flat, cfg)
    loss, gradient = module.loss_and_gradient(tokens, flat.clone().requires_grad_(), cfg)
    assert torch.equal(gradient, expected[1]) and loss.grad_fn is None and gradient.grad_fn is None


def test_the_future_has_no_influence():
    tokens, flat, cfg = example(1, 8)
    weights = module.unflatten(flat, cfg)
    x, _ = module.features(tokens[:, :-1], weights, cfg.n_heads)
    for t in range(1, 8):
        changed = tokens[:, :-1].clone()
        changed[:, t:] = (changed[:, t:] + 1) % cfg.vocab_size
        y, _ = module.features(changed, weights, cfg.n_heads)
        assert torch.equal(x[:, :t], y[:, :t]) and not torch.equal(x[:, t:], y[:, t:])


def test_params_prints_the_groups(capsys):
    module.main(["params"])
    assert f"{sum(module.Config().group_sizes.values()):,} = " in capsys.readouterr().out
