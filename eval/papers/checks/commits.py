"""git, and the files of a commit: a record folder is read without a checkout."""

import os
import re
import subprocess
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eval.errors import UserError

# Variables that say who commits. All others of git's say where, and must not lead elsewhere.
KEPT = re.compile(r"GIT_(?:AUTHOR|COMMITTER)_|GIT_CONFIG_(?:GLOBAL|SYSTEM|NOSYSTEM)$")
REGULAR_FILE = ("100644", "100755")  # git's modes; others are links and submodules
OWNER = re.compile(r"dubious ownership in repository at '(.*)'")
IDENTITY = re.compile(r"identity unknown|tell me who you are|auto-detect email|empty ident name")
PULL_REQUEST = re.compile(r"(?:#|PR ?#?)?(\d{1,7})", re.IGNORECASE)
DEFAULT_BRANCHES = ("refs/remotes/origin/HEAD", "refs/heads/main", "refs/heads/master", "HEAD")
SUBMISSION_NAME = re.compile(r"submission\w*\.json")


class Git:
    """git in one repository. Calls return stdout; UserError carries git's reason and a remedy."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(
        self, *args: str, stdin: str | None = None, env: dict[str, str] | None = None
    ) -> str:
        command = ["git", *args]
        try:
            done = subprocess.run(
                command,
                cwd=self.root,
                input=stdin,
                capture_output=True,
                # Whatever the locale is, git reads and writes UTF-8; a path may be other bytes.
                encoding="utf-8",
                errors="surrogateescape",
                check=False,
                env=self.environment() | (env or {}),
            )
        except FileNotFoundError:
            missing = "git is not installed; install it" if self.root.is_dir() else "no such folder"
            raise UserError(f"{self.root}: {missing}") from None
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
            raise UserError(self._remedy(args[0], said))
        return done.stdout

    def _remedy(self, command: str, said: str) -> str:
        """One line: git's own reason, and what to do about the ones that a user can mend."""
        owner = OWNER.search(said)
        if owner:
            return (
                f"{self.root}: git says that it belongs to another user (dubious ownership); "
                f"if you trust it: git config --global --add safe.directory {owner[1]}"
            )
        if "not a git repository" in said:
            return (
                f"{self.root}: expected a git repository, found none "
                "(a downloaded archive has none); clone the repository with git"
            )
        if IDENTITY.search(said):
            return (
                "git does not know who commits; say it with git config --global user.name NAME "
                "and git config --global user.email ADDRESS"
            )
        return f"git {command}: {said.splitlines()[0]}"

    def environment(self) -> dict[str, str]:
        """Variables without those that may mean another repository or another index."""
        kept = {}
        for name, value in os.environ.items():
            if not name.startswith("GIT_") or KEPT.match(name):
                kept[name] = value
        return kept | {
            # Without this, `status` would rewrite the index to refresh its times.
            "GIT_OPTIONAL_LOCKS": "0",
            # What a partial clone lacks is said to be missing, not fetched behind the user's back.
            "GIT_NO_LAZY_FETCH": "1",
            "LC_ALL": "C",  # messages in English, as they are looked for above
        }

    def commit(self, name: str) -> str | None:
        """Hash of the commit that a name means, None where it means none.

        Raises UserError where git cannot use the repository at all."""
        self("rev-parse", "--git-dir")
        try:
            return self("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
        except UserError:
            return None


@dataclass(frozen=True)
class Blob:
    hash: str
    size: int  # bytes


class Commit:
    """The files of a commit, read without a checkout: one process lists, one hands out contents."""

    def __init__(self, git: Git, commit: str) -> None:
        self.git = git
        self.hash = commit

    @cached_property
    def blobs(self) -> dict[str, Blob]:
        """Every regular file by its path. Raises UserError where git cannot list the commit."""
        found = {}
        for entry in self.git("ls-tree", "-r", "-l", "-z", "--full-tree", self.hash).split("\0"):
            about, _, path = entry.partition("\t")
            if path:
                mode, _, blob, size = about.split()
                if mode in REGULAR_FILE:
                    found[path] = Blob(blob, int(size) if size.isdigit() else 0)
        return found

    @cached_property
    def submissions(self) -> set[str]:
        """Folders that hold a submission.json, or one under a similar name."""
        found = set()
        for path in self.blobs:
            folder, _, name = path.rpartition("/")
            if SUBMISSION_NAME.fullmatch(name):
                found.add(folder)
        return found

    @cached_property
    def _contents(self) -> subprocess.Popen:
        process = subprocess.Popen(
            ["git", "cat-file", "--batch"],
            cwd=self.git.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.git.environment(),
        )
        weakref.finalize(self, _stop, process)
        return process

    def read(self, path: str) -> bytes:
        """A file's bytes. Raises UserError where the commit or this copy of it lacks the file."""
        blob = self.blobs.get(path)
        if blob is None:
            raise UserError(f"{path}: expected a file of commit {self.hash[:12]}, found none")
        process = self._contents
        process.stdin.write(f"{blob.hash}\n".encode())
        process.stdin.flush()
        answer = process.stdout.readline().split()  # hash, type and size, or hash and `missing`
        if len(answer) != 3:
            raise UserError(
                f"{path}: this copy of the repository lacks its content; fetch it with git"
            )
        content = process.stdout.read(int(answer[2]))
        process.stdout.read(1)  # the line's end
        return content


def _stop(process: subprocess.Popen) -> None:
    process.stdin.close()
    process.stdout.close()
    process.wait()


class CommitFiles:
    """The files of one folder of a commit."""

    def __init__(self, commit: Commit, folder: str) -> None:
        self.commit = commit
        self.prefix = f"{folder}/"

    @cached_property
    def sizes(self) -> dict[str, int]:
        found = {}
        for path, blob in self.commit.blobs.items():
            if path.startswith(self.prefix):
                found[path.removeprefix(self.prefix)] = blob.size
        return dict(sorted(found.items()))

    def read(self, name: str) -> bytes:
        return self.commit.read(self.prefix + name)


# --- What a ref adds ---


def commit_of(git: Git, name: str) -> str:
    """Hash of a ref, a commit or a pull request's number. Raises UserError where there is none."""
    number = PULL_REQUEST.fullmatch(name)
    ref = f"refs/pull/{number[1]}/head" if number else name
    found = git.commit(ref) or git.commit(name)
    if found is None:
        remedy = f"fetch it: git fetch origin {ref}:{ref}" if number else "fetch it or name another"
        raise UserError(f"{git.root}: expected {name} to be a commit, found none; {remedy}")
    return found


def default_branch(git: Git) -> str:
    """The branch that pull requests go to. Raises UserError for an empty repository."""
    bare = git("rev-parse", "--is-bare-repository").strip() == "true"
    candidates = ("HEAD", *DEFAULT_BRANCHES) if bare else DEFAULT_BRANCHES
    for name in candidates:
        if git.commit(name) is not None:
            return name
    raise UserError(f"{git.root}: expected a branch, found none; name one with --base")


def changed_folders(git: Git, commit: Commit, base: str | None) -> list[str]:
    """Record folders that a commit adds or changes since it left the base branch.

    Raises UserError where there is no common ancestor.
    """
    target = base or default_branch(git)
    begin = _parting(git, commit.hash, commit_of(git, target))
    if begin is None:
        raise UserError(
            f"{git.root}: {commit.hash[:12]} and {target} have no common ancestor here; "
            "fetch the whole history or name the folders"
        )
    options = ("-r", "-z", "--name-only", "--no-renames", "--diff-filter=d")
    found = {}
    for path in git("diff-tree", *options, begin, commit.hash).split("\0"):
        folder = _record_of(path, commit)
        if folder is not None:
            found[folder] = True
    return sorted(found)


def _parting(git: Git, commit: str, target: str) -> str | None:
    """Where a commit's branch left the target; None where the two share no history.

    A branch that was merged is compared with the target as it was before the merge.
    """
    try:
        begin = git("merge-base", target, commit).strip()
    except UserError:
        return None
    if begin != commit:
        return begin
    path = git("rev-list", "--first-parent", "--ancestry-path", f"{commit}..{target}").split()
    if not path:
        return begin
    return git("merge-base", f"{path[-1]}^1", commit).strip()


def _record_of(path: str, commit: Commit) -> str | None:
    """The record folder that a file belongs to: the nearest one above it with a submission.json,
    else records/TRACK/NAME; None where it belongs to none."""
    parts = path.split("/")[:-1]
    for depth in range(len(parts), 0, -1):
        folder = "/".join(parts[:depth])
        if folder in commit.submissions:
            return folder
    inside = len(parts) >= 3 and parts[0] == "records"
    return "/".join(parts[:3]) if inside else None
