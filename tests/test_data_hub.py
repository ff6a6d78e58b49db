"""`python -m data fineweb` with the real hub client against a local server that speaks the hub's protocol and can misbehave.

Every run is a process of its own: HF_ENDPOINT is read when the client is imported."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

ROOT = Path(__file__).resolve().parents[1]
REPO = "someone/golf"
COMMIT = "c" * 40
SHARD_TOKENS = 20_000


def shard(tokens: np.ndarray) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(tokens)
    return header.tobytes() + tokens.astype("<u2").tobytes()


@dataclass
class Hub:
    """The files of one repository, the faults to commit (each once, first come first served) and a log of what was asked."""

    files: dict[str, bytes]
    faults: dict[str, list[str]] = field(default_factory=dict)
    log: list[tuple[str, str, str, int]] = field(
        default_factory=list
    )  # method, path, Range header, status
    url: str = ""
    storage: str = ""  # another host, as the hub's storage is
    small: tuple[str, ...] = ("manifest.json",)  # stored in git itself, not in large-file storage

    def __call__(self, environ, start_response):
        request = Request(environ)
        response = self.answer(request)
        self.log.append(
            (request.method, request.path, request.headers.get("Range", ""), response.status_code)
        )
        return response(environ, start_response)

    def fault(self, path: str) -> str:
        return self.faults[path].pop(0) if self.faults.get(path) else ""

    def answer(self, request: Request) -> Response:
        path = request.path
        for repo, code, status in (
            ("gone/golf", "RepoNotFound", 404),
            ("gated/golf", "GatedRepo", 403),
        ):
            if repo in path:
                return error(status, code)
        if (
            path == f"/api/datasets/{REPO}/revision/main"
            or path == f"/api/datasets/{REPO}/revision/{COMMIT}"
        ):
            if fault := self.fault("api"):
                return error(int(fault.split(":")[0]), retry_after=fault.partition(":")[2])
            return Response(
                json.dumps({"id": REPO, "sha": COMMIT, "siblings": []}), mimetype="application/json"
            )
        if path.startswith(f"/api/datasets/{REPO}/revision/"):
            return error(404, "RevisionNotFound")
        if path.startswith(f"/api/datasets/{REPO}/tree/{COMMIT}"):
            return self.tree(path.removeprefix(f"/api/datasets/{REPO}/tree/{COMMIT}").strip("/"))
        if path.startswith(f"/datasets/{REPO}/resolve/{COMMIT}/"):
            return self.resolve(request, path.split(COMMIT + "/", 1)[1])
        if path.startswith("/storage/"):
            return self.send(request, path.removeprefix("/storage/"))
        return error(404, "EntryNotFound")

    def tree(self, folder: str) -> Response:
        below = [name for name in self.files if name.rpartition("/")[0] == folder]
        if not below:
            return error(404, "EntryNotFound")
        entries = []
        for name in below:
            entry = {
                "type": "file",
                "path": name,
                "size": len(self.files[name]),
                "oid": git_sha1(self.files[name]),
            }
            if not name.endswith(self.small):
                entry["lfs"] = {
                    "oid": hashlib.sha256(self.files[name]).hexdigest(),
                    "size": len(self.files[name]),
                    "pointerSize": 130,
                }
            entries.append(entry)
        return Response(json.dumps(entries), mimetype="application/json")

    def resolve(self, request: Request, name: str) -> Response:
        """As the hub does: small files at once, large ones by a redirect to storage, their hash in X-Linked-Etag."""
        if name not in self.files:
            return error(404, "EntryNotFound")
        raw = self.files[name]
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name.endswith(self.small):
            return Response(raw, headers=headers | {"ETag": f'"{git_sha1(raw)}"'})
        headers |= {
            "X-Linked-Etag": f'"{hashlib.sha256(raw).hexdigest()}"',
            "X-Linked-Size": str(len(raw)),
            "Location": f"{self.storage}/storage/{name}",
        }
        return Response(b"", 302, headers)

    def send(self, request: Request, name: str) -> Response:
        raw = self.files[name]
        if request.method == "HEAD":
            return Response(raw)
        fault = self.fault(name)
        if fault.startswith("status"):
            return error(int(fault.split(":")[1]), retry_after=fault.rpartition(":")[2])
        if fault == "corrupt":
            raw = raw[:-1] + bytes([raw[-1] ^ 1])
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        body = raw[start:]
        stop = int(fault.split(":")[1]) if fault.startswith("drop") else len(body)

        def pieces() -> Iterator[bytes]:
            yield body[:stop]
            if stop < len(body):
                raise ConnectionResetError("planned")

        headers = {"Content-Length": str(len(body)), "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(raw) - 1}/{len(raw)}"
        return Response(pieces(), 206 if start else 200, headers, direct_passthrough=True)


def error(status: int, code: str = "", retry_after: str = "") -> Response:
    return Response(
        "",
        status,
        {k: v for k, v in {"X-Error-Code": code, "Retry-After": retry_after}.items() if v},
    )


def git_sha1(raw: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


@pytest.fixture(scope="module")
def export() -> dict[str, bytes]:
    """A miniature of the public layout: 4 train shards and 1 val shard for a SentencePiece tokenizer with the public one's settings, pure
    bytes, a transform with a byte sidecar, the document list, validation first."""
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
    texts = [" ".join(rng.choice(words, rng.integers(20, 200))) for _ in range(1500)]
    writer = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=writer, model_type="bpe", vocab_size=330, byte_fallback=True, character_coverage=0.999,
        normalization_rule_name="nmt_nfkc", add_dummy_prefix=False, split_digits=True, pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2,
        user_defined_symbols=["\ue001"],
    )  # fmt: skip
    sp = spm.SentencePieceProcessor(model_proto=writer.getvalue())
    val, train = texts[:60], texts[60:]
    files = {
        "datasets/docs_selected.jsonl": "".join(
            json.dumps({"text": text}) + "\n" for text in texts
        ).encode(),
        "datasets/tokenizers/fineweb_330_bpe.model": writer.getvalue(),
        "datasets/tokenizers/pure_byte.json": json.dumps(
            {"tokenizer_type": "pure_byte", "vocab_size": 260}
        ).encode(),
    }

    def add(name: str, encode) -> None:
        for split, documents in (("val", val), ("train", train)):
            stream = np.concatenate([[1, *encode(text)] for text in documents])
            cuts = (
                [stream]
                if split == "val"
                else [stream[i * SHARD_TOKENS : (i + 1) * SHARD_TOKENS] for i in range(4)]
            )
            for i, tokens in enumerate(cuts):
                files[f"datasets/datasets/{name}/fineweb_{split}_{i:06d}.bin"] = shard(tokens)

    add("fineweb10B_sp330", sp.encode)
    add("fineweb10B_byte260", lambda text: [4 + byte for byte in text.encode()])
    mark = sp.piece_to_id("\ue001")
    add("fineweb10B_caps", lambda text: [mark, *sp.encode(text)])
    sizes = np.concatenate(
        [[0, 0, *(len(piece.encode()) for piece in sp.encode(text, out_type=str))] for text in val]
    )
    files["datasets/datasets/fineweb10B_caps/fineweb_val_bytes_000000.bin"] = shard(sizes)
    names = [("sp330", "sp_bpe_330"), ("byte260", "pure_byte_260"), ("caps", "sp_bpe_330")]
    files["datasets/manifest.json"] = json.dumps(
        {
            "version": "10B",
            "datasets": [
                {
                    "name": f"fineweb10B_{n}",
                    "tokenizer_name": t,
                    "stats": {"files_train": 4, "files_val": 1, "tokens_val": 1},
                    "bos_id": 1,
                }
                for n, t in names
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
    ).encode()
    return files


@pytest.fixture
def server(export) -> Iterator[Hub]:
    app = Hub(dict(export))
    http = make_server("127.0.0.1", 0, app, threaded=True)
    app.url, app.storage = (
        f"http://127.0.0.1:{http.server_port}",
        f"http://localhost:{http.server_port}",
    )
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield app
    http.shutdown()
    thread.join()


def start(server: Hub, root: Path, *arguments: str, prelude: str = "") -> subprocess.Popen:
    code = f"import sys\n{prelude}\nfrom data.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        code,
        "fineweb",
        "--repo-id",
        REPO,
        "--data-root",
        str(root / "data"),
        "--workers",
        "2",
        *arguments,
    ]
    env = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(root / "hf"),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": str(root),
    }
    return subprocess.Popen(
        command, env=env, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(server: Hub, root: Path, *arguments: str, prelude: str = "") -> tuple[int, str, str]:
    process = start(server, root, *arguments, prelude=prelude)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


SP = ("--variant", "sp330", "--train-shards", "2")


def sent(server: Hub) -> Counter:
    """How often each stored file's contents were asked for."""
    return Counter(
        path.rpartition("/")[2]
        for method, path, _, _ in server.log
        if method == "GET" and path.startswith("/storage/")
    )


def assert_complete(
    server: Hub, root: Path, name: str = "fineweb10B_sp330", train_shards: int = 2
) -> dict:
    folder = root / "data" / "datasets" / name
    raw = json.loads((folder / "manifest.json").read_text())
    assert [file["name"] for file in raw["splits"]["train"]["files"]] == [
        f"fineweb_train_{i:06d}.bin" for i in range(train_shards)
    ]
    for split in raw["splits"].values():
        for file in split["files"]:
            assert (folder / file["name"]).read_bytes() == server.files[
                f"datasets/datasets/{name}/{file['name']}"
            ]
            assert (
                hashlib.sha256((folder / file["name"]).read_bytes()).hexdigest() == file["sha256"]
            )
    assert not list(folder.glob(".*"))
    return raw


def test_download_then_nothing_then_more_then_fewer(server, tmp_path):
    code, out, err = run(server, tmp_path, *SP)
    assert code == 0, err
    raw = assert_complete(server, tmp_path)
    docs_sha = hashlib.sha256(server.files["datasets/docs_selected.jsonl"]).hexdigest()
    assert raw["version"] == hashlib.sha256(f"{docs_sha} 60".encode()).hexdigest()
    assert raw["splits"]["val"]["documents"] == 60
    assert (raw["tokenizer"]["lossless"], raw["splits"]["val"]["source_bytes"]) == (False, None)
    assert raw["provenance"]["recipe"]["commit"] == COMMIT
    linked = tmp_path / "data" / "datasets" / "fineweb10B_sp330" / "fineweb_train_000000.bin"
    assert linked.stat().st_nlink == 2  # one copy on disk, shared with the hub's cache
    assert not (tmp_path / "data" / "docs_selected.jsonl").exists()

    server.log.clear()
    code, out, _ = run(server, tmp_path, *SP)
    assert (code, "up to date" in out) == (0, True)
    assert not sent(server)

    assert run(server, tmp_path, "--variant", "sp330", "--train-shards", "4")[0] == 0
    assert_complete(server, tmp_path, train_shards=4)
    assert sent(server) == {"fineweb_train_000002.bin": 1, "fineweb_train_000003.bin": 1}
    assert run(server, tmp_path, *SP)[0] == 0
    assert_complete(server, tmp_path)
    assert not linked.with_name(
        "fineweb_train_000002.bin"
    ).exists()  # or a reader would train on it


def test_counted_bytes_are_the_decoders(server, tmp_path):
    """Summed by hand with SentencePiece itself, document by document, shard boundaries included; with the documents, source bytes too."""
    code, _, err = run(server, tmp_path, "--variant", "sp330", "--train-shards", "4", "--with-docs")
    assert code == 0, err
    raw = assert_complete(server, tmp_path, train_shards=4)
    sp = spm.SentencePieceProcessor(
        model_proto=server.files["datasets/tokenizers/fineweb_330_bpe.model"]
    )
    for split in ("val", "train"):
        names = [file["name"] for file in raw["splits"][split]["files"]]
        stream = np.concatenate(
            [
                np.frombuffer(
                    server.files[f"datasets/datasets/fineweb10B_sp330/{name}"], "<u2", offset=1024
                )
                for name in names
            ]
        )
        documents = np.split(stream, np.flatnonzero(stream == 1))[1:]
        assert raw["splits"][split]["counted_bytes"] == sum(
            len(sp.decode(ids.tolist()).encode()) for ids in documents
        )
    texts = [
        json.loads(line)["text"]
        for line in server.files["datasets/docs_selected.jsonl"].splitlines()
    ]
    assert raw["splits"]["val"]["source_bytes"] == sum(len(text.encode()) for text in texts[:60])
    assert (
        raw["splits"]["val"]["source_bytes"] > raw["splits"]["val"]["counted_bytes"]
    )  # NFKC and collapsed spaces cost some
    assert (tmp_path / "data" / "docs_selected.jsonl").read_bytes() == server.files[
        "datasets/docs_selected.jsonl"
    ]
    verified = subprocess.run(
        [
            sys.executable,
            "-m",
            "data",
            "verify",
            tmp_path / "data" / "datasets" / "fineweb10B_sp330",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert verified.returncode == 0, verified.stdout


def test_pure_bytes(server, tmp_path):
    assert run(server, tmp_path, "--variant", "byte260", "--train-shards", "1")[0] == 0
    raw = assert_complete(server, tmp_path, "fineweb10B_byte260", 1)
    assert (raw["tokenizer"]["kind"], raw["tokenizer"]["lossless"]) == ("bytes", True)
    val = raw["splits"]["val"]
    assert val["source_bytes"] == val["counted_bytes"] == val["tokens"] - val["documents"]


def test_a_transform_counts_by_its_sidecar_or_not_at_all(server, tmp_path):
    caps = ("--variant", "fineweb10B_caps", "--train-shards", "1")
    assert run(server, tmp_path, *caps)[0] == 0
    raw = assert_complete(server, tmp_path, "fineweb10B_caps", 1)
    name = "fineweb_val_bytes_000000.bin"
    sizes = np.frombuffer(
        server.files[f"datasets/datasets/fineweb10B_caps/{name}"], "<u2", offset=1024
    )
    assert raw["splits"]["val"]["counted_bytes"] == sizes.sum()
    assert [file["name"] for file in raw["splits"]["val"]["byte_files"]] == [name]
    del server.files[f"datasets/datasets/fineweb10B_caps/{name}"]
    code, _, err = run(server, tmp_path, *caps)
    assert code == 2
    assert "60 tokens are marks of a transform" in err


def test_a_dropped_connection_resumes_where_it_broke(server, tmp_path):
    name = "datasets/datasets/fineweb10B_sp330/fineweb_train_000001.bin"
    server.faults[name] = ["drop:9000", "drop:5000"]
    code, _, err = run(
        server,
        tmp_path,
        *SP,
        prelude="import huggingface_hub.constants as c\nc.DOWNLOAD_CHUNK_SIZE = 1000",
    )  # of 10 MB
    assert code == 0, err
    assert_complete(server, tmp_path)
    ranges = [
        asked
        for method, path, asked, _ in server.log
        if method == "GET" and path == f"/storage/{name}"
    ]
    assert ranges == ["", "bytes=9000-", "bytes=14000-"]


def test_a_killed_download_is_taken_up_again(server, tmp_path):
    """The shards that had arrived are not fetched a second time."""
    server.faults["datasets/datasets/fineweb10B_sp330/fineweb_val_000000.bin"] = ["status:503:60"]
    process = start(server, tmp_path, *SP, "--workers", "1")
    for _ in range(600):
        if sent(server)["fineweb_val_000000.bin"]:
            break
        threading.Event().wait(0.1)
    process.kill()
    process.communicate()
    assert not (tmp_path / "data" / "datasets" / "fineweb10B_sp330" / "manifest.json").exists()
    server.log.clear()
    assert run(server, tmp_path, *SP)[0] == 0
    assert_complete(server, tmp_path)
    assert sent(server)["fineweb_train_000000.bin"] == 0
    assert sent(server)["fineweb_val_000000.bin"] == 1


def test_rate_limit_waits_as_asked(server, tmp_path):
    server.faults["api"] = ["429:1"]
    server.faults["datasets/datasets/fineweb10B_sp330/fineweb_train_000000.bin"] = ["status:429:1"]
    code, _, err = run(server, tmp_path, *SP)
    assert code == 0, err
    assert_complete(server, tmp_path)
    statuses = [
        status
        for _, path, _, status in server.log
        if path.endswith(
            (
                "/revision/main",
                "storage/datasets/datasets/fineweb10B_sp330/fineweb_train_000000.bin",
            )
        )
    ]
    assert statuses == [429, 200, 429, 200]


def test_a_rate_limit_of_an_hour_is_reported(server, tmp_path):
    server.faults["api"] = ["429:3600"] * 9
    code, _, err = run(server, tmp_path, *SP)
    assert (code, "HTTP 429" in err, "Traceback" in err) == (2, True, False)


@pytest.mark.parametrize("times", [1, 2])
def test_a_wrong_sha256_is_fetched_again_once_and_then_refused(server, tmp_path, times):
    name = "datasets/datasets/fineweb10B_sp330/fineweb_train_000001.bin"
    server.faults[name] = ["corrupt"] * times
    code, _, err = run(server, tmp_path, *SP)
    if times == 1:
        assert code == 0, err
        assert_complete(server, tmp_path)
    else:
        assert code == 2
        assert hashlib.sha256(server.files[name]).hexdigest() in err
        assert "twice" in err
        assert not (tmp_path / "data" / "datasets" / "fineweb10B_sp330" / "manifest.json").exists()
    assert sent(server)["fineweb_train_000001.bin"] == 2


@pytest.mark.parametrize("how", ["truncated", "stale", "absent", "manifest"])
def test_a_damaged_local_file_is_replaced(server, tmp_path, how):
    """Also when the damage reached the hub's cache through the hard link."""
    assert run(server, tmp_path, *SP)[0] == 0
    path = tmp_path / "data" / "datasets" / "fineweb10B_sp330" / "fineweb_train_000000.bin"
    raw = path.read_bytes()
    if how == "absent":
        path.unlink()
    elif how == "manifest":
        path.with_name("manifest.json").write_text("{")
    else:
        path.write_bytes(
            raw[:-2] if how == "truncated" else raw[:-1] + b"\xff"
        )  # writes through the link
    server.log.clear()
    code, _, err = run(server, tmp_path, *SP)
    assert code == 0, err
    assert_complete(server, tmp_path)
    assert sent(server)["fineweb_train_000000.bin"] == (1 if how in ("truncated", "stale") else 0)


def test_two_downloads_at_once(server, tmp_path):
    processes = [start(server, tmp_path, *SP) for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert_complete(server, tmp_path)


def test_no_room(server, tmp_path):
    prelude = "import shutil\nshutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 5000, 5000)"
    code, _, err = run(server, tmp_path, *SP, prelude=prelude)
    assert code == 2
    assert "5,000 are free" in err
    assert not sent(server)["fineweb_train_000000.bin"]


def test_the_disk_fills_up_on_the_way(server, tmp_path):
    prelude = "import errno, huggingface_hub.file_download as f\ndef full(*a, **k): raise OSError(errno.ENOSPC, 'No space left on device')\nf.http_get = full"
    code, _, err = run(server, tmp_path, *SP, prelude=prelude)
    assert code == 2
    assert "disk full" in err
    assert "Traceback" not in err


def test_another_file_system_gets_a_copy(server, tmp_path):
    prelude = "import errno, os\ndef no(*a, **k): raise OSError(errno.EXDEV, 'Invalid cross-device link')\nos.link = no"
    assert run(server, tmp_path, *SP, prelude=prelude)[0] == 0
    assert_complete(server, tmp_path)
    assert (
        tmp_path / "data" / "datasets" / "fineweb10B_sp330" / "fineweb_train_000000.bin"
    ).stat().st_nlink == 1


def foreign_tokenizer(server: Hub) -> None:
    """VALIDITY C6: a tokenizer of the same size that did not make the shards."""
    writer = io.BytesIO()
    texts = [f"{i} bottles of beer on the wall" for i in range(900)]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=writer, model_type="bpe", vocab_size=330, byte_fallback=True, add_dummy_prefix=False,
        hard_vocab_limit=False, pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2, user_defined_symbols=["\ue001", "\ue002"],
    )  # fmt: skip
    server.files["datasets/tokenizers/fineweb_330_bpe.model"] = writer.getvalue()


def smaller_tokenizer(server: Hub) -> None:
    writer = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"] * 9), model_writer=writer, model_type="bpe", vocab_size=300, byte_fallback=True,
        hard_vocab_limit=False, pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    server.files["datasets/tokenizers/fineweb_330_bpe.model"] = writer.getvalue()


def without(name: str):
    return lambda server: server.files.pop(name)


REFUSED = {
    "missing shard": (
        without("datasets/datasets/fineweb10B_sp330/fineweb_train_000001.bin"),
        (),
        "promises fineweb10B_sp330/fineweb_train_000001.bin",
    ),
    "missing validation": (
        without("datasets/datasets/fineweb10B_sp330/fineweb_val_000000.bin"),
        (),
        "fineweb_val_000000.bin",
    ),
    "missing tokenizer": (
        without("datasets/tokenizers/fineweb_330_bpe.model"),
        (),
        "tokenizers/fineweb_330_bpe.model is not there",
    ),
    "no documents": (
        without("datasets/docs_selected.jsonl"),
        ("--with-docs",),
        "leave out --with-docs",
    ),
    "no manifest": (
        without("datasets/manifest.json"),
        (),
        "datasets/manifest.json is not there; correct --prefix",
    ),
    "a manifest of another kind": (
        lambda s: s.files.update({"datasets/manifest.json": b'{"x": 1}'}),
        (),
        "datasets: Field required",
    ),
    "too many shards": (None, ("--train-shards", "5"), "has 1 to 4 for fineweb10B_sp330"),
    "unknown variant": (
        None,
        ("--variant", "sp9999"),
        "no dataset fineweb10B_sp9999; it lists fineweb10B_sp330, fineweb10B_byte260",
    ),
    "wrong prefix": (None, ("--prefix", "elsewhere"), "correct --prefix"),
    "unknown revision": (None, ("--revision", "v9"), "no such revision"),
    "404": (None, ("--repo-id", "gone/golf"), "no such dataset repository"),
    "403": (None, ("--repo-id", "gated/golf"), "access refused (HTTP 403)"),
    "no repository id": (None, ("--repo-id", "a/b/c"), "a/b/c"),
    "a foreign tokenizer": (foreign_tokenizer, (), "it did not make them"),
    "a smaller tokenizer": (smaller_tokenizer, (), "do not belong together"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(server, tmp_path, case):
    prepare, arguments, says = REFUSED[case]
    if prepare:
        prepare(server)
    code, _, err = run(server, tmp_path, *SP, *arguments)
    assert code == 2, err
    assert says in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("data/datasets/*/manifest.json"))


def test_no_server(server, tmp_path):
    server.url = "http://127.0.0.1:9"  # the discard port: nothing listens
    code, _, err = run(server, tmp_path, *SP, prelude="import time\ntime.sleep = lambda s: None")
    assert (code, "Traceback" in err) == (2, False)
    assert "http://127.0.0.1:9" in err


def test_training_starts_from_it_with_no_further_step(server, tmp_path):
    from conftest import flags, run_script

    assert run(server, tmp_path, *SP)[0] == 0
    dataset = tmp_path / "data" / "datasets" / "fineweb10B_sp330"
    done = run_script(
        *flags(
            vocab_size=330,
            iterations=1,
            eval_stride=32,
            eval_batch_tokens=4096,
            data_dir=dataset,
            out=tmp_path / "run",
        )
    )
    assert done.returncode == 0, done.stderr
    assert "corpus:fineweb" in done.stdout
