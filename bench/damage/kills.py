"""What a SIGKILL costs: pipelines killed at random moments and gone on with."""

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

import train_gpt as tg
from bench.damage.pipeline import MARKS, PACKAGING, UNDISTURBED, Pipeline
from bench.damage.readers import REFUSALS
from eval.papers.submission.reading import load_submission

CHECKPOINT_WRITE = "checkpoint write"
PHASES = ("training", CHECKPOINT_WRITE, "export", "scoring", PACKAGING)
END = "end"
TIMED_PHASES = (*MARKS, PACKAGING, END)  # in the order in which they begin
CHECKPOINT_WRITE_SECONDS = 0.03

Beginnings = dict[str, float]  # phase -> seconds after the start


def watch(pipeline: Pipeline, name: str) -> Beginnings:
    """When each phase begins, and when all ends, in a run that nobody disturbs."""
    process = pipeline.start(name)
    started = time.perf_counter()
    beginnings: Beginnings = {}
    while process.poll() is None:
        for phase in pipeline.phases_begun(name):
            beginnings.setdefault(phase, time.perf_counter() - started)
        time.sleep(0.005)
    beginnings[END] = time.perf_counter() - started
    return beginnings


def wait_for_phase(phase: str, pipeline: Pipeline, name: str, process: subprocess.Popen) -> None:
    while process.poll() is None and phase not in pipeline.phases_begun(name):
        time.sleep(0.001)


def wait_for_checkpoint_write(out: Path, whole_ones: int, process: subprocess.Popen) -> None:
    """Until one is being written beside that many (a run keeps two)."""

    def is_writing() -> bool:
        whole = len(list(out.glob("checkpoint_*.npz")))
        return whole >= min(2, whole_ones) and any(out.glob(".checkpoint_*.tmp"))

    while process.poll() is None and not is_writing():
        time.sleep(0.001)


def kill_in(
    phase: str, pipeline: Pipeline, name: str, beginnings: Beginnings, rng: random.Random
) -> str | None:
    """Starts the pipeline and kills all its processes at a random moment of a phase.

    Returns what it was doing then, None where it had ended.
    """
    process = pipeline.start(name)
    if phase == CHECKPOINT_WRITE:
        whole_ones = rng.randrange(4)
        moment = rng.uniform(0, CHECKPOINT_WRITE_SECONDS)
        wait_for_checkpoint_write(pipeline.out(name), whole_ones, process)
    else:
        following = dict(itertools.pairwise(TIMED_PHASES))[phase]
        moment = rng.uniform(0, beginnings[following] - beginnings[phase])
        wait_for_phase(phase, pipeline, name, process)
    time.sleep(moment)
    had_ended = process.poll() is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return None if had_ended else interrupted_phase(pipeline, name)


def interrupted_phase(pipeline: Pipeline, name: str) -> str:
    if any(pipeline.out(name).glob(".checkpoint_*.tmp")):
        return CHECKPOINT_WRITE
    if pipeline.is_packing(name) or pipeline.has_logged(name, "result "):
        return PACKAGING
    begun = pipeline.phases_begun(name)
    return begun[-1] if begun else "start"


def half_written(pipeline: Pipeline, name: str) -> list[str]:
    """Files under their final names that are not whole."""
    out = pipeline.out(name)
    bad = []
    for path in out.glob("checkpoint_*.npz"):
        if tg.sha256_file(path) != path.stem[-64:]:
            bad.append(path.name)
    try:
        if (out / "artifact.bin").exists():
            tg.load_artifact(out / "artifact.bin")
        record = pipeline.record(name)
        if record is None:
            return [*bad, "the record has gone"]
        load_submission(record)
        if file_names(record) != file_names(pipeline.record(UNDISTURBED)):
            bad.append(f"{record.name}: files are missing")
    except REFUSALS as error:
        bad.append(str(error))
    return bad


def file_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def kill_until_met(
    phase: str, pipeline: Pipeline, name: str, beginnings: Beginnings, rng: random.Random
) -> str:
    """As `kill_in`, again from the start where the run had ended before the moment came."""
    while True:
        met = kill_in(phase, pipeline, name, beginnings, rng)
        if met is not None:
            return met
        shutil.rmtree(pipeline.out(name))


def go_on(pipeline: Pipeline, name: str, expected: dict) -> dict:
    """Starts a killed run again, to its end."""
    exit_code = pipeline.start(name).wait()
    whole = exit_code == 0 and not half_written(pipeline, name)
    resumes = [line for line in pipeline.log_lines(name) if line.startswith("resume ")]
    return {
        "resumed_at": resumes[-1].split()[1] if resumes else "the start",
        "same": whole and pipeline.outcome(name) == expected,
        "error": "" if exit_code == 0 else pipeline.errors(name)[-500:],
    }


def measure_kills(count: int) -> dict:
    """`count` pipelines, each killed once and gone on with, against an undisturbed one.

    Raises SystemExit where the latter fails.
    """
    rng = random.Random(0)
    trials = []
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(Path(folder), checkpoint_every=3)
        beginnings = watch(pipeline, UNDISTURBED)
        if set(beginnings) != set(TIMED_PHASES):
            errors = pipeline.errors(UNDISTURBED)[-2000:]
            raise SystemExit(f"error: the undisturbed run failed: {errors}")
        expected = pipeline.outcome(UNDISTURBED)
        for i in tqdm(range(count), desc="kills"):
            name = f"killed-{i}"
            phase = PHASES[i % len(PHASES)]
            pipeline.plant_older_record(name)
            trial = {
                "aimed_at": phase,
                "met": kill_until_met(phase, pipeline, name, beginnings, rng),
                "half_written": half_written(pipeline, name),
            }
            trials.append(trial | go_on(pipeline, name, expected))
            shutil.rmtree(pipeline.out(name))
    met = Counter(trial["met"] for trial in trials)
    return {
        "kills": count,
        "same": sum(trial["same"] and not trial["half_written"] for trial in trials),
        "met": dict(sorted(met.items())),
        "undisturbed": expected,
        "trials": trials,
    }
