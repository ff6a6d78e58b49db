"""`python -m eval pr FOLDER`: a branch with one commit that adds the record's folder and nothing else, and the pull request's text.

Works on git's objects through an index of its own: working tree, index and current branch stay as they are. Pushes nothing.
"""

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path

from eval.errors import UserError
from eval.files import REPOSITORY, write_atomic
from eval.papers.audits.reading import read_audit
from eval.papers.checks.report import CHECK_VERDICTS, Report
from eval.papers.checks.run import check_folder
from eval.papers.folder import PACKED_NAMES
from eval.papers.rendering.readme import (
    audit_text,
    changes_of,
    default_changes,
    reproduction,
    results_table,
)
from eval.papers.submission.reading import load_submission
from eval.papers.submission.schema import ANONYMOUS, Submission
from eval.rules import Verdict

KEPT = re.compile(
    r"GIT_(?:AUTHOR|COMMITTER)_|GIT_CONFIG_(?:GLOBAL|SYSTEM|NOSYSTEM)$"
)  # who commits; everything else says where


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
    submission, report = examine(folder)
    place = place_of(folder, args.root.resolve())
    repository = Git(args.root)
    branch = f"record/{folder.name}"
    base = repository.commit(args.base)
    refuse_conflicts(repository, base, args.base, place, branch)
    title, body = pull_request(submission, folder, report)
    commit = add_folder(repository, base, folder, place, title)
    verify(repository, base, commit, place, folder)
    repository("update-ref", f"refs/heads/{branch}", commit, "0" * 40)
    text = args.root / "runs" / f"{folder.name}.pr.md"
    text.parent.mkdir(exist_ok=True)
    write_atomic(text, f"{title}\n\n{body}")
    print(
        f"branch       {branch} at {commit[:12]}: one commit on {args.base}, {len(files_of(folder))} files added, nothing else"
    )
    print(f"title        {title}")
    print(f"body         {text} (first line is the title)")
    print(f"next         git push origin {branch}, then open the pull request against {args.base}")
    return 0


class Git:
    """git in one repository. Calls return stdout; UserError carries git's own message."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(
        self, *args: str, stdin: str | None = None, env: dict[str, str] | None = None
    ) -> str:
        # Inherited variables may mean another repository or index; `status` would rewrite the index to refresh its times.
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("GIT_") or KEPT.match(name)
        }
        clean = inherited | {"GIT_OPTIONAL_LOCKS": "0"} | (env or {})
        try:
            done = subprocess.run(
                ["git", *args],
                cwd=self.root,
                input=stdin,
                capture_output=True,
                text=True,
                check=False,
                env=clean,
            )
        except FileNotFoundError:
            raise UserError("pr: git is not installed; install it and run again") from None
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise UserError(
                f"git {args[0]}: {reason[0] if reason else f'exit code {done.returncode}'}"
            )
        return done.stdout

    def commit(self, name: str) -> str:
        """Hash of the commit that a name means. Raises UserError when there is none."""
        try:
            return self("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
        except UserError:
            raise UserError(
                f"--base {name}: expected a branch or commit of {self.root}, found none; fetch it or name another"
            ) from None


def examine(folder: Path) -> tuple[Submission, Report]:
    """The record, if it may be submitted. Raises UserError for a failing check, an unknown file, a link or an anonymous author."""
    report = check_folder(folder, with_audit=True)
    failed = [check for check in report.checks if check.verdict is Verdict.FAIL]
    if failed:
        raise UserError(
            f"{folder}: {len(failed)} check(s) fail, first {failed[0].name}: {failed[0].detail}; run python -m eval check {folder}"
        )
    submission = load_submission(folder)
    if submission.origin != "packed":
        raise UserError(
            f"{folder}: expected a record made by python -m eval pack, found an imported one"
        )
    if ANONYMOUS in (submission.author, submission.github_id):
        raise UserError(
            f"{folder}: the author is {ANONYMOUS}; pack again with --author and --github-id"
        )
    return submission, report


def files_of(folder: Path) -> list[Path]:
    """Files of the commit. Raises UserError for anything that `pack` does not put there."""
    files = [item for item in sorted(folder.iterdir()) if item.name != "__pycache__"]
    for item in files:
        if item.is_symlink() or not item.is_file() or not PACKED_NAMES.fullmatch(item.name):
            raise UserError(
                f"{item}: not a file that pack writes; a record's commit holds only those, move it away"
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
    if repository("ls-tree", "--name-only", base, "--", place).strip():
        raise UserError(
            f"{place}: already in {base_name}; a record's pull request only adds a folder, name an older --base or a new record"
        )
    if repository("status", "--porcelain", "--untracked-files=no", "--", place).strip():
        raise UserError(
            f"{place}: has uncommitted changes; commit or undo them, so that what is checked is what is known"
        )
    if repository("for-each-ref", f"refs/heads/{branch}").strip():
        raise UserError(
            f"branch {branch} exists; delete it (git branch -D {branch}) or rename the record"
        )


def add_folder(repository: Git, base: str, folder: Path, place: str, title: str) -> str:
    """Commit with `base` as parent whose tree is base's plus the folder; returns its hash."""
    with tempfile.TemporaryDirectory() as temporary:
        env = {"GIT_INDEX_FILE": str(Path(temporary) / "index")}
        repository("read-tree", base, env=env)
        for item in files_of(folder):
            # --no-filters: the record's hashes are of the bytes on disk, no line-ending conversion may touch them.
            blob = repository("hash-object", "-w", "--no-filters", "--", str(item)).strip()
            repository(
                "update-index",
                "--add",
                "--cacheinfo",
                f"100644,{blob},{place}/{item.name}",
                env=env,
            )
        tree = repository("write-tree", env=env).strip()
    return repository("commit-tree", tree, "-p", base, "-F", "-", stdin=title + "\n").strip()


def verify(repository: Git, base: str, commit: str, place: str, folder: Path) -> None:
    """The commit adds exactly the folder's files, byte for byte. Raises UserError otherwise, before any branch points to it."""
    changes = [
        line.split("\t", 1)
        for line in repository(
            "diff-tree", "-r", "--no-renames", "--name-status", base, commit
        ).splitlines()
    ]
    expected = sorted(f"{place}/{item.name}" for item in files_of(folder))
    if sorted(path for status, path in changes if status == "A") != expected or len(changes) != len(
        expected
    ):
        raise UserError(
            f"{place}: the commit would change {changes}, expected only additions of {expected}; is the folder being written to?"
        )
    for item in files_of(folder):
        stored = repository("rev-parse", f"{commit}:{place}/{item.name}").strip()
        if stored != repository("hash-object", "--no-filters", "--", str(item)).strip():
            raise UserError(f"{item}: changed while it was committed; run again")


def pull_request(submission: Submission, folder: Path, report: Report) -> tuple[str, str]:
    """Title and Markdown body, from submission.json, the checks and audit.json."""
    s = submission
    seeds = f"{len(s.seeds)}-seed mean" if len(s.seeds) > 1 else "1 seed"
    title = f"Record: {s.name}, val_bpb {s.val_bpb:.5f} ({seeds})"
    tally = {
        verdict: sum(check.verdict is verdict for check in report.checks)
        for verdict in CHECK_VERDICTS
    }
    unclear = [
        f"* {check.name}: {check.detail}"
        for check in report.checks
        if check.verdict is Verdict.CANNOT_TELL
    ]
    evidence = f"`python -m eval check`: {', '.join(f'{count} {verdict}' for verdict, count in tally.items())}."
    parts = [
        s.blurb,
        "## What changed",
        changes_of(folder) or default_changes(s),
        "## Results",
        results_table(s),
    ]
    parts += [
        "## Evidence",
        "\n".join([evidence, *unclear]),
        "## Audit",
        audit_text(read_audit(folder), linked=False),
    ]
    parts += [
        "## Reproduce",
        reproduction(s, folder),
        "This pull request adds one folder and changes nothing else.",
    ]
    return title, "\n\n".join(part for part in parts if part) + "\n"
