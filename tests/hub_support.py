"""A local server that speaks the hub's protocol and can misbehave, and a miniature export.

The export has the public layout: 4 train shards and 1 val shard for a SentencePiece tokenizer
with the public one's settings, the same for pure bytes and for a transform with a byte sidecar,
and the document list, validation first.
"""

import hashlib
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import sentencepiece as spm
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

REPO = "someone/golf"
COMMIT = "c" * 40
SHARD_TOKENS = 20_000
TRAIN_SHARDS = 4
MODEL = "datasets/tokenizers/fineweb_330_bpe.model"
DOCS = "datasets/docs_selected.jsonl"
MANIFEST = "datasets/manifest.json"
CLOSED = {"gone/golf": ("RepoNotFound", 404), "gated/golf": ("GatedRepo", 403)}


def shard_file(dataset: str, name: str) -> str:
    """Path of a data set's file in the repository."""
    return f"datasets/datasets/{dataset}/{name}"


# --- the server -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A request and the status of its answer. `range`: the Range header."""

    method: str
    path: str
    range: str
    status: int


@dataclass
class Hub:
    """The files of one repository, the faults to commit and a log of what was asked.

    faults: by path; each is committed once, first come first served.
    storage: the address of another host, as the hub's storage is.
    small: endings of files that are stored in git itself, not in large-file storage.
    """

    files: dict[str, bytes]
    faults: dict[str, list[str]] = field(default_factory=dict)
    log: list[Asked] = field(default_factory=list)
    url: str = ""
    storage: str = ""
    small: tuple[str, ...] = ("manifest.json",)

    def __call__(self, environ, start_response):
        request = Request(environ)
        response = self.answer(request)
        asked_range = request.headers.get("Range", "")
        self.log.append(Asked(request.method, request.path, asked_range, response.status_code))
        return response(environ, start_response)

    def fault(self, path: str) -> str:
        return self.faults[path].pop(0) if self.faults.get(path) else ""

    def sent(self) -> Counter:
        """How often each stored file's contents were asked for."""
        contents = [
            asked.path
            for asked in self.log
            if asked.method == "GET" and asked.path.startswith("/storage/")
        ]
        return Counter(path.rpartition("/")[2] for path in contents)

    def answer(self, request: Request) -> Response:
        path = request.path
        for repo, (code, status) in CLOSED.items():
            if repo in path:
                return error(status, code)
        api = f"/api/datasets/{REPO}"
        revision = path.removeprefix(f"{api}/revision/")
        if revision in ("main", COMMIT):
            return self.commit()
        if revision != path:
            return error(404, "RevisionNotFound")
        folder = path.removeprefix(f"{api}/tree/{COMMIT}")
        if folder != path:
            return self.tree(folder.strip("/"))
        name = path.removeprefix(f"/datasets/{REPO}/resolve/{COMMIT}/")
        if name != path:
            return self.resolve(name)
        if path.startswith("/storage/"):
            return self.send(request, path.removeprefix("/storage/"))
        return error(404, "EntryNotFound")

    def commit(self) -> Response:
        fault = self.fault("api")
        if fault:
            status, _, retry_after = fault.partition(":")
            return error(int(status), retry_after=retry_after)
        return as_json({"id": REPO, "sha": COMMIT, "siblings": []})

    def tree(self, folder: str) -> Response:
        below = [name for name in self.files if name.rpartition("/")[0] == folder]
        if not below:
            return error(404, "EntryNotFound")
        return as_json([self.tree_entry(name) for name in below])

    def tree_entry(self, name: str) -> dict:
        raw = self.files[name]
        entry = {"type": "file", "path": name, "size": len(raw), "oid": git_sha1(raw)}
        if not name.endswith(self.small):
            oid = hashlib.sha256(raw).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(raw), "pointerSize": 130}
        return entry

    def resolve(self, name: str) -> Response:
        """As the hub does: small files at once, large ones by a redirect to storage.

        X-Linked-Etag holds the hash of a large file.
        """
        if name not in self.files:
            return error(404, "EntryNotFound")
        raw = self.files[name]
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name.endswith(self.small):
            headers["ETag"] = f'"{git_sha1(raw)}"'
            return Response(raw, headers=headers)
        headers["X-Linked-Etag"] = f'"{hashlib.sha256(raw).hexdigest()}"'
        headers["X-Linked-Size"] = str(len(raw))
        headers["Location"] = f"{self.storage}/storage/{name}"
        return Response(b"", 302, headers)

    def send(self, request: Request, name: str) -> Response:
        """A stored file from the start of the asked range on.

        Faults: "status:CODE:SECONDS", "corrupt", and "drop:N", which ends after N bytes.
        """
        raw = self.files[name]
        if request.method == "HEAD":
            return Response(raw)
        kind, *values = self.fault(name).split(":")
        if kind == "status":
            status, retry_after = values
            return error(int(status), retry_after=retry_after)
        if kind == "corrupt":
            raw = raw[:-1] + bytes([raw[-1] ^ 1])
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        body = raw[start:]
        stop = int(values[0]) if kind == "drop" else len(body)

        def pieces() -> Iterator[bytes]:
            yield body[:stop]
            if stop < len(body):
                raise ConnectionResetError("planned")

        headers = {"Content-Length": str(len(body)), "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(raw) - 1}/{len(raw)}"
        status = 206 if start else 200
        return Response(pieces(), status, headers, direct_passthrough=True)


def as_json(value: object) -> Response:
    return Response(json.dumps(value), mimetype="application/json")


def error(status: int, code: str = "", retry_after: str = "") -> Response:
    headers = {}
    if code:
        headers["X-Error-Code"] = code
    if retry_after:
        headers["Retry-After"] = retry_after
    return Response("", status, headers)


def git_sha1(raw: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub with these files on a free port of this machine."""
    app = Hub(dict(files))
    http = make_server("127.0.0.1", 0, app, threaded=True)
    app.url = f"http://127.0.0.1:{http.server_port}"
    app.storage = f"http://localhost:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield app
    http.shutdown()
    thread.join()


# --- the export -----------------------------------------------------------------------------------


def shard(tokens: np.ndarray) -> bytes:
    """The contest's format, written without the project's own writer."""
    header = np.zeros(256, "<i4")
    header[:3] = [20240520, 1, len(tokens)]
    return header.tobytes() + tokens.astype("<u2").tobytes()


def trained(texts: list[str], **options: object) -> bytes:
    """A SentencePiece model as the public ones are, but small."""
    writer = io.BytesIO()
    defaults = dict(
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=writer, **(defaults | options)
    )
    return writer.getvalue()


def make_texts() -> list[str]:
    """1,500 documents; the first 60 are the validation set."""
    rng = np.random.default_rng(0)
    words = [
        "the",
        "quick  brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "naïve",
        "日本",
        "1234",
        "\n",
        "ﬁne",
    ]
    return [" ".join(rng.choice(words, rng.integers(20, 200))) for _ in range(1500)]


def shards_of(
    dataset: str, texts: list[str], encode: Callable[[str], list[int]]
) -> dict[str, bytes]:
    """One validation shard, and TRAIN_SHARDS of SHARD_TOKENS tokens."""
    val = stream_of(texts[:60], encode)
    train = stream_of(texts[60:], encode)
    files = {shard_file(dataset, "fineweb_val_000000.bin"): shard(val)}
    for i in range(TRAIN_SHARDS):
        tokens = train[i * SHARD_TOKENS : (i + 1) * SHARD_TOKENS]
        files[shard_file(dataset, f"fineweb_train_{i:06d}.bin")] = shard(tokens)
    return files


def stream_of(texts: list[str], encode: Callable[[str], list[int]]) -> np.ndarray:
    return np.concatenate([[1, *encode(text)] for text in texts])


def public_manifest(tokenizers: dict[str, str]) -> dict:
    """The export's manifest.json. tokenizers: name of each data set -> name of its tokenizer."""
    stats = {"files_train": TRAIN_SHARDS, "files_val": 1, "tokens_val": 1}
    return {
        "version": "10B",
        "datasets": [
            {"name": dataset, "tokenizer_name": tokenizer, "stats": stats, "bos_id": 1}
            for dataset, tokenizer in tokenizers.items()
        ],
        "tokenizers": [
            {
                "name": "sp_bpe_330",
                "model_path": "tokenizers/fineweb_330_bpe.model",
                "vocab_size": 330,
            },
            {"name": "pure_byte_260", "path": "tokenizers/pure_byte.json"},
        ],
    }


def make_export() -> dict[str, bytes]:
    """The files of the export, by path."""
    texts = make_texts()
    model = trained(
        texts,
        character_coverage=0.999,
        normalization_rule_name="nmt_nfkc",
        add_dummy_prefix=False,
        split_digits=True,
        user_defined_symbols=["\ue001"],
    )
    sp = spm.SentencePieceProcessor(model_proto=model)
    mark = sp.piece_to_id("\ue001")

    def as_bytes(text: str) -> list[int]:
        return [4 + byte for byte in text.encode()]

    def marked(text: str) -> list[int]:
        return [mark, *sp.encode(text)]

    def marked_sizes(text: str) -> list[int]:
        """Of BOS, the mark and the pieces."""
        return [0, 0, *(len(piece.encode()) for piece in sp.encode(text, out_type=str))]

    documents = [json.dumps({"text": text}) + "\n" for text in texts]
    byte_tokenizer = {"tokenizer_type": "pure_byte", "vocab_size": 260}
    manifest = public_manifest(
        {
            "fineweb10B_sp330": "sp_bpe_330",
            "fineweb10B_byte260": "pure_byte_260",
            "fineweb10B_caps": "sp_bpe_330",
        }
    )
    sidecar = np.concatenate([marked_sizes(text) for text in texts[:60]])
    return {
        DOCS: "".join(documents).encode(),
        MODEL: model,
        "datasets/tokenizers/pure_byte.json": json.dumps(byte_tokenizer).encode(),
        **shards_of("fineweb10B_sp330", texts, sp.encode),
        **shards_of("fineweb10B_byte260", texts, as_bytes),
        **shards_of("fineweb10B_caps", texts, marked),
        shard_file("fineweb10B_caps", "fineweb_val_bytes_000000.bin"): shard(sidecar),
        MANIFEST: json.dumps(manifest).encode(),
    }
