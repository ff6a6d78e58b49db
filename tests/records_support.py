"""Runs, records and damaged logs made in-process for the records tests: every number is chosen here, so expectations are worked by hand."""

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
from eval.papers.audits.writing import write_audit
from eval.papers.submission.reading import load_submission
from eval.rules import Verdict

# The source holds everything that misleads a log parser: markers, result lines, step lines, non-ASCII text, tabs, CR.
TRICKY_SOURCE = (
    '"""A script whose text looks like a log.\n\n'
    "log_format:1\n"
    "===== end source =====\n"
    "result val_loss:0.00000001 val_bpb:0.00000001 nats:0.000001 scored_tokens:1 scored_bytes:1 steps:1 train_s:1 eval_s:1 "
    f"artifact_bytes:1 code_bytes:1 bytes_total:2 code_sha256:{'0' * 64} seed:9\n"
    "step:5/400 train_loss:0.0001 train_time:1ms\n"
    "env python:2.7 torch:0.1\n"
    'final_int8_zlib_roundtrip_exact val_loss:0.1 val_bpb:0.1\n"""\n\n'
    "import math\n\n\n"
    "def f(x):\n\treturn math.exp(-x)  # ▁ is U+2581\n"
)
VERSION, TOKENIZER, MANIFEST, CONFIG = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


@dataclass
class FakeRun:
    """One training run. Defaults: 1,000 targets over 2,000 bytes at 2000 ln 2 = 1386.29… nats, so exactly 1 bit per byte."""

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
        'env python:3.11.7 torch:2.13.0 cuda:none driver:none gpu:none gpus:0 cpu:"Test CPU \\"X\\" 3" cores:2 platform:linux'
        " git_commit:none world_size:1 train_dtype:float32"
    )
    neural_bits: float | None = 1.25
    extra: list[str] = field(default_factory=list)

    @property
    def code(self) -> bytes:
        return self.source.encode()

    def result(self) -> str:
        loss, bpb = self.nats / self.scored_tokens, self.nats / math.log(2) / self.scored_bytes
        return (
            f"result val_loss:{loss:.8f} val_bpb:{bpb:.8f} nats:{self.nats:.6f} scored_tokens:{self.scored_tokens} "
            f"scored_bytes:{self.scored_bytes} steps:{self.steps} train_s:{self.train_s:.3f} eval_s:{self.eval_s:.3f} "
            f"artifact_bytes:{len(self.artifact)} code_bytes:{len(self.code)} bytes_total:{len(self.artifact) + len(self.code)} "
            f"code_sha256:{hashlib.sha256(self.code).hexdigest()} seed:{self.seed}"
        )

    def body(self) -> list[str]:
        """Log lines after the source, in the order in which a run prints them."""
        lines = [self.env]
        if self.preset:
            lines.append(f"config:preset {self.preset}")
        if self.seed != 1337:
            lines.append(f"config:override seed={self.seed} (default 1337, from flag)")
        lines += [f"config:override {o} (default 0, from flag)" for o in self.overrides]
        lines += [
            f"config sha256:{self.config}",
            f"data corpus:docs version:{self.version} dataset:docs_sp1024 tokenizer_sha256:{TOKENIZER} train_tokens:9000 "
            f"val_tokens:{self.scored_tokens + 1} val_bytes:{self.scored_bytes} train_files:1 manifest_sha256:{MANIFEST}",
            "model parameters:123456",
        ]
        for step in range(0, self.steps + 1, 50):
            loss = 3.0 + 4.0 / (1 + step / 40) + 0.001 * (self.seed % 7)
            times = f"train_time:{step * 150}ms step_avg:150.00ms tokens_per_s:9999"
            lines.append(f"step:{step}/{self.steps} train_loss:{loss:.4f} lr_scale:1.0000 {times}")
        lines.append(
            f"step:{self.steps}/{self.steps} val_loss:2.9000 val_bpb:2.0919 train_time:{self.steps * 150}ms"
        )
        if self.neural_bits is not None:
            loss = self.neural_bits * math.log(2) * self.scored_bytes / self.scored_tokens
            lines.append(f"neural val_loss:{loss:.8f} val_bpb:{self.neural_bits:.8f}")
        lines.append(
            f"artifact file:artifact.bin bytes:{len(self.artifact)} sha256:{hashlib.sha256(self.artifact).hexdigest()}"
        )
        return [*lines, *self.extra, self.result()]

    def head(self) -> bytes:
        mark = f"===== source train_gpt.py bytes:{len(self.code)} sha256:{hashlib.sha256(self.code).hexdigest()} =====\n"
        return b"log_format:1\n" + mark.encode() + self.code + b"\n===== end source =====\n"

    def log(self) -> bytes:
        return self.head() + ("\n".join(self.body()) + "\n").encode()

    def write(self, folder: Path) -> Path:
        """Run folder with train.log and artifact.bin; returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.log").write_bytes(self.log())
        (folder / "artifact.bin").write_bytes(self.artifact)
        return folder


def cli(module: ModuleType, *argv: object) -> int:
    """One referee command, parsed as `python -m eval` does, without importing the other commands."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    module.configure(parser)
    return module.run(parser.parse_args(list(map(str, argv))))


def three_seeds(folder: Path, **overrides: object) -> list[Path]:
    """Run folders of seeds 1337, 42 and 2025 at exactly 1.00, 1.03 and 0.97 bits per byte: mean 1, sample standard deviation 0.03."""
    bits = {1337: 1.0, 42: 1.03, 2025: 0.97}
    return [
        FakeRun(
            **(
                {"seed": seed, "nats": 2000 * math.log(2) * b, "artifact": b"w" * (700 + seed % 10)}
                | overrides
            )
        ).write(folder / f"s{seed}")
        for seed, b in bits.items()
    ]


def pack_three(root: Path, name: str = "Example record", **overrides: object) -> Path:
    """A packed three-seed record under root/records; returns its folder."""
    logs = three_seeds(root / "runs" / name.replace(" ", "-"), **overrides)
    options = [
        "--author",
        "Ann Author",
        "--github-id",
        "ann",
        "--date",
        "2026-11-24",
        "--blurb",
        "One sentence.",
    ]
    assert cli(pack, *logs, "--name", name, "--records-dir", root / "records", *options) == 0
    return next((root / "records").glob(f"*/2026-11-24_{name.lower().replace(' ', '-')}"))


def upstream_records() -> Path:
    """The public sample records beside the repository; skips the calling test where they are not there."""
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
    """The referee's report beside a packed record: `verdict` on one test, PASS on the rest, artifacts as in submission.json."""
    submission = load_submission(folder)
    results = submission.seed_results
    special = {test: {"verdict": verdict, "reason": reason}}
    tests = [
        TestResult(**{"name": name, "verdict": "PASS", "reason": "fine"} | special.get(name, {}))
        for name in TEST_NAMES
    ]
    scores = [
        SeedScore(
            seed=seed, artifact_bytes=r.artifact_bytes, artifact_sha256=r.artifact_sha256, val_bpb=r.val_bpb, nats=r.nats,
            scored_tokens=r.scored_tokens, scored_bytes=r.scored_bytes, seconds=1.0, claimed_val_bpb=r.val_bpb,
        )
        for seed, r in results.items()
    ]  # fmt: skip
    identity = {
        "record": folder.name,
        "level": "quick",
        "rules_version": "2026-11",
        "random_seed": 1,
        "started": datetime(2026, 11, 24, tzinfo=UTC),
    }
    about = {
        "audited": [next(iter(results))],
        "code_sha256": submission.code_sha256,
        "corpus_version": submission.data.version,
        "sandbox": "bwrap",
    }
    write_audit(
        AuditReport(**identity, **about, verdict=verdict, scores=scores, tests=tests), folder
    )
