"""Mini-GPT in NumPy: inventory, wiring and gradients.

Every check is a function that is also run on a model with the bug planted.
"""

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
from systems_support import load_system

module = load_system("mini-gpt-numpy")
SENTENCE = np.array([1, 8, 15, 4, 9, 15, 4, 10])


def lab_model(seed: int = 0) -> "module.MiniGPT":
    return module.MiniGPT(module.MiniGPTConfig(), seed)


def small_model(spread: float = 0.3) -> "module.MiniGPT":
    """Sizes that are all different, weights large enough for every derivative to matter."""
    cfg = module.MiniGPTConfig(
        d_model=12, n_heads=2, n_layers=2, d_ff=20, vocab_size=17, context_len=9
    )
    model = module.MiniGPT(cfg, seed=1)
    rng = np.random.default_rng(2)
    for name, w in model.weights.items():
        model.weights[name] = w + rng.normal(0, spread, w.shape)
    return model


def expected_inventory(cfg: "module.MiniGPTConfig") -> int:
    """The number of parameters. There is no head, and linear layers have no biases."""
    D = cfg.d_model
    embedding = cfg.vocab_size * D
    norm = 2 * D  # gain and bias
    attention = 4 * D * D  # q, k, v, o
    mlp = 2 * D * cfg.d_ff
    return embedding + cfg.n_layers * (2 * norm + attention + mlp) + norm


def check_inventory(model: "module.MiniGPT") -> None:
    cfg = model.cfg
    weights = model.weights.values()
    assert sum(w.size for w in weights) == expected_inventory(cfg)
    if cfg.vocab_size != cfg.d_model:  # in the lab model every square matrix has that shape
        embeddings = [w for w in weights if set(w.shape) == {cfg.vocab_size, cfg.d_model}]
        assert len(embeddings) == 1


def check_reach(model: "module.MiniGPT") -> None:
    """Token 0 reaches position 7."""
    changed = SENTENCE.copy()
    changed[0] = 3
    assert np.abs(model.forward(changed)[7] - model.forward(SENTENCE)[7]).max() > 1e-6


def check_causality(model: "module.MiniGPT") -> None:
    logits = model.forward(SENTENCE)
    for t in range(1, 8):
        changed = SENTENCE.copy()
        changed[t:] = 63 - changed[t:]
        np.testing.assert_allclose(model.forward(changed)[:t], logits[:t], rtol=0, atol=1e-12)


def check_rope(model: "module.MiniGPT") -> None:
    """RoPE is on the path.

    Without it attention is blind to order: a permutation of the past changes nothing at the last
    position.
    """
    logits = model.forward(SENTENCE)
    assert np.linalg.norm(logits - model.forward(SENTENCE, rope=False)) > 1e-3
    swapped = SENTENCE[[0, 2, 1, 4, 3, 5, 6, 7]]
    assert np.abs(model.forward(swapped)[7] - logits[7]).max() > 1e-7
    # Deeper layers see order through the mask alone.
    single = module.MiniGPT(dataclasses.replace(model.cfg, n_layers=1), 3)
    blind = single.forward(SENTENCE, rope=False)[7]
    np.testing.assert_allclose(single.forward(swapped, rope=False)[7], blind, atol=1e-12)


def check_tied(model: "module.MiniGPT") -> None:
    E = model.weights["embedding"]
    features, _ = model.features(SENTENCE[None])
    np.testing.assert_allclose(model.forward(SENTENCE), features[0] @ E.T, atol=1e-12)
    _, gradients = model.loss_and_gradients(SENTENCE[None])
    absent = [i for i in range(64) if i not in SENTENCE]
    learning = np.abs(gradients["embedding"][absent]) > 0
    assert learning.all(1).any()  # words that are not in the input learn as outputs


def check_raw_logits(model: "module.MiniGPT") -> None:
    logits = model.forward(SENTENCE)
    assert logits.shape == (8, 64)
    assert logits.dtype == np.float64
    assert (logits < 0).any()
    assert np.abs(np.logaddexp.reduce(logits, axis=-1)).min() > 0.1
    assert np.abs(logits.sum(-1) - 1).min() > 1e-3


def check_gradients(model: "module.MiniGPT") -> None:
    """Against central differences in float64, in six places of every weight.

    The step is 1e-5, so the error is of order 1e-9.
    """
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, model.cfg.vocab_size, (3, model.cfg.context_len))
    nats, gradients = model.loss_and_gradients(blocks)
    assert set(gradients) == set(model.weights)
    logits = model.forward(blocks[:, :-1])
    picked = np.take_along_axis(logits, blocks[:, 1:, None], -1)[..., 0]
    assert nats == pytest.approx((np.logaddexp.reduce(logits, axis=-1) - picked).sum(), abs=1e-9)
    for name, w in model.weights.items():
        for _ in range(6):
            place = tuple(rng.integers(0, n) for n in w.shape)
            slope = central_difference(model, blocks, w, place)
            assert gradients[name][place] == pytest.approx(slope, rel=1e-6, abs=1e-6), (name, place)


def central_difference(
    model: "module.MiniGPT", blocks: np.ndarray, w: np.ndarray, place: tuple
) -> float:
    """The loss's slope along one weight, which stays as it was."""
    step = 1e-5
    before = w[place]
    w[place] = before + step
    above, _ = model.loss_and_gradients(blocks)
    w[place] = before - step
    below, _ = model.loss_and_gradients(blocks)
    w[place] = before
    return (above - below) / (2 * step)


def test_inventory():
    check_inventory(lab_model())
    assert expected_inventory(module.MiniGPTConfig()) == 103_040
    check_inventory(module.MiniGPT(module.Config()))
    check_inventory(small_model())


def test_inventory_notices_a_forgotten_final_norm_and_a_second_head():
    model = lab_model()
    del model.weights["norm.gain"], model.weights["norm.bias"]
    assert expected_inventory(model.cfg) - sum(w.size for w in model.weights.values()) == 128
    with pytest.raises(AssertionError):
        check_inventory(model)
    model = lab_model()
    model.weights["head"] = np.zeros((64, 64))
    with pytest.raises(AssertionError):
        check_inventory(model)


@pytest.mark.parametrize(
    "check", [check_reach, check_causality, check_rope, check_tied, check_raw_logits]
)
def test_wiring(check: Callable):
    check(lab_model())


def diagonal_attention(model):
    model.future = np.where(np.eye(len(model.future)), 0, -np.inf)


def open_mask(model):
    model.future = np.zeros_like(model.future)


def mask_one_late(model):
    model.future = np.triu(model.future, 2)
    model.future[np.isnan(model.future)] = 0


def still_rope(model):
    cos, sin = model.rope
    model.rope = (np.ones_like(cos), np.zeros_like(sin))


def softmax_inside(model):
    right = model.forward

    def forward(ids, rope=True):
        return module.softmax(right(ids, rope))

    model.forward = forward


def separate_head(model):
    right = model.forward
    other = np.random.default_rng(0).normal(0, 0.02, (64, 64))

    def forward(ids, rope=True):
        return right(ids, rope) @ other

    model.forward = forward


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (diagonal_attention, check_reach),
        (open_mask, check_causality),
        (mask_one_late, check_causality),
        (still_rope, check_rope),
        (softmax_inside, check_raw_logits),
        (separate_head, check_tied),
    ],
)
def test_planted_wiring_bugs_are_noticed(plant: Callable, check: Callable):
    model = lab_model()
    with np.errstate(invalid="ignore"):
        plant(model)
    with pytest.raises(AssertionError):
        check(model)


def test_gradients_match_finite_differences():
    check_gradients(small_model())


def off_by_a_thousandth(backward: Callable) -> Callable:
    def wrong(d):
        return backward(d * 1.001)

    return wrong


def wrong_gelu(u):
    y, backward = GELU(u)
    return y, off_by_a_thousandth(backward)


def wrong_rotate(x, cos, sin):
    """The way back turns forward again."""
    return ROTATE(x, cos, np.abs(sin) if np.ndim(sin) else sin)


def wrong_residual(layers, x):
    """Forgets the skip path on the way back."""
    y, backward = module.chain(layers, x)
    return x + y, backward


GELU = module.gelu
ROTATE = module.rotate


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("gelu", wrong_gelu), ("rotate", wrong_rotate), ("residual", wrong_residual)],
)
def test_wrong_gradients_are_noticed(name: str, wrong: Callable, monkeypatch):
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError):
        check_gradients(small_model())


@pytest.mark.parametrize("layer", ["norm", "attention", "linear"])
def test_gradients_that_are_off_by_a_thousandth_in_one_layer_are_noticed(layer: str, monkeypatch):
    right = getattr(module.MiniGPT, layer)

    def wrong(self, *args):
        y, backward = right(self, *args)
        return y, off_by_a_thousandth(backward)

    monkeypatch.setattr(module.MiniGPT, layer, wrong)
    with pytest.raises(AssertionError):
        check_gradients(small_model())


def test_any_length_and_batch_without_padding():
    model = small_model()
    ids = np.random.default_rng(4).integers(0, 17, (5, 9))
    whole = model.forward(ids)
    assert whole.shape == (5, 9, 17)
    for T in range(1, 10):
        np.testing.assert_allclose(model.forward(ids[:, :T]), whole[:, :T], atol=1e-12)
        np.testing.assert_allclose(model.forward(ids[2, :T]), whole[2, :T], atol=1e-12)
    for bad in (np.zeros(10, int), np.zeros((2, 0), int)):
        with pytest.raises(ValueError, match="1 to 9 tokens"):
            model.forward(bad)


def test_float32_training_gradients_follow_float64():
    cfg = module.MiniGPTConfig(
        d_model=32, n_heads=4, n_layers=2, d_ff=64, vocab_size=50, context_len=16
    )
    blocks = np.random.default_rng(5).integers(0, 50, (4, 17))
    exact_loss, exact = module.MiniGPT(cfg, 7, np.float64).loss_and_gradients(blocks)
    single_loss, single = module.MiniGPT(cfg, 7, np.float32).loss_and_gradients(blocks)
    assert single_loss == pytest.approx(exact_loss, rel=1e-5)
    for name, gradient in single.items():
        assert gradient.dtype == np.float32
        tolerance = 2e-4 * np.abs(exact[name]).max()
        np.testing.assert_allclose(gradient, exact[name], atol=tolerance)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (24, 24)])
def test_muon_makes_updates_nearly_orthogonal(shape):
    cfg = module.Config(matrix_lr=1.0)
    gradient = np.random.default_rng(6).normal(0, 3, shape).astype(np.float32)
    w = np.zeros(shape, np.float32)
    state = [np.zeros_like(w), np.zeros_like(w), np.ones(1)]
    module.update("0.up", w, gradient, state, cfg, 1.0)
    rows, columns = shape
    singular = np.linalg.svd(w, compute_uv=False) / max(1, columns / rows) ** 0.5
    # the quintic's band around 1
    assert singular.min() > 0.4
    assert singular.max() < 1.4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("d_model", 66),
        ("d_model", 12),
        ("n_heads", 0),
        ("n_layers", -1),
        ("context_len", 0),
        ("vocab_size", 0),
        ("d_ff", 0),
    ],
)
def test_impossible_sizes_are_refused_at_construction(name, value):
    with pytest.raises(ValueError, match="expected"):
        dataclasses.replace(module.MiniGPTConfig(), **{name: value})


def test_canonical_configuration_is_frozen():
    cfg = module.MiniGPTConfig(
        d_model=64, n_heads=4, n_layers=2, d_ff=256, vocab_size=64, context_len=32
    )
    assert cfg == module.MiniGPTConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.d_model = 32


def test_lab_writes_what_it_prints(tmp_path, capsys):
    module.main(["lab", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "manifest.json").read_text())
    text = capsys.readouterr().out
    model = lab_model()
    logits = model.forward(SENTENCE)
    assert report["sentence"] == "<bos> I work , you work , he"
    assert report["ids"] == SENTENCE.tolist()
    assert report["shape"] == [8, 64]
    assert "(8, 64)" in text
    assert 0 < report["forward_ms"] < 1000
    best = report["top5_at_7"]
    assert len(best) == 5
    assert sorted(logits[7])[-5:] == pytest.approx(sorted(best.values()), abs=1e-12)
    assert all(word in text for word in best)
    distance = np.linalg.norm(logits - model.forward(SENTENCE, rope=False))
    assert report["rope_l2"] == pytest.approx(distance, abs=1e-12)
    assert report["config"] == dataclasses.asdict(module.MiniGPTConfig())


def test_params_lists_every_parameter(capsys):
    module.main(["params"])
    lines = capsys.readouterr().out.splitlines()
    for line, cfg in zip(lines, (module.MiniGPTConfig(), module.Config()), strict=True):
        total, parts = line.split(" = ")
        counts = [int(part.split(" ")[0].replace(",", "")) for part in parts.split(" + ")]
        assert int(total.replace(",", "")) == sum(counts) == expected_inventory(cfg)
