"""What the four reference systems have in common.

One file, the scoring contract, the log format, reproducible training. Each script is loaded by
its path, as a newcomer's copy of the folder would be, and trained for a few steps on a
byte-level data set.
"""

import ast
import json
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import run_script, write_shard
from systems_support import (
    CONTEXT,
    SCRIPTS,
    VOCAB,
    build_dataset,
    load_system,
    score_flags,
    sha256,
    stream,
    train_flags,
)

from eval.papers.logs.reading import parse_log


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_dataset(tmp_path_factory.mktemp("systems") / "datasets" / "bytes")


@pytest.fixture(scope="session", params=SCRIPTS)
def trained(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ModuleType, Path]:
    """(name, module, run folder) of a system trained for a few steps in this process."""
    name = request.param
    module = load_system(name)
    out = tmp_path_factory.mktemp(name)
    module.main(train_flags(name, data, out))
    return name, module, out


def result_of(out: Path) -> dict[str, str]:
    """The figures of a log's last line."""
    last = (out / "train.log").read_text().splitlines()[-1]
    figures = last.removeprefix("result ").split(" ")
    return dict(figure.split(":", 1) for figure in figures)


def score(
    module: ModuleType,
    artifact: Path,
    streams: dict[str, np.ndarray],
    folder: Path,
    probes: dict[str, list[int]] | None = None,
) -> dict[str, np.ndarray]:
    """Arrays by file name of the `score` sub-command on streams written to folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, tokens in streams.items():
        write_shard(folder / f"{stem}.bin", tokens)
    shards = [folder / f"{stem}.bin" for stem in streams]
    argv = score_flags(artifact, shards, folder / "out")
    if probes is not None:
        (folder / "probes.json").write_text(json.dumps(probes))
        argv += ["--probes", str(folder / "probes.json")]
    module.main(argv)
    arrays = (folder / "out").iterdir()
    return {path.name.removesuffix(".npy"): np.load(path, allow_pickle=False) for path in arrays}


def imported_modules(tree: ast.Module) -> set[str]:
    """Full names of all modules that a script imports, wherever it does."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    return modules


def called_names(tree: ast.Module) -> set[str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {call.func.id for call in calls if isinstance(call.func, ast.Name)}


# What a script may do when it is imported: define things.
DEFINITIONS = (
    ast.Expr,
    ast.Import,
    ast.ImportFrom,
    ast.Assign,
    ast.FunctionDef,
    ast.ClassDef,
    ast.If,
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_one_file_of_at_most_400_lines_that_imports_nothing_of_the_project(name):
    source = SCRIPTS[name].read_text()
    tree = ast.parse(source)
    assert len(source.splitlines()) <= 400
    modules = imported_modules(tree)
    allowed = {"numpy", "sentencepiece"}
    if "numpy" not in name:
        allowed.add("torch")
    packages = {module.split(".")[0] for module in modules}
    assert packages - set(sys.stdlib_module_names) <= allowed
    assert "pickle" not in modules
    assert "allow_pickle=True" not in source
    assert "torch.load" not in source
    assert not called_names(tree) & {"eval", "exec", "compile", "__import__"}
    for node in tree.body:
        assert type(node) in DEFINITIONS
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) == "__name__ == '__main__'"


def test_log_and_artifact_are_what_the_packager_reads(trained, data):
    name, _, out = trained
    log = parse_log(out / "train.log")
    assert log.native
    assert log.problems == []
    assert log.source == SCRIPTS[name].read_bytes()
    assert log.text("result.code_sha256") == sha256(log.source)
    assert log.integer("result.code_bytes") == len(log.source)
    artifact = (out / "artifact.bin").read_bytes()
    assert log.text("artifact.sha256") == sha256(artifact)
    assert log.integer("result.artifact_bytes") == len(artifact)
    assert log.integer("result.bytes_total") == len(artifact) + len(log.source)

    raw_manifest = (data / "manifest.json").read_bytes()
    assert log.text("data.manifest_sha256") == sha256(raw_manifest)
    val = json.loads(raw_manifest)["splits"]["val"]
    targets = val["tokens"] - 1
    assert log.integer("result.scored_tokens") == targets
    assert log.integer("result.scored_bytes") == val["source_bytes"]
    nats = log.number("result.nats")
    val_bpb = nats / math.log(2) / val["source_bytes"]
    assert log.number("result.val_loss") == pytest.approx(nats / targets, abs=1e-8)
    assert log.number("result.val_bpb") == pytest.approx(val_bpb, abs=1e-8)

    assert log.integer("env.world_size") == 1
    assert log.integer("model.parameters") > 10_000
    assert "vocab_size=260 (default 1024, from flag)" in log.overrides
    of_the_run = ("seed=", "out=", "data_dir=")
    assert not any(override.startswith(of_the_run) for override in log.overrides)
    assert log.steps[-1].step == log.integer("result.steps")
    assert log.steps[-1].train_loss < log.steps[0].train_loss


def test_training_learns_and_is_a_function_of_the_seed(trained, data, tmp_path):
    name, module, out = trained
    uniform = math.log(VOCAB)
    # the byte frequencies alone are worth two nats
    assert float(result_of(out)["val_loss"]) < uniform - 1

    def short_run(label: str, seed: int) -> tuple[bytes, str]:
        """The artifact and the score."""
        folder = tmp_path / label
        module.main(train_flags(name, data, folder, steps=3, seed=seed))
        return (folder / "artifact.bin").read_bytes(), result_of(folder)["nats"]

    artifact, nats = short_run("a", seed=5)
    assert short_run("b", seed=5) == (artifact, nats)
    _, other_nats = short_run("c", seed=6)
    assert nats != other_nats


def test_score_reproduces_the_result_line(trained, data, tmp_path):
    _, module, out = trained
    shards = [np.fromfile(path, "<u2")[512:] for path in sorted(data.glob("*_val_*.bin"))]
    tokens = np.concatenate(shards)
    nll = score(module, out / "artifact.bin", {"val": tokens}, tmp_path)["val.nll"]
    assert nll.dtype == np.float64
    assert nll.shape == (len(tokens) - 1,)
    assert math.fsum(nll) == pytest.approx(float(result_of(out)["nats"]), abs=1e-5)


def test_probes_are_the_distributions_that_the_scores_come_from(trained, tmp_path):
    _, module, out = trained
    streams = {"one": stream(1), "short": stream(7, 1), "edge": stream(8, 2), "long": stream(53, 3)}
    probes = {"one": [0], "edge": [7, 0, 7], "long": [52, 0, 7, 8, 15, 16, 23, 24, 31]}
    got = score(module, out / "artifact.bin", streams, tmp_path, probes)
    expected = [f"{stem}.nll" for stem in streams] + [f"{stem}.probe" for stem in probes]
    assert set(got) == set(expected)
    for stem, x in streams.items():
        nll = got[f"{stem}.nll"]
        assert nll.shape == (len(x) - 1,)
        assert np.isfinite(nll).all()
    for stem, places in probes.items():
        x = streams[stem]
        nll = got[f"{stem}.nll"]
        probe = got[f"{stem}.probe"]
        assert probe.dtype == np.float64
        assert probe.shape == (len(places), VOCAB)
        np.testing.assert_allclose(np.logaddexp.reduce(probe, axis=-1), 0, atol=1e-12)
        for row, place in zip(probe, places, strict=True):
            if place + 1 < len(x):
                assert -row[x[place + 1]] == nll[place]


def logits_of(name: str, module: ModuleType, artifact: Path, ids: np.ndarray) -> np.ndarray:
    """Logits [T, V] of one window by the model's plain forward pass, float64."""
    model = module.load(artifact)
    if name == "mini-gpt-numpy":
        return model.forward(ids).astype(np.float64)
    import torch

    x = torch.from_numpy(np.asarray(ids, np.int64))[None]
    with torch.no_grad():
        if name == "manual-backward-gpt1":
            flat, cfg = model
            weights = module.unflatten(flat, cfg)
            features, _ = module.features(x, weights, cfg.n_heads)
            logits = features @ weights.head_DV
        elif name == "wikigpt":
            logits, _ = model(x, x)
        else:
            logits = model(x)
    return logits[0].double().numpy()


def test_batched_scores_equal_one_window_at_a_time(trained, tmp_path):
    """Position i is predicted from the window that ends with its half-context block.

    The window begins at max(0, block end − context).
    """
    name, module, out = trained
    artifact = out / "artifact.bin"
    x = stream(45, 4)
    half = CONTEXT // 2
    got = score(module, artifact, {"other": stream(11, 5), "x": x}, tmp_path)["x.nll"]
    for i in range(len(x) - 1):
        block_end = (i // half + 1) * half
        start = max(0, block_end - CONTEXT)
        logits = logits_of(name, module, artifact, x[start : i + 1])[-1]
        nll = np.logaddexp.reduce(logits) - logits[x[i + 1]]
        assert got[i] == pytest.approx(nll, abs=2e-5), i


def assert_prefix_stable(module: ModuleType, artifact: Path, folder: Path) -> None:
    """Cutting a stream anywhere, or replacing all that follows, moves no earlier score by a bit."""
    x = stream(61, 6)
    cuts = [1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 25, 40, 60]
    streams = {"full": x}
    for n in cuts:
        streams[f"cut{n}"] = x[:n]
        streams[f"changed{n}"] = np.concatenate([x[:n], stream(61 - n, 7)])
    got = score(module, artifact, streams, folder)
    full = got["full.nll"]
    for n in cuts:
        changed = got[f"changed{n}.nll"]
        np.testing.assert_array_equal(got[f"cut{n}.nll"], full[: n - 1])
        np.testing.assert_array_equal(changed[: n - 1], full[: n - 1])
        if n < 60:
            assert changed[n] != full[n]


def test_scores_are_prefix_stable_to_the_last_bit(trained, tmp_path):
    _, module, out = trained
    assert_prefix_stable(module, out / "artifact.bin", tmp_path)


# The class whose method gives the hidden states; manual-backward-gpt1 has a function.
MODELS = {
    "mini-gpt-numpy": "MiniGPT",
    "transformer-encoder-gpt": "EncoderGPT",
    "wikigpt": "WikiGPT",
}


def test_prefix_check_notices_a_model_that_looks_ahead(trained, tmp_path, monkeypatch):
    """1 % of the window's mean hidden state in every position.

    Normalisation over time makes this class of leak.
    """
    name, module, out = trained
    owner = getattr(module, MODELS[name]) if name in MODELS else module
    features = owner.features

    def smear(x):
        axis = {"keepdims": True} if isinstance(x, np.ndarray) else {"keepdim": True}
        return x + 0.01 * x.mean(1, **axis)

    def leaking(*args, **kwargs):
        found = features(*args, **kwargs)
        if isinstance(found, tuple):
            x, rest = found
            return smear(x), rest
        return smear(found)

    monkeypatch.setattr(owner, "features", leaking)
    with pytest.raises(AssertionError):
        assert_prefix_stable(module, out / "artifact.bin", tmp_path)


def test_other_ranks_write_nothing(trained, data, tmp_path, monkeypatch):
    name, module, out = trained
    monkeypatch.setenv("RANK", "1")
    module.main(train_flags(name, data, tmp_path / "run"))
    shard = tmp_path / "s.bin"
    write_shard(shard, stream(9))
    module.main(score_flags(out / "artifact.bin", [shard], tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["s.bin"]


@pytest.mark.parametrize("name", ["mini-gpt-numpy", "wikigpt"])
def test_score_as_a_program_from_its_own_folder_and_under_torchrun(name, data, tmp_path):
    """The script copied alone gives what it gives in this process, on one rank and on two."""
    module = load_system(name)
    module.main(train_flags(name, data, tmp_path / "run", steps=2))
    artifact = tmp_path / "run" / "artifact.bin"
    here = tmp_path / "here"
    expected = score(module, artifact, {"s": stream(40)}, here)["s.nll"]
    script = tmp_path / "alone" / "train_gpt.py"
    script.parent.mkdir()
    shutil.copy(SCRIPTS[name], script)
    for nproc in (1, 2):
        out = tmp_path / f"out{nproc}"
        argv = score_flags(artifact, [here / "s.bin"], out)
        done = run_script(*argv, nproc=nproc, script=script)
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(np.load(out / "s.nll.npy"), expected, atol=2e-6)


def test_artifact_holds_the_weights_in_fp16_and_no_pickle(trained):
    _, module, out = trained
    raw = (out / "artifact.bin").read_bytes()
    assert raw[40:42] == b"PK"  # a zip of arrays
    assert b"\x80\x04" not in raw[40:60]
    model = module.load(out / "artifact.bin")
    again = module.export(*model) if isinstance(model, tuple) else module.export(model)
    assert again == raw  # fp16 values survive the way through fp32
