"""Score and audit from end to end.

What a reviewer types, what the report says, and what a scorer that breaks the contract gets.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from audit_support import judge, record, tiny
from sandbox_support import NEEDS_SANDBOX

from eval.__main__ import main
from eval.commands import audit as audit_command
from eval.errors import UserError
from eval.papers.audits.reading import read_audit
from eval.papers.audits.report import TEST_NAMES, AuditReport, SeedScore
from eval.papers.folder import GIVEN, open_for_trial
from eval.papers.rendering.audits import write_audit
from eval.papers.submission.schema import TRACKS, Environment
from eval.rules import Verdict, load_rules
from eval.text.corpus.dataset import Dataset, shard_bytes
from eval.trial.audit.audit import STOPPED_BY_HAND
from eval.trial.audit.budget import judge_clock, over_the_clock
from eval.trial.audit.collector import Collector
from eval.trial.audit.evidence import judge_score
from eval.trial.runner import claims
from eval.trial.runner.claims import name_given_artifact
from eval.trial.runner.scorer import RunFailed, Scorer, Stream
from eval.trial.sandbox import running as sandbox
from eval.trial.sandbox.job import Outcome

sys.path.insert(0, str(Path(__file__).parent / "fixtures"))
from build import Workshop

BOS = 1
__all__ = ["tiny"]  # a fixture

pytestmark = NEEDS_SANDBOX


# --- A record with papers ---


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Iterator[Workshop]:
    yield Workshop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def papers(shop, tmp_path) -> Path:
    """A private copy of a packed, honest record of one seed."""
    source = shop.record("honest/static")
    return Path(shutil.copytree(source, tmp_path / source.name))


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before


def score(capsys, *argv: object) -> tuple[int, str]:
    code = main(["score", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_score_agrees_with_an_honest_claim(papers, shop, capsys):
    code, shown = score(capsys, papers, "--dataset", shop.corpus.dataset)
    assert code == 0, shown
    claim = json.loads((papers / "submission.json").read_text())["val_bpb"]
    found = float(shown.split("val_bpb:")[1].split()[0])
    assert found == pytest.approx(claim, abs=1e-6)
    for word in ("nats:", "tokens:", "bytes:", "seconds:", "claimed:", "tolerance:"):
        assert word in shown
    assert re.search(r"^scoring seed \d+ \(1 of 1\), [\d,]+ tokens: 0 s", shown, flags=re.M)


def test_score_on_two_ranks_is_the_score(shop, capsys):
    pytest.importorskip("torch")
    folder = shop.record("honest/several_ranks")
    values = []
    for ranks in (1, 2):
        code, shown = score(capsys, folder, "--dataset", shop.corpus.dataset, "--nproc", ranks)
        assert code == 0, shown
        values.append(float(shown.split("val_bpb:")[1].split()[0]))
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_score_of_sums_in_random_order_agrees_within_their_own_noise(shop, capsys):
    folder = shop.record("honest/sums_in_random_order")
    code, shown = score(capsys, folder, "--dataset", shop.corpus.dataset)
    assert code == 0 and "between reruns" in shown, shown


def test_score_of_another_shard_is_not_compared(papers, shop, tmp_path, capsys):
    tokens = Dataset(shop.corpus.dataset).split("val").tokens[:5000]
    (tmp_path / "part.bin").write_bytes(shard_bytes(tokens))
    code, shown = score(
        capsys, papers, "--dataset", shop.corpus.dataset, "--tokens", tmp_path / "part.bin"
    )
    assert code == 0 and "tokens:4999" in shown and "claimed" not in shown


@pytest.mark.parametrize("key", ["val_bpb", "scored_bytes", "scored_tokens"])
def test_score_disagrees_with_a_changed_claim(papers, shop, capsys, key):
    path = papers / "submission.json"
    stated = json.loads(path.read_text())
    seed = stated["seed_results"]["1337"]
    seed[key] = round(seed[key] - 0.001, 8) if key == "val_bpb" else seed[key] + 1
    path.write_text(json.dumps(stated))
    code, shown = score(capsys, papers, "--dataset", shop.corpus.dataset)
    assert code == 1 and "DISAGREES seed 1337" in shown and key in shown


def test_bad_input_is_one_line_and_exit_code_2(papers, shop, tmp_path, capsys):
    cases = [
        ([tmp_path / "nothing"], "expected a record folder"),
        ([papers, "--seed", "7"], "no artifact_seed7.bin"),
        ([papers, "--artifact", tmp_path / "x.bin"], "expected an artifact file"),
        ([papers, "--dataset", tmp_path], "manifest.json: missing"),
        ([papers, "--rules", "1999"], "no such rule set; known: 2026-11, 2026-12"),
    ]
    for argv, complaint in cases:
        data = [] if "--dataset" in argv else ["--dataset", shop.corpus.dataset]
        code, shown = score(capsys, *argv, *data)
        assert code == 2 and complaint in shown and shown.count("\n") == 1, shown


def test_score_refuses_another_text(papers, shop, tmp_path, capsys):
    """One token of the validation shard changed: not the split that the manifest describes."""
    folder = Path(shutil.copytree(shop.corpus.dataset, tmp_path / "data" / "datasets" / "fixture"))
    shutil.copytree(shop.corpus.tokenizer.parent, tmp_path / "data" / "tokenizers")
    edit(next(folder.glob("*_val_*.bin")), lambda raw: raw[:-2] + bytes([raw[-2] ^ 1, raw[-1]]))
    code, shown = score(capsys, papers, "--dataset", folder)
    assert code == 2 and "a score on it would be of another text" in shown
    report = judge(papers, folder, "bytes")
    assert report["bytes"].verdict == "INVALID" and "sha256" in report["bytes"].reason


CHANGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a digit of submission.json": (
        "submission.json",
        lambda raw: raw.replace(b'"val_bpb": 1.7', b'"val_bpb": 1.6', 1),
    ),
    "a byte of the artifact": (
        "artifact_seed1337.bin",
        lambda raw: raw[:-40] + bytes([raw[-40] ^ 1]) + raw[-39:],
    ),
    "a line of the code": (
        "train_gpt.py",
        lambda raw: raw.replace(b"DISCOUNT = 0.75", b"DISCOUNT = 0.76"),
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_one_changed_thing_is_reported(papers, shop, what):
    name, change = CHANGES[what]
    edit(papers / name, change)
    evidence = judge(papers, shop.corpus.dataset, "evidence")["evidence"]
    assert evidence.verdict == "INVALID", evidence
    said = " ".join(f"{f.where} {f.expected} {f.found}" for f in evidence.findings)
    assert name in said or "seed 1337" in evidence.reason


def test_audit_writes_a_report_that_the_packager_reads(papers, shop, tmp_path, capsys):
    argv = [papers, "--dataset", shop.corpus.dataset, "--fresh", shop.corpus.fresh]
    argv += ["--out", tmp_path / "out", "--random-seed", 5, "--only", "future", "documents"]
    assert main(["audit", *map(str, argv)]) == 3  # other tests were not selected
    shown = capsys.readouterr().out
    report = AuditReport.model_validate_json((tmp_path / "out" / "audit.json").read_text())
    assert [t.name for t in report.tests] == list(TEST_NAMES)
    # A run always tells whether it kept the contract.
    ran = {t.name for t in report.tests if t.verdict != "NOT RUN"}
    assert ran == {"future", "documents", "coverage"}
    assert report.random_seed == 5 and report.level == "quick, only future documents"
    text = (tmp_path / "out" / "AUDIT.md").read_text()
    for name in TEST_NAMES:
        assert f"| {name} |" in text and name in shown
    assert "How it was obtained" in text and "not selected" in text
    assert read_audit(tmp_path / "out") == report


def test_what_did_not_run_leaves_an_audit_incomplete(papers, shop, tmp_path, capsys):
    """A selection, a sandbox that is not wanted, a time that is over: never PASS, and no such
    report takes the place of a complete one."""
    data = ["--dataset", shop.corpus.dataset, "--fresh", shop.corpus.fresh]
    argv = ["audit", papers, *data, "--only"]
    assert main([*map(str, argv), "bytes"]) == 3
    shown = capsys.readouterr().out
    assert "INCOMPLETE: nothing is refuted, but not every test ran (future" in shown
    assert main([*map(str, argv), "isolation", "--no-sandbox"]) == 3
    assert "NOT RUN   isolation" in capsys.readouterr().out
    held = read_audit(papers)
    assert held.verdict == "INCOMPLETE"
    write_audit(held.model_copy(update={"verdict": Verdict.PASS}), papers)
    assert main([*map(str, argv), "bytes"]) == 3
    assert "kept " in capsys.readouterr().out and read_audit(papers).verdict == "PASS"


def test_an_audit_that_is_stopped_says_only_what_it_refutes(tmp_path, tiny, monkeypatch):
    folder = record(tmp_path / "r")
    late = judge(folder, tiny, "future", "canary", seconds=0.0)
    assert late.verdict == "INCOMPLETE" and "--seconds" in late.stopped
    assert not late.runs and late["canary"].verdict == "NOT RUN"
    score_apart = Scorer.score_apart

    def interrupted(self, runs):
        if runs[0].label != "official":
            raise KeyboardInterrupt
        return score_apart(self, runs)

    monkeypatch.setattr(Scorer, "score_apart", interrupted)
    cut = judge(folder, tiny)
    assert cut.verdict == "INVALID", "no papers, which the runs that are missing cannot mend"
    assert cut.stopped == STOPPED_BY_HAND and len(cut.scores) == 1
    assert cut["future"].reason == "interrupted, after 1 runs"


def test_a_folder_that_cannot_be_written_is_noticed_first(papers, shop, capsys, monkeypatch):
    monkeypatch.setattr(audit_command, "audit_record", lambda *_: pytest.fail("it ran"))
    argv = ["audit", papers, "--dataset", shop.corpus.dataset, "--out", "/proc/self/fdinfo/report"]
    assert main([*map(str, argv)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "expected a folder to write AUDIT.md into" in said


def test_other_artifact_given_by_hand_is_reported(papers, shop, tmp_path, capsys):
    """One byte behind the end of the archive.

    The score stays what it was; the artifact is not the claimed one."""
    other = tmp_path / "other.bin"
    other.write_bytes((papers / "artifact_seed1337.bin").read_bytes() + b"\0")
    options = ["--dataset", shop.corpus.dataset, "--artifact", other, "--seed", 1337]
    code, shown = score(capsys, papers, *options)
    assert code == 1
    assert "DISAGREES seed 1337: artifact_sha256" in shown
    assert "DISAGREES seed 1337: artifact_bytes" in shown
    report = judge(papers, shop.corpus.dataset, "evidence", artifact=other, seed=1337)
    assert report["evidence"].verdict == "INVALID"
    assert any("artifact_sha256" in f.where for f in report["evidence"].findings)


def test_seed_of_an_artifact_given_by_hand_is_found_by_its_hash(shop, tmp_path, capsys):
    built = shop.record("honest/static", (1337, 42), slug="two-seeds")
    folder = Path(shutil.copytree(built, tmp_path / "two"))
    second = folder / "artifact_seed42.bin"
    data = ["--dataset", shop.corpus.dataset]
    code, shown = score(capsys, folder, *data, "--artifact", second)
    assert code == 0 and "seed:42 " in shown and "claimed:" in shown
    edit(second, lambda raw: raw + b"\0")
    code, shown = score(capsys, folder, *data, "--artifact", second)
    assert code == 1 and "states it for no seed" in shown
    no_hash = SimpleNamespace(artifact_sha256=None)
    silent = SimpleNamespace(seed_results={"1337": no_hash, "42": no_hash})
    complaint = r"expected --seed with it, found seeds 1337, 42 without a sha256"
    with pytest.raises(UserError, match=complaint):
        name_given_artifact(SimpleNamespace(artifacts={GIVEN: second}, submission=silent))


def test_a_record_without_claims_agrees_with_nothing(tmp_path, tiny, capsys):
    folder = record(tmp_path / "r")
    for more in ([], ["--seed", 1337], ["--artifact", folder / "artifact_seed1337.bin"]):
        code, shown = score(capsys, folder, "--dataset", tiny, *more)
        assert code == 1 and "DISAGREES" in shown and "submission.json" in shown


def test_the_referees_own_time_limit_is_no_verdict(tmp_path, tiny, capsys):
    folder = record(tmp_path / "r", "import time; time.sleep(60)")
    for command in ("score", "audit"):
        assert main([command, str(folder), "--dataset", str(tiny), "--wall-seconds", "1"]) == 2
        said = capsys.readouterr().err
        assert said.splitlines()[-1].startswith("error: ")
        assert "pass --wall-seconds" in said
    assert main(["score", str(folder), "--dataset", str(tiny), "--wall-seconds", "0"]) == 2
    assert "--wall-seconds: expected a number of seconds above 0" in capsys.readouterr().err


def test_another_python_is_named_and_refutes_nothing(papers, shop, monkeypatch):
    """A run that fails, and a score that is not the claimed one, where versions differ."""
    here = claims.machine() | {"python": "3.99.0"}
    monkeypatch.setattr(claims, "machine", lambda: here)
    ended = Outcome("none", 1, 1.0, stderr="ImportError: no such name")

    def fails(self, runs):
        raise RunFailed(runs[0].label, ended)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score_apart", fails)
        report = judge(papers, shop.corpus.dataset)
    assert report.verdict == "INCOMPLETE"
    needs = "needs Python 3.11, as the record states; here is Python 3.99.0"
    for name in ("coverage", "future", "canary"):
        assert report[name].verdict == "NOT RUN" and needs in report[name].reason
    path = papers / "submission.json"
    stated = json.loads(path.read_text())
    stated["seed_results"]["1337"]["val_bpb"] -= 0.01
    path.write_text(json.dumps(stated))
    held = open_for_trial(papers, None, None)
    score = SeedScore(
        seed="1337",
        artifact_bytes=1,
        artifact_sha256="0" * 64,
        val_bpb=stated["val_bpb"],
        nats=1.0,
        scored_tokens=1,
        scored_bytes=1,
        seconds=1.0,
    )
    for machine, verdict in ((here, "NOT RUN"), (here | {"python": "3.11.1"}, "INVALID")):
        monkeypatch.setattr(claims, "machine", lambda machine=machine: machine)
        into = Collector("evidence")
        limit = claims.repetition(held, score.seed, load_rules(), noise=0.0)
        judge_score(held, score, Dataset(shop.corpus.dataset), limit, into)
        assert into.result("").verdict == verdict


def test_the_claim_may_be_off_by_what_reruns_are_and_no_more_than_another_machine(papers):
    rules = load_rules()
    held = open_for_trial(papers, None, None)
    tight = rules.score.relative_same_machine
    wide = rules.score.relative_elsewhere
    for noise, expected in ((0.0, tight), (2e-5, 2e-5), (0.05, wide)):
        assert claims.repetition(held, "1337", rules, noise).relative == pytest.approx(expected)


H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("here", "nproc", "seconds", "verdict", "says"),
    [
        ([H100] * 8, 8, 700.0, "INVALID", "700.0 s"),
        ([H100] * 8, 8, 508.8, "PASS", ""),
        (
            [H100],
            1,
            4000.0,
            "WARN",
            f"not comparable: claimed on 8 x {H100}, run as 1 rank on 1 x {H100}",
        ),
        ([], 1, 4000.0, "WARN", "on 0 x no GPU"),
        ([], 1, 300.0, "PASS", "left out: the track's clock, claimed on 8 x"),
    ],
)
def test_the_tracks_clock_binds_on_the_claimed_hardware(
    monkeypatch, here, nproc, seconds, verdict, says
):
    monkeypatch.setattr(claims, "gpus_here", lambda: here)
    environment = Environment(gpu=H100, gpus=8, world_size=8)
    record = SimpleNamespace(
        track=TRACKS["track_10min_16mb"], claimed_environment=lambda seed: environment
    )
    into = Collector("budget")
    judge_clock(record, "42", seconds, nproc, into)
    result = into.result("")
    assert result.verdict == verdict and says in result.reason
    assert over_the_clock(record, "42", seconds, nproc) == (verdict == "INVALID")


def test_equal_random_seeds_make_equal_audits(tmp_path, tiny):
    folder = record(tmp_path / "r")
    names = ("future", "normalisation", "canary")
    first = judge(folder, tiny, *names)
    second = judge(folder, tiny, *names)
    for name in names:
        assert first[name].figures == second[name].figures and first[name].figures
    other = judge(folder, tiny, "canary", random_seed=4)
    assert other["canary"].figures != first["canary"].figures


ALL = ["42", "1337", "2025"]


def test_quick_draws_one_seed_full_takes_all(tiny, tmp_path):
    """Behaviour is tested on one artifact, or on all; so are the scores, unless all are wanted."""
    folder = record(tmp_path / "r")
    for seed in (42, 2025):
        shutil.copyfile(folder / "artifact_seed1337.bin", folder / f"artifact_seed{seed}.bin")
    for level, every, count in (("quick", False, 1), ("quick", True, 1), ("full", False, 3)):
        report = judge(folder, tiny, "future", level=level, every_seed=every)
        scored = [score.seed for score in report.scores]
        assert scored == (report.audited if (level, every) == ("quick", False) else ALL)
        assert len(report.audited) == count
        assert sum("splice" in run.label for run in report.runs) == count


def test_stream_names_and_order_reveal_nothing(tmp_path, tiny):
    """The scorer sees names of twelve hexadecimal digits, in an order that is not the referee's."""
    folder = record(tmp_path / "r", "print(path.stem, len(x))")
    scorer = Scorer(
        folder / "train_gpt.py",
        folder / "artifact_seed1337.bin",
        260,
        load_rules(),
        sandbox.choose(),
        np.random.default_rng(1),
    )
    scorer.score([Stream(np.full(n, 5)) for n in range(2, 42)], "names")
    lines = [line.split() for line in scorer.outcomes[-1].stdout.splitlines()]
    names = [name for name, _ in lines]
    sizes = [int(size) for _, size in lines]
    assert len(set(names)) == 40
    assert all(re.fullmatch("[0-9a-f]{12}", name) for name in names)
    assert sorted(sizes) == list(range(2, 42))
    assert sizes != list(range(2, 42))
