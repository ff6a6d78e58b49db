"""Reads a dataset folder as the referee sees it: manifest, shards and tokenizer, each checked
against the others.

What does not agree becomes a complaint, not an exception: a reviewer wants the verdict "the
validation shard is not the published one".
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.errors import UserError, dataset_command
from eval.files import sha256_of
from eval.text.corpus.bytes import ByteTable, documents, load_byte_table

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
MANIFEST = "manifest.json"
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")
# Decoded versions by the sha256 of tokenizer and shards: a process that audits many records of one
# corpus decodes it once.
VERSIONS: dict[tuple[str, ...], str] = {}


class Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ManifestFile(Lenient):
    name: str = Field(pattern=r"^[A-Za-z0-9._-]+\.bin$")
    tokens: int = Field(ge=1)
    sha256: str = Sha256


class ManifestSplit(Lenient):
    documents: int
    source_bytes: int | None = Field(None, ge=1)
    tokens: int = Field(ge=1)
    files: list[ManifestFile]
    byte_files: list[ManifestFile] = []


class ManifestTokenizer(Lenient):
    file: str = Field(min_length=1, max_length=200)
    kind: Literal["sentencepiece", "bytes"]
    sha256: str = Sha256
    vocab_size: int = Field(ge=4, le=1 << 16)
    lossless: bool


class Manifest(Lenient):
    format: Literal[1]
    name: str
    corpus: str
    version: str = Sha256
    version_rule: str = "documents"
    tokenizer: ManifestTokenizer
    splits: dict[str, ManifestSplit]
    provenance: dict[str, Any] = Field(default_factory=dict)


@dataclass
class Split:
    """One split of a dataset.

    `stated`: what the manifest says of it.
    `tokens` int64 [N]: the shards concatenated in name order.
    `complaints`: where shards and manifest disagree.
    `sidecar` int64 [N]: bytes of each token, where a context-dependent transform (CaseOps) makes
    them no function of the token alone.
    `digests`: sha256 of each shard, as found."""

    stated: ManifestSplit
    tokens: np.ndarray
    complaints: list[str]
    sidecar: np.ndarray | None = None
    digests: tuple[str, ...] = ()

    @cached_property
    def sidecar_complaint(self) -> str | None:
        """A sidecar must sum to what the documents hold, as the manifest states it."""
        source = self.stated.source_bytes
        if self.sidecar is None or source == int(self.sidecar.sum()):
            return None
        stated = "no source_bytes" if source is None else f"source_bytes {source:,}"
        return f"the byte sidecar sums to {int(self.sidecar.sum()):,}, the manifest states {stated}"

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """[start, end) of each document."""
        return list(documents(self.tokens))


class Dataset:
    """A dataset folder. Splits are read on first use.

    Raises UserError when the manifest or the tokenizer cannot be used at all."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest, self.manifest_sha256 = read_manifest(folder / MANIFEST)
        self.tokenizer_path = self._find_tokenizer()
        self._splits: dict[tuple[str, int | None], Split] = {}

    def _find_tokenizer(self) -> Path:
        name = Path(self.manifest.tokenizer.file).name
        places = [self.folder / name, self.folder.parent.parent / "tokenizers" / name]
        for place in places:
            if place.is_file():
                return place
        raise UserError(
            f"{name}: tokenizer of {self.folder} is neither in {places[0].parent} "
            f"nor in {places[1].parent}; build the dataset again"
        )

    @cached_property
    def table(self) -> ByteTable:
        return load_byte_table(self.tokenizer_path)

    @cached_property
    def tokenizer_complaints(self) -> list[str]:
        """Where the tokenizer's file and the manifest disagree."""
        stated = self.manifest.tokenizer
        found = sha256_of(self.tokenizer_path)
        name = self.tokenizer_path.name
        complaints = []
        if found != stated.sha256:
            complaints.append(
                f"{name}: sha256 {found[:12]}… is not the manifest's {stated.sha256[:12]}…"
            )
        if self.table.vocab_size != stated.vocab_size:
            complaints.append(
                f"{name}: {self.table.vocab_size} ids, the manifest says {stated.vocab_size}"
            )
        if stated.lossless and self.table.lossy:
            losses = " and ".join(self.table.lossy)
            complaints.append(f"{name}: stated lossless, but it {losses}")
        return complaints

    @property
    def vocab_size(self) -> int:
        return self.table.vocab_size

    def has(self, split: str) -> bool:
        """Whether the manifest states the split and all its files are there."""
        stated = self.manifest.splits.get(split)
        return stated is not None and all((self.folder / f.name).is_file() for f in stated.files)

    def split(self, name: str, limit: int | None = None) -> Split:
        """Tokens of a split, hashes checked.

        With a `limit`, only the shards that hold the first `limit` tokens are read and checked.
        Raises UserError when the manifest does not state the split, or when a shard is missing or
        is not a shard."""
        key = (name, limit)
        if key not in self._splits:
            self._splits[key] = self._read_split(name, limit)
        return self._splits[key]

    def _read_split(self, name: str, limit: int | None) -> Split:
        stated = self.manifest.splits.get(name)
        if stated is None:
            known = ", ".join(self.manifest.splits)
            raise UserError(f"{self.folder / MANIFEST}: no split {name!r}; it has {known}")
        complaints: list[str] = []
        stream, digests = self._read_files(stated.files, limit, complaints)
        sidecar = None
        if stated.byte_files:
            sidecar, _ = self._read_files(stated.byte_files, limit, complaints)
        if limit is None and len(stream) != stated.tokens:
            complaints.append(
                f"{self.folder.name}: {name} holds {len(stream):,} tokens, "
                f"the manifest says {stated.tokens:,}"
            )
        if len(stream) and stream.max() >= self.vocab_size:
            raise UserError(
                f"{self.folder}: {name} holds id {stream.max()}, "
                f"the tokenizer has {self.vocab_size} ids; they do not belong together"
            )
        if sidecar is not None and len(sidecar) != len(stream):
            raise UserError(
                f"{self.folder}: the {name} byte sidecar has {len(sidecar):,} entries "
                f"for {len(stream):,} tokens; build it again"
            )
        return Split(stated, stream[:limit], complaints, sidecar, digests)

    def _read_files(
        self, files: list[ManifestFile], limit: int | None, complaints: list[str]
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """int64 entries of the files in name order, and the sha256 of each file read.

        Disagreements are added to `complaints`."""
        in_order = sorted(files, key=lambda file: file.name)
        if files != in_order:
            complaints.append(f"{self.folder.name}: shards are not listed in name order")
        parts = [np.zeros(0, np.uint16)]
        digests: list[str] = []
        held = 0
        for file in in_order:
            tokens, found = read_shard(self.folder / file.name)
            if found != file.sha256:
                complaints.append(
                    f"{file.name}: sha256 {found[:12]}… is not the manifest's {file.sha256[:12]}…"
                )
            if len(tokens) != file.tokens:
                complaints.append(
                    f"{file.name}: {len(tokens):,} tokens, the manifest says {file.tokens:,}"
                )
            parts.append(tokens)
            digests.append(found)
            held += len(tokens)
            if limit is not None and held >= limit:
                break
        return np.concatenate(parts).astype(np.int64), tuple(digests)

    def decoded_version(self) -> str:
        """Corpus version recomputed from the decoded shards; for lossless tokenizers only.

        It is the sha256 over the sha256 of every document, train, then val."""
        tokenizer = sha256_of(self.tokenizer_path)
        contents = (tokenizer, *self.split("train").digests, *self.split("val").digests)
        if contents not in VERSIONS:
            VERSIONS[contents] = self._decode_version()
        return VERSIONS[contents]

    def _decode_version(self) -> str:
        version = hashlib.sha256()
        for name in ("train", "val"):
            tokens = self.split(name).tokens
            for start, end in documents(tokens):
                text = self.table.decode(tokens[start:end])
                version.update(hashlib.sha256(text).digest())
        return version.hexdigest()


def read_manifest(path: Path) -> tuple[Manifest, str]:
    """(manifest, sha256 of its file). Raises UserError when there is no usable one."""
    try:
        raw = path.read_bytes()
        manifest = Manifest.model_validate(json.loads(raw))
    except FileNotFoundError:
        raise UserError(
            f"{path}: missing; build the dataset with {dataset_command(path.parent)} "
            "or pass --dataset with a folder that has one"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected JSON, found {error}; build the dataset again") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {place}: {first['msg']}; build the dataset again") from None
    return manifest, sha256_of(raw)


def read_shard(path: Path) -> tuple[np.ndarray, str]:
    """(uint16 tokens, sha256 of the file). Raises UserError when it is not a whole shard."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); "
            "build the dataset again or correct the path"
        ) from None
    header = np.frombuffer(raw[:HEADER_BYTES], "<i4") if len(raw) >= HEADER_BYTES else None
    if header is None or header[0] != MAGIC or header[1] != VERSION:
        raise UserError(
            f"{path}: expected a shard (magic {MAGIC}, version {VERSION}), "
            f"found {len(raw):,} bytes of something else; build it again"
        )
    tokens = int(header[2])
    expected = HEADER_BYTES + 2 * tokens
    if tokens < 1 or len(raw) != expected:
        raise UserError(
            f"{path}: header promises {tokens:,} tokens ({expected:,} bytes), "
            f"file holds {len(raw):,}; build it again"
        )
    return np.frombuffer(raw, "<u2", offset=HEADER_BYTES), sha256_of(raw)


def shard_bytes(tokens: np.ndarray) -> bytes:
    """A shard file of a stream of ids [N], each in 0..65535."""
    header = np.zeros(HEADER_INTS, "<i4")
    header[:3] = [MAGIC, VERSION, len(tokens)]
    return header.tobytes() + np.ascontiguousarray(tokens, "<u2").tobytes()
