"""The files that a public script finds around it: shards, tokenizers, and its own record folder.

They lie as in the contest's repository. Scripts look for `data/` from the root of the repository,
from their own folder, or by an absolute path, so all of these lead to the same files.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from eval.errors import UserError
from eval.files import sha256_of
from eval.trial.canary.tokenizers import BYTE_LEVEL

if TYPE_CHECKING:
    import numpy as np

# Header of a shard: 256 little-endian int32, of which three are used, then uint16 tokens.
MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256

RECORD_FOLDER = "records/track_10min_16mb/record"  # where the record's files lie in the tree
DATASETS = "data/datasets"
TOKENIZERS = "data/tokenizers"
CASEOPS = "lossless_caps_caseops_v1_reserved"  # suffix of the names of transformed data
# Absolute paths at which scripts look for the repository and its data -> places in the tree.
ALIASES = {
    "/workspace/parameter-golf": ".",
    "/workspace/data": "data",
    "/root/parameter-golf": ".",
    "/root/data": "data",
    "/data": "data",
}


@dataclass(frozen=True)
class Corpus:
    """Token streams and the tokenizer that they are written in.

    `validation` uint16 [N]; `training` one uint16 array a shard; `validation_bytes` uint16 [N],
    the bytes of text that each token of `validation` stands for. `tokenizer` is a SentencePiece
    ModelProto of `vocab_size` pieces, or the JSON of a byte-level vocabulary, and `vocabulary` the
    text of the model's .vocab file."""

    vocab_size: int
    validation: "np.ndarray"
    training: Sequence["np.ndarray"]
    validation_bytes: "np.ndarray"
    tokenizer: bytes
    vocabulary: bytes = b""


@dataclass(frozen=True)
class World:
    """What one run finds.

    `files` maps paths from the root of the contest's tree to contents; `folder` is the working
    folder below that root; `variables` are the environment variables that name the data, with
    {tree} for the root. `links` maps paths from the root to what they lead to, also from there."""

    files: Mapping[str, bytes | Path]
    folder: str
    variables: Mapping[str, str]
    links: Mapping[str, str] = field(default_factory=dict)


def build_world(corpus: Corpus, record: Mapping[str, bytes | Path], caseops: bool = False) -> World:
    """The contest's tree around the files of one record, by their path from its folder.

    With `caseops`, the variables name the data set that has the bytes of each token beside it.
    Raises UserError where a path of the record leads out of its folder."""
    files: dict[str, bytes | Path] = {}
    for name, content in record.items():
        if name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"{name}: expected a path below the record's folder; rename the file")
        files[f"{RECORD_FOLDER}/{name}"] = content
    dataset, model = names_of(corpus.vocab_size)
    plain = f"{DATASETS}/{dataset}"
    shards = _data_files(corpus)
    shards["manifest.json"] = _manifest(corpus, shards)
    files |= {f"{plain}/{name}": content for name, content in shards.items()}
    files[f"{TOKENIZERS}/{model}"] = corpus.tokenizer
    files[f"{TOKENIZERS}/{Path(model).stem}.vocab"] = corpus.vocabulary
    links = {
        f"{RECORD_FOLDER}/{DATASETS}": DATASETS,
        f"{RECORD_FOLDER}/{TOKENIZERS}": TOKENIZERS,
    }
    for name in [name for name in files if name.startswith(f"{TOKENIZERS}/")]:
        links[_transformed(name)] = name
    transformed = _transformed(plain)
    for name in shards:
        links[f"{transformed}/{name}"] = f"{plain}/{name}"
    # Only here: elsewhere scripts would take it for a shard of the validation split.
    files[f"{transformed}/fineweb_val_bytes_000000.bin"] = shard(corpus.validation_bytes)
    named = _transformed if caseops else str
    variables = {
        "DATA_DIR": "{tree}/data/",
        "DATA_PATH": "{tree}/" + named(plain),
        "TOKENIZER_PATH": "{tree}/" + named(f"{TOKENIZERS}/{model}"),
        "VOCAB_SIZE": str(corpus.vocab_size),
    }
    free = {name: target for name, target in links.items() if not _is_taken(name, files)}
    return World(files, RECORD_FOLDER, variables, free)


def names_of(vocab_size: int) -> tuple[str, str]:
    """The contest's names of a data set's folder and of its tokenizer's file."""
    if vocab_size == BYTE_LEVEL:
        return f"fineweb10B_byte{vocab_size}", f"fineweb_pure_byte_{vocab_size}.json"
    return f"fineweb10B_sp{vocab_size}", f"fineweb_{vocab_size}_bpe.model"


def _transformed(path: str) -> str:
    """The name of the same file or folder in data that were transformed."""
    return str(Path(path).with_stem(f"{Path(path).stem}_{CASEOPS}"))


def _data_files(corpus: Corpus) -> dict[str, bytes]:
    """The shards of a data set by their names."""
    files = {"fineweb_val_000000.bin": shard(corpus.validation)}
    for number, tokens in enumerate(corpus.training):
        files[f"fineweb_train_{number:06d}.bin"] = shard(tokens)
    return files


def _manifest(corpus: Corpus, shards: Mapping[str, bytes]) -> bytes:
    """What `python -m data` writes beside its shards, as far as this repository's scripts read."""
    splits = {}
    for split in ("train", "val"):
        named = {name: content for name, content in shards.items() if f"_{split}_" in name}
        entries = [
            {
                "name": name,
                "tokens": (len(content) - 4 * HEADER_INTS) // 2,
                "sha256": sha256_of(content),
            }
            for name, content in named.items()
        ]
        splits[split] = {"files": entries, "tokens": sum(entry["tokens"] for entry in entries)}
    splits["val"]["source_bytes"] = int(corpus.validation_bytes.sum())
    dataset, model = names_of(corpus.vocab_size)
    tokenizer = {
        "file": model,
        "kind": "bytes" if corpus.vocab_size == BYTE_LEVEL else "sentencepiece",
        "sha256": sha256_of(corpus.tokenizer),
        "vocab_size": corpus.vocab_size,
    }
    manifest = {
        "format": 1,
        "name": dataset,
        "corpus": "canary",
        "version": "1",
        "tokenizer": tokenizer,
        "splits": splits,
    }
    return json.dumps(manifest).encode()


def _is_taken(link: str, files: Mapping[str, bytes | Path]) -> bool:
    """Whether the record has a file or a folder of that name."""
    return any(name == link or name.startswith(link + "/") for name in files)


def shard(tokens: "np.ndarray") -> bytes:
    """A shard file of uint16 tokens [N], as the contest's scripts read it."""
    import numpy as np

    header = np.zeros(HEADER_INTS, "<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    return header.tobytes() + np.asarray(tokens).astype("<u2").tobytes()
