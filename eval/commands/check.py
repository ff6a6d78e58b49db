"""`python -m eval check`: does the evidence in a record folder support what the record says?

Reads files only, runs nothing of the record. It works on folders made by `pack` and on any public
one: what a foreign format cannot show is CANNOT-TELL, never PASS. Each verdict carries the lines
that prove it. A passing check says that the papers agree with each other; whether the score is a
probability is `audit`'s question.
"""

import argparse
import json
from pathlib import Path

from eval.papers.checks.report import Report, format_report
from eval.papers.checks.run import check_record
from eval.papers.folder import open_record
from eval.rules import Verdict


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="RECORD",
        help="also test the improvement over this record for significance",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list of reports instead of text"
    )


def run(args: argparse.Namespace) -> int:
    base = None if args.against is None else open_record(args.against)
    reports = []
    for folder in args.folders:
        record = open_record(folder)
        record.with_audit = True
        reports.append(check_record(record, base))
    print(as_json(reports) if args.json else "\n\n".join(map(format_report, reports)))
    return int(any(report.verdict is Verdict.FAIL for report in reports))


def as_json(reports: list[Report]) -> str:
    objects = [report.model_dump(mode="json") for report in reports]
    return json.dumps(objects, indent=2, ensure_ascii=False)
