"""Runs and records made in-process for the records tests.

Every number is chosen here, so expectations are worked by hand.
"""

import argparse
import hashlib
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest

from eval.commands import pack
from eval.papers.audits.report import TEST_NAMES, AuditReport, SeedScore, TestResult
from eval.papers.rendering.audits import write_audit
from eval.papers.submission.reading import load_submission
from eval.papers.submission.schema import SeedResult
from eval.rules import Verdict

# The source holds everything that misleads a log parser: markers, result lines, step lines,
# non-ASCII text, tabs, CR.
TRICKY_SOURCE = (
    '"""A script whose text looks like a log.\n\n'
    "log_format:1\n"
    "===== end source =====\n"
    "result val_loss:0.00000001 val_bpb:0.00000001 nats:0.000001 scored_tokens:1 scored_bytes:1 "
    "steps:1 train_s:1 eval_s:1 artifact_bytes:1 code_bytes:1 bytes_total:2 "
    f"code_sha256:{'0' * 64} seed:9\n"
    "step:5/400 train_loss:0.0001 train_time:1ms\n"
    "env python:2.7 torch:0.1\n"
    'final_int8_zlib_roundtrip_exact val_loss:0.1 val_bpb:0.1\n"""\n\n'
    "import math\n\n\n"
    "def f(x):\n\treturn math.exp(-x)  # ▁ is U+2581\n"
)
# sha256 sums
VERSION = "a" * 64
TOKENIZER = "b" * 64
MANIFEST = "c" * 64
CONFIG = "d" * 64


@dataclass
class FakeRun:
    """One training run.

    Defaults: 1,000 targets over 2,000 bytes at 2000 ln 2 = 1386.29… nats, so exactly 1 bit per
    byte."""

    seed: int = 1337
    source: str = TRICKY_SOURCE
    nats: float = 2000 * math.log(2)
    scored_tokens: int = 1000
    scored_bytes: int = 2000
    steps: int = 400
    train_s: float = 61.5
    eval_s: float = 4.25
    artifact: bytes = b"weights" * 100
    config: str = CONFIG
    version: str = VERSION
    overrides: tuple[str, ...] = ()
    preset: str | None = "docs_cpu"
    env: str = (
        "env python:3.11.7 torch:2.13.0 cuda:none driver:none gpu:none gpus:0 "
        'cpu:"Test CPU \\"X\\" 3" cores:2 platform:linux '
        "git_commit:none world_size:1 train_dtype:float32"
    )
    neural_bits: float | None = 1.25
    extra: list[str] = field(default_factory=list)

    @property
    def code(self) -> bytes:
        return self.source.encode()

    def result(self) -> str:
        loss = self.nats / self.scored_tokens
        bpb = self.nats / math.log(2) / self.scored_bytes
        bytes_total = len(self.artifact) + len(self.code)
        return (
            f"result val_loss:{loss:.8f} val_bpb:{bpb:.8f} nats:{self.nats:.6f} "
            f"scored_tokens:{self.scored_tokens} scored_bytes:{self.scored_bytes} "
            f"steps:{self.steps} train_s:{self.train_s:.3f} eval_s:{self.eval_s:.3f} "
            f"artifact_bytes:{len(self.artifact)} code_bytes:{len(self.code)} "
            f"bytes_total:{bytes_total} code_sha256:{sha256_hex(self.code)} seed:{self.seed}"
        )

    def settings(self) -> list[str]:
        lines = []
        if self.preset:
            lines.append(f"config:preset {self.preset}")
        if self.seed != 1337:
            lines.append(f"config:override seed={self.seed} (default 1337, from flag)")
        lines += [f"config:override {setting} (default 0, from flag)" for setting in self.overrides]
        return [*lines, f"config sha256:{self.config}"]

    def data(self) -> str:
        return (
            f"data corpus:docs version:{self.version} dataset:docs_sp1024 "
            f"tokenizer_sha256:{TOKENIZER} train_tokens:9000 val_tokens:{self.scored_tokens + 1} "
            f"val_bytes:{self.scored_bytes} train_files:1 manifest_sha256:{MANIFEST}"
        )

    def step_lines(self) -> list[str]:
        lines = []
        for step in range(0, self.steps + 1, 50):
            loss = 3.0 + 4.0 / (1 + step / 40) + 0.001 * (self.seed % 7)
            times = f"train_time:{step * 150}ms step_avg:150.00ms tokens_per_s:9999"
            lines.append(f"step:{step}/{self.steps} train_loss:{loss:.4f} lr_scale:1.0000 {times}")
        time = f"train_time:{self.steps * 150}ms"
        scored = f"step:{self.steps}/{self.steps} val_loss:2.9000 val_bpb:2.0919 {time}"
        return [*lines, scored]

    def body(self) -> list[str]:
        """Log lines after the source, in the order in which a run prints them."""
        lines = [self.env, *self.settings(), self.data(), "model parameters:123456"]
        lines += self.step_lines()
        if self.neural_bits is not None:
            loss = self.neural_bits * math.log(2) * self.scored_bytes / self.scored_tokens
            lines.append(f"neural val_loss:{loss:.8f} val_bpb:{self.neural_bits:.8f}")
        size = f"bytes:{len(self.artifact)}"
        lines.append(f"artifact file:artifact.bin {size} sha256:{sha256_hex(self.artifact)}")
        return [*lines, *self.extra, self.result()]

    def head(self) -> bytes:
        source = f"bytes:{len(self.code)} sha256:{sha256_hex(self.code)}"
        mark = f"===== source train_gpt.py {source} =====\n"
        return b"log_format:1\n" + mark.encode() + self.code + b"\n===== end source =====\n"

    def log(self) -> bytes:
        return self.head() + ("\n".join(self.body()) + "\n").encode()

    def write(self, folder: Path) -> Path:
        """Run folder with train.log and artifact.bin; returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.log").write_bytes(self.log())
        (folder / "artifact.bin").write_bytes(self.artifact)
        return folder


def sha256_hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def cli(module: ModuleType, *argv: object) -> int:
    """Exit code of one referee command, parsed as `python -m eval` does it."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    module.configure(parser)
    return module.run(parser.parse_args(list(map(str, argv))))


def three_seeds(folder: Path, **overrides: object) -> list[Path]:
    """Run folders of seeds 1337, 42 and 2025 at exactly 1.00, 1.03 and 0.97 bits per byte.

    Their mean is 1, their sample standard deviation 0.03."""
    bits_per_byte = {1337: 1.0, 42: 1.03, 2025: 0.97}
    runs = []
    for seed, bits in bits_per_byte.items():
        artifact = b"w" * (700 + seed % 10)
        settings = {"seed": seed, "nats": 2000 * math.log(2) * bits, "artifact": artifact}
        runs.append(FakeRun(**(settings | overrides)).write(folder / f"s{seed}"))
    return runs


def pack_three(root: Path, name: str = "Example record", **overrides: object) -> Path:
    """A packed three-seed record under root/records; returns its folder."""
    slug = name.replace(" ", "-")
    runs = three_seeds(root / "runs" / slug, **overrides)
    about = ["--name", name, "--blurb", "One sentence.", "--date", "2026-11-24"]
    author = ["--author", "Ann Author", "--github-id", "ann"]
    assert cli(pack, *runs, *about, *author, "--records-dir", root / "records") == 0
    return next((root / "records").glob(f"*/2026-11-24_{slug.lower()}"))


def upstream_records() -> Path:
    """The public sample records beside the repository; skips the calling test without them."""
    path = Path(__file__).resolve().parents[2] / "shared" / "upstream_records"
    if not path.is_dir():
        pytest.skip(f"no public sample records at {path}")
    return path


def audit(
    folder: Path,
    verdict: Verdict,
    test: str = "normalisation",
    reason: str = "sum of 512 tokens: expected 1, found 6.25",
) -> None:
    """Write a report of the referee beside a packed record: `verdict` on one test, PASS on the
    rest, artifacts as in submission.json."""
    submission = load_submission(folder)
    tests = [TestResult(name=name, verdict="PASS", reason="fine") for name in TEST_NAMES]
    tests[TEST_NAMES.index(test)] = TestResult(name=test, verdict=verdict, reason=reason)
    report = AuditReport(
        record=folder.name,
        level="quick",
        rules_version="2026-11",
        random_seed=1,
        started=datetime(2026, 11, 24, tzinfo=UTC),
        audited=[next(iter(submission.seed_results))],
        code_sha256=submission.code_sha256,
        corpus_version=submission.data.version,
        sandbox="bwrap",
        verdict=verdict,
        scores=[seed_score(seed, row) for seed, row in submission.seed_results.items()],
        tests=tests,
    )
    write_audit(report, folder)


def seed_score(seed: str, row: SeedResult) -> SeedScore:
    """A score of the referee that is what the entrant claims."""
    return SeedScore(
        seed=seed,
        artifact_bytes=row.artifact_bytes,
        artifact_sha256=row.artifact_sha256,
        val_bpb=row.val_bpb,
        nats=row.nats,
        scored_tokens=row.scored_tokens,
        scored_bytes=row.scored_bytes,
        seconds=1.0,
        claimed_val_bpb=row.val_bpb,
    )
