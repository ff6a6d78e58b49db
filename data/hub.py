"""A published export through `huggingface_hub`: what it holds, and bringing files here, checked."""

import errno
import functools
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub as hub
from huggingface_hub import errors as hub_errors
from tqdm import tqdm

from data.common import UserError, sha256_file

T = TypeVar("T")
ATTEMPTS = 5
MAX_WAIT = 300  # seconds; a server that asks for more is not going to help this run
HUB_FAILURES = (
    hub_errors.HTTPError,
    hub_errors.HFValidationError,
    hub_errors.XetDownloadError,
    OSError,
)
NO_HARD_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES}


@dataclass(frozen=True)
class Export:
    """A published export at one revision. `prefix`: its folder in the repository."""

    repo_id: str
    revision: str
    prefix: str

    def path(self, *parts: str) -> str:
        """A path in the repository."""
        stripped = [part.strip("/") for part in (self.prefix, *parts)]
        return "/".join(part for part in stripped if part)

    def __str__(self) -> str:
        return f"{self.repo_id} at {self.revision}"


@dataclass(frozen=True)
class Remote:
    """A file of the export.

    path: where it lies there.
    target: where it goes here.
    size, sha256: what the hub promises.
    git_sha1: git's hash; the promise for a small file, which has no sha256.
    """

    path: str
    target: Path
    size: int
    sha256: str | None
    git_sha1: str

    @property
    def promise(self) -> str:
        return self.sha256 or self.git_sha1

    def matches(self, path: Path) -> bool:
        """Whether a local file is this one."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        found = sha256_file(path) if self.sha256 else git_sha1(path)
        return found == self.promise


def git_sha1(path: Path) -> str:
    """The hash under which git stores the file."""
    raw = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()


# --- calling the hub ------------------------------------------------------------------------------


def http_status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def explain(export: Export, error: Exception) -> UserError:
    """The hub's error in the user's terms."""
    status = http_status(error)
    if isinstance(error, hub_errors.RevisionNotFoundError):
        what = "no such revision; correct --revision"
    elif isinstance(error, hub_errors.EntryNotFoundError):
        first_line = str(error).splitlines()[0]
        what = f"a file is missing ({first_line}); correct --prefix or choose another --revision"
    elif isinstance(error, hub_errors.GatedRepoError) or status in (401, 403):
        what = (
            f"access refused (HTTP {status}); accept the terms on its page, "
            "or log in with hf auth login"
        )
    elif isinstance(error, hub_errors.RepositoryNotFoundError):
        what = (
            "no such dataset repository, or it is private; "
            "correct --repo-id or log in with hf auth login"
        )
    elif status is not None:
        what = (
            f"HTTP {status} after {ATTEMPTS} attempts; "
            "what was fetched is kept, run the command again later"
        )
    else:
        what = f"{type(error).__name__}: {error}; what was fetched is kept, run the command again"
    return UserError(f"{export} ({hub.constants.ENDPOINT}): {what}")


def transient(error: Exception) -> bool:
    """Whether the same call may succeed later."""
    status = http_status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    return not isinstance(error, hub_errors.EntryNotFoundError | hub_errors.HFValidationError)


def asked_to_wait(error: Exception, attempt: int) -> float:
    """Seconds to wait before the next attempt: what Retry-After says, else 1, 2, 4, ..."""
    response = getattr(error, "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return int(asked) if asked.isdigit() else 2.0 ** (attempt - 1)


def patiently(export: Export, call: Callable[[], T]) -> T:
    """Runs a hub call. Waits and repeats on rate limits, server errors and broken connections.

    Raises UserError when the call cannot succeed or keeps failing.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except HUB_FAILURES as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise UserError(
                    f"disk full while downloading to {hub.constants.HF_HUB_CACHE}; "
                    "free some space and run the command again"
                ) from error
            wait = asked_to_wait(error, attempt)
            if attempt == ATTEMPTS or not transient(error) or wait > MAX_WAIT:
                raise explain(export, error) from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def pinned(export: Export) -> Export:
    """The export at the commit that its revision names now.

    A download takes one commit for all files, however long it lasts.
    """
    info = patiently(
        export,
        lambda: hub.HfApi().repo_info(
            export.repo_id, repo_type="dataset", revision=export.revision
        ),
    )
    return Export(export.repo_id, info.sha, export.prefix)


def remotes(export: Export, folder: str, targets: dict[str, Path]) -> dict[str, Remote]:
    """The files of one remote folder, for the names in `targets` that exist there."""

    def list_folder() -> list[Any]:
        tree = hub.HfApi().list_repo_tree(
            export.repo_id, folder or None, revision=export.revision, repo_type="dataset"
        )
        return list(tree)

    found = {}
    for entry in patiently(export, list_folder):
        name = entry.path.rsplit("/", 1)[-1]
        if isinstance(entry, hub.hf_api.RepoFile) and name in targets:
            sha256 = entry.lfs.sha256 if entry.lfs else None
            found[name] = Remote(entry.path, targets[name], entry.size, sha256, entry.blob_id)
    return {name: found[name] for name in targets if name in found}


# --- bringing files here --------------------------------------------------------------------------


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link into the hub's cache, so a shard is on disk once.

    A copy where the cache is on another file system.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in NO_HARD_LINK:
                raise
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def progress_into(bar: tqdm) -> type[tqdm]:
    """A class of progress bars that show nothing and hand their bytes to `bar`.

    The hub wants a bar of its own for each file. `received` sums the bytes of all that it makes.
    """

    class Quiet(tqdm):
        received = 0

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(disable=True)
            self.update(kwargs.get("initial"))

        def update(self, n: float | None = 1) -> None:
            count = n or 0
            Quiet.received += count
            bar.update(count)

    return Quiet


def fetch(export: Export, file: Remote, bar: tqdm) -> None:
    """Brings one file here, resumed, hashed and linked.

    It comes from the hub's cache when a sound copy is there, else from the hub. Raises UserError
    when the hub twice sends something else than it promises.
    """
    progress = progress_into(bar)
    found = ""
    for forced in (False, True):  # a damaged copy in the cache is fetched again, once
        download = functools.partial(
            hub.hf_hub_download,
            export.repo_id,
            file.path,
            repo_type="dataset",
            revision=export.revision,
            tqdm_class=progress,
            force_download=forced,
        )
        blob = Path(patiently(export, download)).resolve()
        if file.matches(blob):
            # The rest was in the cache already. What came twice counts once.
            bar.update(file.size - progress.received)
            link_or_copy(blob, file.target)
            return
        found = f"{blob.stat().st_size:,} bytes, sha256 {sha256_file(blob)}"
    raise UserError(
        f"{file.path}: the hub promises {file.size:,} bytes, {file.promise}, "
        f"and sent {found}, twice; do not use it"
    )


def fetch_all(export: Export, files: list[Remote], workers: int) -> None:
    """Brings every file here that is not here already. Raises UserError."""
    with ThreadPoolExecutor(workers) as pool:
        checks = pool.map(lambda file: file.matches(file.target), files)
        checking = tqdm(checks, "checking", len(files), unit="file", disable=None, leave=False)
        missing = [file for file, ok in zip(files, checking, strict=True) if not ok]
        check_space(export, missing)
        with tqdm(
            total=sum(file.size for file in missing),
            desc=f"{len(missing)} files",
            unit="B",
            unit_scale=True,
            disable=None,
        ) as bar:
            tasks = [pool.submit(fetch, export, file, bar) for file in missing]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                for task in tasks:
                    task.cancel()
                raise


def check_space(export: Export, missing: list[Remote]) -> None:
    """Raises UserError when the missing files do not fit.

    What the hub's cache lacks is going to land there. A data folder on another file system needs
    room for everything.
    """
    if not missing:
        return
    cache = Path(hub.constants.HF_HUB_CACHE)
    folder = missing[0].target.parent
    for place in (cache, folder):
        place.mkdir(parents=True, exist_ok=True)
    cached = functools.partial(
        hub.try_to_load_from_cache, export.repo_id, revision=export.revision, repo_type="dataset"
    )
    to_cache = [file.size for file in missing if not isinstance(cached(file.path), str)]
    needed = {cache: sum(to_cache)}
    if os.stat(cache).st_dev != os.stat(folder).st_dev:
        needed[folder] = sum(file.size for file in missing)
    for place, size in needed.items():
        free = shutil.disk_usage(place).free
        if free < size:
            raise UserError(
                f"{place}: the download needs {size:,} bytes, {free:,} are free; "
                "free some, lower --train-shards or move HF_HOME"
            )
