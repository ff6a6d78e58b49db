"""The artifact: exact round trip, the cap, and refusal of anything damaged, foreign or hostile."""

import contextlib
import hashlib
import json
import math
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_support import tiny

import train_gpt as tg

BASE = tiny()


def random_model(cfg: tg.Config, seed: int = 0) -> tg.GPT:
    torch.manual_seed(seed)
    model = tg.GPT(cfg.model)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def artifact() -> bytes:
    return tg.pack(random_model(BASE), BASE, "a" * 64).data


def test_reload_gives_what_was_exported_and_a_second_export_is_the_same_bytes(artifact):
    loaded = tg.unpack(artifact, "x")
    assert (loaded.cfg.model, loaded.cfg.scoring) == (BASE.model, BASE.scoring)
    assert loaded.tokenizer_sha256 == "a" * 64
    model = loaded.model
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
    assert tg.pack(random_model(BASE), BASE, "a" * 64).data == artifact


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
    cfg = tiny(
        matrix_format=formats[0],
        embed_format=formats[1],
        control_format=formats[2],
        late_k_fp16_layers=1,
    )
    model = random_model(cfg)
    data = tg.pack(model, cfg, "").data
    loaded = dict(tg.unpack(data, "x").model.named_parameters())
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


def test_optimizer_groups_partition_the_parameters():
    model = tg.GPT(BASE.model)
    groups = tg.partition(model, tg.PARAMETER_ROLES, "x")
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    model.extra = torch.nn.Parameter(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="extra"):
        tg.partition(model, tg.PARAMETER_ROLES, "optimizer groups")


def test_a_parameter_that_two_rules_claim_is_refused():
    rules = tg.PARAMETER_ROLES | {"again": lambda name, p: name == "smear"}
    with pytest.raises(ValueError, match="smear"):
        tg.partition(tg.GPT(BASE.model), rules, "optimizer groups")


def test_export_rules_partition_the_parameters():
    model = tg.GPT(BASE.model)
    formats = tg.export_formats(model, tiny(late_k_fp16_layers=2))
    assert set(formats) == {name for name, _ in model.named_parameters()}
    late = [f"blocks.{layer}.attention.k.weight" for layer in (2, 3)]
    in_blocks = {name: fmt for name, fmt in formats.items() if name.startswith("blocks")}
    assert [name for name, fmt in in_blocks.items() if fmt == "fp16"] == late


def test_25m_random_weights_fit_under_the_cap():
    cfg = tg.Config()
    model = random_model(cfg)
    data = tg.export(model, cfg, "", 100_000, tg.Log())
    assert (
        15_000_000 < len(data) <= 15_900_000
    )  # the steps widen just enough: the cap is used, not wasted
    loaded = tg.unpack(data, "x").model
    w, q = model.blocks[0].fc.weight, loaded.blocks[0].fc.weight
    assert (q - w).pow(2).mean().sqrt() < 0.1


def test_over_the_cap_says_by_how_much_and_what_weighs_most():
    expected = (
        r"10,000 bytes, found [\d,]+, [\d,]+ over; "
        r"heaviest tensors \(bytes\): embed [\d,]+, blocks"
    )
    with pytest.raises(tg.UserError, match=expected):
        tg.export(random_model(BASE), tiny(fit_cap=0, size_cap=10_000), "", 0, tg.Log())


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
    raw = tg.dump_header(header)
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
    raw_header, payload = tg.split_artifact(artifact, "x")
    header = json.loads(raw_header)
    older = sealed(header, bytes(payload), version=tg.ARTIFACT_VERSION - 1)
    assert f"version {tg.ARTIFACT_VERSION}, found {tg.ARTIFACT_VERSION - 1}" in refused(older)
    assert "PGOLFART" in refused(pickle.dumps({"weights": [1, 2, 3]}))
    assert "PGOLFART" in refused(b"")
    refused(sealed({}, b""))
    refused(sealed([1], b""))
    refused(sealed(header, bytes(payload) + b"\0"))
    refused(sealed(header, bytes(payload)[:-1]))


BAD_SETTINGS = [
    ("scoring", "ngram_order", 10**30),
    ("scoring", "eval_stride", 0),
    ("scoring", "eval_stride", True),
    ("scoring", "iterations", 5),
    ("model", "num_layers", 1 << 30),
    ("model", "rope_base", "x"),
    ("model", "rope_base", float("nan")),
]


@pytest.mark.parametrize(("group", "name", "value"), BAD_SETTINGS)
def test_settings_that_no_config_could_hold_are_refused(artifact, group, name, value):
    raw_header, payload = tg.split_artifact(artifact, "x")
    header = json.loads(raw_header)
    header[group][name] = value
    refused(sealed(header, bytes(payload)))


def test_groups_that_lack_a_setting_or_are_none_are_refused(artifact):
    raw_header, payload = tg.split_artifact(artifact, "x")
    header = json.loads(raw_header)
    refused(sealed(header | {"model": list(header["model"])}, bytes(payload)))
    del header["scoring"]["eval_stride"]
    assert "scoring settings are not those" in refused(sealed(header, bytes(payload)))


def test_tensors_that_are_not_the_models_are_refused(artifact):
    raw_header, payload = tg.split_artifact(artifact, "x")
    header = json.loads(raw_header)

    def with_tensors(**changes: object) -> bytes:
        tensors = header["tensors"] | changes
        return sealed(header | {"tensors": tensors}, bytes(payload))

    smear = header["tensors"]["smear"]
    as_matrix = with_tensors(smear=smear | {"format": "int6"})  # an outer product, if taken
    assert "smear is no matrix" in refused(as_matrix)
    refused(with_tensors(smear=smear | {"format": "int4"}))
    refused(with_tensors(smear=smear | {"format": ["int6"]}))
    refused(with_tensors(embed={"shape": [1 << 40, 2], "format": "fp16"}))
    refused(with_tensors(another=smear))
    refused(with_tensors(embed=None))
    refused(sealed(header | {"tensors": list(header["tensors"])}, bytes(payload)))


def test_more_weights_than_an_artifact_has_bits_are_refused(artifact):
    """A few bytes may claim to hold any number of equal ones."""
    raw_header, payload = tg.split_artifact(artifact, "x")
    header = json.loads(raw_header)
    large = 1 << 20
    header["model"] |= {"bigram_buckets": large, "bigram_dim": large}
    header["tensors"]["bigram"]["shape"] = [large, large]
    header["tensors"]["bigram_proj.weight"]["shape"][1] = large
    assert "over the limit of 268,435,456" in refused(sealed(header, bytes(payload)))


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
    cfg = tiny(num_encoder_layers=layers, control_format=control)
    model = random_model(cfg)
    loaded = tg.unpack(tg.pack(model, cfg, "").data, "x").model
    assert loaded.skips.shape == model.skips.shape == (0, cfg.model.model_dim)


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
    matrix, embed, control = formats
    docs = tg.PRESETS["docs_cpu"]
    cfg = docs.with_settings(matrix_format=matrix, embed_format=embed, control_format=control)
    packed = tg.pack(random_model(cfg), cfg, "a" * 64)
    header = len(tg.split_artifact(packed.data, "x")[0])
    assert len(packed.data) - header <= 1.005 * packed.entropy_bytes()


def test_the_parts_of_an_artifact_are_all_there_is():
    packed = tg.pack(random_model(BASE), BASE, "a" * 64)
    payload = tg.split_artifact(packed.data, "x")[1]
    assert sum(packed.coded_bytes.values()) == len(payload)
    assert tg.unpack(packed.data, "x").packed.coded_bytes == packed.coded_bytes


@pytest.mark.parametrize("stored", ["int6", "fp16"])
def test_weights_that_no_format_holds_are_refused(stored):
    with pytest.raises(tg.UserError, match="NaN or infinity in w"):
        tg.store("w", torch.tensor([[math.inf]]), stored, 1.0)
    with pytest.raises(tg.UserError, match="expected w within the range of fp16, found 1e"):
        tg.store("w", torch.tensor([[1e6]]), "fp16", 1.0)


def test_a_header_that_pack_does_not_write_is_refused(artifact):
    """Such as one that names a tensor twice, the second time with other settings."""
    raw_header, payload = tg.split_artifact(artifact, "x")
    twice = raw_header.replace(b'"tensors":{', b'"tensors":{"embed":{},', 1)
    spaced = json.dumps(json.loads(raw_header)).encode()
    for raw in (twice, spaced):
        sizes = tg.SIZES.pack(tg.ARTIFACT_VERSION, len(raw), len(payload))
        body = tg.ARTIFACT_MAGIC + sizes + raw + bytes(payload)
        data = body + hashlib.sha256(body).digest()
        assert "not written as `pack` writes it" in refused(data)
