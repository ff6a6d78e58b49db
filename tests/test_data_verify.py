"""`python -m data verify`: a sound dataset passes, whatever is wrong is named with its remedy."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_support import PARAGRAPHS, REPO, build_fox, copy_of, sha256

from data.__main__ import main
from data.bytes import ByteTable
from data.encode import worker_tokenizer
from data.manifest import load_manifest
from data.shards import read_shard, write_shard
from data.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return build_fox(tmp_path_factory.mktemp("data"))


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
