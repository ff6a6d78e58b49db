"""The artifact: exact round trip, the cap, and refusal of anything damaged, foreign or hostile."""

import contextlib
import dataclasses
import hashlib
import json
import pickle
import struct

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

import train_gpt as tg

BASE = dataclasses.replace(tg.Config(), **TINY)


def random_model(cfg: tg.Config, seed: int = 0) -> tg.GPT:
    torch.manual_seed(seed)
    model = tg.GPT(cfg)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def artifact() -> bytes:
    return tg.pack(random_model(BASE), BASE, "a" * 64)[0]


def test_reload_gives_what_was_exported_and_a_second_export_is_the_same_bytes(artifact):
    model, cfg, tokenizer = tg.unpack(artifact, "x")
    assert (cfg.model_dim, cfg.eval_stride, tokenizer) == (
        BASE.model_dim,
        BASE.eval_stride,
        "a" * 64,
    )
    original = dict(random_model(BASE).named_parameters())
    for name, p in model.named_parameters():
        w = original[name]
        if p.ndim == 2 and name.endswith("weight"):
            rms = (p - w).pow(2).mean().sqrt()
            assert rms < 0.06, name  # int6 of a unit normal row: about step / sqrt(12) = 0.03
        else:
            assert torch.equal(p, w.half().float() if name in ("embed", "bigram") else w), name
    symbols, scale = tg.quantize_rows(original["blocks.0.fc.weight"], 31)
    assert torch.equal(
        dict(model.named_parameters())["blocks.0.fc.weight"],
        symbols.float() * scale.float()[:, None],
    )
    assert tg.pack(random_model(BASE), BASE, "a" * 64)[0] == artifact


@pytest.mark.parametrize(
    "formats",
    [
        ("int8", "fp16", "fp16"),
        ("int5", "int8", "fp32"),
        ("fp16", "fp32", "fp32"),
        ("int6", "int6", "fp16"),
    ],
)
def test_every_format_round_trips(formats):
    cfg = dataclasses.replace(
        BASE,
        matrix_format=formats[0],
        embed_format=formats[1],
        control_format=formats[2],
        late_k_fp16_layers=1,
    )
    model = random_model(cfg)
    data = tg.pack(model, cfg, "")[0]
    loaded = dict(tg.unpack(data, "x")[0].named_parameters())
    tolerance = {"int8": 0.02, "int6": 0.06, "int5": 0.12, "fp16": 1e-3, "fp32": 0.0}
    for name, p in model.named_parameters():
        assert (loaded[name] - p).pow(2).mean().sqrt() <= tolerance[
            tg.export_formats(model, cfg)[name]
        ], name
    assert torch.equal(
        loaded["blocks.3.attention.k.weight"],
        dict(model.named_parameters())["blocks.3.attention.k.weight"].half().float(),
    )


def test_clip_search_is_never_worse_than_no_clipping():
    w = torch.distributions.StudentT(3.0).sample((64, 256))
    for levels in tg.LEVELS.values():
        symbols, scale = tg.quantize_rows(w, levels)
        plain = (w.abs().amax(-1) / levels).bfloat16().float()[:, None]
        error = (symbols * scale.float()[:, None] - w).square().sum(-1)
        assert (
            error
            <= ((w / plain).round().clamp(-levels, levels) * plain - w).square().sum(-1) + 1e-4
        ).all()
        assert symbols.abs().max() <= levels
    assert tg.quantize_rows(torch.zeros(2, 8), 31)[0].abs().max() == 0


def test_export_rules_and_optimizer_groups_partition_the_parameters():
    model = tg.GPT(BASE)
    assert sum(len(g) for g in tg.partition(model, tg.PARAM_GROUPS, "x").values()) == len(
        list(model.parameters())
    )
    formats = tg.export_formats(model, dataclasses.replace(BASE, late_k_fp16_layers=2))
    assert set(formats) == {n for n, _ in model.named_parameters()}
    assert [n for n, fmt in formats.items() if fmt == "fp16" and n.startswith("blocks")] == [
        f"blocks.{i}.attention.k.weight" for i in (2, 3)
    ]
    model.extra = torch.nn.Parameter(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="extra"):
        tg.partition(model, tg.PARAM_GROUPS, "optimizer groups")
    with pytest.raises(ValueError, match="smear"):
        tg.partition(
            tg.GPT(BASE),
            tg.PARAM_GROUPS | {"again": lambda name, p: name == "smear"},
            "optimizer groups",
        )


def test_25m_random_weights_fit_under_the_cap():
    cfg = tg.Config()
    model = random_model(cfg)
    data = tg.export(model, cfg, "", tg.Runtime(), code_bytes=100_000)
    assert (
        15_000_000 < len(data) <= 15_900_000
    )  # the steps widen just enough: the cap is used, not wasted
    loaded = tg.unpack(data, "x")[0]
    w, q = model.blocks[0].fc.weight, loaded.blocks[0].fc.weight
    assert (q - w).pow(2).mean().sqrt() < 0.1


def test_over_the_cap_says_by_how_much_and_what_weighs_most(monkeypatch):
    monkeypatch.setattr(tg, "SIZE_CAP_BYTES", 10_000)
    with pytest.raises(
        tg.UserError,
        match=r"10,000 bytes, found [\d,]+, [\d,]+ over; heaviest tensors \(bytes\): embed [\d,]+, blocks",
    ):
        tg.export(
            random_model(BASE), dataclasses.replace(BASE, fit_cap=0), "", tg.Runtime(), code_bytes=0
        )


def test_diverged_weights_are_refused():
    model = random_model(BASE)
    with torch.no_grad():
        model.smear[0] = float("nan")
    with pytest.raises(tg.UserError, match="NaN or infinity in smear"):
        tg.pack(model, BASE, "")


def refused(data: bytes) -> str:
    with pytest.raises(tg.UserError) as caught:
        tg.unpack(data, "file.bin")
    text = str(caught.value)
    assert text.startswith("file.bin: expected") and "\n" not in text
    return text


def sealed(header: dict, payload: bytes, version: int = tg.ARTIFACT_VERSION) -> bytes:
    raw = json.dumps(header).encode()
    body = tg.ARTIFACT_MAGIC + struct.pack("<IIQ", version, len(raw), len(payload)) + raw + payload
    return body + hashlib.sha256(body).digest()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_flipped_byte_and_any_truncation_is_refused(artifact, data):
    at = data.draw(st.integers(0, len(artifact) - 1))
    damaged = bytearray(artifact)
    damaged[at] ^= data.draw(st.integers(1, 255))
    refused(bytes(damaged))
    refused(artifact[:at])
    refused(artifact + b"\0")


def test_wrong_version_pickle_and_foreign_content_are_refused(artifact):
    header, payload = tg.read_header(artifact, "x")
    header = json.loads(header)
    assert "version 2, found 1" in refused(sealed(header, bytes(payload), version=1))
    assert "PGOLFART" in refused(pickle.dumps({"weights": [1, 2, 3]}))
    assert "PGOLFART" in refused(b"")
    refused(sealed({}, b""))
    refused(sealed([1], b""))
    refused(sealed(header | {"config": list(header["config"])}, bytes(payload)))
    refused(sealed(header | {"config": header["config"] | {"ngram_order": 10**30}}, bytes(payload)))
    refused(sealed(header, bytes(payload) + b"\0"))
    refused(sealed(header, bytes(payload)[:-1]))
    refused(sealed(header | {"tensors": header["tensors"][1:]}, bytes(payload)))
    floats = [
        [n, s, "int6" if n == "smear" else f] for n, s, f in header["tensors"]
    ]  # an outer product, if it were taken
    assert "tensors are not those" in refused(sealed(header | {"tensors": floats}, bytes(payload)))
    assert "more than twice" in refused(
        sealed(
            header
            | {
                "config": header["config"] | {"bigram_buckets": 1 << 20, "bigram_dim": 1 << 20},
                "tensors": [
                    [
                        n,
                        [1 << 20, 1 << 20]
                        if n == "bigram"
                        else [s[0], 1 << 20]
                        if n == "bigram_proj.weight"
                        else s,
                        f,
                    ]
                    for n, s, f in header["tensors"]
                ],
            },
            bytes(payload),
        )
    )
    refused(
        sealed(
            header | {"tensors": [["embed", [1 << 40, 2], "fp16"], *header["tensors"][1:]]},
            bytes(payload),
        )
    )
    refused(sealed(header | {"config": header["config"] | {"num_layers": 1 << 30}}, bytes(payload)))
    refused(sealed(header | {"config": header["config"] | {"eval_stride": 0}}, bytes(payload)))
    refused(sealed(header | {"config": header["config"] | {"rope_base": "x"}}, bytes(payload)))


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=3000), st.integers(0, 20))
def test_a_coded_plane_comes_back_from_anywhere_in_a_payload(data, offset):
    plane = np.frombuffer(data, np.uint8)
    coded = tg.encode(plane)
    out, end = tg.decode(memoryview(bytes(offset) + coded + b"rest"), offset, len(plane))
    assert out.tobytes() == data and end == offset + len(coded)
    assert len(coded) <= len(data) + 4


@pytest.mark.parametrize("values", [1, 2, 63, 200])
def test_planes_are_coded_near_their_entropy(values):
    plane = np.random.default_rng(0).binomial(values - 1, 0.3, 200_000).astype(np.uint8)
    assert (
        len(tg.encode(plane))
        <= 1.0005 * tg.entropy_bytes([torch.from_numpy(plane)]) + 4 + 32 + 2 * values + 8
    )


def test_a_plane_holds_what_it_says_and_nothing_else():
    plane = np.random.default_rng(0).integers(0, 60, 5000).astype(np.uint8)
    coded = tg.encode(plane)
    longer = (
        struct.pack("<I", len(coded)) + coded[4:] + b"abcd"
    )  # a word more than the symbols need
    with pytest.raises(ValueError, match="more words than symbols"):
        tg.decode(memoryview(longer), 0, len(plane))
    one = tg.encode(np.full(5000, 7, np.uint8))
    assert len(one) == 4 + 32 + 2
    with pytest.raises(ValueError, match="table of frequencies"):
        tg.decode(memoryview(struct.pack("<I", 38) + one[4:] + b"abcd"), 0, 5000)
    for cut in range(1, 34):  # a table that reaches into the next plane
        with pytest.raises(ValueError, match=r"table of frequencies|multiple of element size"):
            tg.decode(memoryview(struct.pack("<I", cut) + one[4:] + coded), 0, 5000)


@pytest.mark.parametrize("layers", [0, 4])
@pytest.mark.parametrize("control", ["fp16", "fp32"])
def test_models_without_skips_round_trip(layers, control):
    cfg = dataclasses.replace(BASE, num_encoder_layers=layers, control_format=control)
    model = random_model(cfg)
    loaded = tg.unpack(tg.pack(model, cfg, "")[0], "x")[0]
    assert loaded.skips.shape == model.skips.shape == (0, cfg.model_dim)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_planes_are_refused_or_give_bytes_of_the_promised_number(data):
    """The artifact's sha256 stops accidents; this is what is left for malice."""
    plane = np.random.default_rng(0).binomial(60, 0.5, 500).astype(np.uint8)
    coded = bytearray(tg.encode(plane))
    for _ in range(data.draw(st.integers(1, 4))):
        coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError, struct.error):
        out, end = tg.decode(
            memoryview(bytes(coded[: data.draw(st.integers(0, len(coded)))])), 0, len(plane)
        )
        assert len(out) == len(plane) and end <= len(coded)


@pytest.mark.parametrize("formats", [("int6", "fp16", "fp32"), ("int5", "fp32", "fp16")])
def test_the_artifact_is_within_half_a_percent_of_its_entropy(formats):
    cfg = dataclasses.replace(
        tg.parse_config(["--preset", "docs_cpu"], {})[0],
        matrix_format=formats[0],
        embed_format=formats[1],
        control_format=formats[2],
    )
    data, stored = tg.pack(random_model(cfg), cfg, "a" * 64)
    header = len(tg.read_header(data, "x")[0])
    assert len(data) - header <= 1.005 * sum(tg.entropy_bytes(t) for _, t, _ in stored.values())


def test_params_shows_what_the_artifact_stores(tmp_path, capsys):
    """Not what its weights would cost in the default format."""
    data, stored = tg.pack(
        random_model(BASE), dataclasses.replace(BASE, matrix_format="int8"), "a" * 64
    )
    (tmp_path / "a.bin").write_bytes(data)
    assert tg.main(["params", "--artifact", str(tmp_path / "a.bin")]) == 0
    rows = {
        line.split("  ")[0].strip(): line.split() for line in capsys.readouterr().out.splitlines()
    }
    assert (
        rows["blocks.fc"][-3] == "int8"
        and rows["total"][2] == f"{sum(p.numel() for p in random_model(BASE).parameters()):,}"
    )
    assert int(rows["total"][-1].replace(",", "")) == round(
        sum(tg.entropy_bytes(t) for _, t, _ in stored.values())
    )
    assert int(rows["total"][-2].replace(",", "")) == len(
        tg.read_header(data, "x")[1]
    )  # the rows are all there is
    assert (
        tg.main(
            [
                "params",
                "--num-layers",
                "2",
                "--num-encoder-layers",
                "1",
                "--model-dim",
                "64",
                "--xsa-layers",
                "1",
            ]
        )
        == 0
    )
    assert "initial weights" in capsys.readouterr().out
