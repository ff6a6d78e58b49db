"""`python -m data retokenize`: the same bytes however many processes or machines, however often killed; no document lost, repeated or shared."""

import hashlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm
from hypothesis import given, settings
from hypothesis import strategies as st

from data.__main__ import main
from data.job import Job
from data.common import UserError
from data.manifest import load_manifest
from data.parts import document_lines
from data.retokenize import Cluster, retokenize
from data.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
VAL, SHARD = 50, 9_000
ALONE = Cluster()
rng = random.Random(0)
TEXTS = [
    " ".join(
        rng.choices(
            ["the", "quick", "brown", "fox", "naïve", "日本", "  indented", "12", "\n"],
            k=rng.randrange(1, 120),
        )
    )
    for _ in range(700)
]
TEXTS[400] = TEXTS[7]  # a training document that is also a validation document
TEXTS[500] = TEXTS[
    450
]  # a repetition inside train, which stays: the documents file is taken as it is
TEXTS[60] = ""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "docs.jsonl").write_bytes(
        b"".join(
            json.dumps({"text": text}, ensure_ascii=i % 2 == 0).encode() + b"\n"
            for i, text in enumerate(TEXTS)
        )
    )
    (folder / "words.model").write_bytes(train_tokenizer(TEXTS, 330))
    return folder


@pytest.fixture(scope="module")
def expected(inputs) -> dict[str, bytes]:
    """The shards, by a loop over the documents and nothing of the package's but the tokenizer file."""
    sp = spm.SentencePieceProcessor(model_file=str(inputs / "words.model"))
    val, train = TEXTS[:VAL], [text for text in TEXTS[VAL:] if text not in TEXTS[:VAL]]
    shards = {}
    for split, texts in (("val", val), ("train", train)):
        stream = [token for text in texts for token in [1, *sp.encode(text)]]
        for i in range(0, len(stream), SHARD):
            part = np.array(stream[i : i + SHARD], "<u2")
            header = np.zeros(256, "<i4")
            header[:3] = 20240520, 1, len(part)
            shards[f"w_{split}_{i // SHARD:06d}.bin"] = header.tobytes() + part.tobytes()
    assert len(shards) > 4
    return shards


def job(inputs: Path, root: Path, workers: int = 2) -> Job:
    return Job(root, "w", tokenizer=inputs / "words.model", workers=workers)


def run(inputs: Path, root: Path, workers: int = 2, cluster: Cluster = ALONE):
    return retokenize(job(inputs, root, workers), inputs / "docs.jsonl", VAL, SHARD, 5_000, cluster)


def shards(root: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in (root / "datasets" / "w_sp330").iterdir()
        if path.suffix == ".bin"
    }


def hidden(root: Path) -> list[str]:
    return [
        path.name for path in (root / "datasets" / "w_sp330").iterdir() if path.name.startswith(".")
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_shards_are_those_of_a_plain_loop(inputs, expected, tmp_path, workers, capsys):
    run(inputs, tmp_path, workers)
    assert shards(tmp_path) == expected
    assert hidden(tmp_path) == []
    manifest = load_manifest(tmp_path / "datasets" / "w_sp330")
    assert manifest.splits["val"].documents == VAL
    assert manifest.splits["train"].documents == len(TEXTS) - VAL - 1
    assert manifest.provenance["train_documents_dropped_as_in_val"] == 1
    assert manifest.splits["val"].source_bytes == sum(len(text.encode()) for text in TEXTS[:VAL])
    docs_sha = hashlib.sha256((inputs / "docs.jsonl").read_bytes()).hexdigest()
    assert (manifest.version_rule, manifest.version) == (
        "file",
        hashlib.sha256(f"{docs_sha} {VAL}".encode()).hexdigest(),
    )
    assert main(["verify", str(tmp_path / "datasets" / "w_sp330")]) == 0
    run(inputs, tmp_path, workers)
    assert "up to date" in capsys.readouterr().out


def test_two_machines(inputs, expected, tmp_path, capsys):
    """Each in turn, then again both at once on a fresh folder; the shards appear when the last share is done."""
    assert run(inputs, tmp_path / "a", cluster=Cluster(machine=(1, 2))) is None
    assert not (tmp_path / "a" / "datasets" / "w_sp330" / "manifest.json").exists()
    assert run(inputs, tmp_path / "a", cluster=Cluster(machine=(0, 2))) is not None
    assert shards(tmp_path / "a") == expected
    machines = [start(inputs, tmp_path / "b", f"Cluster(machine=({i}, 2))") for i in range(2)]
    for machine in machines:
        _, err = machine.communicate(timeout=60)
        assert machine.returncode == 0, err
    assert shards(tmp_path / "b") == expected


SBATCH = '''#!{python}
"""Slurm's sbatch, as far as datatrove uses it: runs the array at once, at most the %N of its directive at a time, then returns."""
import os, re, subprocess, sys
script = sys.argv[-1]
text = open(script).read()
last, limit = re.search(r"--array=0-(\\d+)(?:%(\\d+))?", text).groups()
exported = dict(word.split("=") for a in sys.argv if a.startswith("--export=") for word in a.split(",")[1:])
running = []
for i in range(int(last) + 1):
    env = os.environ | exported | {{"SLURM_ARRAY_TASK_ID": str(i), "SLURM_NODELIST": "node", "SLURM_JOB_ID": "1"}}
    running.append(subprocess.Popen(["bash", script], env=env, stdout=open("{log}", "a"), stderr=subprocess.STDOUT))
    if len(running) == int(limit or 9):
        assert running.pop(0).wait() == 0, open("{log}").read()
assert not any(process.wait() for process in running), open("{log}").read()
print("Submitted batch job 1")
'''


def test_a_slurm_cluster_of_two_workers(inputs, expected, tmp_path, monkeypatch):
    """datatrove's own executor and launcher; only Slurm's three programs are stand-ins."""
    tools = {
        "sbatch": SBATCH.format(python=sys.executable, log=tmp_path / "log"),
        "scontrol": "#!/bin/sh\necho node\n",
    }
    tools["srun"] = (
        '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n'
    )
    for name, text in tools.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    root = tmp_path / "data"
    work = Job(root, "w", tokenizer=inputs / "words.model", workers=2)
    assert retokenize(work, inputs / "docs.jsonl", VAL, SHARD, 60_000, Cluster(slurm="cpu")) is None
    assert shards(root) == expected
    assert load_manifest(root / "datasets" / "w_sp330").splits["val"].documents == VAL


def start(inputs: Path, root: Path, cluster: str = "Cluster()") -> subprocess.Popen:
    code = (
        "from pathlib import Path; from data.job import Job; from data.retokenize import Cluster, retokenize\n"
        f"retokenize(Job(Path({str(root)!r}), 'w', tokenizer=Path({str(inputs / 'words.model')!r}), workers=2),"
        f" Path({str(inputs / 'docs.jsonl')!r}), {VAL}, {SHARD}, 2_000, {cluster})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, process: subprocess.Popen) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.002)


def test_killed_again_and_again(inputs, expected, tmp_path):
    """SIGKILL to the whole process group after 0, 1, 3, ... further parts and once while shards are cut; the bytes come out the same."""
    work = tmp_path / "datasets" / "w_sp330" / ".work"
    parts = lambda: len(list(work.glob("part_*.json")))  # noqa: E731
    killed = 0
    for further in (0, 1, 3, 9, 27):
        process = start(inputs, tmp_path)
        goal = parts() + further
        wait_for(lambda goal=goal: work.exists() and parts() >= goal, process)
        killed += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(inputs, tmp_path)
    wait_for(lambda: list(work.parent.glob("w_train_*.bin")), process)
    killed += process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert killed >= 5
    _, err = (process := start(inputs, tmp_path)).communicate(timeout=60)
    assert process.returncode == 0, err
    assert shards(tmp_path) == expected
    assert hidden(tmp_path) == []


@pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork",
    reason="the planted kill reaches the workers by fork",
)
def test_a_killed_worker_ends_the_run_and_the_next_resumes(
    inputs, expected, tmp_path, monkeypatch, capsys
):
    import data.parts as module

    def suicide(path, arrays):
        os.kill(os.getpid(), signal.SIGKILL)

    arguments = [
        "retokenize",
        "--docs",
        str(inputs / "docs.jsonl"),
        "--name",
        "w",
        "--tokenizer",
        str(inputs / "words.model"),
    ]
    arguments += [
        "--val-documents",
        str(VAL),
        "--shard-tokens",
        str(SHARD),
        "--data-root",
        str(tmp_path),
        "--workers",
        "2",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shard", suicide)  # the workers are forked, so they have it too
        assert main(arguments) == 2
    assert "a worker process was killed" in capsys.readouterr().err
    assert main(arguments) == 0
    assert shards(tmp_path) == expected


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_orphaned_workers_end(inputs, tmp_path):
    """Only the parent is killed; its workers must not wait for it for ever."""
    process = start(inputs, tmp_path)
    work = tmp_path / "datasets" / "w_sp330" / ".work"
    wait_for(lambda: list(work.glob("part_*.json")), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate()
    assert children
    deadline = time.monotonic() + 10
    while [pid for pid in children if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


@settings(deadline=None, max_examples=80)
@given(
    texts=st.lists(st.text(alphabet="aé\n", max_size=8), max_size=12),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    blank=st.booleans(),
)
def test_any_cut_gives_every_document_once(tmp_path_factory, texts, cuts, blank):
    path = tmp_path_factory.mktemp("cut") / "docs.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_bytes(
        ("\n\n" if blank else "\n").join(lines).encode()
    )  # the last line has no newline
    size = path.stat().st_size
    edges = sorted({0, size, *(min(cut, size) for cut in cuts)})
    found = [
        text
        for low, high in itertools.pairwise(edges)
        for _, text in document_lines(path, low, high)
    ]
    assert found == texts


def test_our_own_tokenizer_is_trained_on_training_documents_only(inputs, tmp_path):
    secret = "\u0416\u0416\u0416"  # only in validation: a tokenizer that saw it would have a piece for it
    texts = [f"{secret} {text}" for text in TEXTS[:VAL]] + TEXTS[VAL:]
    (tmp_path / "docs.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    arguments = [
        "retokenize",
        "--docs",
        str(tmp_path / "docs.jsonl"),
        "--name",
        "own",
        "--vocab-size",
        "330",
        "--data-root",
        str(tmp_path),
    ]
    assert main([*arguments, "--val-documents", str(VAL)]) == 0
    sp = spm.SentencePieceProcessor(model_file=str(tmp_path / "tokenizers" / "own_330_bpe.model"))
    assert not any("\u0416" in sp.id_to_piece(i) for i in range(330))
    manifest = load_manifest(tmp_path / "datasets" / "own_sp330")
    assert manifest.tokenizer.lossless
    assert main(["verify", str(tmp_path / "datasets" / "own_sp330")]) == 0


def test_parts_without_a_plan_are_not_trusted(inputs, expected, tmp_path):
    """As a kill leaves them while the work folder of a finished job is being removed: swept when the dataset is whole, never used for another."""
    run(inputs, tmp_path)
    folder = tmp_path / "datasets" / "w_sp330"
    for expect_rebuild in (False, True):
        (folder / ".work").mkdir()
        (folder / ".work" / "part_000000.json").write_text(
            '{"split": "val", "counts": {"tokens": 0}, "dropped": 0}'
        )
        if expect_rebuild:
            (folder / "manifest.json").unlink()
        run(inputs, tmp_path)
        assert hidden(tmp_path) == []
        assert shards(tmp_path) == expected


def test_other_settings_do_not_take_over_an_unfinished_job(inputs, tmp_path):
    assert run(inputs, tmp_path, cluster=Cluster(machine=(0, 2))) is None
    with pytest.raises(UserError, match="an unfinished job with other documents or settings"):
        retokenize(job(inputs, tmp_path), inputs / "docs.jsonl", VAL + 1, SHARD, 5_000, Cluster())


def with_bad_line(raw: bytes) -> bytes:
    lines = raw.splitlines(keepends=True)
    return b"".join([*lines[:300], b'{"text": 7}\n', *lines[300:]])


BAD = {
    "a bad line": (with_bad_line, (), "line at byte"),
    "too few documents": (
        lambda raw: raw,
        ("--val-documents", "700"),
        "700 documents; the first 700 are the validation set",
    ),
    "no such file": (None, (), "document list cannot be read"),
    "not UTF-8": (lambda raw: raw + b'{"text": "\xff"}\n', (), "not UTF-8 at byte"),
    "a share beyond the machines": (lambda raw: raw, ("--machine", "2/2"), "expected I/N"),
    "no shard": (lambda raw: raw, ("--shard-tokens", "0"), "expected a whole number from 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(inputs, tmp_path, case):
    edit, extra, says = BAD[case]
    if edit:
        (tmp_path / "docs.jsonl").write_bytes(edit((inputs / "docs.jsonl").read_bytes()))
    command = [
        sys.executable,
        "-m",
        "data",
        "retokenize",
        "--docs",
        str(tmp_path / "docs.jsonl"),
        "--name",
        "w",
        "--data-root",
        str(tmp_path),
    ]
    command += ["--tokenizer", str(inputs / "words.model"), "--val-documents", str(VAL), *extra]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("datasets/*/manifest.json"))
