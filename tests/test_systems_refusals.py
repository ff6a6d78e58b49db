"""What the four reference systems refuse: streams, probes, artifacts, data sets and flags.

Every refusal takes one line that names the file, and exit code 2.
"""

import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import write_shard
from systems_support import (
    SCRIPTS,
    VOCAB,
    build_dataset,
    load_system,
    refused,
    score_flags,
    stream,
    train_flags,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return build_dataset(tmp_path_factory.mktemp("systems") / "datasets" / "bytes")


@pytest.fixture(scope="module", params=SCRIPTS)
def trained(request, data, tmp_path_factory) -> tuple[str, ModuleType, Path]:
    """(name, module, run folder) of a system after one step."""
    name = request.param
    module = load_system(name)
    out = tmp_path_factory.mktemp(name)
    module.main(train_flags(name, data, out, steps=1))
    return name, module, out


def test_bad_streams_are_refused(trained, tmp_path, capsys):
    _, module, out = trained
    shard = tmp_path / "s.bin"
    namesake = tmp_path / "sub" / "s.bin"

    def run(*tokens: Path) -> None:
        module.main(score_flags(out / "artifact.bin", [*tokens], tmp_path / "out"))

    with refused(capsys, str(shard)):
        run(shard)
    for header in ({"magic": 7}, {"version": 2}, {"promised": 99}, {"promised": -1}):
        write_shard(shard, stream(9), **header)
        with refused(capsys, str(shard), "20240520"):
            run(shard)
    shard.write_bytes(b"")
    with refused(capsys, str(shard)):
        run(shard)
    write_shard(shard, np.array([], int))
    with refused(capsys, str(shard)):
        run(shard)
    write_shard(shard, np.array([1, VOCAB]))
    with refused(capsys, str(shard), str(VOCAB)):
        run(shard)
    namesake.parent.mkdir()
    for path in (shard, namesake):
        write_shard(path, stream(9))
    with refused(capsys, "twice"):
        run(shard, namesake)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["[", "[1]", '{"s": 3}', '{"s": [9]}', '{"s": [-1]}', '{"s": [[1]]}']
)
def test_bad_probes_are_refused(trained, tmp_path, capsys, text):
    _, module, out = trained
    shard = tmp_path / "s.bin"
    write_shard(shard, stream(9))
    probes = tmp_path / "p.json"
    probes.write_text(text)
    argv = score_flags(out / "artifact.bin", [shard], tmp_path / "out")
    with refused(capsys, str(probes)):
        module.main([*argv, "--probes", str(probes)])
    assert not (tmp_path / "out").exists()


def test_bad_artifacts_are_refused(trained, tmp_path, capsys):
    _, module, out = trained
    shard = tmp_path / "s.bin"
    write_shard(shard, stream(9))
    raw = (out / "artifact.bin").read_bytes()
    damaged = [b"", raw[:-1], raw + b"\0", b"\x80\x04N."]
    for i in (0, 7, 8, 39, 40, len(raw) // 2, len(raw) - 1):
        damaged.append(raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :])
    broken = tmp_path / "broken.bin"
    for contents in damaged:
        broken.write_bytes(contents)
        with refused(capsys, str(broken)):
            module.main(score_flags(broken, [shard], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_bad_data_sets_are_refused(trained, data, tmp_path, capsys):
    name, module, _ = trained
    folder = tmp_path / "d"

    def run() -> None:
        module.main(train_flags(name, folder, tmp_path / "out"))

    def copy_data() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(data, folder)

    with refused(capsys, "manifest.json"):
        run()
    for spoiled in ("[]", "{", '{"tokenizer": {}}'):
        copy_data()
        (folder / "manifest.json").write_text(spoiled)
        with refused(capsys, "manifest.json"):
            run()
    for victim in ("bytes.model", "bytes_train_000001.bin", "bytes_val_000000.bin"):
        copy_data()
        raw = bytearray((folder / victim).read_bytes())
        raw[-1] ^= 1
        (folder / victim).write_bytes(raw)
        with refused(capsys, victim, "sha256"):
            run()
        (folder / victim).unlink()
        with refused(capsys, victim):
            run()
    assert not (tmp_path / "out").exists()


def test_bad_flags_are_refused(trained, data, tmp_path, capsys):
    name, module, _ = trained

    def run(**wrong: object) -> None:
        module.main(train_flags(name, data, tmp_path / "out", **wrong))

    with refused(capsys, "vocabulary"):
        run(vocab_size=300)
    for wrong in ({"n_heads": 5}, {"n_layers": 0}, {"steps": 0}, {"batch": 0}):
        with refused(capsys, "expected"):
            run(**wrong)
    context = "context_len" if name == "mini-gpt-numpy" else "context"
    with refused(capsys, "training tokens"):
        run(**{context: 100_000})
    with pytest.raises(SystemExit) as stop:
        run(no_such_flag=1)
    assert stop.value.code == 2
    assert not (tmp_path / "out").exists()
