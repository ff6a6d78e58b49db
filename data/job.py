"""What building from memory and retokenizing from disk share: where a dataset goes and its state.

A dataset's manifest goes first and comes last, so a torn build never looks whole.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common import UserError, atomic_write, default_workers
from data.encode import Counts
from data.manifest import NAME, Manifest, Split, check_files, manifest_of
from data.shards import ShardFile
from data.tokenizer import load_tokenizer, train_tokenizer


@dataclass(frozen=True)
class Job:
    """Where a dataset goes and how it is tokenized.

    tokenizer: an existing model, or None to train one of `vocab_size` pieces.
    """

    data_root: Path
    name: str
    vocab_size: int = 1024
    tokenizer: Path | None = None
    val_fraction: float = 1 / 16
    workers: int = default_workers()

    def options(self) -> dict[str, Any]:
        """The part of a dataset's recipe that this job decides."""
        recipe: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "tokenizer_sha256": None,
            "val_fraction": self.val_fraction,
            "layout": 1,
        }
        if self.tokenizer:
            model = load_tokenizer(self.tokenizer).model
            recipe["vocab_size"] = None
            recipe["tokenizer_sha256"] = hashlib.sha256(model).hexdigest()
        return recipe

    def folder(self) -> Path:
        """The dataset's folder, NAME_sp<vocabulary> or NAME_byte260 under datasets/."""
        kind = "sp"
        vocab_size = self.vocab_size
        if self.tokenizer:
            tokenizer = load_tokenizer(self.tokenizer)
            kind = "byte" if tokenizer.kind == "bytes" else "sp"
            vocab_size = tokenizer.vocab_size
        return self.data_root / "datasets" / f"{self.name}_{kind}{vocab_size}"


def place_tokenizer(job: Job, train_texts: Iterable[str]) -> Path:
    """Puts the job's tokenizer under data_root/tokenizers and returns its path.

    It is trained on the training split alone, or copied from the user's file. Raises UserError
    when another tokenizer already has the name of that file.
    """
    folder = job.data_root / "tokenizers"
    if job.tokenizer is None:
        path = folder / f"{job.name}_{job.vocab_size}_bpe.model"
        model = train_tokenizer(train_texts, job.vocab_size)
        placed = path.exists() and path.read_bytes() == model
    else:
        path = folder / job.tokenizer.name
        model = job.tokenizer.read_bytes()
        placed = path.exists()
        if placed and path.read_bytes() != model:
            raise UserError(
                f"{path}: another tokenizer has this name already; rename {job.tokenizer}"
            )
    if not placed:
        with atomic_write(path) as file:
            file.write(model)
    return path


def split_of(counts: Counts, files: list[ShardFile]) -> Split:
    """A split as the manifest describes it."""
    return Split(
        documents=counts.documents,
        source_bytes=counts.source_bytes,
        counted_bytes=counts.counted_bytes,
        tokens=counts.tokens,
        files=files,
    )


def up_to_date(folder: Path, recipe: dict[str, Any]) -> Manifest | None:
    """The folder's manifest, if this recipe made it and every file has its size and sha256."""
    manifest = manifest_of(folder, recipe)
    if manifest is None:
        return None
    try:
        check_files(folder, manifest)
    except UserError:
        return None  # the caller builds the dataset again
    return manifest


def discard(folder: Path) -> None:
    """Removes an earlier build: its manifest first, then the shards that this program writes.

    A reader would pick up stray shards by their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).unlink(missing_ok=True)
    for path in folder.glob("*_[0-9][0-9][0-9][0-9][0-9][0-9].bin"):
        path.unlink()
