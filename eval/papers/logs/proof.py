"""What logs prove: the values of `submission.json` that follow from them."""

import re
from typing import Any

from pydantic import ValidationError

from eval.errors import UserError
from eval.papers.logs.log import Fact, Log
from eval.papers.logs.values import tokens_of
from eval.papers.submission.schema import Data, Environment, RunConfig, SeedResult, Track, mean, sd


def override_settings(log: Log) -> list[str]:
    """`name=value` of every override that makes a run another experiment, in log order; seed, places and checkpoints do not."""
    settings = [re.split(r" \(default ", text, maxsplit=1)[0] for text in log.overrides]
    return [
        text
        for text in settings
        if text.split("=", 1)[0] not in ("seed", "data_dir", "out", "checkpoint_every", "resume")
    ]


def other_machine(log: Log, resume: Fact) -> list[str]:
    """What a resume line says of the machine that went on, where it differs from the one that began: `gpu NVIDIA H200 after NVIDIA H100`."""
    told = tokens_of(resume.text.partition(" env ")[2])
    keys = ("gpu", "gpus", "world_size", "cpu", "cores", "torch", "cuda", "python", "train_dtype")
    return [
        f"{k} {told[k]} after {log.facts[f'env.{k}'].value}"
        for k in keys
        if k in told and f"env.{k}" in log.facts and told[k] != log.facts[f"env.{k}"].value
    ]


def environment_of(log: Log) -> Environment:
    """Environment of a log of either dialect."""
    names = ("python", "torch", "cuda", "driver", "gpu", "cpu", "platform", "git_commit")
    counts = ("gpus", "cores", "world_size")
    return Environment(
        **{n: log.text(f"env.{n}") for n in names}, **{n: log.integer(f"env.{n}") for n in counts}
    )


def data_of(log: Log) -> Data:
    """Data section of a native log. Raises UserError naming the missing key."""
    text = ("corpus", "version", "dataset", "tokenizer_sha256", "manifest_sha256")
    counts = ("train_tokens", "val_tokens", "val_bytes", "train_files")
    missing = [name for name in (*text[:4], *counts) if log.text(f"data.{name}") is None]
    if missing:
        raise UserError(
            f"{log.path}: its data line lacks {', '.join(missing)}; train again with the current script"
        )
    return Data(
        **{n: log.text(f"data.{n}") for n in text}, **{n: log.integer(f"data.{n}") for n in counts}
    )


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


def seed_result(log: Log) -> SeedResult | None:
    """What a log of either dialect proves about its seed; None when it holds no final score.

    Raises UserError when a value is malformed, such as a hash of the wrong length."""
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
        raise UserError(
            f"{log.path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}, found {problem['input']!r}; train again"
        ) from None


def derived_fields(track: Track, logs: list[Log]) -> dict[str, Any]:
    """Everything of a Submission that the logs of its seeds prove, seeds in the order given. `check` derives it again.

    Raises UserError when a log lacks its data line, pydantic.ValidationError when a value is malformed."""
    first = logs[0]
    environment = environment_of(first)
    results = {}
    for log in logs:
        files = {
            "log": f"train_seed{log.seed}.log",
            "artifact": f"artifact_seed{log.seed}.bin" if track.commits_artifacts else None,
        }
        own = environment_of(log)
        results[str(log.seed)] = seed_result(log).model_copy(
            update=files | {"environment": None if own == environment else own}
        )
    rows = list(results.values())
    return {
        "val_loss": mean([row.val_loss for row in rows]),
        "val_bpb": mean([row.val_bpb for row in rows]),
        "val_loss_std": sd([row.val_loss for row in rows]),
        "val_bpb_std": sd([row.val_bpb for row in rows]),
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
