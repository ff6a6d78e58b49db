"""`python -m data retokenize`.

The bytes are the same however many processes or machines make them and however often they are
killed. No document is lost, repeated or shared between the splits.
"""

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
from data_support import REPO, flags
from hypothesis import given, settings
from hypothesis import strategies as st

from data.__main__ import main
from data.common import UserError
from data.job import Job
from data.manifest import load_manifest
from data.parts import document_lines
from data.retokenize import Cluster, retokenize
from data.tokenizer import train_tokenizer

VAL = 50
SHARD = 9_000
ALONE = Cluster()
WORDS = ["the", "quick", "brown", "fox", "naïve", "日本", "  indented", "12", "\n"]


def make_texts() -> list[str]:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(1, 120))) for _ in range(700)]
    texts[400] = texts[7]  # a training document that is also a validation document
    texts[500] = texts[450]  # a repetition inside train stays: documents are taken as they are
    texts[60] = ""
    return texts


TEXTS = make_texts()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    with open(folder / "docs.jsonl", "w", encoding="utf-8") as file:
        for i, text in enumerate(TEXTS):
            escaped = i % 2 == 0
            file.write(json.dumps({"text": text}, ensure_ascii=escaped) + "\n")
    (folder / "words.model").write_bytes(train_tokenizer(TEXTS, 330))
    return folder


@pytest.fixture(scope="module")
def expected(inputs) -> dict[str, bytes]:
    """The shards, by a loop over the documents; of the package only the tokenizer file."""
    sp = spm.SentencePieceProcessor(model_file=str(inputs / "words.model"))
    val = TEXTS[:VAL]
    train = [text for text in TEXTS[VAL:] if text not in val]
    files = {}
    for split, texts in (("val", val), ("train", train)):
        stream: list[int] = []
        for text in texts:
            stream += [1, *sp.encode(text)]
        for i, start in enumerate(range(0, len(stream), SHARD)):
            tokens = np.array(stream[start : start + SHARD], "<u2")
            header = np.zeros(256, "<i4")
            header[:3] = [20240520, 1, len(tokens)]
            files[f"w_{split}_{i:06d}.bin"] = header.tobytes() + tokens.tobytes()
    assert len(files) > 4
    return files


def job(inputs: Path, root: Path, workers: int = 2) -> Job:
    return Job(root, "w", tokenizer=inputs / "words.model", workers=workers)


def run(inputs: Path, root: Path, workers: int = 2, cluster: Cluster = ALONE):
    return retokenize(job(inputs, root, workers), inputs / "docs.jsonl", VAL, SHARD, 5_000, cluster)


def dataset(root: Path) -> Path:
    return root / "datasets" / "w_sp330"


def shards(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in dataset(root).glob("*.bin")}


def hidden(root: Path) -> list[str]:
    return [path.name for path in dataset(root).iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_shards_are_those_of_a_plain_loop(inputs, expected, tmp_path, workers, capsys):
    run(inputs, tmp_path, workers)
    assert shards(tmp_path) == expected
    assert hidden(tmp_path) == []
    manifest = load_manifest(dataset(tmp_path))
    assert manifest.splits["val"].documents == VAL
    assert manifest.splits["train"].documents == len(TEXTS) - VAL - 1
    assert manifest.provenance["train_documents_dropped_as_in_val"] == 1
    assert manifest.splits["val"].source_bytes == sum(len(text.encode()) for text in TEXTS[:VAL])
    docs_sha = hashlib.sha256((inputs / "docs.jsonl").read_bytes()).hexdigest()
    assert manifest.version_rule == "file"
    assert manifest.version == hashlib.sha256(f"{docs_sha} {VAL}".encode()).hexdigest()
    assert main(["verify", str(dataset(tmp_path))]) == 0
    run(inputs, tmp_path, workers)
    assert "up to date" in capsys.readouterr().out


def test_two_machines(inputs, expected, tmp_path, capsys):
    """Each in turn, then both at once on a fresh folder.

    The shards appear when the last share is done.
    """
    in_turn = tmp_path / "a"
    assert run(inputs, in_turn, cluster=Cluster(machine=(1, 2))) is None
    assert not (dataset(in_turn) / "manifest.json").exists()
    assert run(inputs, in_turn, cluster=Cluster(machine=(0, 2))) is not None
    assert shards(in_turn) == expected
    at_once = tmp_path / "b"
    machines = [start(inputs, at_once, f"Cluster(machine=({i}, 2))") for i in range(2)]
    for machine in machines:
        _, err = machine.communicate(timeout=60)
        assert machine.returncode == 0, err
    assert shards(at_once) == expected


SBATCH = '''#!{python}
"""Slurm's sbatch, as far as datatrove uses it.

Runs the array at once, at most the %N of its directive at a time, then returns.
"""
import os
import re
import subprocess
import sys

script = sys.argv[-1]
text = open(script).read()
last, limit = re.search(r"--array=0-(\\d+)(?:%(\\d+))?", text).groups()
exported = {{}}
for argument in sys.argv:
    if argument.startswith("--export="):
        exported.update(word.split("=") for word in argument.split(",")[1:])
log = open("{log}", "a")


def finish(process):
    assert process.wait() == 0, open("{log}").read()


running = []
for i in range(int(last) + 1):
    task = {{"SLURM_ARRAY_TASK_ID": str(i), "SLURM_NODELIST": "node", "SLURM_JOB_ID": "1"}}
    process = subprocess.Popen(
        ["bash", script],
        env=os.environ | exported | task,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    running.append(process)
    if len(running) == int(limit or 9):
        finish(running.pop(0))
for process in running:
    finish(process)
print("Submitted batch job 1")
'''
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do
    [[ $1 == -n ]] && shift
    shift
done
exec "$@"
"""


def test_a_slurm_cluster_of_two_workers(inputs, expected, tmp_path, monkeypatch):
    """datatrove's own executor and launcher; only Slurm's three programs are stand-ins."""
    tools = {
        "sbatch": SBATCH.format(python=sys.executable, log=tmp_path / "log"),
        "scontrol": "#!/bin/sh\necho node\n",
        "srun": SRUN,
    }
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in tools.items():
        path = programs / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    root = tmp_path / "data"
    slurm = Cluster(slurm="cpu")
    docs = inputs / "docs.jsonl"
    assert retokenize(job(inputs, root), docs, VAL, SHARD, 60_000, slurm) is None
    assert shards(root) == expected
    assert load_manifest(dataset(root)).splits["val"].documents == VAL


def start(inputs: Path, root: Path, cluster: str = "Cluster()") -> subprocess.Popen:
    """The job as a program in a process group of its own."""
    code = f"""
import sys
from pathlib import Path
from data.job import Job
from data.retokenize import Cluster, retokenize
root, tokenizer, docs = map(Path, sys.argv[1:])
job = Job(root, "w", tokenizer=tokenizer, workers=2)
retokenize(job, docs, {VAL}, {SHARD}, 2_000, {cluster})
"""
    return subprocess.Popen(
        [sys.executable, "-c", code, root, inputs / "words.model", inputs / "docs.jsonl"],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, process: subprocess.Popen) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.002)


def kill(process: subprocess.Popen) -> bool:
    """SIGKILL to the whole process group. Whether it was still running."""
    running = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return running


def parts(work: Path) -> int:
    return len(list(work.glob("part_*.json")))


def test_killed_again_and_again(inputs, expected, tmp_path):
    """After 0, 1, 3, ... further parts, and once while shards are cut.

    The bytes come out the same.
    """
    work = dataset(tmp_path) / ".work"
    killed = 0
    for further in (0, 1, 3, 9, 27):
        process = start(inputs, tmp_path)
        goal = parts(work) + further
        wait_for(lambda goal=goal: work.exists() and parts(work) >= goal, process)
        killed += kill(process)
    cutting = start(inputs, tmp_path)
    wait_for(lambda: list(work.parent.glob("w_train_*.bin")), cutting)
    killed += kill(cutting)
    assert killed >= 5
    undisturbed = start(inputs, tmp_path)
    _, err = undisturbed.communicate(timeout=60)
    assert undisturbed.returncode == 0, err
    assert shards(tmp_path) == expected
    assert hidden(tmp_path) == []


@pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork",
    reason="the planted kill reaches the workers by fork",
)
def test_a_killed_worker_ends_the_run_and_the_next_resumes(
    inputs, expected, tmp_path, monkeypatch, capsys
):
    def suicide(path, arrays):
        os.kill(os.getpid(), signal.SIGKILL)

    options = flags(
        docs=inputs / "docs.jsonl",
        name="w",
        tokenizer=inputs / "words.model",
        val_documents=VAL,
        shard_tokens=SHARD,
        data_root=tmp_path,
        workers=2,
    )
    arguments = ["retokenize", *options]
    with monkeypatch.context() as patch:
        # the workers are forked, so they have it too
        patch.setattr("data.parts.write_shard", suicide)
        assert main(arguments) == 2
    assert "a worker process was killed" in capsys.readouterr().err
    assert main(arguments) == 0
    assert shards(tmp_path) == expected


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_orphaned_workers_end(inputs, tmp_path):
    """Only the parent is killed; its workers must not wait for it for ever."""
    process = start(inputs, tmp_path)
    work = dataset(tmp_path) / ".work"
    wait_for(lambda: parts(work), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate()
    assert children
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children):
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
    separator = "\n\n" if blank else "\n"
    path.write_bytes(separator.join(lines).encode())  # the last line has no newline
    size = path.stat().st_size
    edges = sorted({0, size, *(min(cut, size) for cut in cuts)})
    found = []
    for low, high in itertools.pairwise(edges):
        found += [text for _, text in document_lines(path, low, high)]
    assert found == texts


def test_a_byte_order_mark_is_no_part_of_a_document(tmp_path):
    """As `data text` takes it, and also where files with one were joined."""
    path = tmp_path / "docs.jsonl"
    lines = [json.dumps({"text": text}) + "\n" for text in "ab"]
    path.write_text("".join("\ufeff" + line for line in lines))
    size = path.stat().st_size
    assert [text for _, text in document_lines(path, 0, size)] == ["a", "b"]


def test_a_packed_list_is_refused_with_the_remedy(tmp_path, capsys):
    docs = tmp_path / "docs.jsonl.gz"
    docs.write_bytes(b"")
    options = flags(docs=docs, name="own", vocab_size=330, data_root=tmp_path)
    assert main(["retokenize", *options]) == 2
    assert "unpack it first: gunzip --keep docs.jsonl.gz" in capsys.readouterr().err


def test_our_own_tokenizer_is_trained_on_training_documents_only(inputs, tmp_path):
    # Only in validation: a tokenizer that saw it would have a piece for it.
    secret = "\u0416"
    texts = [f"{secret * 3} {text}" for text in TEXTS[:VAL]] + TEXTS[VAL:]
    docs = tmp_path / "docs.jsonl"
    docs.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = flags(docs=docs, name="own", vocab_size=330, data_root=tmp_path, val_documents=VAL)
    assert main(["retokenize", *options]) == 0
    sp = spm.SentencePieceProcessor(model_file=str(tmp_path / "tokenizers" / "own_330_bpe.model"))
    assert not any(secret in sp.id_to_piece(i) for i in range(330))
    folder = tmp_path / "datasets" / "own_sp330"
    assert load_manifest(folder).tokenizer.lossless
    assert main(["verify", str(folder)]) == 0


def test_parts_without_a_plan_are_not_trusted(inputs, expected, tmp_path):
    """A kill leaves them while the work folder of a finished job is being removed.

    They are swept when the dataset is whole, and never used for another.
    """
    run(inputs, tmp_path)
    folder = dataset(tmp_path)
    stale = '{"split": "val", "counts": {"tokens": 0}, "dropped": 0}'
    for expect_rebuild in (False, True):
        (folder / ".work").mkdir()
        (folder / ".work" / "part_000000.json").write_text(stale)
        if expect_rebuild:
            (folder / "manifest.json").unlink()
        run(inputs, tmp_path)
        assert hidden(tmp_path) == []
        assert shards(tmp_path) == expected


def test_other_settings_do_not_take_over_an_unfinished_job(inputs, tmp_path):
    assert run(inputs, tmp_path, cluster=Cluster(machine=(0, 2))) is None
    with pytest.raises(UserError, match="an unfinished job with other documents or settings"):
        retokenize(job(inputs, tmp_path), inputs / "docs.jsonl", VAL + 1, SHARD, 5_000, Cluster())


def unchanged(lines: list[bytes]) -> list[bytes]:
    return lines


def with_bad_line(lines: list[bytes]) -> list[bytes]:
    return [*lines[:300], b'{"text": 7}\n', *lines[300:]]


def with_latin_line(lines: list[bytes]) -> list[bytes]:
    return [*lines, b'{"text": "\xff"}\n']


# Each case: what becomes of the document list (None: it is missing), arguments, the message.
BAD = {
    "a bad line": (with_bad_line, (), "line at byte"),
    "too few documents": (
        unchanged,
        ("--val-documents", "700"),
        "700 documents; the first 700 are the validation set",
    ),
    "no such file": (None, (), "document list cannot be read"),
    "not UTF-8": (with_latin_line, (), "not UTF-8 at byte"),
    "a share beyond the machines": (unchanged, ("--machine", "2/2"), "expected I/N"),
    "no shard": (unchanged, ("--shard-tokens", "0"), "expected a whole number from 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(inputs, tmp_path, case):
    edit, extra, says = BAD[case]
    if edit:
        lines = (inputs / "docs.jsonl").read_bytes().splitlines(keepends=True)
        (tmp_path / "docs.jsonl").write_bytes(b"".join(edit(lines)))
    options = flags(
        docs=tmp_path / "docs.jsonl",
        name="w",
        data_root=tmp_path,
        tokenizer=inputs / "words.model",
        val_documents=VAL,
    )
    command = [sys.executable, "-m", "data", "retokenize", *options, *extra]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("datasets/*/manifest.json"))
