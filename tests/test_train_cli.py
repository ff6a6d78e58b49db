"""The command line: bad input is one clear line and exit code 2; the file keeps its promises of size, independence and no dead switch."""

import ast
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import CLEAN_ENV, ROOT, flags, run_script, write_shard

import train_gpt as tg

SOURCE = (ROOT / "train_gpt.py").read_text()


def refuse(*argv: object, expected: str, env: dict[str, str] | None = None) -> None:
    done = run_script(*argv, env=env)
    assert done.returncode == 2, (done.stdout[-500:], done.stderr[-500:])
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in done.stderr
    assert re.search(expected, line), line


@pytest.fixture
def copy(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "datasets" / "copy")


def edit_manifest(folder, change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def shard(folder, split="train"):
    return sorted(folder.glob(f"*_{split}_*.bin"))[0]


DAMAGE = {
    "missing shard": (
        lambda d: shard(d).unlink(),
        r"test_train_000000.bin: expected a token shard, found No such file.*python -m data",
    ),
    "empty shard": (
        lambda d: shard(d).write_bytes(b""),
        r"expected shard magic 20240520, version 1, found 0 bytes",
    ),
    "wrong magic": (
        lambda d: write_shard(shard(d), np.arange(4, 90), magic=7),
        r"found magic 7, version 1",
    ),
    "wrong version": (
        lambda d: write_shard(shard(d), np.arange(4, 90), version=2),
        r"found magic 20240520, version 2",
    ),
    "wrong size": (
        lambda d: write_shard(shard(d), np.arange(4, 90), promised=99),
        r"header promises 99 tokens, file holds 86",
    ),
    "foreign token": (
        lambda d: write_shard(shard(d), np.array([1, 260])),
        r"expected token ids < 260, found 260",
    ),
    "flipped byte": (
        lambda d: shard(d).write_bytes(shard(d).read_bytes()[:-2] + b"\x09\x00"),
        r"expected [\d,]+ tokens with sha256 \w+, found",
    ),
    "no manifest": (
        lambda d: (d / "manifest.json").unlink(),
        r"manifest.json: expected a data set's manifest.*python -m data",
    ),
    "broken manifest": (
        lambda d: (d / "manifest.json").write_text("{"),
        r"manifest.json: expected the manifest that",
    ),
    "other vocabulary": (
        lambda d: edit_manifest(d, lambda m: m["tokenizer"].update(vocab_size=512)),
        r"expected vocabulary 260, found 512",
    ),
    "missing tokenizer": (
        lambda d: edit_manifest(
            d, lambda m: m["tokenizer"].update(kind="sentencepiece", file="t.model")
        ),
        r"tokenizers/t.model: expected the manifest's tokenizer, sha256 0000\w+, found no file",
    ),
    "wrong byte count": (
        lambda d: edit_manifest(d, lambda m: m["splits"]["val"].update(source_bytes=5)),
        r"expected 5 validation bytes, found",
    ),
    "counted otherwise": (
        lambda d: edit_manifest(d, lambda m: m["splits"]["val"].update(counted_bytes=6)),
        r"expected 6 validation bytes, found",
    ),
    "no kind": (
        lambda d: edit_manifest(d, lambda m: m["tokenizer"].pop("kind")),
        r"expected the manifest that.*KeyError 'kind'",
    ),
    "no source bytes": (
        lambda d: edit_manifest(
            d, lambda m: m["splits"]["val"].update(source_bytes=None, xz_bytes=3)
        ),
        r"expected the manifest that",
    ),
    "no validation": (
        lambda d: edit_manifest(d, lambda m: m["splits"]["val"].update(files=[])),
        r"expected at least one val shard, found none",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_data_is_refused(copy, tmp_path, name):
    damage, expected = DAMAGE[name]
    damage(copy)
    cfg = tg.parse_config(flags(data_dir=copy, out=tmp_path / "o"), {})[0]
    with pytest.raises(tg.UserError, match=expected) as caught:
        tg.open_dataset(copy, cfg, tg.Runtime())
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_other_bytes_is_refused(copy):
    (copy / "t.model").write_bytes(b"another tokenizer")
    edit_manifest(copy, lambda m: m["tokenizer"].update(kind="sentencepiece", file="t.model"))
    with pytest.raises(
        tg.UserError,
        match=r"t.model: expected the manifest's tokenizer, sha256 0000\w+, found \w{64};",
    ):
        tg.open_dataset(copy, tg.parse_config(flags(), {})[0], tg.Runtime())


def test_the_right_tokenizer_is_found_past_a_stale_one(tmp_path):
    folder, right = tmp_path / "datasets" / "x", b"the right one"
    (tmp_path / "tokenizers").mkdir()
    folder.mkdir(parents=True)
    (folder / "t.model").write_bytes(b"stale")
    (tmp_path / "tokenizers" / "t.model").write_bytes(right)
    entry = {
        "kind": "sentencepiece",
        "file": "t.model",
        "sha256": hashlib.sha256(right).hexdigest(),
    }
    assert tg.find_tokenizer(folder, entry) == tmp_path / "tokenizers" / "t.model"


def test_bytes_that_depend_on_context_come_from_the_manifest(copy):
    """Their sidecar was summed when the data set was made; the byte table of the tokenizer would give another number."""
    edit_manifest(
        copy, lambda m: m["splits"]["val"].update(counted_bytes=77, byte_files=[{"name": "x"}])
    )
    assert tg.open_dataset(copy, tg.parse_config(flags(), {})[0], tg.Runtime()).val_bytes == 77


def test_refusals_reach_the_shell(copy, tmp_path):
    shard(copy).unlink()
    refuse(*flags(data_dir=copy, out=tmp_path / "o"), expected="expected a token shard")
    refuse(
        *flags(data_dir=copy, out="/proc/nowhere"), expected="/proc/nowhere.*: expected a writable"
    )
    refuse(
        "score",
        "--artifact",
        tmp_path / "none",
        "--tokens",
        "x.bin",
        "--out",
        tmp_path,
        expected="none: expected an artifact, found No such file",
    )
    unknown = run_script("--no-such-flag", "1")
    assert unknown.returncode == 2 and "--no-such-flag" in unknown.stderr


def test_one_rank_finding_damage_ends_all_ranks(copy, tmp_path):
    shard(copy).write_bytes(b"")
    done = run_script(*flags(data_dir=copy, out=tmp_path / "o"), nproc=2)
    assert done.returncode != 0 and done.stderr.count("expected shard magic") == 1


def test_a_launcher_that_makes_no_sense_is_refused(tmp_path):
    refuse(
        *flags(out=tmp_path / "o"),
        expected="expected integers, found a, 1, 0, 1",
        env={"RANK": "a"},
    )


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["--eval-stride", "33"],
            r"expected 1 <= eval_stride <= eval_seq_len, found eval_stride=33, eval_seq_len=32",
        ),
        (["--num-heads", "5"], r"num_heads to divide model_dim, found model_dim=\d+, num_heads=5"),
        (["--num-kv-heads", "3"], r"num_kv_heads to divide num_heads"),
        (["--model-dim", "36", "--num-heads", "12"], r"an even head size"),
        (["--num-encoder-layers", "5"], r"0 <= num_encoder_layers <= num_layers"),
        (["--micro-batch-tokens", "100"], r"train_seq_len to divide micro_batch_tokens"),
        (["--micro-batch-tokens", "96"], r"micro_batch_tokens to divide train_batch_tokens"),
        (
            ["--matrix-format", "int4"],
            r"one of fp16, fp32, int8, int6, int5, found matrix_format=int4",
        ),
        (["--control-format", "int8"], r"one of fp16, fp32, found control_format=int8"),
        (["--muon-lr", "nan"], r"-1e\+300 <= muon_lr <= 1e\+300, found muon_lr=nan"),
        (["--ema-decay", "1.0"], r"0 <= ema_decay <= 0.99"),
        (["--num-heads", "0"], r"1 <= num_heads"),
        (["--vocab-size", "70000"], r"65536"),
        (["--seed", "-1"], r"0 <= seed <= 9223372036854775807, found seed=-1"),
        (["--ngram-order", "256"], r"0 <= ngram_order <= 255"),
        (["--num-layers", "2000"], r"1 <= num_layers <= 1024"),
    ],
)
def test_bad_settings_are_refused(argv, expected):
    with pytest.raises(tg.UserError, match=expected):
        tg.parse_config([*flags(), *argv], {})


def test_flags_win_over_the_environment_over_the_preset_and_every_difference_is_logged():
    cfg, lines = tg.parse_config(
        ["--preset", "docs_cpu", "--seed", "7", "--out", "x"],
        {"SEED": "9", "MUON_LR": "0.5", "LOG_EVERY": "20"},
    )
    assert (cfg.seed, cfg.muon_lr, cfg.out) == (7, 0.5, "x")
    assert "config:override seed=7 (default 1337, from flag)" in lines
    assert (
        f"config:override muon_lr=0.5 (default {tg.Config().muon_lr}, from environment MUON_LR)"
        in lines
    )
    other = tg.parse_config(["--preset", "docs_cpu", "--muon-lr", "0.5"], {})[1][-1]
    assert lines[-1] == other  # seed and folders do not make runs incomparable
    assert tg.parse_config(["--preset", "docs_cpu"], {})[1][-1] != other
    with pytest.raises(tg.UserError, match="environment SEED: expected int, found 'abc'"):
        tg.parse_config([], {"SEED": "abc"})
    with pytest.raises(tg.UserError, match="environment PRESET"):
        tg.parse_config([], {"PRESET": "nope"})


def test_imports_without_gpu_environment_or_output():
    code = "import sys; sys.argv = ['x']; import train_gpt; print(train_gpt.Config().model_dim)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": CLEAN_ENV["PATH"]},
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "512\n"), done.stderr


def test_the_file_is_one_readable_file():
    lines = SOURCE.splitlines()
    assert len(lines) <= 1500 and max(map(len, lines)) <= 160
    banners = [int(n) for n in re.findall(r"^# --- (\d+)\. ", SOURCE, flags=re.M)]
    assert banners == list(range(1, 13))
    tree = ast.parse(SOURCE)
    local = {p.stem for p in ROOT.glob("*.py")} | {"data", "eval", "bench", "tests"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            assert not {n.split(".")[0] for n in names} & local, names
        assert not isinstance(node, ast.Global)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("exec", "eval")
    allowed = (
        ast.Import,
        ast.ImportFrom,
        ast.FunctionDef,
        ast.ClassDef,
        ast.Assign,
        ast.AnnAssign,
        ast.If,
        ast.Expr,
    )
    assert all(isinstance(node, allowed) for node in tree.body)


def test_every_config_field_is_read():
    without_config = (
        SOURCE[: SOURCE.index("class Config:")] + SOURCE[SOURCE.index("MODEL_FIELDS = [") :]
    )
    for f in dataclasses.fields(tg.Config):
        assert re.search(rf"(cfg|blocks)\.{f.name}\b", without_config), f.name


def test_params_prints_the_table_of_the_reference():
    done = run_script("params")
    assert done.returncode == 0, done.stderr
    total = done.stdout.strip().splitlines()[-1].split()
    assert total[0] == "total" and total[2] == "25,254,992"
    assert re.search(r"^blocks.fc +10 +7,864,320 .*int6", done.stdout, flags=re.M)


def test_lint_and_format():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, str(ROOT)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout[-3000:]
