"""A full disk, a small tmpfs, under the writers of data/ and eval/: they fail in one line, and what
was there before is still there."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CLEAN_ENV, ROOT, english_documents, fill
from records_support import FakeRun


def run(*argv: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *map(str, argv)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


def held(folder: Path) -> dict[str, bytes]:
    """Contents of the files below a folder by their paths."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "filler"
    }


def is_refused(done: subprocess.CompletedProcess) -> None:
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]  # behind progress bars
    assert done.returncode == 2, done.stderr[-3000:]
    assert len(errors) == 1, done.stderr[-3000:]
    assert "No space left on device" in errors[0]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]


def test_packing(tiny_disk, tmp_path):
    about = ["--name", "X", "--slug", "x", "--date", "2026-11-24"]
    author = ["--author", "a", "--github-id", "a"]
    options = [*about, *author, "--records-dir", tiny_disk / "records", "--replace"]
    assert run("eval", "pack", FakeRun().write(tmp_path / "a"), *options).returncode == 0
    before = held(tiny_disk)
    assert len(before) == 7
    fill(tiny_disk)
    is_refused(run("eval", "pack", FakeRun(nats=1300.0).write(tmp_path / "b"), *options))
    assert held(tiny_disk) == before
    is_refused(run("eval", "pack", "--refresh", next(tiny_disk.glob("records/*/*"))))
    assert held(tiny_disk) == before


def test_building_a_data_set(tiny_disk, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"\n\n".join(english_documents()[:150]))
    sizes = ["--vocab-size", 400, "--workers", 1, "--min-characters", 200]
    options = ["--data-root", tiny_disk, *sizes]
    done = run("data", "text", text, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    before = held(tiny_disk)
    assert {Path(name).suffix for name in before} == {".bin", ".json", ".model"}
    fill(tiny_disk)
    text.write_bytes(b"\n\n".join(english_documents()[:200]))
    is_refused(run("data", "text", text, *options, "--name", "other"))
    assert held(tiny_disk) == before
    (tiny_disk / "filler").unlink()
    assert run("data", "text", text, *options, "--name", "other").returncode == 0


@pytest.mark.parametrize("name", ["a.json", "b/c.json"])
def test_a_reader_sees_the_old_file(tiny_disk, name):
    from eval.files import write_atomic

    path = tiny_disk / name
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, "old")
    fill(tiny_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "n" * 10_000)
    assert held(tiny_disk) == {name: b"old"}
