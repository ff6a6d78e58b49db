"""The frontier's mechanisms: against a transcription of their formulas, and each for itself."""

import dataclasses
import json
import math

import pytest
import torch
from train_support import awake, tiny

import train_gpt as tg

# Every mechanism at once, on the tests' smallest shape: six blocks, of which two loop.
MECHANISMS = {
    "num_layers": 6,
    "num_encoder_layers": 3,
    "xsa_layers": 6,
    "mlp_negative_slope": 0.5,
    "pre_enrich_hidden": 0,
    "bigram_buckets": 0,
    "rope_dims": 4,
    "norm_scale": 1,
    "smear_inputs": 5,
    "attention_gate_inputs": 6,
    "skip_gates": 1,
    "loop_first": 1,
    "loop_last": 2,
    "loop_passes": 3,
    "parallel_layers": 2,
    "isolate_documents": 1,
    "orthogonal_init": 1,
    "overtone_init": 0,
}
LENGTH = 14


def some_ids() -> torch.Tensor:
    """[1, LENGTH] with documents that start at 0, 5 and 9."""
    ids = torch.randint(2, 260, (1, LENGTH), generator=torch.Generator().manual_seed(3))
    ids[0, [0, 5, 9]] = tg.BOS_ID
    return ids


# --- a slow transcription, from the formulas alone: one position, one head at a time ---


def rms(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean() + torch.finfo(x.dtype).eps).sqrt()


def turned(x: torch.Tensor, position: int, dims: int, base: float) -> torch.Tensor:
    """Rotates the pairs (j, j + dims / 2) of the first `dims` dimensions."""
    result = x.clone()
    half = dims // 2
    for j in range(half):
        angle = position * base ** (-2 * j / dims)
        cos, sin = math.cos(angle), math.sin(angle)
        result[j] = x[j] * cos - x[j + half] * sin
        result[j + half] = x[j] * sin + x[j + half] * cos
    return result


class Transcription:
    """Logits [T, V] of one row of ids."""

    def __init__(self, model: tg.GPT, looped: bool):
        self.cfg = model.cfg
        self.w = {name: p.detach() for name, p in model.named_parameters()}
        self.looped = looped

    def logits(self, ids: list[int]) -> torch.Tensor:
        self.ids = ids
        embed = self.w["embed"]
        self.stem = [self.stem_at(t) for t in range(len(ids))]
        final = self.depth()
        cap = self.cfg.logit_softcap
        return torch.stack([cap * torch.tanh(embed @ rms(x) / cap) for x in final])

    def stem_at(self, t: int) -> torch.Tensor:
        x = self.w["embed"][self.ids[t]]
        if t == 0 or self.ids[t] == tg.BOS_ID:
            return rms(x)
        gate = torch.sigmoid(self.w["smear"] @ x[: self.cfg.smear_inputs])
        return rms(x + self.w["smear_strength"] * gate * self.w["embed"][self.ids[t - 1]])

    def order(self) -> tuple[list[int], list[int]]:
        layers = list(range(self.cfg.num_layers))
        if not self.looped:
            return layers[: self.cfg.num_encoder_layers], layers[self.cfg.num_encoder_layers :]
        first, last = self.cfg.loop_first, self.cfg.loop_last
        loop = layers[first : last + 1]
        visits = layers[:first] + loop * self.cfg.loop_passes + layers[last + 1 :]
        half = len(visits) // 2
        return visits[:half], visits[half:]

    def depth(self) -> list[torch.Tensor]:
        encoder, decoder = self.order()
        x = self.stem
        kept = []
        for layer in encoder:
            x = self.block(x, layer)
            kept.append(x)
        other = None
        for j, layer in enumerate(decoder):
            parallel = layer >= self.cfg.num_layers - self.cfg.parallel_layers
            if parallel and other is None:
                other = x
            if kept:
                x = self.skip(x, kept.pop(), j)
            if parallel:
                x, other = self.lanes(x, other, layer)
            else:
                x = self.block(x, layer)
        return [(a + b) / 2 for a, b in zip(x, other, strict=True)]

    def skip(self, x: list, kept: list, j: int) -> list[torch.Tensor]:
        share = torch.sigmoid(self.w["skip_gates"][j])
        weight = self.w["skips"][j]
        return [(1 - share) * weight * k + share * a for a, k in zip(x, kept, strict=True)]

    def mixed(self, x: list, layer: int) -> list[torch.Tensor]:
        keep, take = self.w[f"blocks.{layer}.mix"]
        return [keep * a + take * b for a, b in zip(x, self.stem, strict=True)]

    def block(self, x: list, layer: int) -> list[torch.Tensor]:
        u = self.mixed(x, layer)
        u = [a + b for a, b in zip(u, self.attention(u, layer), strict=True)]
        return [a + self.mlp(a, layer) for a in u]

    def lanes(self, x: list, other: list, layer: int) -> tuple[list, list]:
        attended = self.attention(self.mixed(x, layer), layer)
        computed = [self.mlp(a, layer) for a in other]
        results = []
        for lane, weights in zip((x, other), self.w["lane_weights"][layer], strict=True):
            r, p, q = weights
            parts = zip(lane, attended, computed, strict=True)
            results.append([r * a + p * b + q * c for a, b, c in parts])
        return results[0], results[1]

    def normed(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        return rms(x) / math.sqrt(layer + 1)

    def mlp(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        name = f"blocks.{layer}."
        z = self.w[name + "fc.weight"] @ self.normed(x, layer)
        h = torch.where(z > 0, z, z / 2) ** 2
        return self.w[name + "mlp_scale"] * (self.w[name + "proj.weight"] @ h)

    def attention(self, x: list, layer: int) -> list[torch.Tensor]:
        cfg = self.cfg
        name = f"blocks.{layer}.attention."
        size = cfg.model_dim // cfg.num_heads
        n = [self.normed(a, layer) for a in x]
        scale = self.w[f"blocks.{layer}.attention_scale"]
        results = []
        for t in range(len(x)):
            first = max(s for s in range(t + 1) if s == 0 or self.ids[s] == tg.BOS_ID)
            heads = []
            for h in range(cfg.num_heads):
                g = h // (cfg.num_heads // cfg.num_kv_heads)

                def part(letter: str, s: int, head: int) -> torch.Tensor:
                    rows = slice(head * size, (head + 1) * size)
                    return self.w[f"{name}{letter}.weight"][rows] @ n[s]

                def rotated(letter: str, s: int, head: int) -> torch.Tensor:
                    return turned(rms(part(letter, s, head)), s, cfg.rope_dims, cfg.rope_base)

                q = rotated("q", t, h) * self.w[name + "q_gain"][h]
                seen = range(first, t + 1)
                scores = torch.stack([q @ rotated("k", s, g) for s in seen]) / size**0.5
                values = torch.stack([part("v", s, g) for s in seen])
                y = torch.softmax(scores, 0) @ values
                own = part("v", t, g) / part("v", t, g).norm()
                y = y - (y @ own) * own
                gate = self.w[name + "gate"][h] @ n[t][: cfg.attention_gate_inputs]
                heads.append(torch.sigmoid(gate / 2) * y)
            results.append(scale * (self.w[name + "out.weight"] @ torch.cat(heads)))
        return results


@pytest.mark.parametrize("looped", [False, True])
def test_the_forward_pass_is_that_of_the_formulas(looped):
    model = awake(tiny(**MECHANISMS))
    model.loop(looped)
    ids = some_ids()
    with torch.no_grad():
        found = model.logits(model.hidden(ids)[0])[0]
        expected = Transcription(model, looped).logits(ids[0].tolist())
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert expected.std() > 0.1


def test_training_and_scoring_passes_agree():
    """The mean loss of training is that of the logits; the tail is the tail of all."""
    model = awake(tiny(**MECHANISMS))
    ids = some_ids()
    targets = ids.roll(-1, 1)
    with torch.no_grad():
        states = model.hidden(ids)[0]
        log_p = torch.log_softmax(model.logits(states), -1)
        loss = -log_p.gather(2, targets.unsqueeze(2)).mean()
        assert model(ids, targets).item() == pytest.approx(loss.item(), abs=1e-9)
        assert torch.allclose(model.hidden(ids, 4)[0], states[:, -4:], rtol=0, atol=1e-12)


def test_an_isolated_document_is_scored_as_if_alone():
    model = awake(tiny(**MECHANISMS))
    ids = some_ids()
    with torch.no_grad():
        together = model.hidden(ids)[0][:, 5:9]
        alone = model.hidden(ids[:, 5:9])[0]
        model.cfg = dataclasses.replace(model.cfg, isolate_documents=0)
        connected = model.hidden(ids)[0][:, 5:9]
    assert torch.allclose(together, alone, rtol=0, atol=1e-5)  # positions are rounded
    assert not torch.allclose(connected, alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("at", range(LENGTH))
def test_a_later_token_changes_nothing_before(at):
    model = awake(tiny(**MECHANISMS))
    ids = some_ids()
    other = ids.clone()
    other[0, at] = 77 if ids[0, at] != 77 else 78
    with torch.no_grad():
        before, after = (model.hidden(x)[0] for x in (ids, other))
    assert torch.equal(before[0, :at], after[0, :at])
    assert not torch.equal(before[0, at], after[0, at])


OFF = {
    "rope_dims": 0,
    "norm_scale": 0,
    "loop_passes": 1,
    "isolate_documents": 0,
    "xsa_layers": 0,
    "mlp_negative_slope": 0.0,
}
REMOVED = {
    "smear_inputs": 0,
    "attention_gate_inputs": 0,
    "skip_gates": 0,
    "parallel_layers": 0,
}


@pytest.mark.parametrize("name", [*OFF, *REMOVED])
def test_every_mechanism_changes_the_function(name):
    """With the same weights; those that only the mechanism has are left out."""
    full = awake(tiny(**MECHANISMS))
    changed = tg.GPT(tiny(**(MECHANISMS | {name: (OFF | REMOVED)[name]})).model).double()
    wanted = changed.state_dict()
    weights = {n: p for n, p in full.state_dict().items() if n in wanted}
    for own, p in wanted.items():
        if own not in weights or weights[own].shape != p.shape:
            weights[own] = p
    weights["skips"] = full.skips.detach()[: len(wanted["skips"])]
    if name == "loop_passes":
        weights["skip_gates"] = full.skip_gates.detach()[: len(wanted["skips"])]
    changed.load_state_dict(weights)
    ids = some_ids()
    with torch.no_grad():
        difference = (full.hidden(ids)[0] - changed.hidden(ids)[0]).abs().max()
    assert difference > 1e-3
    if name in REMOVED:
        assert len(wanted) < len(full.state_dict())


def test_without_mechanisms_a_model_has_no_trace_of_them():
    model = tg.GPT(tg.PRESETS["docs_cpu"].model)
    traces = ("gate", "lane_weights", "smear_strength")
    assert not [n for n, _ in model.named_parameters() if n.endswith(traces)]


def test_the_loop_is_turned_on_in_the_course_of_training():
    cfg = tiny(**MECHANISMS, loop_from=0.35, iterations=100)
    loops = [tg.Progress(cfg, step).loops() for step in (0, 34, 35, 99)]
    assert loops == [False, False, True, True]
    by_clock = tiny(**MECHANISMS, loop_from=0.35, iterations=100, train_seconds=10.0)
    assert [tg.Progress(by_clock, 1, s).loops() for s in (3.0, 4.0)] == [False, True]
    model = tg.GPT(cfg.model)
    assert len(model.plan) == 10
    model.loop(False)
    assert [visit.layer for visit in model.plan] == list(range(6))


def test_a_loop_lengthens_encoder_and_decoder():
    looped = tg.plan_depth(tg.PRESETS["frontier"].model)
    assert [v.layer for v in looped if v.push] == [0, 1, 2, 3, 4, 5, 3, 4]
    assert [v.layer for v in looped if not v.push] == [5, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [v.pop for v in looped[8:]] == [0, 1, 2, 3, 4, 5, 6, 7, None]
    assert [v.layer for v in looped if v.parallel] == [8, 9, 10]


def test_frontier_has_the_published_parameter_count():
    with torch.device("meta"):
        model = tg.GPT(tg.PRESETS["frontier"].model)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert sum(sizes.values()) == 35_945_671
    control = {n: size for n, size in sizes.items() if not n.endswith("weight") and n != "embed"}
    assert sum(control.values()) == 31_943


@pytest.mark.parametrize("preset", tg.PRESETS)
def test_every_preset_is_valid(preset):
    assert tg.validate(tg.PRESETS[preset]) == tg.PRESETS[preset]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"loop_last": 6}, r"loop_first <= loop_last < num_layers"),
        ({"loop_first": 3}, r"loop_first <= loop_last"),
        ({"loop_last": 4}, r"the loop to end before the parallel layers"),
        ({"num_encoder_layers": 0}, r"a loop to have encoder layers"),
        ({"encoder_recurrence": 1}, r"no encoder_recurrence"),
        ({"parallel_layers": 4}, r"parallel_layers to be decoder layers"),
        ({"rope_dims": 3}, r"an even rope_dims"),
        ({"rope_dims": 10}, r"at most the head size"),
        ({"smear_inputs": 33}, r"smear_inputs <= model_dim"),
        ({"attention_gate_inputs": 33}, r"attention_gate_inputs <= model_dim"),
    ],
    ids=str,
)
def test_bad_mechanisms_are_refused_in_a_line(change, rule):
    with pytest.raises(ValueError, match=rule) as caught:
        tiny(**(MECHANISMS | change))
    assert "\n" not in str(caught.value)


def test_a_model_with_every_mechanism_comes_back_from_its_artifact():
    cfg = tiny(**MECHANISMS, embed_format="int7", ngram_order=0)
    model = awake(cfg, dtype=torch.float32)
    artifact = tg.unpack(tg.pack(model, cfg, "0" * 64).data, "here")
    assert artifact.cfg.model == cfg.model
    ids = some_ids()
    with torch.no_grad():
        before, after = (m.hidden(ids)[0] for m in (model, artifact.model))
    assert torch.nn.functional.cosine_similarity(before, after, dim=-1).min() > 0.9


def test_an_artifact_from_before_the_mechanisms_still_loads():
    cfg = tiny()
    data = tg.pack(awake(cfg, dtype=torch.float32), cfg, "0" * 64).data
    header = json.loads(tg.split_artifact(data, "here")[0])
    for f in dataclasses.fields(tg.MechanismConfig):
        del header["model"][f.name]
    assert tg.config_from_header(header).model == cfg.model
    with pytest.raises(ValueError, match="model settings are not those"):
        tg.config_from_header(header | {"model": header["model"] | {"loop_counts": 1}})


def test_export_formats_of_the_published_recipe():
    cfg = tiny(bigram_format="int6", small_matrix_elements=32 * 8, late_k_fp16_layers=1)
    formats = tg.export_formats(tg.GPT(cfg.model), cfg)
    assert formats["embed"] == "fp16"
    assert formats["bigram"] == "int6"
    assert formats["bigram_proj.weight"] == "fp16"  # 32 x 8
    assert formats["blocks.0.attention.k.weight"] == "int6"
    assert formats["blocks.3.attention.k.weight"] == "fp16"


def test_the_bigram_table_may_be_trained_as_a_matrix():
    cfg = tiny(bigram_muon=1)
    groups = tg.optimizer_groups(tg.GPT(cfg.model), cfg.training)
    assert list(groups["embed"]) == ["embed"]
    assert "bigram" in groups["matrix"]


def test_the_learning_rate_has_a_floor_and_falls_by_a_share_of_training():
    cfg = tiny(warmdown_share=0.85, lr_floor=0.1, iterations=100).training
    found = [tg.learning_rate_scale(step, 0.0, cfg) for step in (0, 15, 57, 90, 100)]
    assert found == pytest.approx([1.0, 1.0, 0.43 / 0.85, 0.1 / 0.85, 0.1])
    clock = dataclasses.replace(cfg, train_seconds=200.0)
    assert tg.learning_rate_scale(1, 114.0, clock) == pytest.approx(0.43 / 0.85)


def test_weight_decay_belongs_to_each_group():
    """With a gradient of zero and no momentum a step is the decay alone."""
    cfg = tiny(weight_decay=0.1, embed_weight_decay=0.2, scalar_weight_decay=0.3)
    model = awake(cfg, dtype=torch.float32)
    optimizers = tg.Optimizers(model, cfg.training, tg.Ranks())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in optimizers.params:
        p.grad = torch.zeros_like(p)
    optimizers.step(0, 1.0)
    training = cfg.training
    for name, rate in (
        ("embed", training.embed_lr * 0.2),
        ("smear", training.scalar_lr * 0.3),
        ("enrich_in.weight", training.muon_lr * 0.1),
    ):
        now = dict(model.named_parameters())[name]
        assert torch.allclose(now, before[name] * (1 - rate), rtol=1e-5, atol=0), name


def test_polar_express_orthogonalises_in_five_steps():
    """Closer to one than the quintic, from singular values between 0.01 and 1."""
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64))[0]
    x = (u * torch.logspace(-2, 0, 24, dtype=torch.float64) @ u.mT)[None]

    def distance(kind: str) -> float:
        values = torch.linalg.svdvals(tg.newton_schulz(x, 5, kind))
        return (values - 1).abs().max().item()

    assert distance("polar_express") < 0.15 < distance("quintic")


def test_row_normalisation_evens_out_the_rows():
    """A row whose gradient is a thousand times larger gets no larger update for it."""
    rows = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    uneven = rows * torch.tensor([1.0, 1.0, 1.0, 1000.0])[:, None]

    def update(on: int) -> torch.Tensor:
        cfg = tiny(muon_row_norm=on)
        return tg.Optimizers(tg.GPT(cfg.model), cfg.training, tg.Ranks()).orthogonalise(uneven)

    even = tg.newton_schulz(torch.nn.functional.normalize(rows, dim=-1), 5)
    assert torch.allclose(update(1), even, atol=1e-4)
    assert not torch.allclose(update(0), even, atol=1e-2)


def test_orthogonal_matrices_and_silent_blocks_at_the_start():
    model = tg.GPT(tiny(**MECHANISMS).model)
    for block in model.blocks:
        for matrix in (block.attention.q, block.attention.k, block.attention.v):
            w = matrix.weight.detach()
            assert torch.allclose(w @ w.mT, torch.eye(len(w)), atol=1e-5)
        assert not block.proj.weight.any()
        assert not block.attention.out.weight.any()


def test_training_with_every_mechanism_moves_every_parameter():
    cfg = tiny(**MECHANISMS, muon_row_norm=1, newton_schulz="polar_express")
    torch.manual_seed(1)
    model = tg.GPT(cfg.model)
    optimizers = tg.Optimizers(model, cfg.training, tg.Ranks())
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(4):
        ids = torch.randint(cfg.model.vocab_size, (4, 33))
        model.loop(step > 0)
        tg.training_step(model, [(ids[:, :-1], ids[:, 1:])], optimizers.params, tg.Ranks())
        optimizers.step(step, 1.0)
    still = [name for name, p in model.named_parameters() if torch.equal(p, start[name])]
    assert still == []
