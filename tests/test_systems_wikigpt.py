"""WikiGPT: exact sizes, RoPE, norms, loss, generation.

Every check is a function that is also run on a model with the bug planted.
"""

import dataclasses
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import sentencepiece as spm
import torch
import torch.nn.functional as F
from systems_support import flags, load_system, refused

module = load_system("wikigpt")
PAPER = module.Config(vocab_size=32768, context=1024, n_layers=12, n_heads=12, width=768)
SMALL = module.Config(vocab_size=60, context=12, n_layers=2, n_heads=2, width=16)
IDS = torch.randint(60, (2, 12), generator=torch.Generator().manual_seed(0))
TABLE = {"embedding": 25_165_824, "attention": 28_311_552, "mlp": 56_623_104, "norm": 19_200}


def build(cfg=SMALL, seed: int = 0, scale: float = 1) -> "module.WikiGPT":
    """scale > 1 makes the matrices large enough for sharp, different predictions."""
    torch.manual_seed(seed)
    model = module.WikiGPT(cfg)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(scale)
    return model.eval()


def check_sizes(table: dict[str, int]) -> None:
    assert table == TABLE
    assert sum(table.values()) == 110_119_680


def check_initial_loss(model: "module.WikiGPT", ids: torch.Tensor) -> None:
    with torch.no_grad():
        loss = model(ids[:, :-1], ids[:, 1:])[1]
    assert abs(loss.item() - math.log(model.cfg.vocab_size)) < 0.5


def check_rope() -> None:
    drift, change = module.check_rope()
    assert drift < 1e-4
    assert change > 1e-3


def check_gradients(model: "module.WikiGPT") -> None:
    model.zero_grad()
    _, loss = model(IDS[:, :-1], IDS[:, 1:])
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def all_logits(model: "module.WikiGPT", ids: torch.Tensor) -> torch.Tensor:
    """[B, T, V]; without targets the model gives the last position only."""
    with torch.no_grad():
        logits, _ = model(ids, ids)
    return logits


def next_probabilities(model: "module.WikiGPT", prompt: list[int]) -> torch.Tensor:
    """float64 [V]"""
    with torch.no_grad():
        logits, _ = model(torch.tensor([prompt]))
    return logits[0, 0].double().softmax(-1)


def check_causality(model: "module.WikiGPT") -> None:
    logits = all_logits(model, IDS)
    for t in range(1, 12):
        changed = IDS.clone()
        changed[:, t:] = (changed[:, t:] + 7) % 60
        moved = all_logits(model, changed)
        torch.testing.assert_close(moved[:, :t], logits[:, :t], rtol=0, atol=1e-6)
        assert not torch.allclose(moved[:, t], logits[:, t])


def greedy_without_cache(model: "module.WikiGPT", ids: list[int], count: int) -> list[int]:
    longer = list(ids)
    for _ in range(count):
        window = torch.tensor([longer[-model.cfg.context :]])
        longer.append(int(all_logits(model, window)[0, -1].argmax()))
    return longer[-count:]


def check_generation(model: "module.WikiGPT") -> None:
    """The cached generator equals recomputation, while the context fills and far beyond it."""
    for prompt in ([1], [1, 5, 9], list(range(1, 13)), list(range(1, 31))):
        cached = list(module.generate(model, prompt, 30, temperature=0))
        assert cached == greedy_without_cache(model, prompt, 30)


def test_paper_size_has_exactly_110_119_680_parameters(capsys):
    check_sizes(module.parameter_table(PAPER))
    for change in ({"n_layers": 11}, {"vocab_size": 32767}, {"width": 744}):
        with pytest.raises(AssertionError):
            check_sizes(module.parameter_table(dataclasses.replace(PAPER, **change)))
    module.main(["params"])
    parts = " + ".join(f"{size:,} {name}" for name, size in TABLE.items())
    assert f"110,119,680 = {parts}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("width", "hidden"), [(96, 256), (97 * 2, 768), (192, 512), (768, 2048), (16, 256)]
)
def test_mlp_hidden_is_eight_thirds_rounded_up_to_256(width, hidden):
    block = module.Block(dataclasses.replace(SMALL, width=width, n_heads=1))
    assert block.mlp_up.out_features == hidden
    assert block.mlp_gate.out_features == hidden
    assert block.mlp_down.in_features == hidden
    for layer in block.modules():
        if isinstance(layer, torch.nn.Linear):
            assert layer.bias is None


def test_initialisation_at_paper_size():
    model = build(PAPER)
    ids = torch.randint(32768, (2, 9), generator=torch.Generator().manual_seed(1))
    check_initial_loss(model, ids)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert (p == 1).all()
        else:
            std = 0.02 / math.sqrt(24) if "out" in name or "down" in name else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.01), name
            assert abs(p.mean().item()) < std / 50
    with torch.no_grad():
        model.embedding.weight.mul_(8)
    with pytest.raises(AssertionError):
        check_initial_loss(model, ids)


def test_rope_scores_depend_on_the_offset_only_and_on_the_offset():
    check_rope()


def no_rotation(x, rope):
    """Nothing depends on the offset."""
    return x


def multiplied(x, rope):
    """Positions multiply instead of turning."""
    return x * rope[0].repeat(2)


def wrong_sign(x, rope):
    cos, sin = rope
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos + right * sin, right * cos + left * sin), -1)


def added(x, rope):
    """Positions are added."""
    return x + rope.flatten()


@pytest.mark.parametrize("wrong", [no_rotation, multiplied, wrong_sign, added])
def test_wrong_rotations_are_noticed(wrong: Callable, monkeypatch):
    monkeypatch.setattr(module, "rotate", wrong)
    with pytest.raises(AssertionError):
        check_rope()


def test_rope_rotates_half_split_pairs_in_fp32():
    tables = module.rope_tables(40, 8)
    x = torch.randn(1, 1, 40, 8, generator=torch.Generator().manual_seed(2))
    turned = module.rotate(x, tables)
    for t in (0, 1, 39):
        row = x[0, 0, t].tolist()
        turned_row = turned[0, 0, t].tolist()
        for i in range(4):
            turn = np.exp(1j * t * 10000 ** (-2 * i / 8))
            z = complex(row[i], row[i + 4]) * turn
            assert turned_row[i] == pytest.approx(z.real, abs=1e-5)
            assert turned_row[i + 4] == pytest.approx(z.imag, abs=1e-5)


def test_rope_turns_bfloat16_in_fp32():
    tables = module.rope_tables(40, 8)
    assert tables.dtype == torch.float32
    x = torch.randn(1, 1, 40, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    turned = module.rotate(x, tables)
    assert turned.dtype == torch.bfloat16
    exact = module.rotate(x.float(), tables).bfloat16()
    torch.testing.assert_close(turned, exact, rtol=0, atol=0)


def test_rope_tables_are_no_weights():
    model = build()
    assert "rope" not in model.state_dict()
    assert "rope" in dict(model.named_buffers())


def test_rms_norm_is_its_formula_and_reduces_in_fp32():
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(3))
    gain = torch.linspace(0.5, 2, 64)
    rms = (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(module.rms_norm(x, gain), x / rms * gain)
    tiny = torch.full((1, 64), 1e-3)
    expected = torch.full((1, 64), 1e-3 / math.sqrt(1e-6 + 1e-6))
    torch.testing.assert_close(module.rms_norm(tiny, torch.ones(64)), expected)
    half = x.bfloat16()
    y = module.rms_norm(half, gain.bfloat16())
    exact = module.rms_norm(half.float(), torch.ones(64)).bfloat16() * gain.bfloat16()
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, exact)


@pytest.mark.parametrize("check", [check_causality, check_gradients, check_generation])
def test_small_model(check: Callable):
    check(build(scale=20))


SDPA = F.scaled_dot_product_attention
ROTATE = module.rotate
BLOCK = module.Block.forward
ROPE = module.rope_tables(12, 8)


def bidirectional(monkeypatch):
    def attend(q, k, v, is_causal):
        return SDPA(q, k, v)

    monkeypatch.setattr(module.F, "scaled_dot_product_attention", attend)


def idle_gate(monkeypatch):
    monkeypatch.setattr(module.F, "silu", torch.ones_like)


def cache_without_positions(monkeypatch):
    """Each token of the cache is turned as if it were the first."""

    def rotate(x, rope):
        return ROTATE(x, rope if x.shape[2] > 1 else ROPE[:, :1])

    monkeypatch.setattr(module, "rotate", rotate)


def forgetful_cache(monkeypatch):
    def forward(self, x, rope, cache):
        y = BLOCK(self, x, rope, cache)
        if cache and cache["k"].shape[2] > 3:
            cache.update(k=cache["k"][:, :, 1:], v=cache["v"][:, :, 1:])
        return y

    monkeypatch.setattr(module.Block, "forward", forward)


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (bidirectional, check_causality),
        (idle_gate, check_gradients),
        (cache_without_positions, check_generation),
        (forgetful_cache, check_generation),
    ],
)
def test_planted_bugs_are_noticed(plant: Callable, check: Callable, monkeypatch):
    model = build(scale=20)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(model)


def test_inference_gives_the_last_position_only():
    model = build()
    with torch.no_grad():
        last, loss = model(IDS)
    assert last.shape == (2, 1, 60)
    assert loss is None
    torch.testing.assert_close(last[:, 0], all_logits(model, IDS)[:, -1])


def test_targets_of_minus_one_are_ignored():
    model = build()
    targets = IDS.roll(-1, 1)
    targets[:, -1] = -1
    targets[0, 3] = -1
    with torch.no_grad():
        logits, loss = model(IDS, targets)
    terms = []
    for row, target in zip(logits.flatten(0, 1), targets.flatten(), strict=True):
        if target >= 0:
            terms.append(row.logsumexp(0) - row[target])
    assert len(terms) == 21
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-5)


def test_embedding_is_the_head():
    model = build()
    embeddings = [p for p in model.parameters() if set(p.shape) == {60, 16}]
    assert len(embeddings) == 1
    with torch.no_grad():
        expected = model.features(IDS) @ model.embedding.weight.T
    torch.testing.assert_close(all_logits(model, IDS), expected)


def test_sampling_options():
    model = build(scale=20)

    def draw(**options) -> list[int]:
        return list(module.generate(model, [1, 2], 40, **options))

    greedy = draw(temperature=0)
    assert draw(top_k=1, seed=3) == greedy
    assert draw(top_p=1e-9, seed=4) == greedy
    assert draw(temperature=1e-4) == greedy
    assert draw(seed=1) == draw(seed=1)
    assert draw(seed=1) != draw(seed=2)
    assert draw(temperature=3.0) != greedy


def test_sampling_draws_from_the_most_probable_tokens():
    model = build(scale=20)

    def drawn(**options) -> set[int]:
        """The first tokens of 300 seeds."""
        return {next(module.generate(model, [1, 2], 1, seed=s, **options)) for s in range(300)}

    p = next_probabilities(model, [1, 2])
    order = p.argsort(descending=True).tolist()
    assert drawn(top_k=3, temperature=2.0) == set(order[:3])
    nucleus = next(n for n in range(1, 61) if p[order[:n]].sum() >= 0.7)
    from_nucleus = drawn(top_p=0.7)
    assert from_nucleus <= set(order[:nucleus])
    assert order[nucleus - 1] in from_nucleus


def test_sampling_frequencies_are_the_probabilities():
    model = build(scale=4)
    expected = 1500 * next_probabilities(model, [7]).numpy()
    tokens = [next(module.generate(model, [7], 1, seed=s)) for s in range(1500)]
    draws = np.bincount(tokens, minlength=60)
    statistic = ((draws - expected) ** 2 / expected).sum()
    # six sigma of chi-square with 59 degrees of freedom
    assert statistic < 59 + 6 * math.sqrt(2 * 59)


def test_cache_computes_one_token_per_step(monkeypatch):
    model = build()
    features = module.WikiGPT.features
    seen = []

    def watched(self, ids, caches=None):
        seen.append(ids.shape[1])
        return features(self, ids, caches)

    monkeypatch.setattr(module.WikiGPT, "features", watched)
    list(module.generate(model, [1, 2, 3], 14, temperature=0))
    # three tokens, one by one until twelve are in, then whole windows
    assert seen == [3] + [1] * 9 + [12] * 4


def test_more_tokens_than_fit_are_refused():
    with pytest.raises(ValueError, match="crop, or feed one by one"):
        build()(torch.zeros(1, 13, dtype=torch.long))


def test_several_tokens_on_top_of_a_cache_are_refused():
    ids = torch.zeros(1, 2, dtype=torch.long)
    caches = [{}, {}]
    model = build()
    model(ids[:, :1], caches=caches)
    with pytest.raises(ValueError, match="crop, or feed one by one"):
        model(ids, caches=caches)


def small_tokenizer() -> bytes:
    writer = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat and the dog ran"] * 50),
        model_writer=writer,
        vocab_size=290,
        byte_fallback=True,
        model_type="bpe",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return writer.getvalue()


def test_generate_command_continues_a_prompt(tmp_path, capsys):
    tokenizer = tmp_path / "t.model"
    right = tmp_path / "right.bin"
    wrong = tmp_path / "wrong.bin"
    tokenizer.write_bytes(small_tokenizer())
    vocab_size = spm.SentencePieceProcessor(model_file=str(tokenizer)).vocab_size()
    cfg = dataclasses.replace(SMALL, vocab_size=vocab_size)
    right.write_bytes(module.export(build(cfg, scale=20)))
    wrong.write_bytes(module.export(build()))

    def generate(artifact, **options) -> str:
        capsys.readouterr()
        asked = flags(tokenizer=tokenizer, prompt="the", count=24, artifact=artifact, **options)
        module.main(["generate", *asked])
        return capsys.readouterr().out

    first = generate(right, seed=1)
    assert generate(right, seed=1) == first
    other = generate(right, seed=2)
    assert other != first
    for text in (first, other, generate(right, temperature=0)):
        assert text.startswith("the")
    with refused(capsys, "expected"):
        generate(wrong)
    for options in ({"temperature": -1}, {"top_p": 0}):
        with refused(capsys, "expected"):
            generate(right, **options)
