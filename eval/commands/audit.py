"""`python -m eval audit`: a black-box audit of a record.

No verdict rests on reading the submission's source. --quick tests one seed drawn by chance; --full
tests and scores every seed with many more positions. Every test of the report can be chosen by name
(--only). The report goes to the terminal and, as audit.json and AUDIT.md, into the record folder or
--out. Exit code 0 for PASS and WARN, 1 for POLICY and INVALID, 2 for bad input, 3 for INCOMPLETE
(tests that were not selected, not possible here, or cut off by --seconds), 130 for an interruption.
"""

import argparse
import tempfile
from pathlib import Path

from eval.commands.score import add_run_options
from eval.errors import UserError
from eval.papers.audits.reading import read_audit
from eval.papers.audits.report import TEST_NAMES, AuditReport
from eval.papers.rendering.audits import to_terminal, write_audit
from eval.papers.submission.schema import AUDIT_TEXT
from eval.rules import Verdict
from eval.trial.audit.audit import STOPPED_BY_HAND, Options, audit_record

INTERRUPTED = 130  # exit code
EXIT_CODES = {
    Verdict.PASS: 0,
    Verdict.WARN: 0,
    Verdict.POLICY: 1,
    Verdict.INVALID: 1,
    Verdict.INCOMPLETE: 3,
}


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
        "--every-seed",
        action="store_true",
        help="with --quick: score every artifact, not only the one drawn, as a rank needs",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="begin no run after S seconds; what is left out makes the audit INCOMPLETE",
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
    folder = args.out or args.record
    require_writable(folder)
    if args.seconds is not None and not args.seconds >= 0:
        raise UserError(f"--seconds: expected a number of at least 0, found {args.seconds:g}")
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
        seconds=args.seconds,
        device=args.device,
        every_seed=args.every_seed,
        rules=args.rules,
        progress=True,
    )
    report = audit_record(args.record, options)
    print(to_terminal(report))
    kept = kept_audit(report, folder)
    if kept is None:
        write_audit(report, folder)
        print(f"written   {folder / AUDIT_TEXT}")
    else:
        print(f"kept      {folder / AUDIT_TEXT}, which says {kept}; --out DIR writes this one")
    return INTERRUPTED if report.stopped == STOPPED_BY_HAND else EXIT_CODES[report.verdict]


def require_writable(folder: Path) -> None:
    """Raises UserError where the report could not be written, before anything runs."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return
    except OSError as error:
        raise UserError(
            f"{folder}: expected a folder to write {AUDIT_TEXT} into, "
            f"found {error.strerror or error}; pass --out DIR"
        ) from None


def kept_audit(report: AuditReport, folder: Path) -> Verdict | None:
    """The verdict of an audit that lies in `folder` and tells more than an incomplete one."""
    if report.verdict != Verdict.INCOMPLETE:
        return None
    try:
        held = read_audit(folder)
    except UserError:
        return None
    same_code = held is not None and held.code_sha256 == report.code_sha256
    return held.verdict if same_code and held.verdict != Verdict.INCOMPLETE else None
