"""The packager: figures worked by hand, every reason to refuse, whole folders or none."""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys

import pytest
from records_support import TRICKY_SOURCE, FakeRun, cli, pack_three, three_seeds

from eval.commands import pack
from eval.errors import UserError
from eval.papers.logs.reading import parse_log
from eval.papers.rendering import packing
from eval.papers.rendering.readme import CHANGES_BEGIN, CHANGES_END, changes_of
from eval.papers.submission.reading import load_submission
from eval.papers.submission.schema import PACKED_SEED_FIELDS, Submission, json_schema


def packed(tmp_path, *runs, extra=()):
    """Pack runs as the record 2026-11-24_x; returns the exit code."""
    about = ["--name", "X", "--slug", "x", "--date", "2026-11-24"]
    return cli(pack, *runs, *about, "--records-dir", tmp_path / "records", *extra)


def test_folder_holds_what_a_record_needs(tmp_path):
    folder = pack_three(tmp_path)
    assert folder == tmp_path / "records" / "track_docs_cpu" / "2026-11-24_example-record"
    seeds = (1337, 42, 2025)
    expected = {"README.md", "submission.json", "train_gpt.py", "loss.png", "score.png"}
    expected |= {f"train_seed{s}.log" for s in seeds} | {f"artifact_seed{s}.bin" for s in seeds}
    assert {item.name for item in folder.iterdir()} == expected
    assert (folder / "train_gpt.py").read_bytes() == TRICKY_SOURCE.encode()
    for seed in seeds:
        assert parse_log(folder / f"train_seed{seed}.log").source == TRICKY_SOURCE.encode()
        assert (folder / f"artifact_seed{seed}.bin").read_bytes() == b"w" * (700 + seed % 10)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # no temporary left


def test_figures_match_hand_worked_ones(tmp_path):
    s = load_submission(pack_three(tmp_path))
    # 1.00, 1.03, 0.97 bits per byte at 2 bytes per token: loss = bits * 2 ln 2.
    assert (s.val_bpb, s.val_bpb_std) == (1.0, 0.03)
    assert s.val_loss == pytest.approx(2 * math.log(2), abs=1e-8)
    assert s.val_loss_std == pytest.approx(0.06 * math.log(2), abs=1e-8)
    assert s.bytes_artifact == 707
    assert s.bytes_code == len(TRICKY_SOURCE.encode())
    assert s.bytes_total == 707 + s.bytes_code  # seed 1337: 700 + 1337 % 10
    assert s.seeds == [1337, 42, 2025]
    assert list(s.seed_results) == ["1337", "42", "2025"]
    assert s.seed_results["42"].nats == pytest.approx(2060 * math.log(2), abs=1e-6)
    assert s.code_sha256 == hashlib.sha256(TRICKY_SOURCE.encode()).hexdigest()
    assert s.config.preset == "docs_cpu"
    assert s.config.overrides == []
    assert (s.author, s.github_id) == ("Ann Author", "ann")
    assert str(s.date) == "2026-11-24"
    assert (s.track, s.origin) == ("track_docs_cpu", "packed")


def test_contest_fields_are_there(tmp_path):
    raw = json.loads((pack_three(tmp_path) / "submission.json").read_text())
    assert {
        "author",
        "github_id",
        "name",
        "blurb",
        "date",
        "val_loss",
        "val_bpb",
        "bytes_total",
        "bytes_code",
    } <= set(raw)


def test_no_number_in_the_readme_is_typed(tmp_path):
    folder = pack_three(tmp_path)
    text = (folder / "README.md").read_text()
    stated = (folder / "submission.json").read_text()
    numbers = set(re.findall(r"\b\d+\.\d{8}\b", text))
    assert {"1.00000000", "1.03000000", "0.97000000", "1.25000000"} <= numbers
    assert all(re.search(rf"\b{re.escape(n.rstrip('0'))}0*\b", stated) for n in numbers)
    script = "records/track_docs_cpu/2026-11-24_example-record/train_gpt.py"
    assert f"for seed in 1337 42 2025; do python {script} train --preset docs_cpu " in text
    options = "--data-dir data/datasets/docs_sp1024 --seed $seed"
    assert f"{options} --out runs/example-record_seed$seed; done" in text
    assert "python -m data docs" in text


@pytest.mark.pictures
def test_pictures_and_readme_are_reproducible(tmp_path):
    first = pack_three(tmp_path / "a")
    second = pack_three(tmp_path / "b")
    for name in ("README.md", "submission.json", "loss.png", "score.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    picture = (first / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 120_000


def test_overrides_reach_the_reproduction_command(tmp_path):
    overrides = ("ngram_order=5", 'label="two words"')
    runs = three_seeds(tmp_path / "runs", overrides=overrides, preset=None)
    assert packed(tmp_path, *runs) == 0
    text = next((tmp_path / "records").rglob("README.md")).read_text()
    assert "train --ngram-order 5 --label '\"two words\"' --data-dir " in text


def test_several_ranks_use_torchrun(tmp_path):
    env = FakeRun().env.replace("world_size:1", "world_size:8")
    assert packed(tmp_path, *three_seeds(tmp_path / "runs", env=env)) == 0
    text = next((tmp_path / "records").rglob("README.md")).read_text()
    assert "torchrun --standalone --nproc_per_node=8 records/" in text


# --- refusals ---

DIFFERENCES = {
    "code": {"source": TRICKY_SOURCE + "# more\n"},
    "config (sha256)": {"config": "e" * 64},
    "config overrides": {"overrides": ("ngram_order=5",)},
    "preset": {"preset": "docs_gpu"},
    "data": {"version": "e" * 64},
    "number of ranks": {"env": FakeRun().env.replace("world_size:1", "world_size:2")},
    "training precision": {
        "env": FakeRun().env.replace("train_dtype:float32", "train_dtype:bfloat16")
    },
}


@pytest.mark.parametrize("aspect", DIFFERENCES)
def test_seeds_that_differ_in_more_than_the_seed_are_refused(tmp_path, aspect):
    first = FakeRun().write(tmp_path / "a")
    second = FakeRun(seed=42, **DIFFERENCES[aspect]).write(tmp_path / "b")
    with pytest.raises(UserError, match=re.escape(aspect)) as error:
        packed(tmp_path, first, second)
    assert str(second) in str(error.value)
    assert str(first) in str(error.value)
    assert not (tmp_path / "records").exists()


def test_the_same_seed_twice_is_refused(tmp_path):
    first = FakeRun().write(tmp_path / "a")
    second = FakeRun(nats=1400.0).write(tmp_path / "b")
    with pytest.raises(UserError, match="seed 1337 again"):
        packed(tmp_path, first, second)


def test_a_manifest_made_elsewhere_is_the_same_data(tmp_path):
    """The manifest's hash covers where and when it was made.

    The corpus version, the tokenizer and the counts identify the data."""
    second = FakeRun(seed=42).write(tmp_path / "b")
    log = second / "train.log"
    log.write_bytes(log.read_bytes().replace(b"c" * 64, b"f" * 64))
    assert packed(tmp_path, FakeRun().write(tmp_path / "a"), second) == 0


def edited(run, old: str, new: str):
    log = run / "train.log"
    text = log.read_bytes()
    head, mark, tail = text.rpartition(b"===== end source =====")
    assert old.encode() in tail
    log.write_bytes(head + mark + tail.replace(old.encode(), new.encode()))
    return run


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("result val_loss:1.38629436", "result val_loss:1.38629440", "val_loss"),
        ("val_bpb:1.00000000 nats", "val_bpb:0.99999990 nats", "val_bpb"),
        ("scored_tokens:1000", "scored_tokens:1001", "val_loss"),
        ("val_tokens:1001", "val_tokens:1201", "scored_tokens"),
        ("bytes_total:1217", "bytes_total:1216", "bytes_total"),
        ("code_bytes:517 bytes_total:1217", "code_bytes:500 bytes_total:1200", "code_bytes"),
        ("code_sha256:5", "code_sha256:6", "sha256 of the code"),
        (
            "artifact file:artifact.bin bytes:700 sha256:",
            "artifact file:artifact.bin bytes:700 sha256:0",
            "artifact_sha256: String should match",
        ),
        ("artifact file:artifact.bin", "artifact file:other.bin", "missing"),
        ("config sha256:", "konfig sha256:", "config sha256"),
        ("data corpus:docs", "data", "corpus"),
    ],
)
def test_logs_that_contradict_themselves_are_refused(tmp_path, old, new, message):
    run = edited(FakeRun().write(tmp_path / "a"), old, new)
    with pytest.raises(UserError, match=message):
        packed(tmp_path, run)
    assert not (tmp_path / "records").exists()


def test_an_artifact_of_another_run_is_refused(tmp_path):
    run = FakeRun().write(tmp_path / "a")
    (run / "artifact.bin").write_bytes(b"W" + b"eights" + b"weights" * 99)
    with pytest.raises(UserError, match=r"artifact\.bin: sha256 of the artifact"):
        packed(tmp_path, run)


def test_incomplete_and_foreign_logs_are_refused(tmp_path):
    run = FakeRun().write(tmp_path / "a")
    whole = (run / "train.log").read_bytes()
    (run / "train.log").write_bytes(whole[: whole.rindex(b"result val_loss")])
    with pytest.raises(UserError, match="truncated: expected one complete 'result"):
        packed(tmp_path, run)
    (run / "train.log").write_bytes(b"step:1/2 train_loss:1\nfinal val_bpb:1.0\n")
    with pytest.raises(UserError, match="log_format:1"):
        packed(tmp_path, run)
    with pytest.raises(UserError, match="cannot be read"):
        packed(tmp_path, tmp_path / "nothing")


def test_caps(tmp_path):
    big = FakeRun(artifact=b"x" * 2_000_001).write(tmp_path / "big")
    with pytest.raises(UserError, match="commits at most 2,000,000"):
        packed(tmp_path, big)
    assert packed(tmp_path, big, extra=["--track", "track_non_record_16mb"]) == 0
    folder = tmp_path / "records" / "track_non_record_16mb" / "2026-11-24_x"
    assert not list(folder.glob("*.bin"))  # big tracks name the artifact, git does not hold it
    row = load_submission(folder).seed_results["1337"]
    assert row.artifact is None
    assert row.artifact_bytes == 2_000_001
    assert row.artifact_sha256 == hashlib.sha256(b"x" * 2_000_001).hexdigest()
    # The code has 517 bytes.
    over = FakeRun(artifact=b"x" * (16_000_000 - 516)).write(tmp_path / "over")
    with pytest.raises(UserError, match="16,000,001 bytes, the cap is 16,000,000"):
        packed(tmp_path, over, extra=["--track", "track_10min_16mb"])


@pytest.mark.parametrize(
    "options",
    [
        ["--slug", "Not Kebab"],
        ["--date", "24.11.2026"],
        ["--base", "2020-01-01_none"],
        ["--changes", "nowhere.md"],
    ],
)
def test_bad_options_are_user_errors(tmp_path, options):
    with pytest.raises(UserError):
        packed(tmp_path, FakeRun().write(tmp_path / "a"), extra=options)


# --- the target folder ---


def test_packing_completes_a_folder_that_holds_the_script(tmp_path):
    folder = tmp_path / "records" / "track_docs_cpu" / "2026-11-24_x"
    folder.mkdir(parents=True)
    (folder / "train_gpt.py").write_text(TRICKY_SOURCE)
    assert packed(tmp_path, FakeRun().write(tmp_path / "a")) == 0
    assert (folder / "submission.json").is_file()


def test_packing_never_loses_files(tmp_path):
    folder = tmp_path / "records" / "track_docs_cpu" / "2026-11-24_x"
    folder.mkdir(parents=True)
    run = FakeRun().write(tmp_path / "a")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        packed(tmp_path, run, extra=["--replace"])
    (folder / "notes.txt").unlink()
    (folder / "train_gpt.py").write_text("another script\n")
    with pytest.raises(UserError, match="differs from the source in the logs"):
        packed(tmp_path, run)
    assert packed(tmp_path, run, extra=["--replace"]) == 0
    with pytest.raises(UserError, match="a record of this name exists"):
        packed(tmp_path, run)
    better = FakeRun(nats=1300.0).write(tmp_path / "b")
    assert packed(tmp_path, better, extra=["--replace"]) == 0
    assert load_submission(folder).val_bpb == pytest.approx(1300 / math.log(2) / 2000, abs=1e-8)


def test_failure_leaves_the_old_record_and_no_debris(tmp_path, monkeypatch):
    assert packed(tmp_path, FakeRun().write(tmp_path / "a")) == 0
    folder = tmp_path / "records" / "track_docs_cpu" / "2026-11-24_x"
    before = (folder / "submission.json").read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(packing, "loss_picture", fail)
    with pytest.raises(OSError, match="disk full"):
        packed(tmp_path, FakeRun(nats=1300.0).write(tmp_path / "b"), extra=["--replace"])
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert (folder / "submission.json").read_bytes() == before


def test_refresh_keeps_the_text_and_shows_the_audit(tmp_path):
    changes = tmp_path / "changes.md"
    changes.write_text("Longer warm-down.\n\n* cost 3 lines\n")
    options = ["--changes", changes, "--blurb", "short"]
    assert packed(tmp_path, FakeRun().write(tmp_path / "a"), extra=options) == 0
    folder = tmp_path / "records" / "track_docs_cpu" / "2026-11-24_x"
    before = (folder / "README.md").read_text()
    assert "Longer warm-down.\n\n* cost 3 lines" in before
    assert "Not audited yet." in before
    # A typed figure does not survive.
    (folder / "README.md").write_text(before.replace("1.00000000", "0.10000000"))
    assert cli(pack, "--refresh", folder) == 0
    assert (folder / "README.md").read_text() == before


def test_what_changed_is_never_empty_and_never_breaks_its_markers(tmp_path):
    overrides = ("ngram_order=5", "model_dim=64")
    assert packed(tmp_path, *three_seeds(tmp_path / "runs", overrides=overrides)) == 0
    folder = tmp_path / "records" / "track_docs_cpu" / "2026-11-24_x"
    settings = "`ngram_order=5`, `model_dim=64`"
    assert changes_of(folder) == f"Preset `docs_cpu` of `train_gpt.py`, changed: {settings}."
    changes = tmp_path / "changes.md"
    changes.write_text(f"half {CHANGES_END} other half")
    run = FakeRun().write(tmp_path / "a")
    with pytest.raises(UserError, match="holds the marker"):
        packed(tmp_path, run, extra=["--slug", "y", "--changes", changes])


def test_markers_in_name_and_blurb_are_text(tmp_path):
    changes = tmp_path / "changes.md"
    changes.write_text("Longer warm-down.")
    blurb = f"a {CHANGES_BEGIN} b {CHANGES_END}"
    run = FakeRun().write(tmp_path / "a")
    texts = ["--name", f"N {CHANGES_END}", "--blurb", blurb, "--changes", changes]
    assert packed(tmp_path, run, extra=texts) == 0
    folder = tmp_path / "records" / "track_docs_cpu" / "2026-11-24_x"
    assert changes_of(folder) == "Longer warm-down."
    with pytest.raises(UserError, match="--blurb: holds the marker"):
        packed(tmp_path, run, extra=["--blurb", blurb, "--slug", "y"])


def test_requirements_and_base(tmp_path):
    base = pack_three(tmp_path)
    requirements = tmp_path / "more.txt"
    requirements.write_text("einops==0.8.1\n")
    options = ["--requirements", requirements, "--base", base.name]
    assert packed(tmp_path, FakeRun().write(tmp_path / "a"), extra=options) == 0
    folder = base.parent / "2026-11-24_x"
    assert (folder / "requirements.txt").read_text() == "einops==0.8.1\n"
    assert load_submission(folder).base_record == base.name
    assert f"Builds on [`{base.name}`](../{base.name}/)." in (folder / "README.md").read_text()


def manifest(folder, **changes):
    """A dataset folder whose manifest says this of the validation split; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    validation = {"source_bytes": 2000, "xz_bytes": 600} | changes
    content = {"version": "a" * 64, "splits": {"val": validation}}
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def test_xz_figure_comes_from_the_manifest_of_the_same_corpus(tmp_path, capsys):
    run = FakeRun().write(tmp_path / "a")
    assert packed(tmp_path, run, extra=["--dataset", manifest(tmp_path / "data")]) == 0
    folder = tmp_path / "records" / "track_docs_cpu" / "2026-11-24_x"
    assert load_submission(folder).data.xz_bytes == 600
    # 600 * 8 / 2000
    assert "2.4000 bits per byte" in capsys.readouterr().out
    assert "2.4000 bits per byte" in (folder / "README.md").read_text()
    shutil.rmtree(folder)
    other = manifest(tmp_path / "data", source_bytes=1999)
    assert packed(tmp_path, run, extra=["--dataset", other]) == 0
    assert load_submission(folder).data.xz_bytes is None


def test_summary_says_what_a_user_wants_to_know(tmp_path, capsys):
    folder = pack_three(tmp_path)
    out = capsys.readouterr().out
    for text in (
        os.path.relpath(folder),
        "1.00000000 ± 0.030000, 3 seed(s)",
        "1.25000000",
        "of 16,000,000",
        "training 61.5 s",
        "README.md",
    ):
        assert text in out


# --- schema ---


def test_exported_json_schema_accepts_records_and_rejects_incomplete_ones(tmp_path):
    """The exported schema says what the pydantic model enforces.

    An independent reading of its main parts."""
    exported = json_schema()
    raw = json.loads((pack_three(tmp_path) / "submission.json").read_text())
    assert set(raw) <= set(exported["properties"])
    assert set(exported["then"]["required"]) <= set(raw)
    row = exported["then"]["properties"]["seed_results"]["additionalProperties"]
    assert set(row["required"]) <= set(raw["seed_results"]["42"])
    for name in exported["then"]["required"]:
        complaint = "seed" if name in ("seeds", "seed_results") else name
        with pytest.raises(ValueError, match=complaint):
            Submission.model_validate({key: raw[key] for key in raw if key != name})
    for name in PACKED_SEED_FIELDS:
        broken = json.loads(json.dumps(raw))
        del broken["seed_results"]["42"][name]
        with pytest.raises(ValueError, match=f"seed_results.42.{name}"):
            Submission.model_validate(broken)
    for bad in (
        {"val_bpb": float("nan")},
        {"val_bpb": -1},
        {"extra": 1},
        {"date": "yesterday"},
        {"track": "track_mine"},
        {"code_sha256": "xyz"},
    ):
        with pytest.raises(ValueError):
            Submission.model_validate(raw | bad)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"schema_version": 1}', '{"name": "x"}', '{"name": "x", "val_bpb": "low"}'],
)
def test_broken_submission_json_is_a_user_error(tmp_path, content):
    (tmp_path / "submission.json").write_text(content)
    with pytest.raises(UserError, match=r"submission\.json"):
        load_submission(tmp_path)


def test_a_replaced_record_is_there_at_every_moment(tmp_path, monkeypatch):
    """As far as the system can: Linux swaps two folders in one step."""
    packed(tmp_path, FakeRun().write(tmp_path / "a"))
    folder = tmp_path / "records" / "track_docs_cpu" / "2026-11-24_x"
    old = load_submission(folder)
    there = []
    replace = os.replace

    def watched(source, target):
        there.append(folder.exists())
        replace(source, target)

    monkeypatch.setattr(packing.os, "replace", watched)
    better = FakeRun(nats=1300.0).write(tmp_path / "b")
    assert packed(tmp_path, better, extra=["--replace"]) == 0
    assert load_submission(folder).val_bpb < old.val_bpb
    assert sys.platform != "linux" or all(there)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_without_a_swap_the_old_record_comes_back(tmp_path, monkeypatch):
    """Where the new folder cannot take its name; and where it can, it does."""
    packed(tmp_path, FakeRun(nats=1300.0).write(tmp_path / "a"))
    folder = tmp_path / "records" / "track_docs_cpu" / "2026-11-24_x"
    old = load_submission(folder)
    replace = os.replace
    refusals = iter([False, True, False])  # aside, then no, then back

    def fails_second(source, target):
        if source.is_dir() and next(refusals):  # files are pictures and README
            raise OSError("no")
        replace(source, target)

    monkeypatch.setattr(packing.sys, "platform", "other")
    other = FakeRun().write(tmp_path / "b")
    monkeypatch.setattr(packing.os, "replace", fails_second)
    with pytest.raises(OSError, match="no"):
        packed(tmp_path, other, extra=["--replace"])
    assert load_submission(folder) == old
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert list(refusals) == []
    monkeypatch.setattr(packing.os, "replace", replace)
    assert packed(tmp_path, other, extra=["--replace"]) == 0
    assert load_submission(folder).val_bpb == 1.0
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_a_killed_packing_left_goes_with_the_next(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    track = tmp_path / "records" / "track_docs_cpu"
    for pid in (done.pid, os.getppid(), os.getpid()):
        (track / f".2026-11-24_x.{pid}.tmp").mkdir(parents=True)
    packed(tmp_path, FakeRun().write(tmp_path / "a"))
    assert sorted(p.name for p in track.iterdir()) == [
        f".2026-11-24_x.{os.getppid()}.tmp",
        "2026-11-24_x",
    ]
