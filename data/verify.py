"""`python -m data verify DIR`: everything that a manifest claims, measured again from the files."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.common import BOS, UserError, sha256_file
from data.manifest import Manifest, Split, load_manifest, manifest_tokenizer
from data.shards import read_shard
from data.tokenizer import Tokenizer


@dataclass
class Row:
    """One claim: what the manifest or a rule says, and what the files say."""

    check: str
    where: str
    expected: str
    found: str

    @property
    def ok(self) -> bool:
        return self.expected == self.found


def documents(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Cuts a stream (uint16 pieces in order) before each BOS; a document may span pieces. What precedes the first BOS is one item."""
    open_document: list[np.ndarray] = []
    for array in arrays:
        low = 0
        for start in [*np.flatnonzero(array == BOS).tolist(), len(array)]:
            if start > low:
                open_document.append(np.asarray(array[low:start]))
            if start < len(array) and open_document:
                yield np.concatenate(open_document)
                open_document = []
            low = start
    if open_document:
        yield np.concatenate(open_document)


def check_shards(folder: Path, name: str, split: Split, vocab_size: int) -> tuple[list[Row], list[np.ndarray]]:
    """Rows on sizes, hashes and token ids of one split, and its shards where they can be read."""
    rows, arrays, highest = [], [], -1
    for file in split.files:
        try:
            array = read_shard(folder / file.name)
        except UserError as error:
            rows.append(Row("readable", file.name, "a whole shard", str(error)))
            continue
        arrays.append(array)
        highest = max(highest, int(array.max()))
        rows.append(Row("tokens", file.name, f"{file.tokens:,}", f"{len(array):,}"))
        rows.append(Row("sha256", file.name, file.sha256[:16], sha256_file(folder / file.name)[:16]))
    rows.append(Row("tokens", name, f"{split.tokens:,}", f"{sum(map(len, arrays)):,}"))
    rows.append(Row("ids below the vocabulary", name, f"{vocab_size:,}", f"{vocab_size:,}" if highest < vocab_size else f"id {highest:,}"))
    rows.append(Row("first token", name, str(BOS), str(arrays[0][0]) if arrays else "none"))
    return rows, arrays


def check_documents(manifest: Manifest, tokenizer: Tokenizer, streams: dict[str, list[np.ndarray]]) -> list[Row]:
    """Rows on document counts, bytes, overlap and corpus version, from one pass over each stream. Memory: the validation documents' hashes."""
    rows, held_out, overlap = [], set(), 0
    text_digests = {"train": hashlib.sha256(), "val": b""}
    for name in ("val", "train"):
        split, count, counted = manifest.splits[name], 0, 0
        for ids in tqdm(documents(streams[name]), f"documents of {name}", split.documents, unit="doc", disable=None, leave=False):
            count += 1
            counted += int(tokenizer.table.token_bytes(ids).sum())
            key = hashlib.sha256(ids.tobytes()).digest()
            digest = hashlib.sha256(tokenizer.table.decode(ids)).digest() if manifest.tokenizer.lossless else b""
            if name == "val":
                held_out.add(key)
                text_digests["val"] += digest
            else:
                overlap += key in held_out
                text_digests["train"].update(digest)
        rows.append(Row("documents", name, f"{split.documents:,}", f"{count:,}"))
        rows.append(Row("bytes by the table", name, f"{split.counted_bytes:,}", f"{counted:,}"))
        if manifest.tokenizer.lossless:
            rows.append(Row("source bytes", name, f"{split.source_bytes:,}", f"{counted:,}"))
    rows.append(Row("train documents also in val", "both", "0", f"{overlap:,}"))
    if manifest.tokenizer.lossless:
        text_digests["train"].update(text_digests["val"])
        rows.append(Row("corpus version, from decoded text", "both", manifest.version[:16], text_digests["train"].hexdigest()[:16]))
    return rows


def verify(folder: Path) -> bool:
    """Prints a table of claims against measurements; True when all agree. UserError when manifest or tokenizer cannot be read."""
    manifest = load_manifest(folder)
    tokenizer = manifest_tokenizer(folder, manifest.tokenizer)
    rows = [
        Row("tokenizer kind", manifest.tokenizer.file, manifest.tokenizer.kind, tokenizer.kind),
        Row("vocabulary", manifest.tokenizer.file, f"{manifest.tokenizer.vocab_size:,}", f"{tokenizer.vocab_size:,}"),
    ]
    named = {file.name for split in manifest.splits.values() for file in split.files}
    strays = sorted(path.name for path in folder.glob("*.bin") if path.name not in named)
    rows.append(Row("shards outside the manifest", folder.name, "none", ", ".join(strays) or "none"))
    streams = {}
    for name, split in manifest.splits.items():
        found, streams[name] = check_shards(folder, name, split, tokenizer.vocab_size)
        rows += found
    if all(row.ok for row in rows):  # ids outside the table or missing shards would make the rest meaningless
        rows += check_documents(manifest, tokenizer, streams)
    print_table(folder, rows)
    return all(row.ok for row in rows)


def print_table(folder: Path, rows: list[Row]) -> None:
    cells = [("check", "where", "expected", "found", ""), *((r.check, r.where, r.expected, r.found, "ok" if r.ok else "WRONG") for r in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(4)]
    print(f"{folder}")
    for line in cells:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, (*widths, 5), strict=True)).rstrip())
    wrong = sum(not row.ok for row in rows)
    print(f"  {len(rows)} checks, {wrong} wrong" if wrong else f"  {len(rows)} checks, all right")
