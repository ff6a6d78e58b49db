"""`python -m eval check`: does the evidence in a record folder support what the record says?

Reads files only, runs nothing of the record. It works on folders made by `pack` and on any public
one. The verdict comes from the blocking lines alone: FAIL if the evidence proves that the number
is wrong or over a limit, CANNOT-TELL if the folder does not prove it, else PASS. What a reviewer
must ask the author, and matters of format, are told and decide nothing. Each answer carries the
lines that prove it. A passing check says that the papers agree with each other; whether the score
is a probability is `audit`'s question.

One folder gets a report: five lines of summary, then what fails or is open. Several folders, or a
folder of record folders, get one row each. With --git the folders are read out of a commit,
without a checkout.

Exit code: 0 if no folder's verdict is FAIL, 1 if one is, 2 for bad input (of several folders the
others are still judged).
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.errors import UserError
from eval.papers.checks.many import Job, check_many, record_folders
from eval.papers.checks.report import Report
from eval.papers.checks.showing import as_json, as_markdown, count, format_report, row
from eval.rules import Verdict

TEXT, JSON, GITHUB = FORMATS = ("text", "json", "github")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--git",
        nargs=2,
        metavar=("REPO", "REF"),
        help="read the folders out of this commit, branch or pull request's number of a "
        "repository; without FOLDER those that it adds or changes",
    )
    parser.add_argument(
        "--base",
        metavar="BRANCH",
        help="with --git: where the change goes to (default: the repository's default branch)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="RECORD",
        help="also test the improvement over this record for significance",
    )
    parser.add_argument(
        "-v", "--all", action="store_true", help="show every answer and all its evidence"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--format",
        choices=FORMATS,
        default=TEXT,
        help="text (default), json, or github: Markdown for a pull request's comment",
    )
    form.add_argument(
        "--json",
        action="store_const",
        dest="format",
        const=JSON,
        help="a JSON list of reports, the same as --format json",
    )


def run(args: argparse.Namespace) -> int:
    jobs = jobs_of(args)
    reports = show(check_many(jobs), args.format, one=len(jobs) == 1, everything=args.all)
    if any(report.problem is not None for report in reports):
        return 2
    return int(any(report.verdict is Verdict.FAIL for report in reports))


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """The folders to check; a machine may be told that a commit has none, a person is asked.

    Raises UserError where none is named or the repository is none.
    """
    if args.git is None:
        if not args.folders:
            raise UserError("check: expected at least one FOLDER, found none; name a record folder")
        found = []
        for folder in args.folders:
            found += record_folders(folder)
        return [Job(folder, against=args.against) for folder in found]
    from eval.papers.checks.commits import Commit, Git, changed_folders, commit_of

    repository = Path(args.git[0])
    git = Git(repository)
    commit = Commit(git, commit_of(git, args.git[1]))
    folders = args.folders or [Path(name) for name in changed_folders(git, commit, args.base)]
    if not folders and args.format == TEXT:
        base = args.base or "the default branch"
        raise UserError(
            f"{repository}: {commit.hash[:12]} adds no record folder to {base}; name the folders"
        )
    return [Job(folder, repository, commit.hash, args.against) for folder in folders]


def show(reports: Iterator[Report], form: str, one: bool, everything: bool) -> Sequence[Report]:
    """Print the reports, rows as soon as they are there, and return them.

    Raises UserError where the only folder cannot be read.
    """
    seen = []
    for report in reports:
        seen.append(report)
        if form != TEXT:
            continue
        if one and report.problem is not None:
            raise UserError(report.problem)
        if one or everything:
            print(format_report(report, everything), end="\n" if one else "\n\n")
        else:
            print(row(report), flush=True)
    if form == JSON:
        print(as_json(seen))
    elif form == GITHUB:
        print(as_markdown(seen), end="")
    elif not one:
        print(count(seen))
    return seen
