"""What logs prove: the values of `submission.json` that follow from them."""

from typing import Any

from pydantic import ValidationError

from eval.errors import UserError
from eval.papers.logs.log import Fact, Log
from eval.papers.logs.values import tokens_of
from eval.papers.submission.schema import Data, Environment, RunConfig, SeedResult, Track, mean, sd

# Settings that make no other experiment.
NO_EXPERIMENT = ("seed", "data_dir", "out", "checkpoint_every", "resume", "sink", "device")
MACHINE = ("gpu", "gpus", "world_size", "cpu", "cores", "torch", "cuda", "python", "train_dtype")
ENVIRONMENT_TEXTS = (
    "python",
    "torch",
    "cuda",
    "driver",
    "gpu",
    "cpu",
    "platform",
    "git_commit",
)
ENVIRONMENT_COUNTS = ("gpus", "cores", "world_size")
DATA_TEXTS = ("corpus", "version", "dataset", "tokenizer_sha256")
DATA_COUNTS = ("train_tokens", "val_tokens", "val_bytes", "train_files")
# Fields of a seed's result by the fact that proves them.
SEED_FACTS = {
    "nats": "result.nats",
    "scored_tokens": "result.scored_tokens",
    "scored_bytes": "result.scored_bytes",
    "steps": "result.steps",
    "train_s": "result.train_s",
    "eval_s": "result.eval_s",
    "parameters": "model.parameters",
    "artifact_bytes": "result.artifact_bytes",
    "artifact_sha256": "artifact.sha256",
    "bytes_total": "result.bytes_total",
    "pre_quant_val_loss": "final.pre_quant_val_loss",
    "pre_quant_val_bpb": "final.pre_quant_val_bpb",
    "neural_val_loss": "neural.val_loss",
    "neural_val_bpb": "neural.val_bpb",
}


def override_settings(log: Log) -> list[str]:
    """`name=value` of every override that makes a run another experiment, in log order.

    The seed, places and checkpoints do not.
    """
    settings = [text.partition(" (default ")[0] for text in log.overrides]
    return [text for text in settings if text.partition("=")[0] not in NO_EXPERIMENT]


def other_machine(log: Log, resume: Fact) -> list[str]:
    """How the machine that continued a run differs from the one that began it.

    By the resume line, for example `gpu NVIDIA H200 after NVIDIA H100`.
    """
    told = tokens_of(resume.text.partition(" env ")[2])
    changes = []
    for key in MACHINE:
        before = log.facts.get(f"env.{key}")
        if before is not None and key in told and told[key] != before.value:
            changes.append(f"{key} {told[key]} after {before.value}")
    return changes


def environment_of(log: Log) -> Environment:
    """Environment of a log of either dialect."""
    texts = {name: log.text(f"env.{name}") for name in ENVIRONMENT_TEXTS}
    counts = {name: log.integer(f"env.{name}") for name in ENVIRONMENT_COUNTS}
    return Environment(**texts, **counts)


def data_of(log: Log) -> Data:
    """Data section of a native log. Raises UserError naming the missing key."""
    required = (*DATA_TEXTS, *DATA_COUNTS)
    missing = [name for name in required if log.text(f"data.{name}") is None]
    if missing:
        names = ", ".join(missing)
        raise UserError(
            f"{log.path}: its data line lacks {names}; train again with the current script"
        )
    texts = {name: log.text(f"data.{name}") for name in DATA_TEXTS}
    counts = {name: log.integer(f"data.{name}") for name in DATA_COUNTS}
    return Data(**texts, **counts, manifest_sha256=log.text("data.manifest_sha256"))


def seed_result(log: Log) -> SeedResult | None:
    """What a log of either dialect proves about its seed; None when it holds no final score.

    Raises UserError when a value is malformed, such as a hash of the wrong length.
    """
    final = log.final
    if final is None:
        return None
    values = {name: log.text(fact) for name, fact in SEED_FACTS.items()}
    try:
        return SeedResult(
            val_loss=final.val_loss,
            val_bpb=final.val_bpb,
            log=log.path.name,
            log_sha256=log.sha256,
            **values,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(
            f"{log.path}: {where}: {problem['msg']}, found {problem['input']!r}; train again"
        ) from None


def derived_fields(track: Track, logs: list[Log]) -> dict[str, Any]:
    """Every field of a Submission that the logs of its seeds prove, seeds in the order given.

    `check` derives them again. Raises UserError when a log lacks its data line,
    pydantic.ValidationError when a value is malformed.
    """
    first = logs[0]
    environment = environment_of(first)
    results = {str(log.seed): packed_result(track, log, environment) for log in logs}
    rows = list(results.values())
    losses = [row.val_loss for row in rows]
    scores = [row.val_bpb for row in rows]
    return {
        "val_loss": mean(losses),
        "val_bpb": mean(scores),
        "val_loss_std": sd(losses),
        "val_bpb_std": sd(scores),
        "bytes_total": max(row.bytes_total for row in rows),
        "bytes_code": first.integer("result.code_bytes"),
        "bytes_artifact": max(row.artifact_bytes for row in rows),
        "code_sha256": first.text("source.sha256"),
        "seeds": [log.seed for log in logs],
        "seed_results": results,
        "config": RunConfig(
            preset=first.text("config.preset"),
            sha256=first.text("config.sha256"),
            overrides=override_settings(first),
        ),
        "data": data_of(first),
        "environment": environment,
    }


def packed_result(track: Track, log: Log, environment: Environment) -> SeedResult:
    """A seed's result with the names its files have in the folder.

    Its own environment is stated where it differs from the record's.
    """
    own = environment_of(log)
    stated = {
        "log": f"train_seed{log.seed}.log",
        "artifact": f"artifact_seed{log.seed}.bin" if track.commits_artifacts else None,
        "environment": None if own == environment else own,
    }
    return seed_result(log).model_copy(update=stated)
