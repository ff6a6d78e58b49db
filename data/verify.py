"""`python -m data verify DIR`: everything that a manifest claims, measured again from the files.

This is where a whole dataset is hashed. Training checks only each shard's header and length, and
logs the sha256 of the manifest, which holds all the others.
"""

import functools
import hashlib
import io
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from data.common import BOS, UNK, UserError, default_workers, process_pool, sha256_file
from data.encode import worker_tokenizer
from data.manifest import NAME, Manifest, Split, TokenizerEntry, load_manifest, tokenizer_path
from data.shards import ShardFile, read_shard
from data.tokenizer import Tokenizer

# At most so much of the validation split is encoded again.
SAMPLE_DOCUMENTS = 200
SAMPLE_TOKENS = 4_000_000
# A foreign tokenizer of the same size agrees on no document. A lossy one of the right kind agrees
# on all but those with odd characters.
SAMPLE_AGREES = 0.95
SHA256 = re.compile(r"[0-9a-f]{64}$")
KEY_BYTES = 16  # of the sha256 by which equal documents are found


@dataclass
class Row:
    """One claim: what the manifest or a rule says, and what the files say."""

    check: str
    where: str
    expected: str
    found: str

    @classmethod
    def of_counts(cls, check: str, where: str, expected: int, found: int) -> "Row":
        return cls(check, where, f"{expected:,}", f"{found:,}")

    @property
    def ok(self) -> bool:
        return self.expected == self.found


def verify(folder: Path, workers: int = default_workers()) -> bool:
    """Prints a table of claims against measurements. True when all agree.

    Raises UserError when the manifest cannot be read or no tokenizer has its sha256.
    """
    manifest = load_manifest(folder)
    path = tokenizer_path(folder, manifest.tokenizer)
    tokenizer = worker_tokenizer(path)
    rows = check_tokenizer(path, manifest.tokenizer, tokenizer)
    rows.append(check_strays(folder, manifest))
    for name, split in manifest.splits.items():
        rows += check_shards(folder, name, split, tokenizer.vocab_size)
    # Ids outside the table or missing shards would make the rest meaningless.
    if all(row.ok for row in rows):
        for name, split in manifest.splits.items():
            if split.byte_files:
                rows += check_sidecars(folder, name, split)
        rows.append(check_encoding(folder, manifest.splits["val"], tokenizer))
        rows += check_documents(folder, manifest, path, workers)
    print(report(folder, rows))
    return all(row.ok for row in rows)


# --- files ----------------------------------------------------------------------------------------


def check_tokenizer(path: Path, entry: TokenizerEntry, tokenizer: Tokenizer) -> list[Row]:
    return [
        Row("sha256", entry.file, entry.sha256, sha256_file(path)),
        Row("tokenizer kind", entry.file, entry.kind, tokenizer.kind),
        Row.of_counts("vocabulary", entry.file, entry.vocab_size, tokenizer.vocab_size),
    ]


def check_strays(folder: Path, manifest: Manifest) -> Row:
    """A reader would pick up shards that the manifest does not name."""
    named = set()
    for split in manifest.splits.values():
        named.update(file.name for file in split.all_files)
    strays = sorted(path.name for path in folder.glob("*.bin") if path.name not in named)
    return Row("shards outside the manifest", folder.name, "none", ", ".join(strays) or "none")


def check_hash(folder: Path, file: ShardFile) -> Row:
    return Row("sha256", file.name, file.sha256, sha256_file(folder / file.name))


def check_shards(folder: Path, name: str, split: Split, vocab_size: int) -> list[Row]:
    """Sizes, hashes and token ids of one split."""
    rows = []
    firsts = []
    highest = -1
    tokens = 0
    for file in tqdm(split.files, f"{name} shards", unit="shard", disable=None, leave=False):
        try:
            shard = read_shard(folder / file.name)
        except UserError as error:
            rows.append(Row("readable", file.name, "a whole shard", str(error)))
            continue
        firsts.append(int(shard[0]))
        highest = max(highest, int(shard.max()))
        tokens += len(shard)
        rows.append(Row.of_counts("tokens", file.name, file.tokens, len(shard)))
        rows.append(check_hash(folder, file))
    in_range = f"{vocab_size:,}"
    found = in_range if highest < vocab_size else f"id {highest:,}"
    first = str(firsts[0]) if firsts else "None"
    rows.append(Row.of_counts("tokens", name, split.tokens, tokens))
    rows.append(Row("ids below the vocabulary", name, in_range, found))
    rows.append(Row("first token", name, str(BOS), first))
    return rows


def check_sidecars(folder: Path, name: str, split: Split) -> list[Row]:
    """A byte sidecar has one number per token and none for a BOS. Their sum is the byte count."""
    if len(split.byte_files) != len(split.files):
        return [Row.of_counts("sidecars", name, len(split.files), len(split.byte_files))]
    rows = []
    total = 0
    for shard, sidecar in zip(split.files, split.byte_files, strict=True):
        tokens = read_shard(folder / shard.name)
        sizes = read_shard(folder / sidecar.name)
        length = Row.of_counts("sidecar length", sidecar.name, len(tokens), len(sizes))
        rows.append(length)
        rows.append(check_hash(folder, sidecar))
        if length.ok:
            of_bos = int(sizes[tokens == BOS].sum(dtype=np.int64))
            rows.append(Row.of_counts("sidecar bytes of BOS", sidecar.name, 0, of_bos))
        total += int(sizes.sum(dtype=np.int64))
    rows.append(Row.of_counts("bytes by the sidecar", name, split.counted_bytes, total))
    if split.source_bytes is not None:
        rows.append(Row.of_counts("source bytes", name, split.source_bytes, total))
    return rows


def check_encoding(folder: Path, split: Split, tokenizer: Tokenizer) -> Row:
    """Decodes the first documents of a split and encodes them again.

    Shards of another tokenizer decode to nonsense that encodes to other tokens.
    """
    tokens = np.array(read_shard(folder / split.files[0].name)[:SAMPLE_TOKENS])
    documents = np.split(tokens, np.flatnonzero(tokens == BOS))[1:]
    if len(tokens) < split.tokens:
        documents.pop()  # it may go on beyond the sample
    known = [ids[1:] for ids in documents[:SAMPLE_DOCUMENTS] if not (ids == UNK).any()]
    same = sum(np.array_equal(tokenizer.encode(tokenizer.decode(ids)), ids) for ids in known)
    found = "yes" if same >= SAMPLE_AGREES * len(known) else f"{same} of {len(known)} documents"
    return Row("encode(decode(x)) = x", "val", "yes", found)


# --- documents ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """What to measure of a split's documents, besides their keys and their bytes by the table.

    text: the sha256 of each document's text.
    decoded: the bytes that the tokenizer's decoder writes.
    """

    text: bool
    decoded: bool


@dataclass
class Digests:
    """Some documents, in order.

    keys: KEY_BYTES of the sha256 of each document's tokens.
    texts: sha256 of each document's text, concatenated; empty when not wanted.
    counted: their bytes by the table.
    decoded: their bytes as the decoder writes them; 0 when not wanted.
    """

    keys: list[bytes] = field(default_factory=list)
    texts: bytes = b""
    counted: int = 0
    decoded: int = 0


def digest(tokenizer: Tokenizer, documents: list[np.ndarray], wanted: Wanted) -> Digests:
    """Measures whole documents, each uint16 [N] from its BOS on."""
    digests = Digests()
    texts = []
    for ids in documents:
        digests.keys.append(hashlib.sha256(ids.tobytes()).digest()[:KEY_BYTES])
        digests.counted += tokenizer.table.count(ids)
        if wanted.text:
            texts.append(hashlib.sha256(tokenizer.table.decode(ids)).digest())
        if wanted.decoded:
            content = ids[1:] if ids[0] == BOS else ids
            digests.decoded += tokenizer.decoded_bytes(content)
    digests.texts = b"".join(texts)
    return digests


def scan_shard(
    tokenizer_file: Path, wanted: Wanted, shard: Path
) -> tuple[np.ndarray, Digests, np.ndarray]:
    """What precedes the first BOS, the digests of the whole documents, and the last document.

    The last document may go on in the next shard.
    """
    tokens = np.array(read_shard(shard))
    head, *documents = np.split(tokens, np.flatnonzero(tokens == BOS))
    tail = documents.pop() if documents else np.zeros(0, np.uint16)
    return head, digest(worker_tokenizer(tokenizer_file), documents, wanted), tail


def scan_split(
    pool: ProcessPoolExecutor, shards: list[Path], tokenizer_file: Path, wanted: Wanted
) -> Iterator[Digests]:
    """Digests of a split's documents in order.

    Shards are scanned in parallel. Documents that cross shards are put together again.
    """
    tokenizer = worker_tokenizer(tokenizer_file)
    open_document: list[np.ndarray] = []

    def close_document() -> Digests:
        document = np.concatenate(open_document)
        return digest(tokenizer, [document] if len(document) else [], wanted)

    scan = functools.partial(scan_shard, tokenizer_file, wanted)
    for head, digests, tail in pool.map(scan, shards):
        open_document.append(head)
        if len(tail):  # a document begins in this shard, so the open one has ended
            yield close_document()
            open_document = [tail]
        yield digests
    yield close_document()


def count_rows(manifest: Manifest, name: str, documents: int, measured: Digests) -> list[Row]:
    """The counts of one split, by as many ways as apply to it."""
    split = manifest.splits[name]
    rows = [Row.of_counts("documents", name, split.documents, documents)]
    if not split.byte_files:
        rows.append(
            Row.of_counts("bytes by the table", name, split.counted_bytes, measured.counted)
        )
        if name == "val":
            rows.append(
                Row.of_counts("bytes by decoding", name, split.counted_bytes, measured.decoded)
            )
    if manifest.tokenizer.lossless:
        source = "none" if split.source_bytes is None else f"{split.source_bytes:,}"
        rows.append(Row("source bytes", name, source, f"{measured.counted:,}"))
    return rows


def check_documents(
    folder: Path, manifest: Manifest, tokenizer_file: Path, workers: int
) -> list[Row]:
    """Document counts, bytes, overlap and corpus version.

    Memory: the validation documents' hashes, and a shard for each process.
    """
    rows: list[Row] = []
    held_out: set[bytes] = set()
    overlap = 0
    version = hashlib.sha256()
    val_texts = b""
    want_text = manifest.tokenizer.lossless and manifest.version_rule == "documents"
    with process_pool(workers) as pool:
        for name in ("val", "train"):
            split = manifest.splits[name]
            shards = [folder / file.name for file in split.files]
            wanted = Wanted(text=want_text, decoded=name == "val" and not split.byte_files)
            scanned = scan_split(pool, shards, tokenizer_file, wanted)
            bar = tqdm(scanned, f"documents of {name}", unit="shard", disable=None, leave=False)
            documents = 0
            total = Digests()
            for digests in bar:
                documents += len(digests.keys)
                total.counted += digests.counted
                total.decoded += digests.decoded
                if name == "val":
                    held_out.update(digests.keys)
                    val_texts += digests.texts
                else:
                    overlap += sum(key in held_out for key in digests.keys)
                    version.update(digests.texts)
            rows += count_rows(manifest, name, documents, total)
    rows.append(Row.of_counts("train documents also in val", "both", 0, overlap))
    if want_text:
        version.update(val_texts)
        check = "corpus version, from decoded text"
        rows.append(Row(check, "both", manifest.version, version.hexdigest()))
    return rows


# --- the report -----------------------------------------------------------------------------------


def report(folder: Path, rows: list[Row]) -> str:
    """The table, and in its last line the verdict with what to do."""
    lines = [str(folder), *("  " + line for line in table_lines(rows))]
    wrong = sum(not row.ok for row in rows)
    if wrong:
        lines.append(
            f"  {len(rows)} checks, {wrong} wrong; delete {folder / NAME} and run the command "
            "that made the dataset again (python -m data docs, text, fineweb or retokenize)"
        )
    else:
        lines.append(f"  {len(rows)} checks, all right")
    return "\n".join(lines)


def table_lines(rows: list[Row]) -> list[str]:
    """The rows in columns as wide as their contents, whatever the terminal; plain text."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for title in ("check", "where", "expected", "found", ""):
        table.add_column(title, no_wrap=True)
    for row in rows:
        verdict = "ok" if row.ok else "WRONG"
        cells = (row.check, row.where, shortened(row.expected), shortened(row.found), verdict)
        table.add_row(*map(Text, cells))
    unlimited = Console(file=io.StringIO(), width=1_000_000, color_system=None)
    with unlimited.capture() as capture:
        unlimited.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def shortened(cell: str) -> str:
    """The beginning of a sha256; anything else as it is."""
    return f"{cell[:16]}…" if SHA256.match(cell) else cell
