"""`python -m data fineweb`: the published export, checked file by file, with our own manifest.

The export's layout:

PREFIX/manifest.json lists datasets (shard counts, tokenizer name) and tokenizers (paths).
PREFIX/datasets/NAME/fineweb_{train,val}_%06d.bin are the shards.
PREFIX/tokenizers/ holds the tokenizers.
PREFIX/docs_selected.jsonl holds the documents, validation first.
"""

import functools
import hashlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import numpy as np
from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from data.common import BOS, DOCS_FILE, UserError, process_pool, sha256_file
from data.corpora import jsonl_texts
from data.encode import worker_tokenizer
from data.hub import Export, Remote, fetch_all, pinned, remotes
from data.manifest import Manifest, Split, TokenizerEntry, file_version, manifest_of, summary
from data.shards import ShardFile, read_shard
from data.verify import check_encoding

# --- the public manifest --------------------------------------------------------------------------


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
    """The keys that are needed. The published file has more."""

    datasets: list[DatasetEntry]
    tokenizers: list[PublicTokenizer]

    def dataset(self, name: str, source: str) -> tuple[DatasetEntry, str]:
        """The dataset's entry and the path of its tokenizer. Raises UserError."""
        entry = next((entry for entry in self.datasets if entry.name == name), None)
        if entry is None:
            names = ", ".join(entry.name for entry in self.datasets)
            raise UserError(
                f"{source}: no dataset {name}; it lists {names or 'none'}; choose another --variant"
            )
        named = (one for one in self.tokenizers if one.name == entry.tokenizer_name)
        tokenizer = next(named, PublicTokenizer(name=""))
        path = tokenizer.model_path or tokenizer.path
        if not path:
            raise UserError(
                f"{source}: dataset {name} names tokenizer {entry.tokenizer_name}, "
                "which has no model_path or path there"
            )
        return entry, path


# --- what the user asked for ----------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What to download.

    variant: sp1024, byte260, ... or a dataset's full name in the export.
    train_shards: how many, from the first.
    """

    export: Export
    variant: str
    train_shards: int
    with_docs: bool
    data_root: Path
    workers: int

    @property
    def dataset(self) -> str:
        sentencepiece = self.variant.startswith("sp") and self.variant[2:].isdigit()
        if sentencepiece or self.variant == "byte260":
            return f"fineweb10B_{self.variant}"
        return self.variant

    @property
    def folder(self) -> Path:
        return self.data_root / "datasets" / self.dataset


@dataclass(frozen=True)
class Selection:
    """The files to have. `docs`: the export's document list where it has one, wanted or not."""

    train: list[Remote]
    val: list[Remote]
    val_bytes: list[Remote]
    tokenizer: Remote
    docs: Remote | None
    with_docs: bool

    def files(self) -> list[Remote]:
        wanted = [*self.train, *self.val, *self.val_bytes, self.tokenizer]
        if self.with_docs:
            wanted.append(self.docs)
        return wanted


def fineweb(request: Request) -> Manifest:
    """Downloads what is missing, verifies everything and writes our manifest.

    A second run with nothing changed only checks hashes. Raises UserError.
    """
    export = pinned(request.export)
    entry, tokenizer_file = fetch_manifest(export, request).dataset(request.dataset, str(export))
    selection = select(export, request, entry.stats, tokenizer_file)
    wanted = selection.files()
    request.folder.mkdir(parents=True, exist_ok=True)
    targets = {file.target for file in wanted}
    for path in request.folder.glob("fineweb_*.bin"):
        if path not in targets:
            path.unlink()  # of an earlier, larger request; the hub's cache still has it
    fetch_all(export, wanted, request.workers)
    recipe = {
        "repo_id": export.repo_id,
        "commit": export.revision,
        "files": {file.path: file.promise for file in wanted},
    }
    existing = manifest_of(request.folder, recipe)
    if existing:
        print(f"{request.folder}: up to date, sizes and sha256 checked")
        return existing
    manifest = describe(request, selection, recipe)
    manifest.save(request.folder)
    print(summary(request.folder, manifest))
    return manifest


def fetch_manifest(export: Export, request: Request) -> PublicManifest:
    """The export's own manifest, kept beside the shards as published.json. Raises UserError."""
    target = request.folder / "published.json"
    files = remotes(export, export.path(), {"manifest.json": target})
    source = f"{export}: {export.path('manifest.json')}"
    if not files:
        raise UserError(f"{source} is not there; correct --prefix")
    fetch_all(export, list(files.values()), 1)
    try:
        return PublicManifest.model_validate_json(target.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{source}: {where}: {first['msg']}; "
            "expected the export's list of datasets and tokenizers"
        ) from error


# --- which files ----------------------------------------------------------------------------------


def select(export: Export, request: Request, stats: Stats, tokenizer_file: str) -> Selection:
    """Finds all files of the request in the export. Raises UserError when one is not there."""
    shards = select_shards(export, request, stats)
    folder, _, name = tokenizer_file.rpartition("/")
    target = request.data_root / "tokenizers" / name
    tokenizer = remotes(export, export.path(folder), {name: target}).get(name)
    if tokenizer is None:
        raise UserError(
            f"{export}: tokenizer {tokenizer_file} is not there; choose another --revision"
        )
    docs_target = {DOCS_FILE: request.data_root / DOCS_FILE}
    docs = remotes(export, export.path(), docs_target).get(DOCS_FILE)
    if request.with_docs and docs is None:
        raise UserError(
            f"{export}: no {export.path(DOCS_FILE)}; "
            "leave out --with-docs or choose another --revision"
        )
    return Selection(**shards, tokenizer=tokenizer, docs=docs, with_docs=request.with_docs)


def select_shards(export: Export, request: Request, stats: Stats) -> dict[str, list[Remote]]:
    """The shards to have, by kind (train, val, val_bytes), in order. Raises UserError."""
    if not 0 < request.train_shards <= stats.files_train:
        raise UserError(
            f"--train-shards {request.train_shards}: {export} has 1 to {stats.files_train} "
            f"for {request.dataset}"
        )
    names = {
        "train": shard_names("train", request.train_shards),
        "val": shard_names("val", stats.files_val),
        "val_bytes": shard_names("val_bytes", stats.files_val),
    }
    every = names["train"] + names["val"] + names["val_bytes"]
    targets = {name: request.folder / name for name in every}
    there = remotes(export, export.path("datasets", request.dataset), targets)
    if there.keys().isdisjoint(names["val_bytes"]):
        names["val_bytes"] = []  # most datasets have no sidecar; one that has must have it whole
    promised = names["train"] + names["val"] + names["val_bytes"]
    absent = [name for name in promised if name not in there]
    if absent:
        raise UserError(
            f"{export}: its manifest promises {request.dataset}/{absent[0]} "
            f"(one of {len(absent)}), which is not there; choose another --revision"
        )
    return {kind: list(map(there.get, names[kind])) for kind in names}


def shard_names(kind: str, count: int) -> list[str]:
    return [f"fineweb_{kind}_{i:06d}.bin" for i in range(count)]


# --- our manifest of what came --------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One shard. `marks`: tokens of a transform of the text, whose bytes depend on context."""

    documents: int
    counted_bytes: int
    marks: int
    file: ShardFile


def measure_shard(tokenizer: Path, shard: Path, previous: int) -> Measured:
    """Counts one shard. `previous`: the last token of the shard before, BOS for the first.

    Raises UserError when the shard has tokens beyond the vocabulary.
    """
    tokens = np.array(read_shard(shard))
    model = worker_tokenizer(tokenizer)
    highest = int(tokens.max())
    if highest >= model.vocab_size:
        raise UserError(
            f"{shard}: token id {highest:,}, but {tokenizer.name} has {model.vocab_size:,} pieces; "
            "they do not belong together"
        )
    return Measured(
        documents=int((tokens == BOS).sum()),
        counted_bytes=model.table.count(tokens, previous),
        marks=int(np.isin(tokens, model.marks).sum()),
        file=ShardFile(name=shard.name, tokens=len(tokens), sha256=sha256_file(shard)),
    )


def measure_split(pool: ProcessPoolExecutor, tokenizer: Path, shards: list[Path]) -> list[Measured]:
    """Counts all shards of a split, in parallel and in order."""
    lasts = [int(read_shard(shard)[-1]) for shard in shards[:-1]]
    measured = pool.map(functools.partial(measure_shard, tokenizer), shards, [BOS, *lasts])
    bar = tqdm(measured, "counting bytes", len(shards), unit="shard", disable=None, leave=False)
    return list(bar)


def split_entry(parts: list[Measured]) -> Split:
    """A split as the manifest describes it, its bytes by the table."""
    return Split(
        documents=sum(part.documents for part in parts),
        source_bytes=None,
        counted_bytes=sum(part.counted_bytes for part in parts),
        tokens=sum(part.file.tokens for part in parts),
        files=[part.file for part in parts],
    )


def count_by_sidecars(val: Split, sidecars: list[Path]) -> None:
    """Puts the bytes that the export's sidecars state in place of those of the table."""
    total = 0
    for path in sidecars:
        sizes = read_shard(path)
        total += int(sizes.sum(dtype=np.int64))
        val.byte_files.append(
            ShardFile(name=path.name, tokens=len(sizes), sha256=sha256_file(path))
        )
    val.counted_bytes = total


def measure_splits(request: Request, selection: Selection) -> dict[str, Split]:
    """Both splits, counted from what lies on disk.

    Raises UserError when no table can count the validation bytes and the export does not.
    """
    tokenizer = selection.tokenizer.target
    train_shards = [file.target for file in selection.train]
    val_shards = [file.target for file in selection.val]
    with process_pool(request.workers) as pool:
        train_parts = measure_split(pool, tokenizer, train_shards)
        val_parts = measure_split(pool, tokenizer, val_shards)
    train = split_entry(train_parts)
    val = split_entry(val_parts)
    if selection.val_bytes:
        count_by_sidecars(val, [file.target for file in selection.val_bytes])
    else:
        marks = sum(part.marks for part in val_parts)
        if marks:
            raise UserError(
                f"{request.folder}: {marks:,} tokens are marks of a transform ({tokenizer.name} "
                "has pieces of its own for them), so bytes depend on context, and the export has "
                "no fineweb_val_bytes_*.bin sidecar that counts them; do not score on it"
            )
    return {"train": train, "val": val}


def describe(request: Request, selection: Selection, recipe: dict[str, Any]) -> Manifest:
    """Our manifest, from what lies on disk.

    Raises UserError when the tokenizer did not make the shards.
    """
    splits = measure_splits(request, selection)
    train = splits["train"]
    val = splits["val"]
    path = selection.tokenizer.target
    tokenizer = worker_tokenizer(path)
    agreement = check_encoding(request.folder, val, tokenizer)
    if not agreement.ok:
        raise UserError(
            f"{path}: decoding and encoding the validation shards gives them back for "
            f"{agreement.found}: it did not make them"
        )
    lossless = tokenizer.kind == "bytes"
    if lossless:
        train.source_bytes = train.counted_bytes
    if lossless or val.byte_files:
        val.source_bytes = val.counted_bytes
    if selection.with_docs:
        val.source_bytes = source_bytes(selection.docs.target, val.documents)
    version_rule, version = corpus_version(selection.docs, val)
    return Manifest(
        name=request.dataset,
        corpus="fineweb",
        version=version,
        version_rule=version_rule,
        tokenizer=TokenizerEntry.of(path, tokenizer, lossless),
        splits=splits,
        provenance={"recipe": recipe, "huggingface_hub": hub.__version__},
    )


def corpus_version(docs: Remote | None, val: Split) -> tuple[str, str]:
    """The rule and the version: by the documents file where the export names its sha256."""
    if docs and docs.sha256:
        return "file", file_version(docs.sha256, val.documents)
    hashes = "".join(file.sha256 for file in val.files)
    return "shards", hashlib.sha256(hashes.encode()).hexdigest()


def source_bytes(docs: Path, documents: int) -> int:
    """UTF-8 bytes of the first `documents` documents, which are the validation set.

    Raises UserError when the file holds fewer.
    """
    size = 0
    count = 0
    for text in jsonl_texts(docs):
        if count == documents:
            return size
        size += len(text.encode())
        count += 1
    if count < documents:
        raise UserError(
            f"{docs}: {count:,} documents, but the validation shards hold {documents:,}; "
            "file and shards do not belong together"
        )
    return size
