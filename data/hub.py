"""`python -m data fineweb`: the published export through `huggingface_hub`, checked file by file, with a manifest of our own.

The export's layout: PREFIX/manifest.json lists datasets (shard counts, tokenizer name) and tokenizers (paths);
PREFIX/datasets/NAME/fineweb_{train,val}_%06d.bin; PREFIX/tokenizers/...; PREFIX/docs_selected.jsonl holds the documents, validation first."""

import errno
import functools
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub as hub
import numpy as np
from huggingface_hub import errors as hub_errors
from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from data.common import BOS, DOCS_FILE, UserError, process_pool, sha256_file
from data.corpora import jsonl_texts
from data.encode import worker_tokenizer
from data.manifest import Manifest, Split, TokenizerEntry, file_version, manifest_of, summary
from data.shards import ShardFile, read_shard
from data.verify import check_encoding

T = TypeVar("T")
ATTEMPTS = 5
MAX_WAIT = 300  # seconds; a server that asks for more is not going to help this run


@dataclass(frozen=True)
class Export:
    """A published export at one commit."""

    repo_id: str
    revision: str
    prefix: str

    def path(self, *parts: str) -> str:
        return "/".join(part.strip("/") for part in (self.prefix, *parts) if part.strip("/"))


@dataclass(frozen=True)
class Remote:
    """A file of the export: where it lies there and here, its size and the hash that the hub promises (git's sha1 for small files)."""

    path: str
    target: Path
    size: int
    sha256: str | None
    git_sha1: str

    def matches(self, path: Path) -> bool:
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        return sha256_file(path) == self.sha256 if self.sha256 else git_sha1(path) == self.git_sha1


def git_sha1(path: Path) -> str:
    raw = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()


# --- the public manifest ----------------------------------------------------------------------------------------------


class Stats(BaseModel):
    files_train: int
    files_val: int


class DatasetEntry(BaseModel):
    name: str
    tokenizer_name: str
    stats: Stats


class PublicTokenizer(BaseModel):
    name: str
    model_path: str | None = None
    path: str | None = None


class PublicManifest(BaseModel):
    """The keys that are needed; the published file has more."""

    datasets: list[DatasetEntry]
    tokenizers: list[PublicTokenizer]

    def dataset(self, name: str, source: str) -> tuple[DatasetEntry, str]:
        """The dataset's entry and the path of its tokenizer."""
        entry = next((d for d in self.datasets if d.name == name), None)
        if entry is None:
            raise UserError(
                f"{source}: no dataset {name}; it lists {', '.join(d.name for d in self.datasets) or 'none'}; choose another --variant"
            )
        tokenizer = next((t for t in self.tokenizers if t.name == entry.tokenizer_name), None)
        path = tokenizer and (tokenizer.model_path or tokenizer.path)
        if not path:
            raise UserError(
                f"{source}: dataset {name} names tokenizer {entry.tokenizer_name}, which has no model_path or path there"
            )
        return entry, path


# --- talking to the hub -----------------------------------------------------------------------------------------------


def explain(export: Export, error: Exception) -> UserError:
    where = f"{export.repo_id} at {export.revision} ({hub.constants.ENDPOINT})"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return UserError(f"{where}: no such revision; correct --revision")
    if isinstance(error, hub_errors.EntryNotFoundError):
        return UserError(
            f"{where}: a file is missing ({str(error).splitlines()[0]}); correct --prefix or choose another --revision"
        )
    if isinstance(error, hub_errors.GatedRepoError) or status in (401, 403):
        return UserError(
            f"{where}: access refused (HTTP {status}); accept the terms on its page, or log in with hf auth login"
        )
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return UserError(
            f"{where}: no such dataset repository, or it is private; correct --repo-id or log in with hf auth login"
        )
    if status is not None:
        return UserError(
            f"{where}: HTTP {status} after {ATTEMPTS} attempts; what was fetched is kept, run the command again later"
        )
    return UserError(
        f"{where}: {type(error).__name__}: {error}; what was fetched is kept, run the command again"
    )


def transient(error: Exception) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in (408, 429) or status >= 500
    return not isinstance(error, hub_errors.EntryNotFoundError | hub_errors.HFValidationError)


def patiently(export: Export, call: Callable[[], T]) -> T:
    """Runs a hub call; waits and repeats on rate limits (as long as Retry-After asks), server errors and broken connections."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except (
            hub_errors.HTTPError,
            hub_errors.HFValidationError,
            hub_errors.XetDownloadError,
            OSError,
        ) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise UserError(
                    f"disk full while downloading to {hub.constants.HF_HUB_CACHE}; free some space and run the command again"
                ) from error
            response = getattr(error, "response", None)
            asked = response.headers.get("Retry-After", "") if response is not None else ""
            wait = int(asked) if asked.isdigit() else 2.0 ** (attempt - 1)
            if attempt == ATTEMPTS or not transient(error) or wait > MAX_WAIT:
                raise explain(export, error) from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def remotes(export: Export, folder: str, targets: dict[str, Path]) -> dict[str, Remote]:
    """Size and hash of the files of one remote folder, for the names in `targets` that exist there."""
    api = hub.HfApi()
    listing = patiently(
        export,
        lambda: list(
            api.list_repo_tree(
                export.repo_id, folder or None, revision=export.revision, repo_type="dataset"
            )
        ),
    )
    files = {
        entry.path.rsplit("/", 1)[-1]: entry
        for entry in listing
        if isinstance(entry, hub.hf_api.RepoFile)
    }
    return {
        name: Remote(
            files[name].path,
            target,
            files[name].size,
            files[name].lfs.sha256 if files[name].lfs else None,
            files[name].blob_id,
        )
        for name, target in targets.items()
        if name in files
    }


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link into the hub's cache, so a shard is on disk once; a copy where the cache is on another file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in (
                errno.EXDEV,
                errno.EPERM,
                errno.EMLINK,
                errno.ENOTSUP,
                errno.EACCES,
            ):
                raise
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def fetch(export: Export, file: Remote, bar: tqdm) -> None:
    """Brings one file here: out of the hub's cache when it is there and sound, else from the hub; resumed, hashed, linked."""

    received = 0

    class Quiet(tqdm):
        """The hub wants a progress bar of its own for each file; this one hands its bytes to the common bar."""

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(disable=True)
            self.update(kwargs.get("initial"))

        def update(self, n: float | None = 1) -> None:
            nonlocal received
            received += n or 0
            bar.update(n or 0)

    found = ""
    for forced in (False, True):  # a damaged copy in the cache is fetched anew, once
        cached = patiently(
            export,
            lambda forced=forced: hub.hf_hub_download(
                export.repo_id,
                file.path,
                repo_type="dataset",
                revision=export.revision,
                tqdm_class=Quiet,
                force_download=forced,
            ),
        )
        blob = Path(cached).resolve()
        if file.matches(blob):
            bar.update(
                file.size - received
            )  # what was in the cache already; what came twice counts once
            link_or_copy(blob, file.target)
            return
        found = f"{blob.stat().st_size:,} bytes, sha256 {sha256_file(blob)}"
    raise UserError(
        f"{file.path}: the hub promises {file.size:,} bytes, {file.sha256 or file.git_sha1}, and sent {found}, twice; do not use it"
    )


def fetch_all(export: Export, files: list[Remote], workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        sound = list(
            tqdm(
                pool.map(lambda file: file.matches(file.target), files),
                "checking",
                len(files),
                unit="file",
                disable=None,
                leave=False,
            )
        )
        missing = [file for file, ok in zip(files, sound, strict=True) if not ok]
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
    """What the hub's cache lacks is going to land there; a data folder on another file system needs room for everything."""
    if not missing:
        return
    cache, folder = Path(hub.constants.HF_HUB_CACHE), missing[0].target.parent
    for place in (cache, folder):
        place.mkdir(parents=True, exist_ok=True)
    find = functools.partial(
        hub.try_to_load_from_cache, export.repo_id, revision=export.revision, repo_type="dataset"
    )
    needed = {cache: sum(file.size for file in missing if not isinstance(find(file.path), str))}
    if os.stat(cache).st_dev != os.stat(folder).st_dev:
        needed[folder] = sum(file.size for file in missing)
    for place, size in needed.items():
        free = shutil.disk_usage(place).free
        if free < size:
            raise UserError(
                f"{place}: the download needs {size:,} bytes, {free:,} are free; free some, lower --train-shards or move HF_HOME"
            )


# --- our manifest of what came ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    documents: int
    counted_bytes: int
    marks: int
    file: ShardFile


def measure_shard(tokenizer: Path, shard: Path, previous: int) -> Measured:
    tokens = np.array(read_shard(shard))
    model = worker_tokenizer(tokenizer)
    highest = int(tokens.max())
    if highest >= model.vocab_size:
        raise UserError(
            f"{shard}: token id {highest:,}, but {tokenizer.name} has {model.vocab_size:,} pieces; they do not belong together"
        )
    counted = model.table.count(tokens, previous)
    marks = int(np.isin(tokens, model.marks).sum())
    return Measured(
        int((tokens == BOS).sum()),
        counted,
        marks,
        ShardFile(name=shard.name, tokens=len(tokens), sha256=sha256_file(shard)),
    )


def measure_split(
    pool: ProcessPoolExecutor, tokenizer: Path, shards: list[Path], sidecars: list[Path]
) -> Split:
    previous = [BOS, *(int(read_shard(shard)[-1]) for shard in shards[:-1])]
    measured = pool.map(functools.partial(measure_shard, tokenizer), shards, previous)
    parts = list(
        tqdm(measured, "counting bytes", len(shards), unit="shard", disable=None, leave=False)
    )
    counted = sum(part.counted_bytes for part in parts)
    byte_files = []
    marks = sum(part.marks for part in parts)
    if marks and not sidecars and "_val_" in shards[0].name:
        raise UserError(
            f"{shards[0].parent}: {marks:,} tokens are marks of a transform ({tokenizer.name} has pieces of its own for them), so bytes depend on "
            "context, and the export has no fineweb_val_bytes_*.bin sidecar that counts them; do not score on it"
        )
    if sidecars:
        counted = sum(int(read_shard(path).sum(dtype=np.int64)) for path in sidecars)
        byte_files = [
            ShardFile(name=path.name, tokens=len(read_shard(path)), sha256=sha256_file(path))
            for path in sidecars
        ]
    return Split(
        documents=sum(part.documents for part in parts),
        source_bytes=None,
        counted_bytes=counted,
        tokens=sum(part.file.tokens for part in parts),
        files=[part.file for part in parts],
        byte_files=byte_files,
    )


def source_bytes(docs: Path, documents: int) -> int:
    """UTF-8 bytes of the first `documents` documents, which are the validation set."""
    size = count = 0
    for text in jsonl_texts(docs):
        if count == documents:
            break
        size += len(text.encode())
        count += 1
    if count < documents:
        raise UserError(
            f"{docs}: {count:,} documents, but the validation shards hold {documents:,}; file and shards do not belong together"
        )
    return size


# --- the command ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What the user asked for. `variant`: sp1024, byte260, ... or a dataset's full name in the export."""

    export: Export
    variant: str
    train_shards: int
    with_docs: bool
    data_root: Path
    workers: int

    @property
    def dataset(self) -> str:
        short = self.variant == "byte260" or (
            self.variant.startswith("sp") and self.variant[2:].isdigit()
        )
        return f"fineweb10B_{self.variant}" if short else self.variant

    @property
    def folder(self) -> Path:
        return self.data_root / "datasets" / self.dataset


def choose_files(export: Export, request: Request, stats: Stats) -> dict[str, list[Remote]]:
    """The shards to have, by kind (train, val, val_bytes), in order."""
    source = f"{export.repo_id} at {export.revision}"
    if not 0 < request.train_shards <= stats.files_train:
        raise UserError(
            f"--train-shards {request.train_shards}: {source} has 1 to {stats.files_train} for {request.dataset}"
        )
    counts = {"train": request.train_shards, "val": stats.files_val, "val_bytes": stats.files_val}
    names = {
        kind: [f"fineweb_{kind}_{i:06d}.bin" for i in range(count)]
        for kind, count in counts.items()
    }
    targets = {name: request.folder / name for kind in names for name in names[kind]}
    there = remotes(export, export.path("datasets", request.dataset), targets)
    if not any(name in there for name in names["val_bytes"]):
        names["val_bytes"] = []  # most datasets have no sidecar; one that has must have it whole
    absent = [name for kind in names for name in names[kind] if name not in there]
    if absent:
        raise UserError(
            f"{source}: its manifest promises {request.dataset}/{absent[0]} (one of {len(absent)}), which is not there; choose another --revision"
        )
    return {kind: [there[name] for name in names[kind]] for kind in names}


def fetch_manifest(export: Export, request: Request) -> PublicManifest:
    target = request.folder / "published.json"
    files = remotes(export, export.path(), {"manifest.json": target})
    source = f"{export.repo_id} at {export.revision}: {export.path('manifest.json')}"
    if not files:
        raise UserError(f"{source} is not there; correct --prefix")
    fetch_all(export, list(files.values()), 1)
    try:
        return PublicManifest.model_validate_json(target.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{source}: {'.'.join(map(str, first['loc']))}: {first['msg']}; expected the export's list of datasets and tokenizers"
        ) from error


def fineweb(request: Request) -> Manifest:
    """Downloads what is missing, verifies everything, writes our manifest. A second run with nothing changed only checks hashes."""
    asked = request.export
    commit = patiently(
        asked,
        lambda: (
            hub.HfApi().repo_info(asked.repo_id, repo_type="dataset", revision=asked.revision).sha
        ),
    )
    export = Export(
        asked.repo_id, commit, asked.prefix
    )  # one commit for all files, however long the download takes
    entry, tokenizer_file = fetch_manifest(export, request).dataset(
        request.dataset, f"{asked.repo_id} at {commit}"
    )
    shards = choose_files(export, request, entry.stats)
    name = tokenizer_file.rsplit("/", 1)[-1]
    tokenizer = request.data_root / "tokenizers" / name
    extra = remotes(export, export.path(*tokenizer_file.split("/")[:-1]), {name: tokenizer})
    if not extra:
        raise UserError(
            f"{asked.repo_id} at {commit}: tokenizer {tokenizer_file} is not there; choose another --revision"
        )
    docs = remotes(export, export.path(), {DOCS_FILE: request.data_root / DOCS_FILE})
    if request.with_docs:
        if not docs:
            raise UserError(
                f"{asked.repo_id} at {commit}: no {export.path(DOCS_FILE)}; leave out --with-docs or choose another --revision"
            )
        extra |= docs
    request.folder.mkdir(parents=True, exist_ok=True)
    wanted = [file for files in shards.values() for file in files] + list(extra.values())
    for path in set(request.folder.glob("fineweb_*.bin")) - {file.target for file in wanted}:
        path.unlink()  # of an earlier, larger request; the hub's cache still has it
    recipe = {
        "repo_id": asked.repo_id,
        "commit": commit,
        "files": {file.path: file.sha256 or file.git_sha1 for file in wanted},
    }
    fetch_all(export, wanted, request.workers)
    if manifest := manifest_of(request.folder, recipe):
        print(f"{request.folder}: up to date, sizes and sha256 checked")
        return manifest
    manifest = describe(request, shards, tokenizer, docs.get(DOCS_FILE), recipe)
    manifest.save(request.folder)
    print(summary(request.folder, manifest))
    return manifest


def describe(
    request: Request,
    shards: dict[str, list[Remote]],
    tokenizer: Path,
    docs: Remote | None,
    recipe: dict[str, Any],
) -> Manifest:
    """Our manifest, from what lies on disk; refuses shards that the tokenizer did not make."""
    paths = {kind: [file.target for file in files] for kind, files in shards.items()}
    with process_pool(request.workers) as pool:
        splits = {
            kind: measure_split(
                pool, tokenizer, paths[kind], paths["val_bytes"] if kind == "val" else []
            )
            for kind in ("train", "val")
        }
    model = worker_tokenizer(tokenizer)
    agreement = check_encoding(request.folder, splits["val"], model)
    if not agreement.ok:
        raise UserError(
            f"{tokenizer}: decoding and encoding the validation shards gives them back for {agreement.found}: it did not make them"
        )
    lossless = model.kind == "bytes"
    if lossless or splits["val"].byte_files:
        splits["val"].source_bytes = splits["val"].counted_bytes
    if lossless:
        splits["train"].source_bytes = splits["train"].counted_bytes
    if request.with_docs:
        splits["val"].source_bytes = source_bytes(docs.target, splits["val"].documents)
    if docs and docs.sha256:
        rule, version = "file", file_version(docs.sha256, splits["val"].documents)
    else:
        rule, version = (
            "shards",
            hashlib.sha256(
                "".join(file.sha256 for file in splits["val"].files).encode()
            ).hexdigest(),
        )
    return Manifest(
        name=request.dataset,
        corpus="fineweb",
        version=version,
        version_rule=rule,
        tokenizer=TokenizerEntry(
            file=tokenizer.name,
            kind=model.kind,
            sha256=sha256_file(tokenizer),
            vocab_size=model.vocab_size,
            lossless=lossless,
        ),
        splits=splits,
        provenance={"recipe": recipe, "huggingface_hub": hub.__version__},
    )
