"""`python -m data text|docs` from outside.

Files in, dataset out. A second run does nothing. Damage is repaired, and errors take one line.
"""

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm
from data_support import (
    PARAGRAPHS,
    REPO,
    build_fox,
    command,
    contents,
    copy_of,
    flags,
    sha256,
)

from data import corpora
from data.__main__ import main
from data.manifest import load_manifest
from data.shards import read_shard
from data.tokenizer import ByteTokenizer


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return build_fox(tmp_path_factory.mktemp("data"))


def test_the_manifest_tells_the_truth(built):
    """Counted again from the input by hand: each split's documents, bytes, corpus version."""
    folder = built / "datasets" / "fox_sp400"
    raw = json.loads((folder / "manifest.json").read_text())
    digests = sorted(hashlib.sha256(text.encode()).digest() for text in PARAGRAPHS)
    val = [digest for digest in digests if digest[0] < 0x10]
    train = [digest for digest in digests if digest[0] >= 0x10]
    assert raw["version"] == hashlib.sha256(b"".join(train + val)).hexdigest()
    assert (raw["format"], raw["name"], raw["corpus"]) == (1, "fox_sp400", "text")
    splits = raw["splits"]
    assert splits["train"]["documents"] == len(train)
    assert splits["val"]["documents"] == len(val)
    source_bytes = sum(split["source_bytes"] for split in splits.values())
    assert source_bytes == sum(len(text.encode()) for text in PARAGRAPHS)
    assert 0 < splits["val"]["xz_bytes"] < splits["val"]["source_bytes"]
    assert raw["provenance"]["duplicates_dropped"] == 1


def test_the_manifest_names_the_files(built):
    folder = built / "datasets" / "fox_sp400"
    raw = json.loads((folder / "manifest.json").read_text())
    tokenizer = built / "tokenizers" / raw["tokenizer"]["file"]
    assert raw["tokenizer"] == {
        "file": tokenizer.name,
        "kind": "sentencepiece",
        "sha256": sha256(tokenizer),
        "vocab_size": 400,
        "lossless": True,
    }
    for name, split in raw["splits"].items():
        [file] = split["files"]
        assert file["name"] == f"fox_{name}_000000.bin"
        assert file["sha256"] == sha256(folder / file["name"])
        tokens = read_shard(folder / file["name"])
        assert len(tokens) == file["tokens"] == split["tokens"]
        assert (tokens == 1).sum() == split["documents"]


def test_decoded_shards_are_the_documents(built):
    folder = built / "datasets" / "fox_sp400"
    sp = spm.SentencePieceProcessor(model_file=str(built / "tokenizers" / "fox_400_bpe.model"))
    texts = []
    for name in ("train", "val"):
        tokens = np.array(read_shard(folder / f"fox_{name}_000000.bin"))
        assert tokens[0] == 1
        documents = np.split(tokens, np.flatnonzero(tokens == 1))[1:]
        texts += [sp.decode(ids.tolist()) for ids in documents]
    assert sorted(texts) == sorted(PARAGRAPHS)


def test_a_second_run_does_nothing(built, capsys):
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*.*")}
    assert main(command(built)) == 0
    assert "up to date" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in built.rglob("*.*")}


def test_the_number_of_processes_changes_nothing(built, tmp_path):
    (tmp_path / "input.txt").write_bytes((built / "input.txt").read_bytes())
    assert main(command(tmp_path, workers=1)) == 0
    assert contents(tmp_path) == contents(built)


def flip(path: Path) -> None:
    """One bit, near the end; in the manifest, in its first byte."""
    raw = bytearray(path.read_bytes())
    raw[0 if path.name == "manifest.json" else -9] ^= 8
    path.write_bytes(raw)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    "victim", ["fox_train_000000.bin", "fox_val_000000.bin", "manifest.json", "fox_400_bpe.model"]
)
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_damage_is_repaired_by_the_next_run(built, tmp_path, victim, damage):
    folder = copy_of(built, tmp_path)
    home = tmp_path / "tokenizers" if victim.endswith(".model") else folder
    damage(home / victim)
    assert main(command(tmp_path)) == 0
    assert contents(tmp_path) == contents(built)


def test_another_input_is_built_again_and_leaves_no_stale_shard(built, tmp_path):
    folder = copy_of(built, tmp_path)
    (folder / "fox_train_000001.bin").write_bytes(b"left by a longer build")
    (tmp_path / "input.txt").write_text("\n\n".join(PARAGRAPHS[:300]))
    assert main(command(tmp_path)) == 0
    assert sum(split.documents for split in load_manifest(folder).splits.values()) == 300
    assert sorted(path.name for path in folder.iterdir()) == [
        "fox_train_000000.bin",
        "fox_val_000000.bin",
        "manifest.json",
    ]


def text_command(root: Path, tokenizer: Path) -> list[str]:
    """`data text` with an existing tokenizer."""
    options = flags(data_root=root, name="mine", min_characters=1, tokenizer=tokenizer)
    return ["text", str(root / "input.txt"), *options]


def test_an_existing_tokenizer(built, tmp_path, capsys):
    (tmp_path / "input.txt").write_text("\n\n".join(PARAGRAPHS[:200]))
    model = built / "tokenizers" / "fox_400_bpe.model"
    copy = tmp_path / "tokenizers" / model.name
    assert main(text_command(tmp_path, model)) == 0
    assert copy.read_bytes() == model.read_bytes()
    assert main(["verify", str(tmp_path / "datasets" / "mine_sp400")]) == 0
    copy.write_bytes(b"another")
    assert main(text_command(tmp_path, model)) == 2
    assert "another tokenizer has this name" in capsys.readouterr().err


def test_pure_bytes(tmp_path):
    (tmp_path / "input.txt").write_text("\n\n".join(PARAGRAPHS))
    tokenizer = tmp_path / "pure_byte.json"
    tokenizer.write_bytes(ByteTokenizer.model)
    assert main(text_command(tmp_path, tokenizer)) == 0
    folder = tmp_path / "datasets" / "mine_byte260"
    manifest = load_manifest(folder)
    assert (manifest.tokenizer.kind, manifest.tokenizer.lossless) == ("bytes", True)
    for split in manifest.splits.values():
        assert split.tokens == split.source_bytes + split.documents
    assert main(["verify", str(folder)]) == 0


def test_docs_from_two_small_packages(tmp_path, monkeypatch, capsys):
    """The whole command on fewer packages: built, verified, not built again.

    Other packages are another corpus.
    """
    monkeypatch.setattr(corpora, "DOCS_PACKAGES", ("click", "mpmath"))
    arguments = ["docs", "--vocab-size", "512", "--data-root", str(tmp_path)]
    assert main(arguments) == 0
    folder = tmp_path / "datasets" / "docs_sp512"
    manifest = load_manifest(folder)
    assert manifest.tokenizer.file == "docs_512_bpe.model"
    assert manifest.tokenizer.lossless
    assert sorted(path.name for path in folder.iterdir()) == [
        "docs_train_000000.bin",
        "docs_val_000000.bin",
        "manifest.json",
    ]
    assert manifest.provenance["recipe"]["packages"] == {
        name: importlib.metadata.version(name) for name in ("click", "mpmath")
    }
    assert main(["verify", str(folder)]) == 0
    assert main(arguments) == 0
    assert "up to date" in capsys.readouterr().out
    monkeypatch.setattr(corpora, "DOCS_PACKAGES", ("mpmath",))
    assert main(arguments) == 0
    assert load_manifest(folder).version != manifest.version


MANY = "\n\n".join(PARAGRAPHS).encode()
# Each case: the input file and its contents, further arguments, what the message says.
BAD_INPUT = {
    "missing file": ("a.txt", None, {}, "a.txt: no such file"),
    "not UTF-8": (
        "a.txt",
        MANY + b"\xff\xfe",
        {},
        f"not UTF-8 at byte {len(MANY):,} (0xff",
    ),
    "bad JSON": ("a.jsonl", b'{"text": "x"}\nnonsense\n', {}, "line 2 is not JSON"),
    "empty validation split": (
        "a.txt",
        b"one document",
        {},
        "split is empty: 1 different documents",
    ),
    "no text at all": ("a.txt", b"\n \n", {}, "split is empty: 0 different documents"),
    "vocabulary too large": (
        "a.txt",
        MANY,
        {"min_characters": 1, "vocab_size": 60000},
        "this text allows at most",
    ),
    "vocabulary too small": (
        "a.txt",
        MANY,
        {"min_characters": 1, "vocab_size": 10},
        "expected 261",
    ),
    "no tokenizer there": (
        "a.txt",
        MANY,
        {"tokenizer": "none.model"},
        "none.model: tokenizer cannot be read",
    ),
    "no tokenizer at all": (
        "a.txt",
        MANY,
        {"tokenizer": "a.txt"},
        "a.txt: not a SentencePiece model",
    ),
    "a name that is a path": ("a.txt", MANY, {"name": "../x"}, "--name"),
    "fraction out of range": ("a.txt", MANY, {"val_fraction": 1.5}, "between 0 and 1"),
    "unknown flag": ("a.txt", MANY, {"vocabsize": 10}, "unrecognized arguments"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, case):
    name, raw, options, says = BAD_INPUT[case]
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    done = subprocess.run(
        [sys.executable, "-m", "data", "text", name, *flags(data_root=tmp_path, **options)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("datasets/*/manifest.json"))


def test_a_read_only_root(tmp_path, capsys):
    (tmp_path / "input.txt").write_bytes(MANY)
    (tmp_path / "datasets").write_bytes(b"a file where a folder should be")
    assert main(command(tmp_path)) == 2
    assert "datasets" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    for name in ("docs", "text", "verify"):
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
    assert "--val-fraction" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    """What a command needs it imports when it runs, so the list of commands comes at once."""
    code = (
        "import sys; from data.__main__ import command_line; command_line(); "
        "print([name for name in ('numpy', 'sentencepiece', 'pydantic', 'huggingface_hub', "
        "'datatrove', 'rich', 'tqdm') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_an_ascii_terminal_is_no_failure(tmp_path):
    """The summary holds letters that ASCII lacks."""
    source = tmp_path / "a.txt"
    source.write_text("\n\n".join(PARAGRAPHS))
    options = flags(name="plain", vocab_size=400, data_root=tmp_path, min_characters=1)
    done = subprocess.run(
        [sys.executable, "-m", "data", "text", str(source), *options],
        cwd=REPO,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert (tmp_path / "datasets").is_dir()
