"""`python -m data text|docs|verify` from outside: files in, dataset out, a second run that does nothing, damage found, errors in one line."""

import hashlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import corpora
from data.__main__ import main
from data.manifest import load_manifest
from data.shards import read_shard, write_shard

REPO = Path(__file__).resolve().parents[1]
PARAGRAPHS = [
    f"Paragraph {i}: the quick brown fox jumps over {i * 7} lazy dogs.\n    Indented   twice — naïvely."
    for i in range(400)
]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    (root / "input.txt").write_text("\n\n".join([*PARAGRAPHS, PARAGRAPHS[0]]))
    assert main(command(root)) == 0
    return root


def command(root: Path, *extra: str) -> list[str]:
    options = [
        "--data-root",
        str(root),
        "--name",
        "fox",
        "--vocab-size",
        "400",
        "--min-characters",
        "1",
        "--workers",
        "2",
    ]
    return ["text", str(root / "input.txt"), *options, *extra]


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in ("datasets", "tokenizers")
        for path in (root / folder).rglob("*.*")
    }


def copy_of(built: Path, root: Path) -> Path:
    for name, raw in contents(built).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)
    (root / "input.txt").write_bytes((built / "input.txt").read_bytes())
    return root / "datasets" / "fox_sp400"


def test_the_manifest_tells_the_truth(built):
    """Counted again from the input by hand: which documents are in which split, their bytes, the corpus version."""
    folder = built / "datasets" / "fox_sp400"
    raw = json.loads((folder / "manifest.json").read_text())
    digests = sorted(hashlib.sha256(text.encode()).digest() for text in PARAGRAPHS)
    val = [digest for digest in digests if digest[0] < 0x10]
    train = [digest for digest in digests if digest[0] >= 0x10]
    assert raw["version"] == hashlib.sha256(b"".join(train + val)).hexdigest()
    assert (raw["format"], raw["name"], raw["corpus"]) == (1, "fox_sp400", "text")
    assert (raw["splits"]["train"]["documents"], raw["splits"]["val"]["documents"]) == (
        len(train),
        len(val),
    )
    assert sum(split["source_bytes"] for split in raw["splits"].values()) == sum(
        len(text.encode()) for text in PARAGRAPHS
    )
    assert raw["provenance"]["duplicates_dropped"] == 1
    tokenizer = built / "tokenizers" / raw["tokenizer"]["file"]
    assert hashlib.sha256(tokenizer.read_bytes()).hexdigest() == raw["tokenizer"]["sha256"]
    assert raw["tokenizer"] | {"file": "", "sha256": ""} == {
        "file": "",
        "kind": "sentencepiece",
        "sha256": "",
        "vocab_size": 400,
        "lossless": True,
    }
    for name, split in raw["splits"].items():
        [file] = split["files"]
        assert file["name"] == f"fox_{name}_000000.bin"
        assert hashlib.sha256((folder / file["name"]).read_bytes()).hexdigest() == file["sha256"]
        tokens = read_shard(folder / file["name"])
        assert len(tokens) == file["tokens"] == split["tokens"]
        assert (tokens == 1).sum() == split["documents"]
    assert 0 < raw["splits"]["val"]["xz_bytes"] < raw["splits"]["val"]["source_bytes"]


def test_decoded_shards_are_the_documents(built):
    import sentencepiece as spm

    folder = built / "datasets" / "fox_sp400"
    sp = spm.SentencePieceProcessor(model_file=str(built / "tokenizers" / "fox_400_bpe.model"))
    texts = []
    for name in ("train", "val"):
        tokens = np.array(read_shard(folder / f"fox_{name}_000000.bin"))
        assert tokens[0] == 1
        texts += [
            sp.decode(ids.tolist()) for ids in np.split(tokens, np.flatnonzero(tokens == 1))[1:]
        ]
    assert sorted(texts) == sorted(PARAGRAPHS)


def test_a_second_run_does_nothing(built, capsys):
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*.*")}
    assert main(command(built)) == 0
    assert "up to date" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in built.rglob("*.*")}


def test_the_number_of_processes_changes_nothing(built, tmp_path):
    (tmp_path / "input.txt").write_bytes((built / "input.txt").read_bytes())
    assert main(command(tmp_path, "--workers", "1")) == 0
    assert contents(tmp_path) == contents(built)


@pytest.mark.parametrize(
    "victim", ["fox_train_000000.bin", "fox_val_000000.bin", "manifest.json", "fox_400_bpe.model"]
)
@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_damage_is_repaired_by_the_next_run(built, tmp_path, victim, how):
    folder = copy_of(built, tmp_path)
    path = folder / victim if victim != "fox_400_bpe.model" else tmp_path / "tokenizers" / victim
    raw = path.read_bytes()
    if how == "remove":
        path.unlink()
    else:
        at = 0 if victim == "manifest.json" else len(raw) - 9
        path.write_bytes(
            raw[:-9] if how == "truncate" else raw[:at] + bytes([raw[at] ^ 8]) + raw[at + 1 :]
        )
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


def test_verify_agrees(built, capsys):
    assert main(["verify", str(built / "datasets" / "fox_sp400")]) == 0
    assert "checks, all right" in capsys.readouterr().out


def edit_manifest(folder: Path, edit) -> None:
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))


def rewrite_shard(folder: Path, split: str, edit) -> None:
    """Another token stream under an honest header, with the manifest's counts and hash put right: only the contents are wrong."""
    path = folder / f"fox_{split}_000000.bin"
    tokens = edit(np.array(read_shard(path)))
    write_shard(path, [tokens])

    def put_right(raw):
        entry = raw["splits"][split]
        entry["tokens"] = entry["files"][0]["tokens"] = len(tokens)
        entry["files"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

    edit_manifest(folder, put_right)


def last_document(folder: Path) -> np.ndarray:
    val = np.array(read_shard(folder / "fox_val_000000.bin"))
    return val[np.flatnonzero(val == 1)[-1] :]


TAMPERED = {
    "an id beyond the vocabulary": (
        lambda f: rewrite_shard(f, "val", lambda t: np.where(np.arange(len(t)) == 9, 400, t)),
        "ids below the vocabulary",
    ),
    "a validation document in train": (
        lambda f: rewrite_shard(f, "train", lambda t: np.concatenate([t, last_document(f)])),
        "train documents also in val",
    ),
    "a document lost": (
        lambda f: rewrite_shard(f, "val", lambda t: t[: -len(last_document(f))]),
        "documents",
    ),
    "a token changed": (
        lambda f: rewrite_shard(f, "train", lambda t: np.where(np.arange(len(t)) == 5, t[6], t)),
        "corpus version, from decoded text",
    ),
    "no BOS at the start": (lambda f: rewrite_shard(f, "train", lambda t: t[1:]), "first token"),
    "bytes overstated": (
        lambda f: edit_manifest(f, lambda m: m["splits"]["val"].update(counted_bytes=10**6)),
        "bytes by the table",
    ),
    "source bytes overstated": (
        lambda f: edit_manifest(f, lambda m: m["splits"]["val"].update(source_bytes=10**6)),
        "source bytes",
    ),
    "a stray shard": (
        lambda f: write_shard(f / "fox_train_000007.bin", [np.ones(3, np.uint16)]),
        "shards outside the manifest",
    ),
    "a wrong hash": (
        lambda f: edit_manifest(
            f, lambda m: m["splits"]["val"]["files"][0].update(sha256="0" * 64)
        ),
        "sha256",
    ),
    "a missing shard": (lambda f: (f / "fox_val_000000.bin").unlink(), "readable"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_verify_finds(built, tmp_path, capsys, case):
    folder = copy_of(built, tmp_path)
    tamper, check = TAMPERED[case]
    tamper(folder)
    assert main(["verify", str(folder)]) == 2
    wrong = [
        line.split("  ") for line in capsys.readouterr().out.splitlines() if line.endswith("WRONG")
    ]
    assert check in [words[1] for words in wrong]


def test_verify_refuses_a_foreign_tokenizer(built, tmp_path, capsys):
    """VALIDITY C6: shards bound to the tokenizer that made them."""
    folder = copy_of(built, tmp_path)
    path = tmp_path / "tokenizers" / "fox_400_bpe.model"
    path.write_bytes(path.read_bytes() + b"\x00")
    assert main(["verify", str(folder)]) == 2
    assert "not found" in capsys.readouterr().err


def test_verify_finds_a_foreign_tokenizer_behind_a_right_hash(built, tmp_path, capsys):
    """The manifest put right for another model of the same size: only encoding the text again can tell."""
    from data.tokenizer import train_tokenizer

    folder = copy_of(built, tmp_path)
    path = tmp_path / "tokenizers" / "fox_400_bpe.model"
    path.write_bytes(
        train_tokenizer(
            [f"Zebras {i} vex, quiz, jinx!" * 3 for i in range(900)] + PARAGRAPHS[:40], 400
        )
    )
    edit_manifest(
        folder,
        lambda m: m["tokenizer"].update(
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(), lossless=False
        ),
    )
    assert main(["verify", str(folder)]) == 2
    out = capsys.readouterr().out
    assert [line.split("  ")[1] for line in out.splitlines() if line.endswith("WRONG")] == [
        "encode(decode(x)) = x",
        "bytes by the table",
        "bytes by the table",
    ]


def test_an_existing_tokenizer(built, tmp_path, capsys):
    (tmp_path / "input.txt").write_text("\n\n".join(PARAGRAPHS[:200]))
    model = built / "tokenizers" / "fox_400_bpe.model"
    arguments = [
        "text",
        str(tmp_path / "input.txt"),
        "--data-root",
        str(tmp_path),
        "--name",
        "mine",
        "--min-characters",
        "1",
    ]
    assert main([*arguments, "--tokenizer", str(model)]) == 0
    assert (tmp_path / "tokenizers" / model.name).read_bytes() == model.read_bytes()
    assert main(["verify", str(tmp_path / "datasets" / "mine_sp400")]) == 0
    (tmp_path / "tokenizers" / model.name).write_bytes(b"another")
    assert main([*arguments, "--tokenizer", str(model)]) == 2
    assert "another tokenizer has this name" in capsys.readouterr().err


def test_pure_bytes(tmp_path):
    from data.tokenizer import ByteTokenizer

    (tmp_path / "input.txt").write_text("\n\n".join(PARAGRAPHS))
    (tmp_path / "pure_byte.json").write_bytes(ByteTokenizer.model)
    arguments = [
        "text",
        str(tmp_path / "input.txt"),
        "--data-root",
        str(tmp_path),
        "--name",
        "mine",
        "--min-characters",
        "1",
    ]
    assert main([*arguments, "--tokenizer", str(tmp_path / "pure_byte.json")]) == 0
    manifest = load_manifest(tmp_path / "datasets" / "mine_byte260")
    assert (manifest.tokenizer.kind, manifest.tokenizer.lossless) == ("bytes", True)
    assert all(
        split.tokens == split.source_bytes + split.documents for split in manifest.splits.values()
    )
    assert main(["verify", str(tmp_path / "datasets" / "mine_byte260")]) == 0


def test_docs_from_two_small_packages(tmp_path, monkeypatch, capsys):
    """The whole command on fewer packages: built, verified, not built again; another version of a package is another corpus."""
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


def write(name: str, raw: bytes):
    return lambda root: (root / name).write_bytes(raw)


MANY = "\n\n".join(PARAGRAPHS).encode()
BAD_INPUT = {
    "missing file": (lambda root: None, ["a.txt"], "a.txt: no such file"),
    "not UTF-8": (
        write("a.txt", MANY + b"\xff\xfe"),
        ["a.txt"],
        f"not UTF-8 at byte {len(MANY):,} (0xff",
    ),
    "bad JSON": (write("a.jsonl", b'{"text": "x"}\nnonsense\n'), ["a.jsonl"], "line 2 is no JSON"),
    "empty validation split": (
        write("a.txt", b"one document"),
        ["a.txt"],
        "split is empty: 1 different documents",
    ),
    "no text at all": (
        write("a.txt", b"\n \n"),
        ["a.txt"],
        "split is empty: 0 different documents",
    ),
    "vocabulary too large": (
        write("a.txt", MANY),
        ["a.txt", "--min-characters", "1", "--vocab-size", "60000"],
        "this text allows at most",
    ),
    "vocabulary too small": (
        write("a.txt", MANY),
        ["a.txt", "--min-characters", "1", "--vocab-size", "10"],
        "expected 261",
    ),
    "no tokenizer there": (
        write("a.txt", MANY),
        ["a.txt", "--tokenizer", "none.model"],
        "none.model: tokenizer cannot be read",
    ),
    "no tokenizer at all": (
        write("a.txt", MANY),
        ["a.txt", "--tokenizer", "a.txt"],
        "a.txt: not a SentencePiece model",
    ),
    "a name that is a path": (write("a.txt", MANY), ["a.txt", "--name", "../x"], "--name"),
    "fraction out of range": (
        write("a.txt", MANY),
        ["a.txt", "--val-fraction", "1.5"],
        "between 0 and 1",
    ),
    "unknown flag": (
        write("a.txt", MANY),
        ["a.txt", "--vocabsize", "10"],
        "unrecognized arguments",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, case):
    prepare, arguments, says = BAD_INPUT[case]
    prepare(tmp_path)
    run = [sys.executable, "-m", "data", "text", *arguments, "--data-root", str(tmp_path)]
    done = subprocess.run(
        run, cwd=tmp_path, env={"PYTHONPATH": str(REPO)}, capture_output=True, text=True
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
