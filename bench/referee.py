"""How often does the audit refuse a sound record? `python bench/referee.py`

It writes bench/results/referee.json.

Each of `--count` audits takes one of the sound fixtures of tests/fixtures/submissions/honest in
turn, trained with another seed after each round, and its random choices are its own. All run at
the level quick on the small corpus of the tests, with the streams that the tests use. A refusal is
a verdict other than PASS and WARN; its reason and the numbers that repeat it are kept.

Audits that the results file holds for the same code of the referee are not made again, so that a
run that was ended goes on where it was.
"""

import argparse
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/fixtures")]

# The paths come first, so that this file runs as a script.
from build import Workshop, catalogue  # noqa: E402
from classes import FEWER, workshop  # noqa: E402

from eval.files import sha256_of_tree, write_atomic  # noqa: E402
from eval.rules import CURRENT, Verdict, load_rules  # noqa: E402
from eval.trial.audit.audit import Options, audit_record  # noqa: E402

RESULTS = ROOT / "bench/results/referee.json"
ACCEPTED = (Verdict.PASS, Verdict.WARN)
BUILDING = threading.Lock()  # the workshop makes one record at a time
CERTAINTY = 0.95  # of the bound on the rate of refusals


@dataclass(frozen=True)
class Trial:
    """One audit to make: a sound fixture, the seed that trains it, the referee's own seed."""

    number: int
    fixture: str
    training_seed: int
    random_seed: int


def trials(count: int, first_seed: int) -> list[Trial]:
    """Fixtures in turn; a new training seed in each round."""
    names = catalogue("honest")
    return [
        Trial(k, names[k % len(names)], 1 + k // len(names), first_seed + k) for k in range(count)
    ]


def code_of_the_referee() -> str:
    """sha256 over the files of eval/: results of another referee do not count."""
    return sha256_of_tree(ROOT / "eval", ".py", ".toml")


def audit(shop: Workshop, trial: Trial) -> dict:
    """A row of the results."""
    slug = f"{trial.fixture.split('/')[1].replace('_', '-')}-{trial.training_seed}"
    with BUILDING:
        folder = shop.record(trial.fixture, (trial.training_seed,), slug=slug)
    options = Options(
        dataset=shop.corpus.dataset,
        fresh=shop.corpus.fresh,
        random_seed=trial.random_seed,
        profile=load_rules().profile["quick"].model_copy(update=FEWER),
    )
    report = audit_record(folder, options)
    refused = report.verdict not in ACCEPTED
    against = [test for test in report.tests if test.verdict == report.verdict] if refused else []
    return asdict(trial) | {
        "verdict": str(report.verdict),
        "reasons": [f"{test.name}: {test.reason}" for test in against],
        "canary_bits": report["canary"].figures.get("evidence_bits"),
        "seconds": round(report.seconds, 1),
    }


def held_rows(path: Path, code: str) -> dict[int, dict]:
    """Rows of an earlier run with the same referee, by number."""
    if not path.is_file():
        return {}
    held = json.loads(path.read_text())
    return {row["number"]: row for row in held["rows"]} if held["code_sha256"] == code else {}


def summary(rows: Sequence[dict]) -> dict:
    """How many were refused, and the highest rate that is still likely.

    With none refused of n, the rate is below 1 - 0.05^(1/n) with 95 % certainty."""
    refused = [row for row in rows if row["verdict"] not in ACCEPTED]
    bits = [row["canary_bits"] for row in rows if row["canary_bits"] is not None]
    found = {
        "audits": len(rows),
        "refused": len(refused),
        "verdicts": dict(sorted(Counter(row["verdict"] for row in rows).items())),
        "fixtures": len({row["fixture"] for row in rows}),
        "largest_canary_bits": max(bits, default=None),
    }
    if rows and not refused:
        found["rate_below"] = round(1 - (1 - CERTAINTY) ** (1 / len(rows)), 4)
    return found


def run_all(
    wanted: Sequence[Trial],
    rows: dict[int, dict],
    make: Callable[[Trial], dict],
    keep: Callable[[list[dict]], None],
    at_once: int,
) -> list[dict]:
    """Make the trials that have no row; `keep` gets all rows, in order, after each one."""
    left = [trial for trial in wanted if trial.number not in rows]
    with ThreadPoolExecutor(at_once) as pool:
        for row in pool.map(make, left):
            rows[row["number"]] = row
            keep([rows[number] for number in sorted(rows)])
            print(f"{len(rows)}/{len(wanted)} {row['fixture']} {row['verdict']}", flush=True)
    return [rows[number] for number in sorted(rows)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--count", type=int, default=200, help="audits (default 200)")
    parser.add_argument("--seed", type=int, default=20, help="of the first audit's random choices")
    parser.add_argument("--at-once", type=int, default=1, help="audits side by side (default 1)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    code = code_of_the_referee()

    def keep(rows: list[dict]) -> None:
        circumstances = {"code_sha256": code, "rules": CURRENT, "smaller_than_quick": FEWER}
        found = circumstances | {"summary": summary(rows), "rows": rows}
        write_atomic(args.out, json.dumps(found, indent=1) + "\n")

    wanted = trials(args.count, args.seed)
    with workshop() as shop:
        rows = run_all(
            wanted,
            held_rows(args.out, code),
            lambda trial: audit(shop, trial),
            keep,
            args.at_once,
        )
    found = summary(rows)
    print(f"{found['refused']} of {found['audits']} sound records refused")
    return int(found["refused"] > 0)


if __name__ == "__main__":
    sys.exit(main())
