"""`manifest.json` beside the shards: what the dataset is made of, by count and by sha256.

Training checks each shard's header and length against it, and logs its sha256.
`python -m data verify` measures all of it again.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.common import UserError, atomic_write, sha256_file
from data.shards import HEADER_BYTES, ShardFile
from data.tokenizer import Tokenizer

NAME = "manifest.json"
SHA256 = r"^[0-9a-f]{64}$"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TokenizerEntry(Strict):
    """lossless: measured; every document of the dataset came back byte for byte."""

    file: str = Field(min_length=1, max_length=200)
    kind: Literal["sentencepiece", "bytes"]
    sha256: str = Field(pattern=SHA256)
    vocab_size: int = Field(ge=1, le=1 << 16)
    lossless: bool

    @classmethod
    def of(cls, path: Path, tokenizer: Tokenizer, lossless: bool) -> "TokenizerEntry":
        return cls(
            file=path.name,
            kind=tokenizer.kind,
            sha256=sha256_file(path),
            vocab_size=tokenizer.vocab_size,
            lossless=lossless,
        )


class Split(Strict):
    """One split's counts and files.

    source_bytes: UTF-8 of the documents before normalisation. None for published shards without
        their documents.
    counted_bytes: by the byte table. Equals source_bytes when the tokenizer is lossless.
    tokens: BOS included.
    byte_files: sidecars of a transform whose bytes depend on their context. One file per shard,
        one uint16 per token: its bytes.
    xz_bytes: validation only: the documents concatenated, under xz -9e.
    """

    documents: int = Field(ge=0)
    source_bytes: int | None = Field(ge=0)
    counted_bytes: int = Field(ge=0)
    tokens: int = Field(ge=0)
    files: list[ShardFile]
    byte_files: list[ShardFile] = []
    xz_bytes: int | None = None

    @property
    def all_files(self) -> list[ShardFile]:
        return self.files + self.byte_files


class Manifest(Strict):
    """version: identifies the text, whatever the tokenizer. version_rule says how it is computed:

    documents: sha256 over the documents' sha256 digests in order, train then val.
    file: sha256 over "<sha256 of the documents file> <validation documents>". It is known
        without reading 45 GB.
    shards: sha256 over the validation shards' sha256, where a published set names no documents
        file. This one depends on the tokenizer.
    """

    format: Literal[1] = 1
    name: str
    corpus: str
    version: str = Field(pattern=SHA256)
    version_rule: Literal["documents", "file", "shards"] = "documents"
    tokenizer: TokenizerEntry
    splits: dict[Literal["train", "val"], Split]
    provenance: dict[str, Any]

    def save(self, folder: Path) -> None:
        with atomic_write(folder / NAME) as file:
            file.write((self.model_dump_json(indent=2) + "\n").encode())


def load_manifest(folder: Path) -> Manifest:
    """The folder's manifest. Raises UserError when it is missing or malformed."""
    path = folder / NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); "
            "name a dataset folder built or downloaded by python -m data"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path}: {where}: {first['msg']} ({error.error_count()} faults in all); "
            "build the dataset again"
        ) from error


def manifest_of(folder: Path, recipe: dict[str, Any]) -> Manifest | None:
    """The folder's manifest if it can be read and says that this recipe made it."""
    try:
        manifest = load_manifest(folder)
    except UserError:
        return None
    return manifest if manifest.provenance.get("recipe") == recipe else None


def tokenizer_path(folder: Path, entry: TokenizerEntry) -> Path:
    """The tokenizer file with the manifest's sha256, beside the shards or in ../../tokenizers.

    Raises UserError when neither place has it.
    """
    tried = []
    for place in (folder, folder / ".." / ".." / "tokenizers"):
        path = place / entry.file
        if path.is_file():
            found = sha256_file(path)
            if found == entry.sha256:
                return path
            tried.append(f"{path} has {found[:16]}…")
    detail = "; ".join(tried) or f"neither in {folder} nor in ../../tokenizers"
    raise UserError(
        f"{folder}: tokenizer {entry.file} with sha256 {entry.sha256[:16]}… not found: {detail}; "
        "build the dataset again"
    )


def check_files(folder: Path, manifest: Manifest) -> None:
    """Checks the size and sha256 of every file that the manifest names.

    Raises UserError on the first that differs.
    """
    tokenizer_path(folder, manifest.tokenizer)
    for split in manifest.splits.values():
        for entry in split.all_files:
            _check_file(folder / entry.name, entry)


def _check_file(path: Path, entry: ShardFile) -> None:
    size = HEADER_BYTES + 2 * entry.tokens
    held = path.stat().st_size if path.is_file() else None
    if held != size:
        what = "no file" if held is None else f"{held:,}"
        raise UserError(
            f"{path}: manifest says {size:,} bytes, found {what}; build the dataset again"
        )
    found = sha256_file(path)
    if found != entry.sha256:
        raise UserError(
            f"{path}: manifest says sha256 {entry.sha256[:16]}…, found {found[:16]}…; "
            "build the dataset again"
        )


def file_version(docs_sha256: str, val_documents: int) -> str:
    """A corpus version by the rule "file"."""
    return hashlib.sha256(f"{docs_sha256} {val_documents}".encode()).hexdigest()


def summary(folder: Path, manifest: Manifest, note: str = "") -> str:
    """The manifest in a few lines for the terminal."""
    lines = [f"{folder}: corpus {manifest.corpus}, version {manifest.version[:16]}…{note}"]
    for name, split in manifest.splits.items():
        lines += _split_summary(name, split)
    return "\n".join(lines)


def _split_summary(name: str, split: Split) -> list[str]:
    kind = "decoded" if split.source_bytes is None else "source"
    size = split.counted_bytes if split.source_bytes is None else split.source_bytes
    lines = [
        f"  {name:5} {split.documents:>11,} documents {size:>15,} {kind} bytes "
        f"{split.tokens:>14,} tokens {size / split.tokens:.4f} bytes/token "
        f"in {len(split.files)} shards"
    ]
    if size != split.counted_bytes:
        lines.append(
            f"        lossy tokenizer: {split.counted_bytes:,} bytes decoded "
            f"({split.counted_bytes - size:+,}); scores count these"
        )
    if split.xz_bytes is not None:
        lines.append(
            f"        xz -9e on its text: {split.xz_bytes:,} bytes, "
            f"{8 * split.xz_bytes / split.source_bytes:.4f} bits per byte"
        )
    return lines
