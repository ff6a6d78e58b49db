"""`python -m eval pr FOLDER`: makes the branch and the text of a record's pull request.

The branch has one commit that adds the record's folder and nothing else. The command works on
git's objects through an index of its own: working tree, index and current branch stay as they are.
It pushes nothing.
"""

import argparse
import tempfile
from pathlib import Path

from eval.errors import UserError, typed_command
from eval.files import REPOSITORY, published, write_atomic
from eval.papers.checks.commits import Git
from eval.papers.checks.report import Report
from eval.papers.checks.run import check_record
from eval.papers.checks.showing import tally
from eval.papers.folder import PACKED_NAMES, Record, open_record
from eval.papers.rendering.readme import (
    audit_text,
    changes_of,
    default_changes,
    reproduction,
    results_table,
)
from eval.papers.rendering.tables import aligned
from eval.papers.submission.schema import ANONYMOUS
from eval.rules import Verdict

NO_COMMIT = "0" * 40  # what a branch that must not exist yet points to
LABEL_WIDTHS = (12,)  # characters: of the labels that are printed


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--base",
        default="main",
        help="branch or commit that the pull request goes to (default: main)",
    )
    parser.add_argument("--root", type=Path, default=REPOSITORY, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    folder = args.folder.resolve()
    record, report = examine(folder)
    place = place_of(folder, args.root.resolve())
    repository = Git(args.root)
    branch = f"record/{folder.name}"
    base = base_commit(repository, args.base)
    require_identity(repository)
    refuse_conflicts(repository, base, args.base, place, branch)
    title = title_of(record)
    body = body_of(record, report)
    commit = add_folder(repository, base, folder, place, title)
    verify(repository, base, commit, place, folder)
    repository("update-ref", f"refs/heads/{branch}", commit, NO_COMMIT)
    text = args.root / "runs" / f"{folder.name}.pr.md"
    text.parent.mkdir(exist_ok=True)
    write_atomic(text, published(f"{title}\n\n{body}"))
    count = len(files_of(folder))
    added = f"one commit on {args.base}, {count} files added, nothing else"
    rows = [
        ("branch", f"{branch} at {commit[:12]}: {added}"),
        ("title", title),
        ("body", f"{text} (first line is the title)"),
        ("next", f"git push origin {branch}, then open the pull request against {args.base}"),
    ]
    print(aligned(rows, LABEL_WIDTHS))
    return 0


# --- What may be submitted ---


def base_commit(repository: Git, name: str) -> str:
    """Hash of the commit that the pull request goes to. Raises UserError when there is none."""
    found = repository.commit(name)
    if found is None:
        raise UserError(
            f"--base {name}: expected a branch or commit of {repository.root}, found none; "
            "fetch it or name another"
        )
    return found


def require_identity(repository: Git) -> None:
    """Raises UserError where git does not know who commits, before anything is written."""
    for role in ("AUTHOR", "COMMITTER"):
        repository("var", f"GIT_{role}_IDENT")


def examine(folder: Path) -> tuple[Record, Report]:
    """The record, if it may be submitted, and its checks.

    Raises UserError for a failing check, an imported record or an anonymous author.
    """
    record = open_record(folder)
    record.with_audit = True
    report = check_record(record)
    failed = [check for check in report.checks if check.verdict is Verdict.FAIL]
    if failed:
        first = f"{failed[0].name}: {failed[0].detail}"
        raise UserError(
            f"{folder}: {len(failed)} check(s) fail, first {first}; "
            f"run {typed_command('eval', 'check', folder)}"
        )
    submission = record.submission
    if submission.origin != "packed":
        raise UserError(
            f"{folder}: expected a record made by python -m eval pack, found an imported one"
        )
    if ANONYMOUS in (submission.author, submission.github_id):
        raise UserError(
            f"{folder}: the author is {ANONYMOUS}; pack again with --author and --github-id"
        )
    return record, report


def files_of(folder: Path) -> list[Path]:
    """Files of the commit. Raises UserError for anything that `pack` does not put there."""
    files = [item for item in sorted(folder.iterdir()) if item.name != "__pycache__"]
    for item in files:
        own_file = item.is_file() and not item.is_symlink()
        if not own_file or not PACKED_NAMES.fullmatch(item.name):
            raise UserError(
                f"{item}: not a file that pack writes; "
                "a record's commit holds only those, move it away"
            )
    return files


def place_of(folder: Path, root: Path) -> str:
    """Path of the folder inside the repository, as git writes it."""
    try:
        parts = folder.relative_to(root).parts
    except ValueError:
        parts = ()
    if len(parts) != 3 or parts[0] != "records":
        raise UserError(f"{folder}: expected {root}/records/TRACK/DATE_slug; pack the record there")
    return "/".join(parts)


def refuse_conflicts(repository: Git, base: str, base_name: str, place: str, branch: str) -> None:
    """Raises UserError where the folder or the branch exists already, or the folder was edited."""
    if repository("ls-tree", "--name-only", base, "--", place).strip():
        raise UserError(
            f"{place}: already in {base_name}; a record's pull request only adds a folder, "
            "name an older --base or a new record"
        )
    if repository("status", "--porcelain", "--untracked-files=no", "--", place).strip():
        raise UserError(
            f"{place}: has uncommitted changes; "
            "commit or undo them, so that what is checked is what is known"
        )
    if repository("for-each-ref", f"refs/heads/{branch}").strip():
        raise UserError(
            f"branch {branch} exists; delete it (git branch -D {branch}) or rename the record"
        )


# --- The commit ---


def add_folder(repository: Git, base: str, folder: Path, place: str, title: str) -> str:
    """Commit with `base` as parent whose tree is base's plus the folder; returns its hash."""
    with tempfile.TemporaryDirectory() as temporary:
        env = {"GIT_INDEX_FILE": str(Path(temporary) / "index")}
        repository("read-tree", base, env=env)
        for item in files_of(folder):
            # No filters: the record's hashes are of the bytes on disk, and a conversion of line
            # endings would change them.
            blob = repository("hash-object", "-w", "--no-filters", "--", str(item)).strip()
            entry = f"100644,{blob},{place}/{item.name}"
            repository("update-index", "--add", "--cacheinfo", entry, env=env)
        tree = repository("write-tree", env=env).strip()
    return repository("commit-tree", tree, "-p", base, "-F", "-", stdin=title + "\n").strip()


def verify(repository: Git, base: str, commit: str, place: str, folder: Path) -> None:
    """The commit adds exactly the folder's files, byte for byte.

    Raises UserError otherwise, before any branch points to it.
    """
    listing = repository("diff-tree", "-r", "--no-renames", "--name-status", base, commit)
    changes = sorted(listing.splitlines())
    expected = sorted(f"A\t{place}/{item.name}" for item in files_of(folder))
    if changes != expected:
        raise UserError(
            f"{place}: the commit would change {changes}, expected only additions of {expected}; "
            "is the folder being written to?"
        )
    for item in files_of(folder):
        stored = repository("rev-parse", f"{commit}:{place}/{item.name}").strip()
        if stored != repository("hash-object", "--no-filters", "--", str(item)).strip():
            raise UserError(f"{item}: changed while it was committed; run again")


# --- The text ---


def title_of(record: Record) -> str:
    submission = record.submission
    count = len(submission.seeds)
    seeds = f"{count}-seed mean" if count > 1 else "1 seed"
    return f"Record: {submission.name}, val_bpb {submission.val_bpb:.5f} ({seeds})"


def body_of(record: Record, report: Report) -> str:
    """Markdown body of the pull request, from submission.json, the checks and audit.json."""
    submission = record.submission
    unclear = [check for check in report.checks if check.verdict is Verdict.CANNOT_TELL]
    remarks = [f"* {check.name}: {check.detail}" for check in unclear]
    parts = [
        submission.blurb,
        "## What changed",
        changes_of(record.folder) or default_changes(submission),
        "## Results",
        results_table(submission),
        "## Evidence",
        "\n".join([f"`python -m eval check`: {tally(report)}.", *remarks]),
        "## Audit",
        audit_text(record.audit, linked=False),
        "## Reproduce",
        reproduction(submission, record.folder),
        "This pull request adds one folder and changes nothing else.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
