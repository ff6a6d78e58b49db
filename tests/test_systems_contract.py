"""What the four reference systems have in common: one file, the scoring contract, the log format, reproducible training, refused input.

Each script is loaded by its path, as a newcomer's copy of the folder would be, and trained for a few steps on a byte-level data set."""

import ast
import contextlib
import hashlib
import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT, english_documents, run_script, write_shard

TRACK = ROOT / "records" / "track_docs_cpu"
SCRIPTS = {
    name: TRACK / f"2026-11-24_{name}" / "train_gpt.py"
    for name in ("mini-gpt-numpy", "manual-backward-gpt1", "transformer-encoder-gpt", "wikigpt")
}
VOCAB, CONTEXT = 260, 16
WIDTH = {"mini-gpt-numpy": ["--d-model", "32", "--d-ff", "48", "--context-len", "16"]}
RATES = {"manual-backward-gpt1": ["--steps", "400"]}  # plain SGD with a warm-up of 100 steps


def load_system(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("system_" + name.replace("-", "_"), SCRIPTS[name])
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def build_dataset(folder: Path) -> Path:
    """Ids = byte + 4 with BOS, as a corpus that has a tokenizer file, two train shards and two validation shards."""
    folder.mkdir(parents=True)
    (folder / "bytes.model").write_bytes(b"one id per byte")
    documents, splits = english_documents(), {}
    for split, part in (("train", documents[6:]), ("val", documents[:6])):
        tokens = np.concatenate(
            [np.concatenate([[1], np.frombuffer(d, np.uint8).astype(np.int64) + 4]) for d in part]
        )
        files = []
        for i, shard in enumerate(np.array_split(tokens, 2)):
            path = folder / f"bytes_{split}_{i:06d}.bin"
            write_shard(path, shard)
            files.append(
                {
                    "name": path.name,
                    "tokens": len(shard),
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                }
            )
        splits[split] = {
            "documents": len(part),
            "source_bytes": sum(map(len, part)),
            "tokens": len(tokens),
            "files": files,
        }
    tokenizer = {
        "file": "bytes.model",
        "kind": "sentencepiece",
        "sha256": hashlib.sha256(b"one id per byte").hexdigest(),
        "vocab_size": VOCAB,
        "lossless": True,
    }
    manifest = {
        "format": 1,
        "name": "bytes",
        "corpus": "test",
        "version": "0" * 64,
        "tokenizer": tokenizer,
        "splits": splits,
        "provenance": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def train_flags(name: str, data: Path, out: Path, *more: str) -> list[str]:
    sizes = [
        *WIDTH.get(name, ["--width", "32", "--context", "16"]),
        "--n-layers",
        "2",
        "--n-heads",
        "4",
        "--vocab-size",
        str(VOCAB),
    ]
    return [
        *sizes,
        "--steps",
        "40",
        "--batch",
        "16",
        *RATES.get(name, []),
        "--data-dir",
        str(data),
        "--out",
        str(out),
        *more,
    ]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_dataset(tmp_path_factory.mktemp("systems") / "datasets" / "bytes")


@pytest.fixture(scope="session", params=SCRIPTS)
def trained(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ModuleType, Path]:
    """(name, module, run folder) of a system trained for a few steps in this process."""
    module, out = load_system(request.param), tmp_path_factory.mktemp(request.param)
    module.main(train_flags(request.param, data, out))
    return request.param, module, out


def result_of(out: Path) -> dict[str, str]:
    return dict(
        token.split(":", 1)
        for token in (out / "train.log")
        .read_text()
        .splitlines()[-1]
        .removeprefix("result ")
        .split(" ")
    )


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
    argv = [
        "score",
        "--artifact",
        str(artifact),
        "--tokens",
        *(str(folder / f"{stem}.bin") for stem in streams),
        "--out",
        str(folder / "out"),
    ]
    if probes is not None:
        (folder / "probes.json").write_text(json.dumps(probes))
        argv += ["--probes", str(folder / "probes.json")]
    module.main(argv)
    return {
        path.name.removesuffix(".npy"): np.load(path, allow_pickle=False)
        for path in (folder / "out").iterdir()
    }


def stream(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, 130, n)


def test_one_file_of_at_most_400_lines_that_imports_nothing_of_the_project():
    for script in SCRIPTS.values():
        source = script.read_text()
        tree = ast.parse(source)
        assert len(source.splitlines()) <= 400, script
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {
            alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
        } | {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        allowed = {"numpy", "sentencepiece"} | (
            set() if "numpy" in script.parent.name else {"torch"}
        )
        assert {m.split(".")[0] for m in modules} - set(sys.stdlib_module_names) <= allowed, script
        assert (
            "pickle" not in modules
            and "allow_pickle=True" not in source
            and "torch.load" not in source
        )
        calls = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"eval", "exec", "compile", "__import__"}, script
        at_import = {type(node) for node in tree.body}
        assert at_import <= {
            ast.Expr,
            ast.Import,
            ast.ImportFrom,
            ast.Assign,
            ast.FunctionDef,
            ast.ClassDef,
            ast.If,
        }, script
        assert all(
            ast.unparse(node.test) == "__name__ == '__main__'"
            for node in tree.body
            if isinstance(node, ast.If)
        ), script


def test_log_and_artifact_are_what_the_packager_reads(trained, data):
    from eval.papers.logs.reading import parse_log

    name, _, out = trained
    log = parse_log(out / "train.log")
    assert log.native and log.problems == []
    assert log.source == SCRIPTS[name].read_bytes()
    artifact = (out / "artifact.bin").read_bytes()
    manifest = json.loads((data / "manifest.json").read_text())
    assert log.text("artifact.sha256") == hashlib.sha256(artifact).hexdigest() and log.integer(
        "result.artifact_bytes"
    ) == len(artifact)
    assert log.text("result.code_sha256") == hashlib.sha256(log.source).hexdigest()
    assert (
        log.integer("result.bytes_total")
        == len(artifact) + len(log.source)
        == log.integer("result.artifact_bytes") + log.integer("result.code_bytes")
    )
    val = manifest["splits"]["val"]
    assert (
        log.integer("result.scored_tokens") == val["tokens"] - 1
        and log.integer("result.scored_bytes") == val["source_bytes"]
    )
    assert log.number("result.val_loss") == pytest.approx(
        log.number("result.nats") / (val["tokens"] - 1), abs=1e-8
    )
    assert log.number("result.val_bpb") == pytest.approx(
        log.number("result.nats") / math.log(2) / val["source_bytes"], abs=1e-8
    )
    assert (
        log.text("data.manifest_sha256")
        == hashlib.sha256((data / "manifest.json").read_bytes()).hexdigest()
    )
    assert log.integer("env.world_size") == 1 and log.integer("model.parameters") > 10_000
    assert "vocab_size=260 (default 1024, from flag)" in log.overrides
    assert not any(
        override.startswith(("seed=", "out=", "data_dir=")) for override in log.overrides
    )
    assert (
        log.steps[-1].step == log.integer("result.steps")
        and log.steps[-1].train_loss < log.steps[0].train_loss
    )


def test_training_learns_and_is_a_function_of_the_seed(trained, data, tmp_path):
    name, module, out = trained
    uniform = math.log(VOCAB)
    assert (
        float(result_of(out)["val_loss"]) < uniform - 1
    )  # the byte frequencies alone are worth two nats
    short = ["--steps", "3"]
    runs = {}
    for label, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        module.main(train_flags(name, data, tmp_path / label, *short, "--seed", seed))
        runs[label] = (
            (tmp_path / label / "artifact.bin").read_bytes(),
            result_of(tmp_path / label)["nats"],
        )
    assert runs["a"] == runs["b"] and runs["a"][1] != runs["c"][1]


def test_score_reproduces_the_result_line(trained, data, tmp_path):
    _, module, out = trained
    tokens = np.concatenate(
        [np.fromfile(path, "<u2")[512:] for path in sorted(data.glob("*_val_*.bin"))]
    )
    nll = score(module, out / "artifact.bin", {"val": tokens}, tmp_path)["val.nll"]
    assert (
        nll.dtype == np.float64
        and nll.shape == (len(tokens) - 1,)
        and math.fsum(nll) == pytest.approx(float(result_of(out)["nats"]), abs=1e-5)
    )


def test_probes_are_the_distributions_that_the_scores_come_from(trained, tmp_path):
    _, module, out = trained
    streams = {"one": stream(1), "short": stream(7, 1), "edge": stream(8, 2), "long": stream(53, 3)}
    probes = {"one": [0], "edge": [7, 0, 7], "long": [52, 0, 7, 8, 15, 16, 23, 24, 31]}
    got = score(module, out / "artifact.bin", streams, tmp_path, probes)
    assert set(got) == {f"{s}.nll" for s in streams} | {f"{s}.probe" for s in probes}
    for stem, x in streams.items():
        assert got[f"{stem}.nll"].shape == (len(x) - 1,) and np.isfinite(got[f"{stem}.nll"]).all()
    for stem, places in probes.items():
        probe = got[f"{stem}.probe"]
        assert probe.dtype == np.float64 and probe.shape == (len(places), VOCAB)
        np.testing.assert_allclose(np.logaddexp.reduce(probe, axis=-1), 0, atol=1e-12)
        for row, place in zip(probe, places, strict=True):
            if place + 1 < len(streams[stem]):
                assert -row[streams[stem][place + 1]] == got[f"{stem}.nll"][place]


def logits_of(name: str, module: ModuleType, artifact: Path, ids: np.ndarray) -> np.ndarray:
    """Logits [T, V] of one window by the model's plain forward pass, float64."""
    model = module.load(artifact)
    if name == "mini-gpt-numpy":
        return model.forward(ids).astype(np.float64)
    import torch

    with torch.no_grad():
        x = torch.from_numpy(np.asarray(ids, np.int64))[None]
        if name == "manual-backward-gpt1":
            weights = module.unflatten(*model)
            return (
                (module.features(x, weights, model[1].n_heads)[0] @ weights.head_DV)[0]
                .double()
                .numpy()
            )
        return (model(x, x)[0] if name == "wikigpt" else model(x))[0].double().numpy()


def test_batched_scores_equal_one_window_at_a_time(trained, tmp_path):
    """Position i is predicted from the window that ends with its half-context block: start = max(0, block end − context)."""
    name, module, out = trained
    x, half = stream(45, 4), CONTEXT // 2
    got = score(module, out / "artifact.bin", {"other": stream(11, 5), "x": x}, tmp_path)["x.nll"]
    for i in range(len(x) - 1):
        start = max(0, (i // half + 1) * half - CONTEXT)
        logits = logits_of(name, module, out / "artifact.bin", x[start : i + 1])[-1]
        assert got[i] == pytest.approx(np.logaddexp.reduce(logits) - logits[x[i + 1]], abs=2e-5), i


def assert_prefix_stable(module: ModuleType, artifact: Path, folder: Path) -> None:
    """Cutting a stream anywhere, or replacing all that follows, moves no earlier score by a single bit."""
    x = stream(61, 6)
    cuts = [1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 25, 40, 60]
    streams = (
        {"full": x}
        | {f"cut{n}": x[:n] for n in cuts}
        | {f"changed{n}": np.concatenate([x[:n], stream(61 - n, 7)]) for n in cuts}
    )
    got = score(module, artifact, streams, folder)
    for n in cuts:
        np.testing.assert_array_equal(got[f"cut{n}.nll"], got["full.nll"][: n - 1])
        np.testing.assert_array_equal(got[f"changed{n}.nll"][: n - 1], got["full.nll"][: n - 1])
        if n < 60:
            assert got[f"changed{n}.nll"][n] != got["full.nll"][n]


def test_scores_are_prefix_stable_to_the_last_bit(trained, tmp_path):
    _, module, out = trained
    assert_prefix_stable(module, out / "artifact.bin", tmp_path)


def test_prefix_check_notices_a_model_that_looks_ahead(trained, tmp_path, monkeypatch):
    name, module, out = trained
    whole = lambda features: lambda *args, **kwargs: smear(features(*args, **kwargs))  # noqa: E731

    def smear(result):
        """Adds 1 % of the window's mean hidden state: the class of leak that normalisation over time makes."""
        x = result[0] if isinstance(result, tuple) else result
        x = x + 0.01 * (
            x.mean(1, keepdims=True) if isinstance(x, np.ndarray) else x.mean(1, keepdim=True)
        )
        return (x, result[1]) if isinstance(result, tuple) else x

    owner = (
        module
        if name == "manual-backward-gpt1"
        else {
            "mini-gpt-numpy": "MiniGPT",
            "transformer-encoder-gpt": "EncoderGPT",
            "wikigpt": "WikiGPT",
        }[name]
    )
    owner = getattr(module, owner) if isinstance(owner, str) else owner
    monkeypatch.setattr(owner, "features", whole(owner.features))
    with pytest.raises(AssertionError):
        assert_prefix_stable(module, out / "artifact.bin", tmp_path)


def test_other_ranks_write_nothing(trained, data, tmp_path, monkeypatch):
    name, module, out = trained
    monkeypatch.setenv("RANK", "1")
    module.main(train_flags(name, data, tmp_path / "run"))
    write_shard(tmp_path / "s.bin", stream(9))
    module.main(
        [
            "score",
            "--artifact",
            str(out / "artifact.bin"),
            "--tokens",
            str(tmp_path / "s.bin"),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["s.bin"]


@pytest.mark.parametrize("name", ["mini-gpt-numpy", "wikigpt"])
def test_score_as_a_program_from_its_own_folder_and_under_torchrun(name, data, tmp_path):
    """The copied script, nothing beside it, gives what it gives in this process, on one rank and on two."""
    module = load_system(name)
    module.main(train_flags(name, data, tmp_path / "run", "--steps", "2"))
    expected = score(
        module, tmp_path / "run" / "artifact.bin", {"s": stream(40)}, tmp_path / "here"
    )["s.nll"]
    script = tmp_path / "alone" / "train_gpt.py"
    script.parent.mkdir()
    shutil.copy(SCRIPTS[name], script)
    for nproc in (1, 2):
        out = tmp_path / f"out{nproc}"
        argv = [
            "score",
            "--artifact",
            tmp_path / "run" / "artifact.bin",
            "--tokens",
            tmp_path / "here" / "s.bin",
            "--out",
            out,
        ]
        done = run_script(*argv, nproc=nproc, script=script)
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(np.load(out / "s.nll.npy"), expected, atol=2e-6)


def test_artifact_holds_the_weights_in_fp16_and_no_pickle(trained):
    _, module, out = trained
    raw = (out / "artifact.bin").read_bytes()
    assert raw[40:42] == b"PK" and b"\x80\x04" not in raw[40:60]  # a zip of arrays
    model = module.load(out / "artifact.bin")
    again = module.export(*model) if isinstance(model, tuple) else module.export(model)
    assert again == raw  # fp16 values survive the way through fp32


@contextlib.contextmanager
def refused(capsys: pytest.CaptureFixture, *needles: str):
    """The block exits with code 2 and one line on stderr that holds all needles."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        yield
    text = capsys.readouterr().err
    assert stop.value.code == 2 and text.startswith("error: ") and text.count("\n") == 1, text
    assert all(needle in text for needle in needles), text


def test_bad_streams_probes_and_artifacts_are_refused(trained, tmp_path, capsys):
    _, module, out = trained
    artifact, shard, probes = out / "artifact.bin", tmp_path / "s.bin", tmp_path / "p.json"

    def run(
        artifact: Path = artifact, tokens: list[Path] | None = None, probes: Path | None = None
    ) -> None:
        argv = [
            "score",
            "--artifact",
            artifact,
            "--tokens",
            *(tokens or [shard]),
            "--out",
            tmp_path / "out",
        ]
        module.main([str(a) for a in argv + (["--probes", probes] if probes else [])])

    with refused(capsys, str(shard)):
        run()
    for kwargs in ({"magic": 7}, {"version": 2}, {"promised": 99}, {"promised": -1}):
        write_shard(shard, stream(9), **kwargs)
        with refused(capsys, str(shard), "20240520"):
            run()
    shard.write_bytes(b"")
    with refused(capsys, str(shard)):
        run()
    write_shard(shard, np.array([], int))
    with refused(capsys, str(shard)):
        run()
    write_shard(shard, np.array([1, VOCAB]))
    with refused(capsys, str(shard), str(VOCAB)):
        run()
    write_shard(shard, stream(9))
    (tmp_path / "sub").mkdir()
    write_shard(tmp_path / "sub" / "s.bin", stream(9))
    with refused(capsys, "twice"):
        run(tokens=[shard, tmp_path / "sub" / "s.bin"])
    for text in ("[", "[1]", '{"s": 3}', '{"s": [9]}', '{"s": [-1]}', '{"s": [[1]]}'):
        probes.write_text(text)
        with refused(capsys, str(probes)):
            run(probes=probes)
    raw, broken = artifact.read_bytes(), tmp_path / "broken.bin"
    flipped = [
        raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :]
        for i in (0, 7, 8, 39, 40, len(raw) // 2, len(raw) - 1)
    ]
    for content in (b"", raw[:-1], raw + b"\0", b"\x80\x04N.", *flipped):
        broken.write_bytes(content)
        with refused(capsys, str(broken)):
            run(artifact=broken)
    assert not (tmp_path / "out").exists()


def test_bad_data_sets_and_flags_are_refused(trained, data, tmp_path, capsys):
    name, module, _ = trained
    run = lambda *more, folder=tmp_path / "d": module.main(
        train_flags(name, folder, tmp_path / "out", *more)
    )  # noqa: E731
    with refused(capsys, "manifest.json"):
        run()

    def fresh() -> dict:
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        shutil.copytree(data, tmp_path / "d")
        return json.loads((data / "manifest.json").read_text())

    for spoil in ("[]", "{", '{"tokenizer": {}}'):
        fresh()
        (tmp_path / "d" / "manifest.json").write_text(spoil)
        with refused(capsys, "manifest.json"):
            run()
    for victim in ("bytes.model", "bytes_train_000001.bin", "bytes_val_000000.bin"):
        fresh()
        raw = bytearray((tmp_path / "d" / victim).read_bytes())
        raw[-1] ^= 1
        (tmp_path / "d" / victim).write_bytes(raw)
        with refused(capsys, victim, "sha256"):
            run()
        (tmp_path / "d" / victim).unlink()
        with refused(capsys, victim):
            run()
    fresh()
    with refused(capsys, "vocabulary"):
        run("--vocab-size", "300")
    for wrong in (["--n-heads", "5"], ["--n-layers", "0"], ["--steps", "0"], ["--batch", "0"]):
        with refused(capsys, "expected"):
            run(*wrong)
    with refused(capsys, "training tokens"):
        run("--context-len" if name == "mini-gpt-numpy" else "--context", "100000")
    with pytest.raises(SystemExit) as stop:
        run("--no-such-flag", "1")
    assert stop.value.code == 2 and not (tmp_path / "out").exists()
