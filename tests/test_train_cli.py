"""The command line: bad input is one clear line and exit code 2, and every setting is used."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CLEAN_ENV, ROOT, flags, run_script, write_shard
from train_support import tiny

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


def open_copy(folder: Path) -> tg.Dataset:
    return tg.open_dataset(tiny(data_dir=str(folder)), tg.Ranks())


def shard(folder: Path, split: str = "train") -> Path:
    return sorted(folder.glob(f"*_{split}_*.bin"))[0]


def edit_manifest(folder: Path, change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def change_tokenizer(folder: Path, **entries: object) -> None:
    edit_manifest(folder, lambda manifest: manifest["tokenizer"].update(entries))


def change_val(folder: Path, **entries: object) -> None:
    edit_manifest(folder, lambda manifest: manifest["splits"]["val"].update(entries))


def plant_token(path: Path, token: int) -> None:
    tokens = np.array(tg.open_shard(path))
    tokens[len(tokens) // 2] = token
    write_shard(path, tokens)


def rewrite(folder: Path, tokens: np.ndarray, **header: int) -> None:
    write_shard(shard(folder), tokens, **header)


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
        lambda d: rewrite(d, np.arange(4, 90), magic=7),
        r"found magic 7, version 1",
    ),
    "wrong version": (
        lambda d: rewrite(d, np.arange(4, 90), version=2),
        r"found magic 20240520, version 2",
    ),
    "wrong size": (
        lambda d: rewrite(d, np.arange(4, 90), promised=99),
        r"header promises 99 tokens, file holds 86",
    ),
    "another length": (
        lambda d: rewrite(d, np.arange(4, 90)),
        r"test_train_000000.bin: expected [\d,]+ tokens by the manifest, found 86",
    ),
    "foreign training token": (
        lambda d: plant_token(shard(d), 260),
        r"test_train_000000.bin: expected token ids < 260, found 260",
    ),
    "foreign validation token": (
        lambda d: plant_token(shard(d, "val"), 300),
        r"test_val_000000.bin: expected token ids < 260, found 300",
    ),
    "no manifest": (
        lambda d: (d / "manifest.json").unlink(),
        r"manifest.json: expected a data set's manifest.*python -m data",
    ),
    "broken manifest": (
        lambda d: (d / "manifest.json").write_text("{"),
        r"manifest.json: expected the manifest that",
    ),
    "endless nesting": (
        lambda d: (d / "manifest.json").write_text("[" * 100_000),
        r"manifest.json: expected the manifest that.*RecursionError",
    ),
    "half a surrogate pair": (
        lambda d: edit_manifest(d, lambda m: m.update(corpus="\ud800")),
        r"manifest.json: expected the manifest that.*UnicodeEncodeError",
    ),
    "a name that no system takes": (
        lambda d: change_val(d, files=[{"name": "a\0b", "tokens": 5, "sha256": ""}]),
        r"expected a token shard, found .*null",
    ),
    "tokens that are no count": (
        lambda d: change_val(d, files=[{"name": "a", "tokens": 5.0, "sha256": ""}]),
        r"expected the manifest that.*ValueError tokens 5\.0",
    ),
    "other vocabulary": (
        lambda d: change_tokenizer(d, vocab_size=512),
        r"expected vocabulary 260, found 512; pass --vocab-size 512",
    ),
    "no tokenizer hash": (
        lambda d: edit_manifest(d, lambda m: m["tokenizer"].pop("sha256")),
        r"expected the manifest that.*KeyError 'sha256'",
    ),
    "no bytes": (
        lambda d: change_val(d, source_bytes=None),
        r"expected the manifest that.*ValueError validation bytes None",
    ),
    "xz of no source": (
        lambda d: change_val(d, source_bytes=None, counted_bytes=5, xz_bytes=3),
        r"expected the manifest that.*TypeError",
    ),
    "no bytes at all": (
        lambda d: change_val(d, source_bytes=0),
        r"expected validation text, found 0 bytes",
    ),
    "no validation": (
        lambda d: change_val(d, files=[]),
        r"expected at least one val shard, found none",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_data_is_refused(copy, name):
    damage, expected = DAMAGE[name]
    damage(copy)
    with pytest.raises(tg.UserError, match=expected) as caught:
        open_copy(copy)
    assert "\n" not in str(caught.value)


def test_bytes_that_depend_on_context_come_from_the_manifest(copy):
    """Their sidecar was summed when the data set was made; the source bytes are another number."""
    change_val(copy, counted_bytes=77, byte_files=[{"name": "x"}])
    assert open_copy(copy).manifest.val_bytes == 77


def test_an_export_without_its_source_is_opened(copy):
    """The published shards come with counted bytes alone."""
    change_val(copy, source_bytes=None, counted_bytes=77, xz_bytes=None)
    assert open_copy(copy).manifest.val_bytes == 77


def test_the_log_binds_a_run_to_its_manifest(copy):
    digest = tg.sha256_file(copy / "manifest.json")
    assert f"manifest_sha256:{digest}" in open_copy(copy).log_line
    change_val(copy, counted_bytes=77)
    assert digest not in open_copy(copy).log_line


def test_refusals_reach_the_shell(copy, tmp_path):
    shard(copy).unlink()
    refuse(*flags(data_dir=copy, out=tmp_path / "o"), expected="expected a token shard")
    refuse(
        *flags(data_dir=copy, out="/proc/nowhere"),
        expected="/proc/nowhere.*: expected a writable",
    )
    score = ("score", "--artifact", tmp_path / "none", "--tokens", "x.bin", "--out", tmp_path)
    refuse(*score, expected="none: expected an artifact, found No such file")
    unknown = run_script("--no-such-flag", "1")
    assert unknown.returncode == 2 and "--no-such-flag" in unknown.stderr


def test_one_rank_finding_damage_ends_all_ranks(copy, tmp_path):
    shard(copy).write_bytes(b"")
    done = run_script(*flags(data_dir=copy, out=tmp_path / "o"), nproc=2)
    assert done.returncode != 0 and done.stderr.count("expected shard magic") == 1


def test_a_launcher_that_makes_no_sense_is_refused(tmp_path):
    settings = flags(out=tmp_path / "o")
    refuse(*settings, expected="expected integers, found a, 1, 0, 1", env={"RANK": "a"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"eval_stride": 33},
            r"eval_stride <= eval_seq_len, found eval_stride=33, eval_seq_len=32",
        ),
        ({"eval_batch_tokens": 31}, r"eval_seq_len <= eval_batch_tokens"),
        ({"num_heads": 5}, r"num_heads to divide model_dim, found model_dim=\d+, num_heads=5"),
        ({"num_kv_heads": 3}, r"num_kv_heads to divide num_heads"),
        ({"model_dim": 36, "num_heads": 12}, r"an even head size"),
        ({"num_encoder_layers": 5}, r"num_encoder_layers <= num_layers"),
        ({"late_k_fp16_layers": 5}, r"late_k_fp16_layers <= num_layers"),
        ({"micro_batch_tokens": 100}, r"train_seq_len to divide micro_batch_tokens"),
        ({"micro_batch_tokens": 96}, r"micro_batch_tokens to divide train_batch_tokens"),
        (
            {"matrix_format": "int4"},
            r"one of fp16, fp32, int8, int7, int6, int5, found matrix_format=int4",
        ),
        ({"control_format": "int8"}, r"one of fp16, fp32, found control_format=int8"),
        ({"compile": 3}, r"compile to be one of 0, 1, 2, found compile=3"),
        ({"muon_lr": "nan"}, r"expected muon_lr >= 0, found muon_lr=nan"),
        (
            {"ema_decay": 1.0},
            r"expected 0 <= ema_decay < 1, found ema_decay=1.0; change these flags",
        ),
        ({"embed_lr": "inf"}, r"expected embed_lr >= 0, found embed_lr=inf"),
        ({"q_gain_init": "nan"}, r"expected a finite q_gain_init, found q_gain_init=nan"),
        ({"num_encoder_layers": 0, "encoder_recurrence": 1}, r"expected encoder layers to repeat"),
        ({"num_heads": 0}, r"1 <= num_heads"),
        ({"vocab_size": 70_000}, r"65536"),
        ({"seed": -1}, r"0 <= seed <= 9223372036854775807, found seed=-1"),
        ({"ngram_order": 256}, r"0 <= ngram_order <= 255"),
        ({"num_layers": 2000}, r"1 <= num_layers <= 1024"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(changes, expected):
    with pytest.raises(tg.UserError, match=expected):
        tg.parse_config(flags(**changes), {})


def test_flags_win_over_the_environment_over_the_preset():
    """And the log names every difference from the preset."""
    argv = ["--preset", "docs_cpu", "--seed", "7", "--out", "x"]
    environ = {"SEED": "9", "MUON_LR": "0.5", "LOG_EVERY": "20"}
    cfg, lines = tg.parse_config(argv, environ)
    assert (cfg.run.seed, cfg.training.muon_lr, cfg.run.out) == (7, 0.5, "x")
    assert "config:override seed=7 (default 1337, from flag)" in lines
    default = tg.Config().training.muon_lr
    expected = f"config:override muon_lr=0.5 (default {default}, from environment MUON_LR)"
    assert expected in lines
    assert not any("log_every" in line for line in lines)  # it is the preset's value


def test_seed_and_folders_do_not_make_runs_incomparable():
    def digest(*argv: str) -> str:
        return tg.parse_config(["--preset", "docs_cpu", *argv], {})[1][-1]

    assert digest("--seed", "7", "--out", "x", "--resume", "1") == digest()
    assert digest("--muon-lr", "0.5") != digest()


def test_bad_environments_are_refused():
    with pytest.raises(tg.UserError, match="environment SEED: expected int, found 'abc'"):
        tg.parse_config([], {"SEED": "abc"})
    with pytest.raises(tg.UserError, match="environment PRESET"):
        tg.parse_config([], {"PRESET": "nope"})


def test_names_of_settings_are_unique_and_unknown_ones_refused():
    sizes = [len(dataclasses.fields(group)) for group in vars(tg.Config()).values()]
    assert len(tg.Config().flat()) == sum(sizes)
    assert tg.Config().with_settings(model_dim=64, seed=3).flat()["model_dim"] == 64
    with pytest.raises(KeyError, match="no such settings: model_width"):
        tg.Config().with_settings(model_width=3)


@pytest.mark.parametrize("preset", tg.PRESETS)
def test_presets_hold_their_own_rules(preset):
    assert tg.validate(tg.PRESETS[preset]) is tg.PRESETS[preset]


def test_help_shows_groups_and_the_values_of_the_chosen_preset(capsys):
    def shown(*argv: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            tg.parse_config([*argv, "--help"], {})
        assert stopped.value.code == 0
        return re.sub(r"\s+", " ", capsys.readouterr().out)

    reference, docs = shown(), shown("--preset", "docs_cpu")
    for group in ("run", "model", "training", "export", "scoring"):
        assert f"{group} settings:" in docs
    assert "--model-dim int width of the residual stream [512]" in reference
    assert "--model-dim int width of the residual stream [128]" in docs
    assert "--matrix-format fp16|fp32|int8|int7|int6|int5 format of projections [int6]" in docs
    assert "--log-every steps between lines of the log [20]" in docs


def test_every_setting_has_a_help_text_and_accepts_its_default():
    for group in vars(tg.Config()).values():
        for f in dataclasses.fields(group):
            assert f.metadata["help"], f.name
            tg.check_setting(f, f.default)


IMPORT_ALONE = """
import sys
sys.argv = ["x"]
import torch, train_gpt
print(train_gpt.Config().model)
with torch.device("meta"):  # as an artifact is read
    train_gpt.GPT(train_gpt.Config().model)
assert "torch._dynamo" not in sys.modules
"""


def test_imports_without_gpu_environment_output_or_compiler():
    """torch's compiler takes three seconds to load, and no scorer needs it."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALONE],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": CLEAN_ENV["PATH"], "CUDA_VISIBLE_DEVICES": ""},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "vocab_size=1024, model_dim=512" in done.stdout


@pytest.mark.parametrize("group", [f.name for f in dataclasses.fields(tg.Config)])
def test_every_setting_is_read(group):
    """By attribute, outside the section that declares it."""
    after_settings = SOURCE[SOURCE.index("# --- 2. Ranks and log") :]
    for f in dataclasses.fields(getattr(tg.Config(), group)):
        assert re.search(rf"\.{f.name}\b", after_settings), f.name
