"""The native dialect: logs that start with `log_format:1` and end with one `result` line."""

import re

from eval.papers.logs.lines import parse_step
from eval.papers.logs.log import Fact, Log, LoggedScore
from eval.papers.logs.values import integer_of, number_of, tokens_of

RESULT_TYPES = {
    "val_loss": float,
    "val_bpb": float,
    "nats": float,
    "scored_tokens": int,
    "scored_bytes": int,
    "steps": int,
    "train_s": float,
    "eval_s": float,
    "artifact_bytes": int,
    "code_bytes": int,
    "bytes_total": int,
    "code_sha256": str,
    "seed": int,
}

NATIVE_HEADS = ("env", "data", "model", "artifact", "neural", "final", "result")


def parse_native(log: Log, lines: list[tuple[int, str]]) -> None:
    inside_smi = False
    partial = None
    for number, text in lines:
        if text.startswith("===== nvidia-smi"):
            inside_smi = True
        elif text.startswith("===== end nvidia-smi"):
            inside_smi = False
        elif inside_smi:
            continue
        elif step := parse_step(number, text):
            log.steps.append(step)
        elif resume := re.match(r"resume step:(\d{1,12}) ", text):
            log.resumes.append(Fact(resume[1], number, text))
        elif text.startswith("config:preset "):
            log.state("config.preset", text.split(" ", 1)[1].strip(), number, text)
        elif text.startswith("config:override "):
            override = text.removeprefix("config:override ")
            if override not in log.overrides:
                log.overrides.append(override)
        elif text.startswith("config sha256:"):
            log.state("config.sha256", text.removeprefix("config sha256:").strip(), number, text)
        elif text.startswith("result "):
            tokens = tokens_of(text)
            if any(not _is(tokens.get(key), kind) for key, kind in RESULT_TYPES.items()):
                partial = (number, text)
            else:
                for key in RESULT_TYPES:
                    log.state(f"result.{key}", tokens[key], number, text)
                log.scores.append(
                    LoggedScore(
                        "result",
                        float(tokens["val_bpb"]),
                        float(tokens["val_loss"]),
                        float(tokens["eval_s"]),
                        8,
                        number,
                        text,
                    )
                )
        else:
            head = text.split(" ", 1)[0]
            if head in NATIVE_HEADS:
                for key, value in tokens_of(text[len(head) :]).items():
                    log.state(f"{head}.{key}", value, number, text)
    if "result.val_bpb" not in log.facts:
        found = f"line {partial[0]} is cut: {partial[1][:80]!r}" if partial else "none"
        log.problems.append(f"truncated: expected one complete 'result …' line, found {found}")


def _is(value: str | None, kind: type) -> bool:
    read = {float: number_of, int: integer_of, str: lambda text: text or None}[kind]
    return read(value) is not None
