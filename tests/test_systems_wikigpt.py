"""WikiGPT: exact sizes, RoPE, norms, loss, generation. Every check is a function that is also run on a model with the bug planted."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_systems_contract import load_system, refused

module = load_system("wikigpt")
PAPER = module.Config(vocab_size=32768, context=1024, n_layers=12, n_heads=12, width=768)
SMALL = module.Config(vocab_size=60, context=12, n_layers=2, n_heads=2, width=16)
IDS = torch.randint(60, (2, 12), generator=torch.Generator().manual_seed(0))


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
    assert (
        table
        == {"embedding": 25_165_824, "attention": 28_311_552, "mlp": 56_623_104, "norm": 19_200}
        and sum(table.values()) == 110_119_680
    )


def check_initial_loss(model: "module.WikiGPT", ids: torch.Tensor) -> None:
    with torch.no_grad():
        loss = model(ids[:, :-1], ids[:, 1:])[1]
    assert abs(loss.item() - math.log(model.cfg.vocab_size)) < 0.5


def check_rope() -> None:
    drift, change = module.check_rope()
    assert drift < 1e-4 and change > 1e-3


def check_gradients(model: "module.WikiGPT") -> None:
    model.zero_grad()
    model(IDS[:, :-1], IDS[:, 1:])[1].backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()
    ] == []


def check_causality(model: "module.WikiGPT") -> None:
    with torch.no_grad():
        logits = model(IDS, IDS)[0]
        for t in range(1, 12):
            changed = IDS.clone()
            changed[:, t:] = (changed[:, t:] + 7) % 60
            torch.testing.assert_close(
                model(changed, changed)[0][:, :t], logits[:, :t], rtol=0, atol=1e-6
            )
            assert not torch.allclose(model(changed, changed)[0][:, t], logits[:, t])


def greedy_without_cache(model: "module.WikiGPT", ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    with torch.no_grad():
        for _ in range(count):
            window = torch.tensor([ids[-model.cfg.context :]])
            ids.append(int(model(window, window)[0][0, -1].argmax()))
    return ids[-count:]


def check_generation(model: "module.WikiGPT") -> None:
    """The cached generator equals recomputation, while the context fills and far beyond it."""
    for prompt in ([1], [1, 5, 9], list(range(1, 13)), list(range(1, 31))):
        assert list(module.generate(model, prompt, 30, temperature=0)) == greedy_without_cache(
            model, prompt, 30
        )


def test_paper_size_has_exactly_110_119_680_parameters(capsys):
    check_sizes(module.parameter_table(PAPER))
    for change in ({"n_layers": 11}, {"vocab_size": 32767}, {"width": 744}):
        with pytest.raises(AssertionError):
            check_sizes(module.parameter_table(dataclasses.replace(PAPER, **change)))
    module.main(["params"])
    assert (
        "110,119,680 = 25,165,824 embedding + 28,311,552 attention + 56,623,104 mlp + 19,200 norm"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("width", "hidden"), [(96, 256), (97 * 2, 768), (192, 512), (768, 2048), (16, 256)]
)
def test_mlp_hidden_is_eight_thirds_rounded_up_to_256(width, hidden):
    block = module.Block(dataclasses.replace(SMALL, width=width, n_heads=1))
    assert (
        block.mlp_up.out_features
        == block.mlp_gate.out_features
        == block.mlp_down.in_features
        == hidden
    )
    assert all(
        layer.bias is None for layer in block.modules() if isinstance(layer, torch.nn.Linear)
    )


def test_initialisation_at_paper_size():
    model = build(PAPER)
    check_initial_loss(
        model, torch.randint(32768, (2, 9), generator=torch.Generator().manual_seed(1))
    )
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
        check_initial_loss(
            model, torch.randint(32768, (2, 9), generator=torch.Generator().manual_seed(1))
        )


def test_rope_scores_depend_on_the_offset_only_and_on_the_offset():
    check_rope()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, rope: x,  # no rotation: nothing depends on the offset
        lambda x, rope: x * rope[0].repeat(2),  # positions multiply instead of turning
        lambda x, rope: torch.cat(
            (
                x.chunk(2, -1)[0] * rope[0] + x.chunk(2, -1)[1] * rope[1],
                x.chunk(2, -1)[1] * rope[0] + x.chunk(2, -1)[0] * rope[1],
            ),
            -1,
        ),
        lambda x, rope: x + rope.flatten(),  # positions are added
    ],
)
def test_wrong_rotations_are_noticed(wrong: Callable, monkeypatch):
    monkeypatch.setattr(module, "rotate", wrong)
    with pytest.raises(AssertionError):
        check_rope()


def test_rope_rotates_half_split_pairs_in_fp32():
    tables = module.rope_tables(40, 8)
    x = torch.randn(1, 1, 40, 8, generator=torch.Generator().manual_seed(2))
    turned = module.rotate(x, tables)
    for t in (0, 1, 39):
        for i in range(4):
            z = complex(x[0, 0, t, i], x[0, 0, t, i + 4]) * np.exp(1j * t * 10000 ** (-2 * i / 8))
            assert turned[0, 0, t, i].item() == pytest.approx(z.real, abs=1e-5) and turned[
                0, 0, t, i + 4
            ].item() == pytest.approx(z.imag, abs=1e-5)
    half = module.rotate(x.bfloat16(), tables)
    assert half.dtype == torch.bfloat16 and tables.dtype == torch.float32
    torch.testing.assert_close(
        half, module.rotate(x.bfloat16().float(), tables).bfloat16(), rtol=0, atol=0
    )
    assert "rope" not in build().state_dict() and "rope" in dict(build().named_buffers())


def test_rms_norm_is_its_formula_and_reduces_in_fp32():
    x, gain = (
        torch.randn(5, 64, generator=torch.Generator().manual_seed(3)),
        torch.linspace(0.5, 2, 64),
    )
    torch.testing.assert_close(
        module.rms_norm(x, gain), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain
    )
    tiny = torch.full((1, 64), 1e-3)
    torch.testing.assert_close(
        module.rms_norm(tiny, torch.ones(64)), torch.full((1, 64), 1e-3 / math.sqrt(1e-6 + 1e-6))
    )
    y = module.rms_norm(x.bfloat16(), gain.bfloat16())
    exact = module.rms_norm(x.bfloat16().float(), torch.ones(64)).bfloat16() * gain.bfloat16()
    assert y.dtype == torch.bfloat16 and torch.equal(y, exact)


@pytest.mark.parametrize("check", [check_causality, check_gradients, check_generation])
def test_small_model(check: Callable):
    check(build(scale=20))


def bidirectional(monkeypatch):
    monkeypatch.setattr(
        module.F, "scaled_dot_product_attention", lambda q, k, v, is_causal: SDPA(q, k, v)
    )


def idle_gate(monkeypatch):
    monkeypatch.setattr(module.F, "silu", lambda x: torch.ones_like(x))


def cache_without_positions(monkeypatch):
    """Each token of the cache is turned as if it were the first."""
    monkeypatch.setattr(
        module, "rotate", lambda x, rope: ROTATE(x, rope if x.shape[2] > 1 else ROTATE_TABLE[:, :1])
    )


def forgetful_cache(monkeypatch):
    def forward(self, x, rope, cache):
        y = BLOCK(self, x, rope, cache)
        if cache and cache["k"].shape[2] > 3:
            cache.update(k=cache["k"][:, :, 1:], v=cache["v"][:, :, 1:])
        return y

    monkeypatch.setattr(module.Block, "forward", forward)


SDPA, ROTATE, BLOCK, ROTATE_TABLE = (
    F.scaled_dot_product_attention,
    module.rotate,
    module.Block.forward,
    module.rope_tables(12, 8),
)


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
        assert last.shape == (2, 1, 60) and loss is None
        torch.testing.assert_close(last[:, 0], model(IDS, IDS)[0][:, -1])


def test_targets_of_minus_one_are_ignored():
    model, targets = build(), IDS.roll(-1, 1)
    targets[:, -1] = -1
    targets[0, 3] = -1
    with torch.no_grad():
        logits, loss = model(IDS, targets)
    terms = [
        logits[b, t].logsumexp(0) - logits[b, t, targets[b, t]]
        for b in range(2)
        for t in range(12)
        if targets[b, t] >= 0
    ]
    assert len(terms) == 21 and loss.item() == pytest.approx(
        torch.stack(terms).mean().item(), abs=1e-5
    )


def test_embedding_is_the_head():
    model = build()
    assert sum(set(p.shape) == {60, 16} for p in model.parameters()) == 1
    with torch.no_grad():
        torch.testing.assert_close(
            model(IDS, IDS)[0], model.features(IDS) @ model.embedding.weight.T
        )


def test_sampling_options():
    model = build(scale=20)
    draw = lambda **options: list(module.generate(model, [1, 2], 40, **options))  # noqa: E731
    greedy = draw(temperature=0)
    assert (
        draw(top_k=1, seed=3) == greedy
        and draw(top_p=1e-9, seed=4) == greedy
        and draw(temperature=1e-4) == greedy
    )
    assert draw(seed=1) == draw(seed=1) != draw(seed=2)
    assert draw(temperature=3.0) != greedy
    with torch.no_grad():
        p = model(torch.tensor([[1, 2]]))[0][0, 0].double().softmax(-1)
    order = p.argsort(descending=True).tolist()
    first = lambda **options: {
        next(module.generate(model, [1, 2], 1, seed=s, **options)) for s in range(300)
    }  # noqa: E731
    assert first(top_k=3, temperature=2.0) == set(order[:3])
    nucleus = next(n for n in range(1, 61) if p[order[:n]].sum() >= 0.7)
    assert first(top_p=0.7) <= set(order[:nucleus]) and order[nucleus - 1] in first(top_p=0.7)


def test_sampling_frequencies_are_the_probabilities():
    model = build(scale=4)
    with torch.no_grad():
        p = model(torch.tensor([[7]]))[0][0, 0].double().softmax(-1).numpy()
    draws = np.bincount(
        [next(module.generate(model, [7], 1, seed=s)) for s in range(1500)], minlength=60
    )
    statistic = ((draws - 1500 * p) ** 2 / (1500 * p)).sum()
    assert statistic < 59 + 6 * math.sqrt(
        2 * 59
    )  # six sigma of chi-square with 59 degrees of freedom


def test_cache_computes_one_token_per_step(monkeypatch):
    model, seen, features = build(), [], module.WikiGPT.features
    monkeypatch.setattr(
        module.WikiGPT,
        "features",
        lambda self, ids, caches=None: seen.append(ids.shape[1]) or features(self, ids, caches),
    )
    list(module.generate(model, [1, 2, 3], 14, temperature=0))
    assert seen == [
        3,
        *[1] * 9,
        12,
        12,
        12,
        12,
    ]  # three tokens, one by one until twelve are in, then whole windows


@pytest.mark.parametrize(
    "ids", [torch.zeros(1, 13, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long)]
)
def test_more_tokens_than_fit_are_refused(ids):
    caches = [{}, {}] if ids.shape[1] == 2 else None
    model = build()
    if caches:
        model(ids[:, :1], caches=caches)
    with pytest.raises(ValueError, match="crop, or feed one by one"):
        model(ids, caches=caches)


def test_generate_command_continues_a_prompt(tmp_path, capsys):
    import io

    import sentencepiece

    trainer, text = (
        sentencepiece.SentencePieceTrainer,
        ["the cat sat on the mat and the dog ran"] * 50,
    )
    trainer.train(sentence_iterator=iter(text), model_writer=(writer := io.BytesIO()), vocab_size=290, byte_fallback=True, model_type="bpe",
                  pad_id=0, bos_id=1, eos_id=2, unk_id=3, hard_vocab_limit=False, minloglevel=2)  # fmt: skip
    (tmp_path / "t.model").write_bytes(writer.getvalue())
    vocab = sentencepiece.SentencePieceProcessor(model_proto=writer.getvalue()).vocab_size()
    (tmp_path / "right.bin").write_bytes(
        module.export(build(dataclasses.replace(SMALL, vocab_size=vocab), scale=20))
    )
    (tmp_path / "wrong.bin").write_bytes(module.export(build()))
    argv = [
        "generate",
        "--tokenizer",
        tmp_path / "t.model",
        "--prompt",
        "the",
        "--count",
        "24",
        "--artifact",
    ]
    outputs = []
    for more in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"], ["--temperature", "0"]):
        capsys.readouterr()
        module.main([str(a) for a in [*argv, tmp_path / "right.bin", *more]])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2] and all(
        text.startswith("the") for text in outputs
    )
    for bad in (
        [tmp_path / "wrong.bin"],
        [tmp_path / "right.bin", "--temperature", "-1"],
        [tmp_path / "right.bin", "--top-p", "0"],
    ):
        with refused(capsys, "expected"):
            module.main([str(a) for a in argv + bad])
