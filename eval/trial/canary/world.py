"""The files that a public script finds around it: shards, tokenizers, and its own record folder.

They lie as in the contest's repository. Scripts look for `data/` from the root of the repository,
from their own folder, or by an absolute path, so all of these lead to the same files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from eval.errors import UserError

if TYPE_CHECKING:
    import numpy as np

# Header of a shard: 256 little-endian int32, of which three are used, then uint16 tokens.
MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256

RECORD_FOLDER = "records/track_10min_16mb/record"  # where the record's files lie in the tree
CASEOPS = "lossless_caps_caseops_v1_reserved"
DATA_FOLDERS = ("data/datasets/{name}", "data/datasets/fineweb10B_sp{vocab}_" + CASEOPS)


@dataclass(frozen=True)
class Corpus:
    """Token streams and the tokenizer that they are written in.

    `validation` uint16 [N]; `training` one uint16 array a shard; `validation_bytes` uint16 [N],
    the bytes of text that each token of `validation` stands for. `tokenizer` is a SentencePiece
    ModelProto of `vocab_size` pieces, `vocabulary` its .vocab text."""

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


def build_world(corpus: Corpus, record: Mapping[str, bytes | Path]) -> World:
    """The contest's tree around the files of one record, by their path from its folder.

    Raises UserError where a path of the record leads out of its folder."""
    raise NotImplementedError


def shard(tokens: "np.ndarray") -> bytes:
    """A shard file of uint16 tokens [N], as the contest's scripts read it."""
    raise NotImplementedError
