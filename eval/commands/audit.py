"""`python -m eval audit`: a black-box audit of a record.

No verdict rests on reading the submission's source. Every test of the report can be chosen by name
(--only). --quick takes a few minutes on two cores for a docs-track record; --full tests every seed
with many more positions. The report goes to the terminal and, as audit.json and AUDIT.md, into the
record folder or --out. Exit code 0 for PASS and WARN, 1 for POLICY and INVALID and where a chosen
test could not run, 2 for bad input.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval.commands.score import add_run_options
from eval.papers.audits.report import TEST_NAMES, AuditReport
from eval.papers.rendering.audits import to_terminal, write_audit
from eval.papers.submission.schema import AUDIT_TEXT
from eval.trial.audit.audit import Options, audit_record


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser)
    level = parser.add_mutually_exclusive_group()
    level.add_argument(
        "--quick", dest="level", action="store_const", const="quick", help="a few minutes (default)"
    )
    level.add_argument(
        "--full",
        dest="level",
        action="store_const",
        const="full",
        help="every seed, more runs, more positions",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=TEST_NAMES,
        default=[],
        metavar="NAME",
        help=f"tests to run: {', '.join(TEST_NAMES)}",
    )
    parser.add_argument(
        "--fresh",
        type=Path,
        metavar="DIR",
        help="dataset folder of documents outside both splits, same tokenizer",
    )
    parser.add_argument(
        "--random-seed", type=int, metavar="N", help="repeat the random choices of another audit"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where audit.json and AUDIT.md go (default: the record folder)",
    )
    parser.set_defaults(level="quick")


def run(args: argparse.Namespace) -> int:
    options = Options(
        level=args.level,
        only=tuple(args.only),
        dataset=args.dataset,
        fresh=args.fresh,
        seed=args.seed,
        artifact=args.artifact,
        random_seed=args.random_seed,
        mechanism="none" if args.no_sandbox else "auto",
        nproc=args.nproc,
        wall_seconds=args.wall_seconds,
        rules=args.rules,
        progress=True,
    )
    report = audit_record(args.record, options)
    folder = args.out or args.record
    print(to_terminal(report))
    write_audit(report, folder)
    print(f"written   {folder / AUDIT_TEXT}")
    rejected = report.verdict in ("POLICY", "INVALID")
    return int(rejected or bool(not_run(report, options.only)))


def not_run(report: AuditReport, only: Sequence[str]) -> list[str]:
    """Chosen tests that say nothing.

    Without a choice, `documents` may say nothing: a split of few documents has no borders to test,
    and the rule set asks for none.
    """
    wanted = only or [name for name in TEST_NAMES if name != "documents"]
    silent = [test.name for test in report.tests if test.verdict == "NOT RUN"]
    return [name for name in silent if name in wanted]
