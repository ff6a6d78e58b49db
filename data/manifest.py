"""`manifest.json` beside the shards: what the dataset is made of, by count and by sha256. Training and scoring check it at start."""

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.common import UserError, atomic_write, sha256_file
from data.shards import HEADER_BYTES, ShardFile
from data.tokenizer import Tokenizer, load_tokenizer

NAME = "manifest.json"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TokenizerEntry(Strict):
    file: str = Field(min_length=1, max_length=200)
    kind: Literal["sentencepiece", "bytes"]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    vocab_size: int = Field(ge=1, le=1 << 16)
    lossless: bool  # measured: every document of the dataset came back byte for byte


class Split(Strict):
    documents: int = Field(ge=0)
    source_bytes: int | None = Field(
        ge=0
    )  # UTF-8 of the documents before normalisation; None: published shards without their documents
    counted_bytes: int = Field(
        ge=0
    )  # by the byte table; equals source_bytes when the tokenizer is lossless
    tokens: int = Field(ge=0)  # BOS included
    files: list[ShardFile]
    byte_files: list[
        ShardFile
    ] = []  # sidecar of a context-dependent transform: one uint16 per token, its bytes; one file per shard
    xz_bytes: int | None = None  # validation only: its source bytes concatenated, under xz -9e


class Manifest(Strict):
    format: Literal[1] = 1
    name: str
    corpus: str
    version: str = Field(
        pattern=r"^[0-9a-f]{64}$"
    )  # identifies the text, whatever the tokenizer; see version_rule
    # documents: sha256 over the documents' sha256 digests in order, train then val.
    # file: sha256 over "<sha256 of the documents file> <validation documents>", known without reading 45 GB.
    # shards: sha256 over the validation shards' sha256, where a published set names no documents file; depends on the tokenizer.
    version_rule: Literal["documents", "file", "shards"] = "documents"
    tokenizer: TokenizerEntry
    splits: dict[Literal["train", "val"], Split]
    provenance: dict[str, Any]

    def save(self, folder: Path) -> None:
        with atomic_write(folder / NAME) as file:
            file.write((self.model_dump_json(indent=2) + "\n").encode())


def load_manifest(folder: Path) -> Manifest:
    path = folder / NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); name a dataset folder built or downloaded by python -m data"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path}: {where}: {first['msg']} ({error.error_count()} faults in all); build the dataset again"
        ) from error


def manifest_of(folder: Path, recipe: dict[str, Any]) -> Manifest | None:
    """The folder's manifest if it can be read and says that it was made by this recipe."""
    try:
        manifest = load_manifest(folder)
    except UserError:
        return None
    return manifest if manifest.provenance.get("recipe") == recipe else None


def tokenizer_path(folder: Path, entry: TokenizerEntry) -> Path:
    """The tokenizer file with the manifest's sha256, beside the shards or in ../../tokenizers."""
    tried = []
    for path in (folder / entry.file, folder / ".." / ".." / "tokenizers" / entry.file):
        if path.is_file():
            found = sha256_file(path)
            if found == entry.sha256:
                return path
            tried.append(f"{path} has {found[:16]}…")
    detail = "; ".join(tried) or f"neither in {folder} nor in ../../tokenizers"
    raise UserError(
        f"{folder}: tokenizer {entry.file} with sha256 {entry.sha256[:16]}… not found: {detail}; build the dataset again"
    )


def manifest_tokenizer(folder: Path, entry: TokenizerEntry) -> Tokenizer:
    return load_tokenizer(tokenizer_path(folder, entry))


def check_files(folder: Path, manifest: Manifest) -> None:
    """Size and sha256 of every file that the manifest names; UserError on the first that differs."""
    tokenizer_path(folder, manifest.tokenizer)
    for split in manifest.splits.values():
        for entry in split.files + split.byte_files:
            path, size = folder / entry.name, HEADER_BYTES + 2 * entry.tokens
            held = path.stat().st_size if path.is_file() else None
            if held != size:
                raise UserError(
                    f"{path}: manifest says {size:,} bytes, found {'no file' if held is None else f'{held:,}'}; build the dataset again"
                )
            if (found := sha256_file(path)) != entry.sha256:
                raise UserError(
                    f"{path}: manifest says sha256 {entry.sha256[:16]}…, found {found[:16]}…; build the dataset again"
                )


def file_version(docs_sha256: str, val_documents: int) -> str:
    return hashlib.sha256(f"{docs_sha256} {val_documents}".encode()).hexdigest()


def summary(folder: Path, manifest: Manifest, note: str = "") -> str:
    """The manifest in a few lines for the terminal."""
    lines = [f"{folder}: corpus {manifest.corpus}, version {manifest.version[:16]}…{note}"]
    for name, split in manifest.splits.items():
        known = split.source_bytes if split.source_bytes is not None else split.counted_bytes
        lines.append(
            f"  {name:5} {split.documents:>11,} documents {known:>15,} {'source' if split.source_bytes is not None else 'decoded'} bytes "
            f"{split.tokens:>14,} tokens {known / split.tokens:.4f} bytes/token in {len(split.files)} shards"
        )
        if split.source_bytes is not None and split.source_bytes != split.counted_bytes:
            lines.append(
                f"        lossy tokenizer: {split.counted_bytes:,} bytes decoded ({split.counted_bytes - split.source_bytes:+,}); scores count these"
            )
        if split.xz_bytes is not None:
            lines.append(
                f"        xz -9e on its text: {split.xz_bytes:,} bytes, {8 * split.xz_bytes / split.source_bytes:.4f} bits per byte"
            )
    return "\n".join(lines)
