"""Evidence checks: an untouched record passes, every single change to it is caught, and the six public records get the verdicts found by hand."""

import json
import math
import os
import re
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records_support import FakeRun, audit, cli, pack_three, three_seeds, upstream_records

from eval.commands import check, pack
from eval.errors import UserError
from eval.papers.checks.report import Check, agrees, format_report
from eval.papers.checks.run import check_folder
from eval.papers.submission.reading import load_submission
from eval.rules import Verdict


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_three(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def record(packed, tmp_path):
    folder = tmp_path / "records" / packed.parent.name / packed.name
    shutil.copytree(packed, folder)
    return folder


def verdicts(folder, verdict=Verdict.FAIL) -> dict[str, str]:
    return {
        c.name: c.detail
        for c in check_folder(folder, with_audit=True).checks
        if c.verdict is verdict
    }


def test_an_untouched_record_passes(record):
    report = check_folder(record, with_audit=True)
    assert verdicts(record) == {}
    assert {c.name for c in report.checks if c.verdict is Verdict.CANNOT_TELL} == {
        "audit"
    }  # nobody has audited it
    names = {c.name for c in report.checks if c.verdict is Verdict.PASS}
    assert {
        "files",
        "json",
        "date",
        "folder",
        "log",
        "seeds",
        "headline",
        "val_loss",
        "seed_results",
        "derived",
        "readme",
        "arithmetic",
    } <= names
    assert {
        "code_bytes",
        "compiles",
        "source",
        "bytes_total",
        "cap",
        "artifacts",
        "comparable",
        "parameters",
        "implied_bytes",
    } <= names


def leaves(value, path=()):
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def changed(value):
    if isinstance(value, bool | None):
        return value
    if isinstance(value, float):
        return value + 1e-8
    if isinstance(value, int):
        return value + 1
    return value[:-1] + ("0" if value[-1] != "0" else "1")


def test_every_digit_of_submission_json_is_checked(record):
    """The last digit of each value in turn. Free text is the author's; what names it is shown nowhere else in numbers."""
    path = record / "submission.json"
    original = json.loads(path.read_text())
    free = {
        ("author",),
        ("github_id",),
        ("name",),
        ("blurb",),
        ("rules_version",),
        ("base_record",),
    }
    unnoticed = []
    for where, value in leaves(original):
        altered = json.loads(json.dumps(original))
        holder = altered
        for key in where[:-1]:
            holder = holder[key]
        holder[where[-1]] = changed(value)
        path.write_text(json.dumps(altered, indent=2))
        fails = verdicts(record)
        if not fails or (where not in free and set(fails) == {"readme"}):
            unnoticed.append((".".join(map(str, where)), sorted(fails)))
    # Text that the README shows is caught there; the rest must be caught by the evidence itself.
    assert unnoticed == [], unnoticed


def test_each_failure_names_the_line(record):
    path = record / "submission.json"
    path.write_text(path.read_text().replace('"val_bpb": 1.03,', '"val_bpb": 1.02,'))
    failed = next(
        c for c in check_folder(record, with_audit=True).checks if c.name == "seed_results"
    )
    assert (
        failed.verdict is Verdict.FAIL
        and "seed 42" in failed.detail
        and "1.02" in failed.detail
        and "1.03" in failed.detail
    )
    stated, logged = failed.evidence
    lines = path.read_text().splitlines()
    assert stated.file == "submission.json" and '"val_bpb": 1.02' in lines[stated.line - 1]
    log = (record / "train_seed42.log").read_text().splitlines()
    assert logged.file == "train_seed42.log" and log[logged.line - 1].startswith("result val_loss:")


def replace_in(path, old: bytes, new: bytes, last: bool = True):
    data = path.read_bytes()
    head, mark, tail = data.rpartition(old) if last else data.partition(old)
    assert mark
    path.write_bytes(head + new + tail)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda f: replace_in(f / "artifact_seed42.bin", b"w", b"W"), "artifacts"),
        (lambda f: (f / "artifact_seed42.bin").unlink(), "artifacts"),
        (lambda f: replace_in(f / "train_gpt.py", b"math.exp(-x)", b"math.exp(+x)"), "source"),
        (lambda f: (f / "train_gpt.py").write_text("def f(:\n"), "compiles"),
        (
            lambda f: replace_in(
                f / "train_seed42.log", b"val_bpb:1.03000000 nats", b"val_bpb:1.02000000 nats"
            ),
            "arithmetic",
        ),
        (
            lambda f: replace_in(f / "train_seed42.log", b"val_tokens:1001", b"val_tokens:1101"),
            "coverage",
        ),
        (
            lambda f: replace_in(f / "train_seed42.log", b"val_bytes:2000", b"val_bytes:2001"),
            "implied_bytes",
        ),
        (
            lambda f: replace_in(f / "train_seed42.log", b"version:aaaa", b"version:baaa"),
            "comparable",
        ),
        (
            lambda f: replace_in(
                f / "train_seed42.log", b"train_dtype:float32", b"train_dtype:bfloat16"
            ),
            "comparable",
        ),
        (lambda f: replace_in(f / "train_seed42.log", b"steps:400", b"steps:401"), "derived"),
        (
            lambda f: replace_in(f / "train_seed42.log", b"step:100/400", b"step:101/400"),
            "derived",
        ),  # the log's hash moves
        (lambda f: replace_in(f / "train_seed42.log", b" seed:42", b" seed:43"), "seeds"),
        (
            lambda f: replace_in(f / "train_seed42.log", b"result val_loss", b"result val_los"),
            "log",
        ),
        (lambda f: (f / "train_seed42.log").unlink(), "seeds"),
        (
            lambda f: (
                shutil.copy(f / "train_seed42.log", f / "train_seed7.log")
                and replace_in(f / "train_seed7.log", b" seed:42", b" seed:7")
            ),
            "seeds",
        ),
        (lambda f: replace_in(f / "README.md", b"1.03000000", b"1.02000000", last=False), "readme"),
        (lambda f: (f / "README.md").unlink(), "files"),
        (lambda f: (f / "score.png").unlink(), "readme"),
        (lambda f: (f / "submission.json").unlink(), "files"),
        (lambda f: (f / "submission.json").write_text("{"), "json"),
        (lambda f: (f / "helper.py").write_text("x = 1\n"), "uncounted"),
        (
            lambda f: (f / "train_seed42.log").write_bytes(
                (f / "train_seed42.log").read_bytes() + b"#" * 1_000_000
            ),
            "log_size",
        ),
        (lambda f: f.rename(f.with_name("2026-11-25_example-record")), "date"),
        (lambda f: f.rename(f.with_name("2026-11-24_Example_Record")), "folder"),
        (lambda f: shutil.move(f, f.parent.parent / "track_10min_16mb" / f.name), "folder"),
    ],
)
def test_damage_is_caught(record, damage, name):
    damage(record)
    folder = (
        record
        if record.exists()
        else next(p for p in record.parent.parent.rglob("*") if p.is_dir() and "xample" in p.name)
    )
    assert name in verdicts(folder), format_report(check_folder(folder, with_audit=True))


def test_clocks_of_the_ten_minute_track(tmp_path):
    """600 s plus one step for training, 600 s for evaluation."""
    env = FakeRun().env.replace("world_size:1", "world_size:8")
    slow = {"train_s": 601.6, "eval_s": 600.0, "steps": 400, "env": env}  # a step lasts 1.504 s
    for overrides, expected in (
        (slow, {"train_time"}),
        (slow | {"train_s": 601.4}, set()),
        (slow | {"train_s": 590.0, "eval_s": 600.1}, {"eval_time"}),
        (slow | {"train_s": 590.0, "env": FakeRun().env}, {"world_size"}),
    ):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        run = FakeRun(**overrides).write(root / "run")
        cli(
            pack,
            run,
            "--name",
            "X",
            "--track",
            "track_10min_16mb",
            "--date",
            "2026-11-24",
            "--records-dir",
            root / "records",
        )
        assert set(verdicts(next((root / "records").glob("*/*")))) == expected, overrides


def test_a_resumed_run_is_said_to_be_one_where_there_is_a_clock(tmp_path):
    """Its clock leaves out the work that was lost: a person decides. Flags about checkpoints make no other experiment."""
    env = FakeRun().env.replace("world_size:1", "world_size:8")
    extra = [
        "config:override resume=1 (default 0, from flag)",
        "resume step:300 train_time:46000ms file:checkpoint_x.npz "
        + env.replace("torch:2.13.0", "torch:2.14.0"),
    ]
    run = FakeRun(env=env, extra=extra).write(tmp_path / "run")
    cli(
        pack,
        run,
        "--name",
        "X",
        "--track",
        "track_10min_16mb",
        "--date",
        "2026-11-24",
        "--records-dir",
        tmp_path / "records",
    )
    folder = next((tmp_path / "records").glob("*/*"))
    assert (
        verdicts(folder) == {}
        and "resumed at step 300 (torch 2.14.0 after 2.13.0): its clock"
        in verdicts(folder, Verdict.CANNOT_TELL)["train_time"]
    )
    assert load_submission(folder).config.overrides == []


# --- the referee's verdict ---


def test_an_audited_record_passes_everything(record):
    audit(record, "PASS")
    assert "readme" in verdicts(record)  # the README does not show the verdict yet
    assert cli(pack, "--refresh", record) == 0
    assert check_folder(record, with_audit=True).verdict is Verdict.PASS
    assert (
        "**PASS** (`--quick`, referee rules `2026-11`; 10 of 10 tests"
        in (record / "README.md").read_text()
    )


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ("PASS", Verdict.PASS),
        ("WARN", Verdict.PASS),
        ("POLICY", Verdict.CANNOT_TELL),
        ("INVALID", Verdict.FAIL),
    ],
)
def test_the_audit_decides(record, verdict, expected):
    audit(record, verdict)
    cli(pack, "--refresh", record)
    outcome = next(c for c in check_folder(record, with_audit=True).checks if c.name == "audit")
    assert outcome.verdict is expected and outcome.detail.startswith(
        f"{verdict}, level quick, rules 2026-11"
    )
    assert set(verdicts(record)) == ({"audit"} if verdict == "INVALID" else set())
    if verdict != "PASS":
        assert "normalisation: sum of 512 tokens: expected 1, found 6.25" in outcome.detail
        assert f"* {verdict} normalisation: sum of 512 tokens" in (record / "README.md").read_text()
    assert '"verdict"' in outcome.evidence[0].text


def test_an_audit_may_rest_on_the_checks(record):
    """An INVALID verdict must not feed the next audit, nor a README that does not show the new one yet; other edits still count."""
    audit(record, "INVALID")
    assert {c.name for c in check_folder(record).checks if c.verdict is not Verdict.PASS} == set()
    replace_in(record / "README.md", b"1.03000000", b"1.02000000", last=False)
    assert {c.name for c in check_folder(record).checks if c.verdict is Verdict.FAIL} == {"readme"}


def test_an_audit_of_other_artifacts_does_not_count(record, tmp_path):
    other = pack_three(tmp_path / "other", artifact=b"other weights")
    audit(other, "PASS")
    for name in ("audit.json", "AUDIT.md"):
        shutil.copy(other / name, record / name)
    assert "artifact_sha256 of seed 1337: expected" in verdicts(record)["audit"]
    (record / "audit.json").write_text("{}")
    assert "audit the record again" in verdicts(record)["audit"]
    audit(record, "PASS")
    (record / "AUDIT.md").unlink()
    assert "AUDIT.md is missing" in verdicts(record)["audit"]


def rewrite_audit(folder, **change):
    path = folder / "audit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def changed_rows(folder, name, **change) -> list[dict]:
    return [row | change for row in json.loads((folder / "audit.json").read_text())[name]]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f: {"code_sha256": "0" * 64}, "code_sha256: expected that of train_gpt.py"),
        (
            lambda f: {"scores": []},
            "scores: expected one for each of the seeds 1337, 42, 2025, found none",
        ),
        (lambda f: {"scores": changed_rows(f, "scores")[:2]}, "scores: expected one for each"),
        (
            lambda f: {"scores": changed_rows(f, "scores", seed="7", artifact_sha256="0" * 64)},
            "seed: expected one of 1337, 42, 2025, found 7",
        ),
        (
            lambda f: {"scores": changed_rows(f, "scores", val_bpb=9.0)},
            "val_bpb of seed 1337: expected 1.00000000",
        ),
        (lambda f: {"corpus_version": "f" * 64}, "corpus_version: expected aaaaaaaaaaaa"),
        (
            lambda f: {"tests": changed_rows(f, "tests", verdict="INVALID")},
            "verdict: expected INVALID, the worst of its tests, found PASS",
        ),
        (
            lambda f: {"tests": changed_rows(f, "tests")[4:5], "level": "quick, only bytes"},
            "tests: expected all that every audit runs, found NOT RUN future",
        ),
        (lambda f: {"level": "quick, only everything"}, "level: expected quick or full"),
        (lambda f: {"level": "full"}, "audited: expected all of the scored seeds, found 1337"),
        (lambda f: {"audited": []}, "audited: expected some of the scored seeds, found none"),
        (lambda f: {"sandbox": "none"}, "sandbox: expected a run inside one, found none"),
        (
            lambda f: {"rules_version": "1999-01"},
            "rules_version: expected a rule set of this referee",
        ),
    ],
)
def test_an_audit_has_to_be_of_this_folder(record, change, text):
    audit(record, "PASS")
    cli(pack, "--refresh", record)
    assert verdicts(record) == {}
    rewrite_audit(record, **change(record))
    assert text in verdicts(record)["audit"]


def test_a_rejection_needs_one_violation_and_the_same_files(record):
    """A scorer that does not run has no score and no verdict of the tests that need one; it is rejected all the same."""
    audit(record, "INVALID")
    rewrite_audit(
        record,
        scores=changed_rows(record, "scores")[:1],
        audited=[],
        tests=changed_rows(record, "tests")[1:2],
        sandbox="none",
    )
    assert verdicts(record)["audit"].startswith("INVALID, level quick")
    rewrite_audit(record, code_sha256="0" * 64)
    assert "is no audit of this folder" in verdicts(record)["audit"]


def test_an_audit_of_weights_outside_git_needs_one_score(tmp_path):
    """Big artifacts are given to the audit one at a time, by hand and perhaps without their seed."""
    folder = tmp_path / "records" / "track_non_record_16mb" / "2026-11-24_big"
    options = [
        "--name",
        "Big",
        "--track",
        "track_non_record_16mb",
        "--date",
        "2026-11-24",
        "--records-dir",
        tmp_path / "records",
    ]
    assert cli(pack, *three_seeds(tmp_path / "runs"), *options) == 0
    audit(folder, "PASS")
    cli(pack, "--refresh", folder)
    rewrite_audit(
        folder, scores=[changed_rows(folder, "scores")[1] | {"seed": "given"}], audited=["given"]
    )
    assert "audit" not in verdicts(folder)
    rewrite_audit(folder, scores=changed_rows(folder, "scores", artifact_sha256="0" * 64))
    assert "seed: expected one of 1337, 42, 2025, found given" in verdicts(folder)["audit"]
    rewrite_audit(folder, scores=[])
    assert "audit" in verdicts(folder)


# --- public records: verdicts found by reading the files ---

DATA_ONLY = {
    "files",
    "compiles",
    "artifacts",
}  # the samples come without script, README and weights
UPSTREAM = {
    # No mistake; the folder's date is not that of the run. The first export of the validation set is known by its 155.77 MB.
    "2026-03-17_NaiveBaseline": (set(), {"date"}),
    # The loss belongs to the sliding score 1.14776, the headline to the n-gram table; the shipped script is not the one that was measured.
    "2026-03-20_PR187_EMA_Ngram": (
        {"val_loss", "code_bytes", "implied_bytes"},
        {"date", "seed_results"},
    ),
    # Best of three seeds as headline; the folder's own name says 1.1233, which is the mean.
    "2026-03-22_11L_EMA_GPTQ-lite_warmdown3500_QAT015_1.1233": (
        {"json", "headline", "val_loss"},
        set(),
    ),
    "2026-03-29_Loader_FullGPTQ_XSA11_BigramHash2816": ({"json"}, {"val_loss"}),
    "2026-04-05_SP8192_GPTQ-Embeddings_SDClip_Loop45x2": (set(), set()),
    # Counts its script compressed (31,999) and ships 158,429 bytes; 4.7 s of calibration and 99 s of compression after 599.6 s of training.
    "2026-04-27_SP8192_LQER_SparseGate_BOSSmearFix_9HpStack_1.0611": (
        {"json", "seed_results", "aggregates", "code_bytes", "cap"},
        {"aggregates", "train_time", "eval_time"},
    ),
}


@pytest.mark.parametrize("name", UPSTREAM)
def test_public_records_get_the_verdicts_found_by_hand(name):
    report = check_folder(upstream_records() / name)
    failed, unclear = UPSTREAM[name]
    assert {c.name for c in report.checks if c.verdict is Verdict.FAIL} == failed
    assert {c.name for c in report.checks if c.verdict is Verdict.CANNOT_TELL} - {
        "audit"
    } == unclear | DATA_ONLY
    assert all(c.evidence for c in report.checks if c.verdict is Verdict.FAIL), (
        "a failure without a line that proves it"
    )
    for c in report.checks:
        for evidence in c.evidence:
            if evidence.line is not None:
                lines = (upstream_records() / name / evidence.file).read_text().splitlines()
                assert lines[evidence.line - 1].strip().startswith(evidence.text.strip()[:40])


def details(name: str) -> str:
    return format_report(check_folder(upstream_records() / name))


def test_public_findings_are_explained():
    best_of = details("2026-03-22_11L_EMA_GPTQ-lite_warmdown3500_QAT015_1.1233")
    assert "train_seed1337.log alone, the best of 3 logs; their mean is 1.12331641" in best_of
    assert "train.log is a byte-identical copy of train_seed1337.log" in best_of
    hashed = details("2026-03-20_PR187_EMA_Ngram")
    assert "it means 1.14776 bpb, the headline says 0.93933506" in hashed
    # 62,021,632 tokens * 1.93793804 / 0.93933506 / ln 2, against 151.081 MB
    assert (
        f"implies {62_021_632 * 1.93793804 / 0.93933506 / math.log(2):,.0f} bytes (+22.19%)"
        in hashed
    )
    packed = details("2026-04-27_SP8192_LQER_SparseGate_BOSSmearFix_9HpStack_1.0611")
    assert (
        f"{15_875_551 + 158_429:,}" in packed
        and "compressed, 31,999 bytes, which is not the file" in packed
    )
    assert (
        "740.8 s with the phases that it leaves out" in packed
    )  # 508.785 + 20.4 + 49.995 + 24.0 + 137.6
    assert "val_bpb_std 0.0009 (divides by n; the sample value is 0.00111)" in packed


@pytest.mark.parametrize("name", UPSTREAM)
def test_every_field_of_public_submissions_is_imported(name):
    """No value is lost on the way into the schema: each leaf of the file is found in the imported record."""
    raw = json.loads((upstream_records() / name / "submission.json").read_text())
    imported = load_submission(upstream_records() / name)
    assert imported.unknown == {}
    kept = [value for _, value in leaves(imported.model_dump(mode="json"))]
    for where, value in leaves(raw):
        if where == ("track",):
            assert imported.track == f"track_{value}"
        elif where == ("date",):
            assert str(imported.date) == value[:10]
        elif where == ("hardware",):
            assert (
                value == f"{imported.environment.gpus}x{imported.environment.gpu.removeprefix(' ')}"
                or imported.environment.gpu in value
            )
        else:
            assert any(value == k for k in kept), (where, value)


def public_folder(tmp_path, submission: dict, logs: dict[str, str], code: str = "import math\n"):
    folder = tmp_path / "2026-05-01_Somebody"
    folder.mkdir()
    (folder / "submission.json").write_text(json.dumps(submission, indent=1))
    (folder / "README.md").write_text(f"# x\n\nval_bpb {submission.get('val_bpb')}\n")
    (folder / "train_gpt.py").write_text(code)
    for name, text in logs.items():
        (folder / name).write_text(text)
    return folder


def public_log(
    seed: int, bpb: float, code: int = 12, artifact: int = 1000, tokens: int = 62_021_632
) -> str:
    loss = bpb * 1.68846
    return (
        f"val_loader:shards pattern=x tokens:{tokens}\nmodel_params:5\nworld_size:8 grad_accum_steps:1\nmax_wallclock_seconds:600.000\nseed:{seed}\n"
        f"step:1/9 train_loss:5.0 train_time:10ms\nstopping_early: wallclock_cap train_time:599000ms step:9/9\nCode size: {code} bytes\n"
        f"Serialized model int6+zstd: {artifact} bytes\nTotal submission size int6+zstd: {artifact + code} bytes\n"
        f"final_exact val_loss:{loss:.8f} val_bpb:{bpb:.8f} eval_time:1000ms\n"
    )


GOOD = {
    "author": "a",
    "github_id": "b",
    "name": "n",
    "blurb": "",
    "date": "2026-05-01",
    "bytes_total": 1012,
    "bytes_code": 12,
}


def test_a_consistent_public_record_fails_nothing(tmp_path):
    bits = {1: 1.10, 2: 1.12, 3: 1.14}
    stated = GOOD | {
        "val_bpb": 1.12,
        "val_loss": round(1.12 * 1.68846, 8),
        "seeds": [1, 2, 3],
        "val_bpb_std": 0.02,
    }
    folder = public_folder(
        tmp_path, stated, {f"train_seed{s}.log": public_log(s, b) for s, b in bits.items()}
    )
    assert verdicts(folder) == {}
    assert "source" in verdicts(
        folder, Verdict.CANNOT_TELL
    )  # nothing ties a public log to the script


@pytest.mark.parametrize(
    ("change", "name", "text"),
    [
        (
            {"val_bpb": 1.10, "val_loss": round(1.10 * 1.68846, 8)},
            "headline",
            "train_seed1.log alone, the best of 3 logs; their mean is 1.12000000",
        ),
        (
            {"val_bpb": 1.12 / 1.17},
            "headline",
            "neither the mean 1.12000000 nor any log's final score",
        ),
        ({"val_loss": 1.80}, "val_loss", "final losses average 1.89107520"),
        ({"val_bpb_std": 0.01}, "aggregates", "val_bpb_std 0.01, recomputed 0.02"),
        ({"seeds": [1, 2]}, "seeds", "log of seed 3, which submission.json leaves out"),
        ({"seeds": [1, 2, 3, 4]}, "seeds", "no log for seed 4"),
        ({"bytes_code": 13}, "code_bytes", "the script has 12 bytes, stated or logged 13"),
        ({"bytes_total": 1000}, "bytes_total", "1,000 stated"),
        ({"github_id": ""}, "json", "github_id"),
        (
            {"seed_results": {"1": {"val_bpb": 1.1}, "2": {"val_bpb": 1.13}}},
            "seed_results",
            "seed 2: val_bpb 1.13, its log says 1.12",
        ),
    ],
)
def test_lies_in_public_submissions_are_found(tmp_path, change, name, text):
    stated = (
        GOOD | {"val_bpb": 1.12, "val_loss": round(1.12 * 1.68846, 8), "val_bpb_std": 0.02} | change
    )
    folder = public_folder(
        tmp_path,
        stated,
        {f"train_seed{s}.log": public_log(s, b) for s, b in {1: 1.10, 2: 1.12, 3: 1.14}.items()},
    )
    assert text in verdicts(folder).get(name, ""), format_report(
        check_folder(folder, with_audit=True)
    )


@pytest.mark.parametrize(
    "line",
    [
        "comparison: leaderboard val_bpb:1.0810",
        "min over passes val_bpb:0.90000000",
        "baseline val_loss:1.9 val_bpb:1.2",
    ],
)
def test_a_log_with_two_results_proves_neither(tmp_path, line):
    """Whichever of the two the headline is, and its loss: CANNOT-TELL with both lines; a headline beyond both is still wrong."""
    log = public_log(1, 1.12) + line + "\n"
    other = float(line.rpartition(":")[2])
    folder = public_folder(tmp_path, GOOD, {"train.log": log})
    for stated in (1.12, other):
        (folder / "submission.json").write_text(
            json.dumps(
                GOOD
                | {"val_bpb": stated, "val_loss": 1.5, "seed_results": {"1": {"val_bpb": stated}}}
            )
        )
        unclear = verdicts(folder, Verdict.CANNOT_TELL)
        assert f"train.log 1.12000000, {other:.8f}" in unclear["headline"]
        assert {"val_loss", "seed_results", "implied_bytes"} <= set(unclear)
    (folder / "submission.json").write_text(json.dumps(GOOD | {"val_bpb": 0.5}))
    assert "headline" in verdicts(folder)


def test_a_public_folder_may_have_another_date(tmp_path):
    folder = public_folder(
        tmp_path, GOOD | {"val_bpb": 1.1, "date": "2026-05-02"}, {"train.log": public_log(1, 1.1)}
    )
    assert "the folder says 2026-05-01" in verdicts(folder, Verdict.CANNOT_TELL)["date"]


def test_wrong_byte_counts_are_found_from_the_log_alone(tmp_path):
    """Leading spaces counted twice: bytes 17 % too many, bpb 17 % too low, loss unchanged."""
    log = public_log(1, 1.2).replace("val_bpb:1.20000000", f"val_bpb:{1.2 / 1.17:.8f}")
    folder = public_folder(tmp_path, GOOD | {"val_bpb": round(1.2 / 1.17, 8)}, {"train.log": log})
    assert "+17.00%" in verdicts(folder)["implied_bytes"]


@pytest.mark.parametrize(
    ("log", "name", "text"),
    [
        (
            public_log(1, 1.12, artifact=15_999_989),
            "cap",
            "15,999,989 + script as shipped 12 = 16,000,001",
        ),
        (
            public_log(1, 1.12).replace("599000ms step:9/9", "601000ms step:900/900"),
            "train_time",
            "601.000 s, limit 600 s + one step",
        ),
        (
            public_log(1, 1.12).replace("eval_time:1000ms", "eval_time:617000ms"),
            "eval_time",
            "617.000 s, limit 600 s",
        ),
        (public_log(1, 1.12).replace("world_size:8", "world_size:1"), "world_size", "is 8 GPUs"),
        (
            public_log(1, 1.12).replace(
                "Total submission size int6+zstd: 1012", "Total submission size int6+zstd: 1000"
            ),
            "bytes_total",
            "not artifact + code",
        ),
        (
            public_log(1, 1.12) + "Traceback (most recent call last):\n",
            "log",
            "raised an exception",
        ),
        ("".join(public_log(1, 1.12).splitlines(True)[:-1]), "log", "truncated"),
    ],
)
def test_budgets_and_broken_public_logs(tmp_path, log, name, text):
    total = next((int(t) for t in re.findall(r"Total .*: (\d+) bytes", log)), 1012)
    folder = public_folder(
        tmp_path, GOOD | {"val_bpb": 1.12, "bytes_total": total}, {"train.log": log}
    )
    assert text in verdicts(folder).get(name, ""), format_report(
        check_folder(folder, with_audit=True)
    )


@pytest.mark.parametrize(
    ("stated", "computed", "same"),
    [
        (1.1122, 1.11222462, True),
        (1.1122, 1.11226, False),
        (1.1, 1.10004, True),
        (1.1, 1.1001, False),
        (0.93933506, 0.939335061, True),
        (0.93933506, 0.93933507, False),
    ],
)
def test_agreement_to_the_last_stated_digit(stated, computed, same):
    assert agrees(stated, computed) is same


# --- malformed records ---


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [float("inf")]},
        {"seed_results": {"42": {}, "seed_42": {}}},
        {"seed_results": {"²": {"val_bpb": 1.1}}},
    ],
)
def test_impossible_seeds_are_a_verdict(tmp_path, change):
    folder = public_folder(
        tmp_path, GOOD | {"val_bpb": 1.1} | change, {"train.log": public_log(1, 1.1)}
    )
    assert next(iter(change)) in verdicts(folder)["json"]


@pytest.mark.parametrize("key", ["42", " 42", "seed_42", "seed42"])
def test_seeds_are_read_whatever_their_key(tmp_path, key):
    stated = GOOD | {"val_bpb": 1.1, "seed_results": {key: {"val_bpb": 1.2}}}
    folder = public_folder(tmp_path, stated, {"train.log": public_log(42, 1.1)})
    assert "seed 42: val_bpb 1.2, its log says 1.1" in verdicts(folder)["seed_results"]
    failed = next(
        c
        for c in check_folder(folder).checks
        if c.name == "seed_results" and c.verdict is Verdict.FAIL
    )
    assert '"val_bpb": 1.2' in failed.evidence[0].text


def test_a_number_written_as_text_is_compared(tmp_path):
    folder = public_folder(
        tmp_path,
        GOOD | {"val_bpb": 1.1, "wallclock_seconds": "600"},
        {"train.log": public_log(1, 1.1)},
    )
    assert "train_s 600, its log says 599" in verdicts(folder)["seed_results"]


def test_folders_in_place_of_files_are_verdicts(record):
    for name, check_name in (("submission.json", "json"), ("audit.json", "audit")):
        (record / name).unlink(missing_ok=True)
        (record / name).mkdir()
        assert "expected a readable file" in verdicts(record)[check_name]
        shutil.rmtree(record / name)


def test_a_readme_in_another_encoding_is_a_verdict(record):
    (record / "README.md").write_bytes((record / "README.md").read_bytes() + b"\xff")
    assert "expected a UTF-8 text" in verdicts(record)["readme"]
    with pytest.raises(UserError, match="never overwrites"):
        cli(pack, "--refresh", record)


# --- significance ---


def against(folder, base) -> Check:
    return next(c for c in check_folder(folder, against=base).checks if c.name == "significance")


def series(tmp_path, name, bits, tokens=62_021_632):
    (tmp_path / name).mkdir()
    logs = {f"train_seed{s}.log": public_log(s, b, tokens=tokens) for s, b in enumerate(bits)}
    return public_folder(tmp_path / name, GOOD | {"val_bpb": sum(bits) / len(bits)}, logs)


def test_significance_matches_a_hand_worked_welch_test(tmp_path):
    """Three seeds each, 0.02 bits apart: variance 4e-4 on both sides, so df = 4 and t = 0.1 / sqrt(2 * 4e-4 / 3)."""
    base, better = (
        series(tmp_path, "base", [1.10, 1.12, 1.14]),
        series(tmp_path, "better", [1.00, 1.02, 1.04]),
    )
    outcome = against(better, base)
    t = 0.1 / math.sqrt(2 * 4e-4 / 3)
    # Distribution function of Student's t with 4 degrees of freedom in closed form.
    p = 0.5 - 3 / 8 * t / math.sqrt(1 + t * t / 4) * (1 - t * t / (12 * (1 + t * t / 4)))
    assert outcome.verdict is Verdict.PASS and len(outcome.evidence) == 6
    assert f"t {t:.3f}, df 4.00, p {p:.3g}" in outcome.detail and "n 3 and 3" in outcome.detail
    bar = 0.005 * 62_021_632 / 151.081e6 / math.log(2)  # in bits per byte
    t = (0.1 - bar) / math.sqrt(2 * 4e-4 / 3)
    p = 0.5 - 3 / 8 * t / math.sqrt(1 + t * t / 4) * (1 - t * t / (12 * (1 + t * t / 4)))
    assert f"bar 0.005 nats/token: p {p:.3g}, wanted below 0.01" in outcome.detail
    nats = 0.1 * math.log(2)
    assert (
        f"{nats:+.6f} nats/byte, {nats * 151.081e6 / 62_021_632:+.6f} nats/token over 2026-05-01_Somebody"
        in outcome.detail
    )
    assert against(base, better).verdict is Verdict.FAIL  # the other way round it is a loss


@pytest.mark.parametrize(
    ("bits", "tokens", "verdict", "text"),
    [
        (
            [1.118, 1.119, 1.120],
            62_021_632,
            Verdict.FAIL,
            "p 0.",
        ),  # 0.002 nats/token: below the bar and lost in the spread
        ([1.02], 62_021_632, Verdict.CANNOT_TELL, "no test is possible"),
        (
            [1.00, 1.02, 1.04],
            63_779_840,
            Verdict.CANNOT_TELL,
            "different texts: 151,081,000 and 155,770,000 bytes",
        ),
        (
            [1.00, 1.02, 1.04],
            40_540_160,
            Verdict.PASS,
            "nats/token",
        ),  # another tokenizer of the same text
        ([1.00, 1.02, 1.04], 1_000_000, Verdict.CANNOT_TELL, "how large the validation text is"),
    ],
)
def test_significance_needs_the_same_text_and_enough_seeds(tmp_path, bits, tokens, verdict, text):
    outcome = against(
        series(tmp_path, "new", bits, tokens), series(tmp_path, "base", [1.10, 1.12, 1.14])
    )
    assert outcome.verdict is verdict and text in outcome.detail, outcome.detail


def test_significance_of_packed_and_of_public_records(record, tmp_path):
    assert against(record, record).verdict is Verdict.FAIL  # no gain over itself
    other = pack_three(tmp_path / "other", version="e" * 64)
    assert (
        "different corpora" in against(other, record).detail
        and against(other, record).verdict is Verdict.CANNOT_TELL
    )
    names = sorted(UPSTREAM)
    upstream = upstream_records()
    gain = against(
        upstream / names[5], upstream / names[4]
    )  # 1.06108 against 1.08562, three seeds and five
    assert gain.verdict is Verdict.PASS and "n 5 and 3" in gain.detail
    assert against(upstream / names[1], upstream / names[0]).verdict is Verdict.CANNOT_TELL
    assert cli(check, record, "--against", record) == 1


def test_json_output_and_exit_codes(record, capsys):
    assert cli(check, record, "--json") == 0
    report = json.loads(capsys.readouterr().out)[0]
    assert (
        report["verdict"] == "CANNOT-TELL"
        and report["name"] == "Example record"
        and len(report["checks"]) > 20
    )
    (record / "artifact_seed42.bin").write_bytes(b"")
    assert cli(check, record) == 1
    out = capsys.readouterr().out
    assert "FAIL        artifacts" in out and "submission.json:" in out
    with pytest.raises(UserError, match="expected a record folder, found nothing"):
        cli(check, record / "none")


KEYS = [
    "val_bpb",
    "val_loss",
    "seeds",
    "seed_results",
    "date",
    "track",
    "hardware",
    "artifact_bytes",
    "bytes_total",
    "bytes_code",
    "seed",
    "steps",
]
KEYS += [
    "val_bpb_std",
    "train_steps_mean",
    "delta_vs_leaderboard_nats",
    "comparison_baseline_bpb",
    "torch_version",
    "name",
    "blurb",
    "mystery",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["1", "2", "x", "val_bpb", "steps", "artifact_bytes"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_no_public_submission_makes_check_fail(tmp_path, change):
    """Whatever a stranger writes into submission.json ends in verdicts, not in a traceback."""
    folder = tmp_path / "2026-05-01_Somebody"
    if not folder.exists():
        public_folder(
            tmp_path,
            GOOD | {"val_bpb": 1.1},
            {f"train_seed{s}.log": public_log(s, 1.1) for s in (1, 2)},
        )
    (folder / "submission.json").write_text(json.dumps(GOOD | {"val_bpb": 1.1} | change))
    report = check_folder(folder, with_audit=True)
    assert {c.name for c in report.checks} >= {"files", "json", "log", "headline"}
    format_report(report)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 40),
            st.sampled_from(["0", "-1", "nan", "1e999", "x", "", "7" * 400, "7" * 5000, "0.0"]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_no_log_makes_check_fail(packed, tmp_path, changes):
    """Any number of a log, native or public, replaced by nonsense: verdicts, no traceback."""
    root = tmp_path / "fuzz"
    native = root / packed.parent.name / packed.name
    if not root.exists():
        shutil.copytree(packed, native)
        public_folder(
            root,
            GOOD
            | {
                "val_bpb": 1.1,
                "val_loss": 1.9,
                "seeds": [1],
                "seed_results": {"1": {"val_bpb": 1.1, "steps": 9}},
            },
            {},
        )
    public = root / "2026-05-01_Somebody"
    for path, text in (
        (native / "train_seed42.log", (packed / "train_seed42.log").read_text()),
        (public / "train_seed1.log", public_log(1, 1.1)),
    ):
        head, mark, tail = text.rpartition("===== end source =====")
        parts = re.split(r"(?<=[:/ ])(\d+(?:\.\d+)?)", tail)
        for index, value in changes:
            parts[2 * (index % (len(parts) // 2)) + 1] = value
        path.write_text(head + mark + "".join(parts))
        format_report(check_folder(path.parent, with_audit=True))


def test_hostile_files_end_in_verdicts(tmp_path):
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.1}, {"train.log": public_log(1, 1.1)})
    os.mkfifo(folder / "pipe.log")  # reading it would wait for ever
    (folder / "folder.log").mkdir()
    (folder / "ngram_tilt.py").write_text("x = 1\n")
    assert "ngram_tilt.py" in verdicts(folder, Verdict.CANNOT_TELL)["uncounted"]
    for content in (
        "[" * 100_000,
        '{"name": "n", "val_bpb": 1' + "0" * 5000 + "}",
        "\ufeff{}",
        '{"name": "n", "val_bpb": 1.1, "val_bpb": 1e999}',
    ):
        (folder / "submission.json").write_text(content)
        assert "json" in verdicts(folder)


def test_unreadable_size_and_code_files(tmp_path):
    folder = public_folder(tmp_path, GOOD | {"val_bpb": 1.1}, {"train.log": public_log(1, 1.1)})
    (folder / "train_gpt.py").write_bytes(b"\x00\xff")
    assert "compiles" in verdicts(folder)
    (folder / "train_gpt.py").unlink()
    (folder / "train_gpt.py.size").write_text("big\n")
    assert "files" in verdicts(folder)
