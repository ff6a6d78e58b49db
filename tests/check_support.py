"""What the tests of `check` share: verdicts by name, and public records made by hand."""

import json
from pathlib import Path

from eval.papers.checks.report import Check
from eval.papers.checks.run import check_folder
from eval.rules import Verdict

# The contest's fields of a public record whose scripts have 12 bytes.
GOOD = {
    "author": "a",
    "github_id": "b",
    "name": "n",
    "blurb": "",
    "date": "2026-05-01",
    "bytes_total": 1012,
    "bytes_code": 12,
}
LOSS_PER_BPB = 1.68846  # nats per token of one bit per byte, in every public log made here


def verdicts(folder: Path, verdict: Verdict = Verdict.FAIL) -> dict[str, str]:
    """Details of the checks that end on a verdict, by name."""
    checks = check_folder(folder, with_audit=True).checks
    return {check.name: check.detail for check in checks if check.verdict is verdict}


def named(folder: Path, name: str, **options: Path | bool) -> Check:
    """The first check of that name."""
    report = check_folder(folder, **options)
    return next(check for check in report.checks if check.name == name)


def public_folder(
    parent: Path, submission: dict, logs: dict[str, str], code: str = "import math\n"
) -> Path:
    """A record as a stranger could have made it."""
    folder = parent / "2026-05-01_Somebody"
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
    lines = [
        f"val_loader:shards pattern=x tokens:{tokens}",
        "model_params:5",
        "world_size:8 grad_accum_steps:1",
        "max_wallclock_seconds:600.000",
        f"seed:{seed}",
        "step:1/9 train_loss:5.0 train_time:10ms",
        "stopping_early: wallclock_cap train_time:599000ms step:9/9",
        f"Code size: {code} bytes",
        f"Serialized model int6+zstd: {artifact} bytes",
        f"Total submission size int6+zstd: {artifact + code} bytes",
        f"final_exact val_loss:{bpb * LOSS_PER_BPB:.8f} val_bpb:{bpb:.8f} eval_time:1000ms",
    ]
    return "\n".join(lines) + "\n"


def public_logs(bits: dict[int, float], tokens: int = 62_021_632) -> dict[str, str]:
    """Logs by file name, of the seeds and their bits per byte."""
    return {f"train_seed{s}.log": public_log(s, bpb, tokens=tokens) for s, bpb in bits.items()}


def leaves(value: object, path: tuple = ()):
    """(path, value) of everything in a JSON value that is no object or list."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from leaves(inner, (*path, key))
    else:
        yield path, value
