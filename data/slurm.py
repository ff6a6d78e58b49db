"""The work items of `python -m data retokenize` as Slurm jobs, through datatrove's executor."""

import functools
import sys
from pathlib import Path
from typing import Any

from datatrove.executor import SlurmPipelineExecutor

from data.job import Job
from data.parts import Work, encode_part, finish_if_complete


def encode_step(folder: Path, data: Any, rank: int, world_size: int) -> None:
    """`encode_part` in the form that datatrove calls."""
    encode_part(folder, rank)


def finish_step(job: Job, folder: Path, data: Any, rank: int, world_size: int) -> None:
    """`finish_if_complete` in the form that datatrove calls."""
    if finish_if_complete(job, Work(folder)) is None:
        raise RuntimeError(
            "parts are missing: see the logs of the encoding job, then run the command again"
        )


def submit(job: Job, work: Work, items: int, partition: str, time_limit: str) -> None:
    """Submits two Slurm jobs to a partition.

    The first is an array of the work items, --workers of them at a time. The second has one
    item, which cuts the shards.
    """
    logs = work.dataset / ".slurm"  # not in the work folder, which the last job removes
    programs = Path(sys.executable).parent
    project = Path(__file__).parents[1]
    common = {
        "time": time_limit,
        "partition": partition,
        "env_command": f'export PATH="{programs}:$PATH" PYTHONPATH="{project}"',
        "qos": "",
    }
    encode = SlurmPipelineExecutor(
        [functools.partial(encode_step, work.folder)],
        tasks=items,
        workers=job.workers,
        logging_dir=str(logs / "encode"),
        job_name="encode",
        **common,
    )
    shards = SlurmPipelineExecutor(
        [functools.partial(finish_step, job, work.folder)],
        tasks=1,
        logging_dir=str(logs / "shards"),
        job_name="shards",
        depends=encode,
        **common,
    )
    shards.run()
