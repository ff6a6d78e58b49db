"""`python -m data text|docs|verify` from outside.

Files in, dataset out. A second run does nothing. Damage is found, and errors take one line.
"""

import hashlib
import importlib.metadata
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm

from data import corpora
from data.__main__ import main
from data.bytes import ByteTable
from data.encode import worker_tokenizer
from data.manifest import load_manifest
from data.shards import read_shard, write_shard
from data.tokenizer import ByteTokenizer, train_tokenizer

REPO = Path(__file__).resolve().parents[1]
PARAGRAPHS = [
    f"Paragraph {i}: the quick brown fox jumps over {i * 7} lazy dogs.\n"
    "    Indented   twice — naïvely."
    for i in range(400)
]


def flags(**options: object) -> list[str]:
    """`--min-characters 1` from `min_characters=1`."""
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    (root / "input.txt").write_text("\n\n".join([*PARAGRAPHS, PARAGRAPHS[0]]))
    assert main(command(root)) == 0
    return root


def command(root: Path, **options: object) -> list[str]:
    defaults = {
        "data_root": root,
        "name": "fox",
        "vocab_size": 400,
        "min_characters": 1,
        "workers": 2,
    }
    return ["text", str(root / "input.txt"), *flags(**(defaults | options))]


def files_of(root: Path) -> list[Path]:
    return [*(root / "datasets").rglob("*.*"), *(root / "tokenizers").rglob("*.*")]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in files_of(root)}


def copy_of(built: Path, root: Path) -> Path:
    """The dataset of `built` again under another root; returns its folder."""
    for name, raw in contents(built).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    (root / "input.txt").write_bytes((built / "input.txt").read_bytes())
    return root / "datasets" / "fox_sp400"


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


def test_verify_agrees(built, capsys):
    assert main(["verify", str(built / "datasets" / "fox_sp400")]) == 0
    assert "checks, all right" in capsys.readouterr().out


def edit_manifest(folder: Path, edit) -> None:
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))


def rewrite_shard(folder: Path, split: str, edit) -> None:
    """Another token stream under an honest header.

    The manifest's counts and hash are put right, so only the contents are wrong.
    """
    path = folder / f"fox_{split}_000000.bin"
    tokens = edit(np.array(read_shard(path)))
    write_shard(path, [tokens])

    def put_right(raw):
        entry = raw["splits"][split]
        [file] = entry["files"]
        entry["tokens"] = len(tokens)
        file["tokens"] = len(tokens)
        file["sha256"] = sha256(path)

    edit_manifest(folder, put_right)


def last_document(folder: Path) -> np.ndarray:
    val = np.array(read_shard(folder / "fox_val_000000.bin"))
    return val[np.flatnonzero(val == 1)[-1] :]


def claim(folder: Path, split: str, **claims: object) -> None:
    """Changes what the manifest says of a split."""
    edit_manifest(folder, lambda raw: raw["splits"][split].update(claims))


def with_token(tokens: np.ndarray, at: int, token: int) -> np.ndarray:
    changed = tokens.copy()
    changed[at] = token
    return changed


def use_unknown_id(folder: Path) -> None:
    rewrite_shard(folder, "val", lambda tokens: with_token(tokens, 9, 400))


def leak_a_document(folder: Path) -> None:
    leaked = last_document(folder)
    rewrite_shard(folder, "train", lambda tokens: np.concatenate([tokens, leaked]))


def lose_a_document(folder: Path) -> None:
    lost = len(last_document(folder))
    rewrite_shard(folder, "val", lambda tokens: tokens[:-lost])


def change_a_token(folder: Path) -> None:
    rewrite_shard(folder, "train", lambda tokens: with_token(tokens, 5, tokens[6]))


def lose_the_first_bos(folder: Path) -> None:
    rewrite_shard(folder, "train", lambda tokens: tokens[1:])


def overstate_bytes(folder: Path) -> None:
    claim(folder, "val", counted_bytes=10**6)


def overstate_source_bytes(folder: Path) -> None:
    claim(folder, "val", source_bytes=10**6)


def add_a_stray_shard(folder: Path) -> None:
    write_shard(folder / "fox_train_000007.bin", [np.ones(3, np.uint16)])


def falsify_a_hash(folder: Path) -> None:
    edit_manifest(folder, lambda raw: raw["splits"]["val"]["files"][0].update(sha256="0" * 64))


def falsify_the_end_of_a_hash(folder: Path) -> None:
    """The report shows the beginning of a hash; all of it counts."""

    def edit(raw):
        [file] = raw["splits"]["val"]["files"]
        last = "0" if file["sha256"][-1] != "0" else "1"
        file["sha256"] = file["sha256"][:-1] + last

    edit_manifest(folder, edit)


def remove_a_shard(folder: Path) -> None:
    (folder / "fox_val_000000.bin").unlink()


TAMPERED = [
    (use_unknown_id, "ids below the vocabulary"),
    (leak_a_document, "train documents also in val"),
    (lose_a_document, "documents"),
    (change_a_token, "corpus version, from decoded text"),
    (lose_the_first_bos, "first token"),
    (overstate_bytes, "bytes by the table"),
    (overstate_bytes, "bytes by decoding"),
    (overstate_source_bytes, "source bytes"),
    (add_a_stray_shard, "shards outside the manifest"),
    (falsify_a_hash, "sha256"),
    (falsify_the_end_of_a_hash, "sha256"),
    (remove_a_shard, "readable"),
]


def wrong_checks(report: str) -> list[str]:
    lines = [line for line in report.splitlines() if line.endswith("WRONG")]
    return [line.split("  ")[1] for line in lines]


@pytest.mark.parametrize(("tamper", "check"), TAMPERED)
def test_verify_finds(built, tmp_path, capsys, tamper, check):
    folder = copy_of(built, tmp_path)
    tamper(folder)
    assert main(["verify", str(folder)]) == 2
    report = capsys.readouterr().out
    assert check in wrong_checks(report)
    assert f"delete {folder / 'manifest.json'} and run the command" in report.splitlines()[-1]


@pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="the planted bug reaches workers by fork"
)
def test_verify_asks_the_decoder(built, tmp_path, capsys, monkeypatch):
    """A byte table that is wrong in both manifest and check: only the decoder tells."""
    folder = copy_of(built, tmp_path)
    tokens = np.array(read_shard(folder / "fox_val_000000.bin"))
    claimed = load_manifest(folder).splits["val"].counted_bytes
    one_more_each = claimed + int((tokens > 3).sum())
    edit_manifest(folder, lambda raw: raw["tokenizer"].update(lossless=False))
    claim(folder, "val", counted_bytes=one_more_each, source_bytes=None)
    right = ByteTable.token_bytes
    monkeypatch.setattr(
        ByteTable, "token_bytes", lambda self, ids, previous=1: right(self, ids) + (ids > 3)
    )
    worker_tokenizer.cache_clear()
    assert main(["verify", str(folder)]) == 2
    assert wrong_checks(capsys.readouterr().out) == ["bytes by decoding", "bytes by the table"]


def test_the_report_is_plain_text_of_any_width(built, tmp_path):
    """Piped into a file, with a narrow terminal claimed: no escape codes, no shortened names."""
    folder = built / "datasets" / "fox_sp400"
    long_name = "fox_train_" + "9" * 150 + ".bin"
    copy = copy_of(built, tmp_path)
    (copy / long_name).write_bytes(b"")
    narrow = {
        "PYTHONPATH": str(REPO),
        "COLUMNS": "20",
        "FORCE_COLOR": "1",
        "TERM": "xterm-256color",
    }
    done = subprocess.run(
        [sys.executable, "-m", "data", "verify", folder, copy],
        env=narrow,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    [wrong] = [line for line in lines if line.endswith("WRONG")]
    assert wrong.split()[-3:] == ["none", long_name, "WRONG"]
    assert lines[1].split() == ["check", "where", "expected", "found"]
    assert all(line == line.rstrip() for line in lines)


def test_verify_refuses_a_foreign_tokenizer(built, tmp_path, capsys):
    """VALIDITY C6: shards bound to the tokenizer that made them."""
    folder = copy_of(built, tmp_path)
    path = tmp_path / "tokenizers" / "fox_400_bpe.model"
    path.write_bytes(path.read_bytes() + b"\x00")
    assert main(["verify", str(folder)]) == 2
    assert "not found" in capsys.readouterr().err


def test_verify_finds_a_foreign_tokenizer_behind_a_right_hash(built, tmp_path, capsys):
    """The manifest put right for another model of the same size: only encoding again can tell."""
    folder = copy_of(built, tmp_path)
    path = tmp_path / "tokenizers" / "fox_400_bpe.model"
    zebras = [f"Zebras {i} vex, quiz, jinx!" * 3 for i in range(900)]
    path.write_bytes(train_tokenizer(zebras + PARAGRAPHS[:40], 400))

    def put_right(raw):
        raw["tokenizer"].update(sha256=sha256(path), lossless=False)

    edit_manifest(folder, put_right)
    assert main(["verify", str(folder)]) == 2
    assert wrong_checks(capsys.readouterr().out) == [
        "encode(decode(x)) = x",
        "bytes by the table",
        "bytes by decoding",
        "bytes by the table",
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
    "bad JSON": ("a.jsonl", b'{"text": "x"}\nnonsense\n', {}, "line 2 is no JSON"),
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
