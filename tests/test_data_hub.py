"""`python -m data fineweb` with the real hub client against a local hub that can misbehave.

Every run is a process of its own: HF_ENDPOINT is read when the client is imported.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm
from hub_support import (
    COMMIT,
    DOCS,
    MANIFEST,
    MODEL,
    REPO,
    Hub,
    make_export,
    serving,
    shard_file,
    trained,
)

ROOT = Path(__file__).resolve().parents[1]
SP = ("--variant", "sp330", "--train-shards", "2")
TRAIN_0 = shard_file("fineweb10B_sp330", "fineweb_train_000000.bin")
TRAIN_1 = shard_file("fineweb10B_sp330", "fineweb_train_000001.bin")
VAL = shard_file("fineweb10B_sp330", "fineweb_val_000000.bin")
SIDECAR = shard_file("fineweb10B_caps", "fineweb_val_bytes_000000.bin")


@pytest.fixture(scope="module")
def export() -> dict[str, bytes]:
    return make_export()


@pytest.fixture
def server(export) -> Iterator[Hub]:
    with serving(export) as hub:
        yield hub


def start(server: Hub, root: Path, *arguments: str, prelude: str = "") -> subprocess.Popen:
    """The command in a fresh process, after `prelude` has planted what it plants."""
    code = f"import sys\n{prelude}\nfrom data.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    options = ["--repo-id", REPO, "--data-root", str(root / "data"), "--workers", "2"]
    env = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(root / "hf"),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": str(root),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, "fineweb", *options, *arguments],
        env=env,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(server: Hub, root: Path, *arguments: str, prelude: str = "") -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    process = start(server, root, *arguments, prelude=prelude)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def dataset(root: Path, name: str = "fineweb10B_sp330") -> Path:
    return root / "data" / "datasets" / name


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def published_tokens(server: Hub, path: str) -> np.ndarray:
    return np.frombuffer(server.files[path], "<u2", offset=1024)


def assert_complete(
    server: Hub, root: Path, name: str = "fineweb10B_sp330", train_shards: int = 2
) -> dict:
    """Every file is there as published and named in the manifest, which is returned."""
    folder = dataset(root, name)
    raw = json.loads((folder / "manifest.json").read_text())
    names = [file["name"] for file in raw["splits"]["train"]["files"]]
    assert names == [f"fineweb_train_{i:06d}.bin" for i in range(train_shards)]
    for split in raw["splits"].values():
        for file in split["files"]:
            contents = (folder / file["name"]).read_bytes()
            assert contents == server.files[shard_file(name, file["name"])]
            assert sha256(contents) == file["sha256"]
    assert not list(folder.glob(".*"))
    return raw


def test_download_then_nothing_then_more_then_fewer(server, tmp_path):
    code, out, err = run(server, tmp_path, *SP)
    assert code == 0, err
    raw = assert_complete(server, tmp_path)
    docs_sha = sha256(server.files[DOCS])
    assert raw["version"] == sha256(f"{docs_sha} 60".encode())
    val = raw["splits"]["val"]
    assert (val["documents"], val["source_bytes"]) == (60, None)
    assert raw["tokenizer"]["lossless"] is False
    assert raw["provenance"]["recipe"]["commit"] == COMMIT
    linked = dataset(tmp_path) / "fineweb_train_000000.bin"
    assert linked.stat().st_nlink == 2  # one copy on disk, shared with the hub's cache
    assert not (tmp_path / "data" / "docs_selected.jsonl").exists()

    server.log.clear()
    code, out, _ = run(server, tmp_path, *SP)
    assert (code, "up to date" in out) == (0, True)
    assert not server.sent()

    code, _, err = run(server, tmp_path, "--variant", "sp330", "--train-shards", "4")
    assert code == 0, err
    assert_complete(server, tmp_path, train_shards=4)
    assert server.sent() == {"fineweb_train_000002.bin": 1, "fineweb_train_000003.bin": 1}

    code, _, err = run(server, tmp_path, *SP)
    assert code == 0, err
    assert_complete(server, tmp_path)
    # or a reader would train on it
    assert not (dataset(tmp_path) / "fineweb_train_000002.bin").exists()


def test_counted_bytes_are_the_decoders(server, tmp_path):
    """Summed by hand with SentencePiece itself, document by document, across shards.

    With the documents, source bytes too.
    """
    code, _, err = run(server, tmp_path, "--variant", "sp330", "--train-shards", "4", "--with-docs")
    assert code == 0, err
    raw = assert_complete(server, tmp_path, train_shards=4)
    sp = spm.SentencePieceProcessor(model_proto=server.files[MODEL])
    for split in raw["splits"].values():
        paths = [shard_file("fineweb10B_sp330", file["name"]) for file in split["files"]]
        stream = np.concatenate([published_tokens(server, path) for path in paths])
        documents = np.split(stream, np.flatnonzero(stream == 1))[1:]
        decoded = [sp.decode(ids.tolist()).encode() for ids in documents]
        assert split["counted_bytes"] == sum(map(len, decoded))
    val = raw["splits"]["val"]
    texts = [json.loads(line)["text"] for line in server.files[DOCS].splitlines()]
    assert val["source_bytes"] == sum(len(text.encode()) for text in texts[:60])
    assert val["source_bytes"] > val["counted_bytes"]  # NFKC and collapsed spaces cost some
    assert (tmp_path / "data" / "docs_selected.jsonl").read_bytes() == server.files[DOCS]
    assert verify(dataset(tmp_path)) == 0


def verify(folder: Path) -> int:
    """Exit code of `python -m data verify`."""
    command = [sys.executable, "-m", "data", "verify", str(folder)]
    return subprocess.run(command, cwd=ROOT).returncode


def test_pure_bytes(server, tmp_path):
    code, _, err = run(server, tmp_path, "--variant", "byte260", "--train-shards", "1")
    assert code == 0, err
    raw = assert_complete(server, tmp_path, "fineweb10B_byte260", 1)
    assert (raw["tokenizer"]["kind"], raw["tokenizer"]["lossless"]) == ("bytes", True)
    val = raw["splits"]["val"]
    assert val["source_bytes"] == val["counted_bytes"] == val["tokens"] - val["documents"]


def test_a_transform_counts_by_its_sidecar_or_not_at_all(server, tmp_path):
    caps = ("--variant", "fineweb10B_caps", "--train-shards", "1")
    code, _, err = run(server, tmp_path, *caps)
    assert code == 0, err
    val = assert_complete(server, tmp_path, "fineweb10B_caps", 1)["splits"]["val"]
    assert val["counted_bytes"] == published_tokens(server, SIDECAR).sum()
    assert [file["name"] for file in val["byte_files"]] == ["fineweb_val_bytes_000000.bin"]
    assert verify(dataset(tmp_path, "fineweb10B_caps")) == 0
    del server.files[SIDECAR]
    code, _, err = run(server, tmp_path, *caps)
    assert code == 2
    assert "60 tokens are marks of a transform" in err


def test_a_dropped_connection_resumes_where_it_broke(server, tmp_path):
    server.faults[TRAIN_1] = ["drop:9000", "drop:5000"]
    small_chunks = (  # of 10 MB
        "import huggingface_hub.constants as constants\nconstants.DOWNLOAD_CHUNK_SIZE = 1000"
    )
    code, _, err = run(server, tmp_path, *SP, prelude=small_chunks)
    assert code == 0, err
    assert_complete(server, tmp_path)
    ranges = [
        asked.range
        for asked in server.log
        if asked.method == "GET" and asked.path == f"/storage/{TRAIN_1}"
    ]
    assert ranges == ["", "bytes=9000-", "bytes=14000-"]


def test_a_killed_download_is_taken_up_again(server, tmp_path):
    """The shards that had arrived are not fetched a second time."""
    server.faults[VAL] = ["status:503:60"]
    process = start(server, tmp_path, *SP, "--workers", "1")
    for _ in range(600):
        if server.sent()["fineweb_val_000000.bin"]:
            break
        threading.Event().wait(0.1)
    process.kill()
    process.communicate()
    assert not (dataset(tmp_path) / "manifest.json").exists()
    server.log.clear()
    code, _, err = run(server, tmp_path, *SP)
    assert code == 0, err
    assert_complete(server, tmp_path)
    assert server.sent()["fineweb_train_000000.bin"] == 0
    assert server.sent()["fineweb_val_000000.bin"] == 1


def test_rate_limit_waits_as_asked(server, tmp_path):
    server.faults["api"] = ["429:1"]
    server.faults[TRAIN_0] = ["status:429:1"]
    code, _, err = run(server, tmp_path, *SP)
    assert code == 0, err
    assert_complete(server, tmp_path)
    limited = ("/revision/main", f"/storage/{TRAIN_0}")
    statuses = [asked.status for asked in server.log if asked.path.endswith(limited)]
    assert statuses == [429, 200, 429, 200]


def test_a_rate_limit_of_an_hour_is_reported(server, tmp_path):
    server.faults["api"] = ["429:3600"] * 9
    code, _, err = run(server, tmp_path, *SP)
    assert (code, "HTTP 429" in err, "Traceback" in err) == (2, True, False)


@pytest.mark.parametrize("times", [1, 2])
def test_a_wrong_sha256_is_fetched_again_once_and_then_refused(server, tmp_path, times):
    server.faults[TRAIN_1] = ["corrupt"] * times
    code, _, err = run(server, tmp_path, *SP)
    if times == 1:
        assert code == 0, err
        assert_complete(server, tmp_path)
    else:
        assert code == 2
        assert sha256(server.files[TRAIN_1]) in err
        assert "twice" in err
        assert not (dataset(tmp_path) / "manifest.json").exists()
    assert server.sent()["fineweb_train_000001.bin"] == 2


def truncate(path: Path) -> None:
    """Writes through the hard link, into the hub's cache."""
    path.write_bytes(path.read_bytes()[:-2])


def change(path: Path) -> None:
    """Writes through the hard link, into the hub's cache."""
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")


def spoil_the_manifest(path: Path) -> None:
    path.with_name("manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "fetched"), [(truncate, 1), (change, 1), (Path.unlink, 0), (spoil_the_manifest, 0)]
)
def test_a_damaged_local_file_is_replaced(server, tmp_path, damage, fetched):
    """Also when the damage reached the hub's cache through the hard link."""
    code, _, err = run(server, tmp_path, *SP)
    assert code == 0, err
    damage(dataset(tmp_path) / "fineweb_train_000000.bin")
    server.log.clear()
    code, _, err = run(server, tmp_path, *SP)
    assert code == 0, err
    assert_complete(server, tmp_path)
    assert server.sent()["fineweb_train_000000.bin"] == fetched


def test_two_downloads_at_once(server, tmp_path):
    processes = [start(server, tmp_path, *SP) for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert_complete(server, tmp_path)


NO_ROOM = """
import shutil
def usage(path):
    return shutil._ntuple_diskusage(10**6, 10**6 - 5000, 5000)
shutil.disk_usage = usage
"""
DISK_FULL = """
import errno
import huggingface_hub.file_download as download
def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")
download.http_get = full
"""
NO_HARD_LINKS = """
import errno
import os
def refuse(*args, **kwargs):
    raise OSError(errno.EXDEV, "Invalid cross-device link")
os.link = refuse
"""


def test_no_room(server, tmp_path):
    code, _, err = run(server, tmp_path, *SP, prelude=NO_ROOM)
    assert code == 2
    assert "5,000 are free" in err
    assert not server.sent()["fineweb_train_000000.bin"]


def test_the_disk_fills_up_on_the_way(server, tmp_path):
    code, _, err = run(server, tmp_path, *SP, prelude=DISK_FULL)
    assert code == 2
    assert "disk full" in err
    assert "Traceback" not in err


def test_another_file_system_gets_a_copy(server, tmp_path):
    code, _, err = run(server, tmp_path, *SP, prelude=NO_HARD_LINKS)
    assert code == 0, err
    assert_complete(server, tmp_path)
    assert (dataset(tmp_path) / "fineweb_train_000000.bin").stat().st_nlink == 1


# --- what is refused ------------------------------------------------------------------------------


def foreign_tokenizer(server: Hub) -> None:
    """VALIDITY C6: a tokenizer of the same size that did not make the shards."""
    server.files[MODEL] = trained(
        [f"{i} bottles of beer on the wall" for i in range(900)],
        add_dummy_prefix=False,
        hard_vocab_limit=False,
        user_defined_symbols=["\ue001", "\ue002"],
    )


def smaller_tokenizer(server: Hub) -> None:
    server.files[MODEL] = trained(["a b c"] * 9, vocab_size=300, hard_vocab_limit=False)


def foreign_manifest(server: Hub) -> None:
    server.files[MANIFEST] = b'{"x": 1}'


# Each case: a file that the export lacks, arguments, what the message says.
MISSING = {
    "missing shard": (TRAIN_1, (), "promises fineweb10B_sp330/fineweb_train_000001.bin"),
    "missing validation": (VAL, (), "fineweb_val_000000.bin"),
    "missing tokenizer": (MODEL, (), "tokenizers/fineweb_330_bpe.model is not there"),
    "no documents": (DOCS, ("--with-docs",), "leave out --with-docs"),
    "no manifest": (MANIFEST, (), "datasets/manifest.json is not there; correct --prefix"),
}
# Each case: what becomes of the export, what the message says.
SPOILED = {
    "a manifest of another kind": (foreign_manifest, "datasets: Field required"),
    "a foreign tokenizer": (foreign_tokenizer, "it did not make them"),
    "a smaller tokenizer": (smaller_tokenizer, "do not belong together"),
}
# Each case: arguments, what the message says.
WRONG_ARGUMENTS = {
    "too many shards": (("--train-shards", "5"), "has 1 to 4 for fineweb10B_sp330"),
    "unknown variant": (
        ("--variant", "sp9999"),
        "no dataset fineweb10B_sp9999; it lists fineweb10B_sp330, fineweb10B_byte260",
    ),
    "wrong prefix": (("--prefix", "elsewhere"), "correct --prefix"),
    "unknown revision": (("--revision", "v9"), "no such revision"),
    "404": (("--repo-id", "gone/golf"), "no such dataset repository"),
    "403": (("--repo-id", "gated/golf"), "access refused (HTTP 403)"),
    "no repository id": (("--repo-id", "a/b/c"), "a/b/c"),
}


def assert_refused(server: Hub, root: Path, *arguments: str, says: str) -> None:
    code, _, err = run(server, root, *SP, *arguments)
    assert code == 2, err
    assert says in err
    assert "Traceback" not in err
    assert not list(root.glob("data/datasets/*/manifest.json"))


@pytest.mark.parametrize("case", MISSING)
def test_an_export_that_lacks_a_file_is_refused(server, tmp_path, case):
    name, arguments, says = MISSING[case]
    del server.files[name]
    assert_refused(server, tmp_path, *arguments, says=says)


@pytest.mark.parametrize("case", SPOILED)
def test_an_export_that_contradicts_itself_is_refused(server, tmp_path, case):
    spoil, says = SPOILED[case]
    spoil(server)
    assert_refused(server, tmp_path, says=says)


@pytest.mark.parametrize("case", WRONG_ARGUMENTS)
def test_wrong_arguments_are_refused(server, tmp_path, case):
    arguments, says = WRONG_ARGUMENTS[case]
    assert_refused(server, tmp_path, *arguments, says=says)


def test_no_server(server, tmp_path):
    server.url = "http://127.0.0.1:9"  # the discard port: nothing listens
    no_waiting = "import time\ndef sleep(seconds):\n    pass\ntime.sleep = sleep"
    code, _, err = run(server, tmp_path, *SP, prelude=no_waiting)
    assert (code, "Traceback" in err) == (2, False)
    assert "http://127.0.0.1:9" in err


def test_training_starts_from_it_with_no_further_step(server, tmp_path):
    from conftest import flags, run_script

    code, _, err = run(server, tmp_path, *SP)
    assert code == 0, err
    arguments = flags(
        vocab_size=330,
        iterations=1,
        eval_stride=32,
        eval_batch_tokens=4096,
        data_dir=dataset(tmp_path),
        out=tmp_path / "run",
    )
    done = run_script(*arguments)
    assert done.returncode == 0, done.stderr
    assert "corpus:fineweb" in done.stdout
