"""Bytes: the referee's own reader of tokenizers and shards against SentencePiece itself, numbers
worked by hand, and the contest's constants."""

import hashlib
import io
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from eval.errors import UserError
from eval.text.corpus.bytes import BOS, documents, load_byte_table
from eval.text.corpus.dataset import Dataset, ManifestSplit, Split, shard_bytes
from eval.text.corpus.exports import KNOWN_EXPORTS, check_fineweb_bytes, implied_bytes

SHARED = Path(__file__).parents[2] / "shared"
TEXTS = [
    "def f(x):\n    return x  # two  spaces\n",
    "  leading and trailing  ",
    "Grüße, naïve café, ﬁne, Ⅷ, Å",
    "日本語のテキスト \U0001f600 \x00\x7f",
    "",
    " ",
    "a",
    "\n\n\t\t\n",
    "numbers 12345 67.89 and ALL CAPS",
]
LOSSLESS = {
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}
KINDS = {
    "lossless": LOSSLESS | {"byte_fallback": True},
    "contest, byte fallback": {"byte_fallback": True},
    "contest, no byte fallback": {"byte_fallback": False},
    "dummy prefix only": {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "collapses only": {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
    },
}


def train(folder: Path, **options) -> tuple[Path, sentencepiece.SentencePieceProcessor]:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in TEXTS * 20 if text]),
        model_writer=model,
        vocab_size=330,
        model_type="bpe",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path = folder / "t.model"
    path.write_bytes(model.getvalue())
    return path, sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def random_text(rng: random.Random) -> str:
    alphabet = "abcde  \n\té▁" + "日" + "  "
    return "".join(rng.choice(alphabet) for _ in range(rng.randrange(40)))


@pytest.mark.parametrize("kind", KINDS)
def test_decodes_as_sentencepiece_does(tmp_path, kind):
    """Own reader of the model file against the library, document by document.

    Unknown pieces, which the library writes as a mark, are nothing here."""
    path, library = train(tmp_path, **KINDS[kind])
    table = load_byte_table(path)
    rng = random.Random(1)
    assert table.vocab_size == library.vocab_size()
    for text in TEXTS + [random_text(rng) for _ in range(300)]:
        ids = np.array(library.encode(text), np.int64)
        stream = np.concatenate([[BOS], ids])
        decoded = table.decode(stream)
        if 3 not in ids:
            assert decoded == library.decode(ids.tolist()).encode()
        assert table.decoded_bytes(stream) == len(decoded)
    assert bool(table.lossy) == (kind not in ("lossless", "dummy prefix only"))


def test_lossless_text_comes_back_and_all_three_counts_agree(tmp_path):
    path, library = train(tmp_path, **KINDS["lossless"])
    table = load_byte_table(path)
    texts = [text for text in TEXTS if "\u2581" not in text]
    stream = np.concatenate([[BOS, *library.encode(text)] for text in texts]).astype(np.int64)
    source = sum(len(text.encode()) for text in texts)
    assert table.decoded_bytes(stream) == int(table.table_bytes(stream).sum()) == source
    assert [table.decode(stream[a:b]).decode() for a, b in documents(stream)] == texts


def test_lossy_counts_are_told_apart(tmp_path):
    """NFKC turns the ligature ﬁ (3 bytes) into fi (2), and runs of spaces collapse."""
    path, library = train(tmp_path, **KINDS["contest, byte fallback"])
    table = load_byte_table(path)
    text = "  a ﬁne   b  "
    stream = np.array([BOS, *library.encode(text)])
    assert table.decode(stream) == b"a fine b"
    assert table.decoded_bytes(stream) == 8
    assert int(table.table_bytes(stream).sum()) == 8
    assert len(text.encode()) == 15


def test_contest_table_by_hand(tmp_path):
    """Piece bytes, +1 for a leading mark unless a boundary token precedes; byte pieces 1; control
    tokens 0."""
    path, library = train(tmp_path, **KINDS["contest, byte fallback"])
    table = load_byte_table(path)
    ids = range(4, library.vocab_size())
    word = next(i for i in ids if library.id_to_piece(i) in ("\u2581a", "\u2581"))
    byte = library.piece_to_id("<0x41>")
    size = len(library.id_to_piece(word).replace("\u2581", " "))
    stream = np.array([BOS, word, word, byte, BOS, word, 2, word, 0])
    assert table.table_bytes(stream).tolist() == [size - 1, size, 1, 0, size - 1, 0, size - 1, 0]


def test_pure_byte_vocabulary(tmp_path):
    path = tmp_path / "bytes.json"
    path.write_text(json.dumps({"vocab_size": 260, "config": {"byte_offset": 4}}))
    table = load_byte_table(path)
    stream = np.array([BOS, *(4 + b for b in "né".encode())])
    assert table.decode(stream) == "né".encode()
    assert table.table_bytes(stream).sum() == 3 and table.lossy == ()


@pytest.mark.parametrize(
    ("name", "raw", "complaint"),
    [
        ("x.model", b"\x0a\x02\x18\x01", "expected a SentencePiece model"),  # a piece without text
        ("x.model", b"\x0a\x02\x08\x01", "expected a SentencePiece model"),  # a number as its text
        ("x.model", b"not a model at all", "expected a SentencePiece model"),
        ("x.model", b"", "expected a SentencePiece model"),
        ("x.model", b"\x0a\xff\xff\xff\xff\x7f", "expected a SentencePiece model"),
        ("x.json", b"{}", "expected the JSON description"),
        ("x.json", b'{"vocab_size": 300}', "expected 260 ids"),
    ],
)
def test_other_files_are_refused(tmp_path, name, raw, complaint):
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(UserError, match=complaint):
        load_byte_table(path)


@pytest.mark.parametrize("name", ["fineweb_1024_bpe", "fineweb_4096_bpe", "fineweb_8192_bpe"])
def test_the_contest_s_own_tokenizers(name):
    path = SHARED / "tokenizers" / f"{name}.model"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    table = load_byte_table(path)
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in TEXTS:
        ids = np.array(library.encode(text), np.int64)
        if 3 not in ids:
            assert table.decode(ids) == library.decode(ids.tolist()).encode()
    assert table.eats_prefix and table.lossy


# --- The contest's constants (VALIDITY 2.2) ---


def test_implied_bytes_by_hand():
    """4 tokens at ln 2 nats and 0.25 bits per byte: 16 bytes."""
    assert implied_bytes(4, math.log(2), 0.25) == pytest.approx(16)


@pytest.mark.parametrize("export", KNOWN_EXPORTS, ids=lambda e: e.label)
def test_constants_agree_with_each_other(export):
    """tokens × ratio / ln 2 is the stated number of bytes, as far as the constants have digits."""
    assert implied_bytes(export.val_tokens[0], export.ratio, 1.0) == pytest.approx(
        export.bytes, rel=1e-4
    )


@pytest.mark.parametrize(
    ("tokens", "ratio", "deviation"),
    [
        (62_021_632, 1.987, "+17"),  # SP1024, leading space twice
        (40_540_160, 3.040, "+17"),  # SP8192, the same
        (62_021_632, 2.253, "+33"),  # SP1024, mojibake marker
        (45_508_608, 2.9329, "+27"),  # SP4096 with a foreign tokenizer
    ],
)
def test_wrong_ratios_of_the_contest_are_found(tokens, ratio, deviation):
    export, _, complaint = check_fineweb_bytes(tokens, ratio, 1.0)
    assert export is not None and deviation in complaint and "corrected val_bpb" in complaint


def test_right_ratios_pass_and_cut_sets_do_not():
    for export in KNOWN_EXPORTS:
        assert check_fineweb_bytes(export.val_tokens[0], export.ratio, 1.0)[2] is None
    export, _, complaint = check_fineweb_bytes(8_000_000, 1.68846, 1.0)
    assert export is None and "no published export" in complaint


def test_public_logs_imply_the_published_bytes():
    folder = SHARED / "upstream_records" / "2026-03-17_NaiveBaseline"
    if not folder.exists():
        pytest.skip(f"{folder} is not here")
    stated = json.loads((folder / "submission.json").read_text())
    assert check_fineweb_bytes(63_779_840, stated["val_loss"], stated["val_bpb"])[2] is None


# --- Dataset folders ---


def sha256_hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def byte_stream(texts: list[str]) -> np.ndarray:
    """Byte-level ids of the texts, each behind a BOS."""
    stream = []
    for text in texts:
        stream += [BOS, *(4 + byte for byte in text.encode())]
    return np.array(stream)


def write_split(folder: Path, name: str, texts: list[str]) -> dict:
    """Two shards of a split; returns its entry in the manifest."""
    stream = byte_stream(texts)
    files = []
    for k, part in enumerate(np.array_split(stream, 2)):
        raw = shard_bytes(part)
        path = folder / f"tiny_{name}_{k:06d}.bin"
        path.write_bytes(raw)
        files.append({"name": path.name, "tokens": len(part), "sha256": sha256_hex(raw)})
    return {
        "documents": len(texts),
        "source_bytes": sum(map(len, texts)),
        "tokens": len(stream),
        "files": files,
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    """A byte-level dataset of three validation and two training documents."""
    texts = {"train": ["first text", "second text"], "val": ["one", "two", "three"]}
    path = tmp_path / "datasets" / "tiny"
    path.mkdir(parents=True)
    version = hashlib.sha256()
    for text in texts["train"] + texts["val"]:
        version.update(hashlib.sha256(text.encode()).digest())
    tokenizer = json.dumps({"vocab_size": 260}).encode()
    (path / "bytes.json").write_bytes(tokenizer)
    manifest = {
        "format": 1,
        "name": "tiny",
        "corpus": "tiny",
        "version": version.hexdigest(),
        "tokenizer": {
            "file": "bytes.json",
            "kind": "bytes",
            "sha256": sha256_hex(tokenizer),
            "vocab_size": 260,
            "lossless": True,
        },
        "splits": {name: write_split(path, name, split) for name, split in texts.items()},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_dataset_reads_shards_in_name_order_and_checks_them(folder):
    dataset = Dataset(folder)
    split = dataset.split("val")
    texts = [dataset.table.decode(split.tokens[begin:end]) for begin, end in split.spans]
    assert texts == [b"one", b"two", b"three"]
    assert split.complaints == dataset.tokenizer_complaints == []
    assert dataset.decoded_version() == dataset.manifest.version


def test_one_flipped_token_is_a_complaint(folder):
    path = folder / "tiny_val_000001.bin"
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)
    dataset = Dataset(folder)
    assert "sha256" in dataset.split("val").complaints[0]
    assert dataset.decoded_version() != dataset.manifest.version


def test_broken_shards_are_user_errors(folder):
    path = folder / "tiny_val_000000.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="header promises"):
        Dataset(folder).split("val")
    path.write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match="expected a shard"):
        Dataset(folder).split("val")


def test_ids_beyond_the_tokenizer_are_a_user_error(folder):
    path = folder / "tiny_val_000000.bin"
    path.write_bytes(shard_bytes(np.array([BOS, 260])))
    with pytest.raises(UserError, match="they do not belong together"):
        Dataset(folder).split("val")


def test_unusable_folders_are_user_errors(folder):
    with pytest.raises(UserError, match="no split 'test'"):
        Dataset(folder).split("test")
    (folder / "bytes.json").unlink()
    with pytest.raises(UserError, match="is neither in"):
        Dataset(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="format"):
        Dataset(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="missing; build the dataset"):
        Dataset(folder)


@pytest.mark.parametrize(
    ("source_bytes", "sidecar", "complaint"),
    [
        (6, [0, 1, 2, 3], None),
        (6, [0, 2, 2, 3], "the byte sidecar sums to 7, the manifest states source_bytes 6"),
        (None, [0, 1, 2, 3], "the byte sidecar sums to 6, the manifest states no source_bytes"),
    ],
)
def test_a_sidecar_is_held_against_the_stated_bytes(source_bytes, sidecar, complaint):
    """Its hash is the manifest's, so only the sum shows that it counts what is not there."""
    stated = ManifestSplit(documents=1, source_bytes=source_bytes, tokens=4, files=[])
    split = Split(stated, np.array([1, 5, 6, 7]), [], np.array(sidecar))
    assert split.sidecar_complaint == complaint
