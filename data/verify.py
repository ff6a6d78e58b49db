"""`python -m data verify DIR`: everything that a manifest claims, measured again from the files."""

import functools
import hashlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.bytes import ByteTable
from data.common import BOS, UNK, UserError, default_workers, process_pool, sha256_file
from data.encode import worker_tokenizer
from data.manifest import Manifest, Split, load_manifest, tokenizer_path
from data.shards import read_shard
from data.tokenizer import Tokenizer

SAMPLE_DOCUMENTS, SAMPLE_TOKENS = (
    200,
    4_000_000,
)  # at most so much of the validation split is encoded again
SAMPLE_AGREES = 0.95  # a foreign tokenizer of the same size agrees on none; a lossy one of the right kind on all but odd characters


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


@dataclass(frozen=True)
class Digests:
    """keys: 16 bytes of sha256 of a document's tokens; text: sha256 of its text, or b"" when not asked for; counted: its bytes."""

    keys: list[bytes]
    texts: bytes
    counted: int


def digest(table: ByteTable, documents: list[np.ndarray], want_text: bool) -> Digests:
    return Digests(
        [hashlib.sha256(ids.tobytes()).digest()[:16] for ids in documents],
        b"".join(hashlib.sha256(table.decode(ids)).digest() for ids in documents)
        if want_text
        else b"",
        sum(table.count(ids) for ids in documents),
    )


def scan_shard(
    tokenizer: Path, want_text: bool, shard: Path
) -> tuple[np.ndarray, Digests, np.ndarray]:
    """What precedes the first BOS, the digests of the whole documents, and the last document, which may go on in the next shard."""
    tokens = np.array(read_shard(shard))
    starts = np.flatnonzero(tokens == BOS)
    head, *documents = np.split(tokens, starts)
    tail = documents.pop() if documents else np.zeros(0, np.uint16)
    return head, digest(worker_tokenizer(tokenizer).table, documents, want_text), tail


def scan_split(
    pool: ProcessPoolExecutor, folder: Path, split: Split, tokenizer: Path, want_text: bool
) -> Iterator[Digests]:
    """Digests of a split's documents in order, shards scanned in parallel, documents that cross shards put together again."""
    table = worker_tokenizer(tokenizer).table
    open_document: list[np.ndarray] = []
    shards = [folder / file.name for file in split.files]
    for head, digests, tail in pool.map(
        functools.partial(scan_shard, tokenizer, want_text), shards
    ):
        open_document.append(head)
        if len(tail):  # a document begins in this shard, so the open one has ended
            yield digest(table, [d for d in [np.concatenate(open_document)] if len(d)], want_text)
            open_document = [tail]
        yield digests
    yield digest(table, [d for d in [np.concatenate(open_document)] if len(d)], want_text)


def check_shards(folder: Path, name: str, split: Split, vocab_size: int) -> list[Row]:
    """Sizes, hashes and token ids of one split."""
    rows, highest, first, tokens = [], -1, None, 0
    for file in tqdm(split.files, f"{name} shards", unit="shard", disable=None, leave=False):
        try:
            array = read_shard(folder / file.name)
        except UserError as error:
            rows.append(Row("readable", file.name, "a whole shard", str(error)))
            continue
        first = int(array[0]) if first is None else first
        tokens += len(array)
        highest = max(highest, int(array.max()))
        rows.append(Row("tokens", file.name, f"{file.tokens:,}", f"{len(array):,}"))
        rows.append(
            Row("sha256", file.name, file.sha256[:16], sha256_file(folder / file.name)[:16])
        )
    rows.append(Row("tokens", name, f"{split.tokens:,}", f"{tokens:,}"))
    rows.append(
        Row(
            "ids below the vocabulary",
            name,
            f"{vocab_size:,}",
            f"{vocab_size:,}" if highest < vocab_size else f"id {highest:,}",
        )
    )
    rows.append(Row("first token", name, str(BOS), str(first)))
    return rows


def check_sidecar(folder: Path, name: str, split: Split) -> list[Row]:
    """A byte sidecar has one number per token, none for a BOS, and its sum is the split's byte count."""
    rows, total = [], 0
    for shard, sidecar in zip(split.files, split.byte_files, strict=True):
        tokens, sizes = read_shard(folder / shard.name), read_shard(folder / sidecar.name)
        rows.append(Row("sidecar length", sidecar.name, f"{len(tokens):,}", f"{len(sizes):,}"))
        rows.append(
            Row(
                "sha256", sidecar.name, sidecar.sha256[:16], sha256_file(folder / sidecar.name)[:16]
            )
        )
        if rows[-2].ok:
            rows.append(
                Row(
                    "sidecar bytes of BOS",
                    sidecar.name,
                    "0",
                    f"{int(sizes[tokens == BOS].sum(dtype=np.int64)):,}",
                )
            )
        total += int(sizes.sum(dtype=np.int64))
    rows.append(Row("bytes by the sidecar", name, f"{split.counted_bytes:,}", f"{total:,}"))
    if split.source_bytes is not None:
        rows.append(Row("source bytes", name, f"{split.source_bytes:,}", f"{total:,}"))
    return rows


def check_encoding(folder: Path, split: Split, tokenizer: Tokenizer) -> Row:
    """Decodes the first documents and encodes them again: shards of another tokenizer decode to nonsense that encodes to other tokens."""
    tokens = np.array(read_shard(folder / split.files[0].name)[:SAMPLE_TOKENS])
    documents = np.split(tokens, np.flatnonzero(tokens == BOS))[1:]
    if len(tokens) < split.tokens:
        documents.pop()  # it may go on beyond the sample
    known = [ids[1:] for ids in documents[:SAMPLE_DOCUMENTS] if not (ids == UNK).any()]
    same = sum(np.array_equal(tokenizer.encode(tokenizer.decode(ids)), ids) for ids in known)
    enough = same >= SAMPLE_AGREES * len(known)
    return Row(
        "encode(decode(x)) = x",
        "val",
        "yes",
        "yes" if enough else f"{same} of {len(known)} documents",
    )


def check_documents(folder: Path, manifest: Manifest, tokenizer: Path, workers: int) -> list[Row]:
    """Document counts, bytes, overlap and corpus version. Memory: the validation documents' hashes and a shard for each process."""
    rows: list[Row] = []
    held_out: set[bytes] = set()
    val_texts, version = b"", hashlib.sha256()
    want_text = manifest.tokenizer.lossless and manifest.version_rule == "documents"
    with process_pool(workers) as pool:
        for name in ("val", "train"):
            split, count, counted, overlap = manifest.splits[name], 0, 0, 0
            bar = tqdm(
                scan_split(pool, folder, split, tokenizer, want_text),
                f"documents of {name}",
                unit="shard",
                disable=None,
                leave=False,
            )
            for digests in bar:
                count += len(digests.keys)
                counted += digests.counted
                if name == "val":
                    held_out.update(digests.keys)
                    val_texts += digests.texts
                else:
                    overlap += sum(key in held_out for key in digests.keys)
                    version.update(digests.texts)
            rows.append(Row("documents", name, f"{split.documents:,}", f"{count:,}"))
            if not split.byte_files:
                rows.append(
                    Row("bytes by the table", name, f"{split.counted_bytes:,}", f"{counted:,}")
                )
            if manifest.tokenizer.lossless:
                rows.append(Row("source bytes", name, f"{split.source_bytes:,}", f"{counted:,}"))
    rows.append(Row("train documents also in val", "both", "0", f"{overlap:,}"))
    if want_text:
        version.update(val_texts)
        rows.append(
            Row(
                "corpus version, from decoded text",
                "both",
                manifest.version[:16],
                version.hexdigest()[:16],
            )
        )
    return rows


def verify(folder: Path, workers: int = default_workers()) -> bool:
    """Prints a table of claims against measurements; True when all agree. UserError when manifest or tokenizer cannot be read."""
    manifest = load_manifest(folder)
    path = tokenizer_path(folder, manifest.tokenizer)
    tokenizer = worker_tokenizer(path)
    rows = [
        Row("tokenizer kind", manifest.tokenizer.file, manifest.tokenizer.kind, tokenizer.kind),
        Row(
            "vocabulary",
            manifest.tokenizer.file,
            f"{manifest.tokenizer.vocab_size:,}",
            f"{tokenizer.vocab_size:,}",
        ),
    ]
    named = {
        file.name for split in manifest.splits.values() for file in split.files + split.byte_files
    }
    strays = sorted(path.name for path in folder.glob("*.bin") if path.name not in named)
    rows.append(
        Row("shards outside the manifest", folder.name, "none", ", ".join(strays) or "none")
    )
    for name, split in manifest.splits.items():
        rows += check_shards(folder, name, split, tokenizer.vocab_size)
    if all(
        row.ok for row in rows
    ):  # ids outside the table or missing shards would make the rest meaningless
        for name, split in manifest.splits.items():
            rows += check_sidecar(folder, name, split) if split.byte_files else []
        rows.append(check_encoding(folder, manifest.splits["val"], tokenizer))
        rows += check_documents(folder, manifest, path, workers)
    print_table(folder, rows)
    return all(row.ok for row in rows)


def print_table(folder: Path, rows: list[Row]) -> None:
    cells = [
        ("check", "where", "expected", "found", ""),
        *((r.check, r.where, r.expected, r.found, "ok" if r.ok else "WRONG") for r in rows),
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(4)]
    print(folder)
    for line in cells:
        print(
            "  "
            + "  ".join(
                cell.ljust(width) for cell, width in zip(line, (*widths, 5), strict=True)
            ).rstrip()
        )
    wrong = sum(not row.ok for row in rows)
    print(f"  {len(rows)} checks, {wrong} wrong" if wrong else f"  {len(rows)} checks, all right")
