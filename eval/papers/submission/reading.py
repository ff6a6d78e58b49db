"""Reads `submission.json`: our own, and the many key sets of the public contest."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eval.errors import UserError
from eval.papers.submission.schema import SUBMISSION_FILE, SeedResult, Submission


class ImportProblem(Exception):
    """A public submission.json holds something that cannot be what its key says."""


@dataclass(frozen=True)
class Reading:
    """`submission.json` as it was read: once for the record and for the lines that state it.

    `submission` is None where there is none that can be read: `problem` says why."""

    submission: Submission | None
    problem: str | None
    stated: dict[str, Any]
    lines: list[str]


def load_submission(folder: Path) -> Submission:
    """Read a folder's `submission.json`, ours or a public one.

    Raises UserError, naming the file and the field, when it is missing, no JSON, or violates the
    schema."""
    reading = read_submission(folder)
    if reading.submission is None:
        raise UserError(reading.problem)
    return reading.submission


def read_submission(folder: Path) -> Reading:
    """Read a folder's `submission.json`, ours or a public one, without raising for its faults."""
    path = folder / SUBMISSION_FILE
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Reading(
            None,
            f"{path}: missing; "
            "a record folder holds submission.json (python -m eval pack writes it)",
            {},
            [],
        )
    except OSError as error:
        problem = (
            f"{path}: expected a readable file, found {error.strerror}; "
            "repair it or pack the record again"
        )
        return Reading(None, problem, {}, [])
    lines = raw.decode("utf-8-sig", errors="replace").splitlines()
    stated: dict[str, Any] = {}
    try:
        stated = _json_object(raw, path)
        return Reading(_typed(stated, path), None, stated, lines)
    except UserError as error:
        return Reading(None, str(error), stated, lines)


def _json_object(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        stated = json.loads(text)
    except (ValueError, RecursionError) as error:
        # No UTF-8, no JSON, numbers or nesting beyond any record.
        raise UserError(
            f"{path}: expected JSON, found {error}; repair the file or pack the record again"
        ) from None
    if not isinstance(stated, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(stated).__name__}")
    return stated


def _typed(stated: dict[str, Any], path: Path) -> Submission:
    try:
        if "schema_version" in stated:
            return Submission.model_validate(stated)
        return import_public(stated, path.parent)
    except ImportProblem as problem:
        raise UserError(f"{path}: {problem}; see records/schema.json") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the record"
        raise UserError(
            f"{path}: {where}: {first['msg']} ({error.error_count()} problem(s) in all); "
            "see records/schema.json"
        ) from None


# Public key -> (place in our schema). Seen in the six sample records and the key sets that STYLE.md's survey lists.
RENAMED = {
    "step_stop": "seed.steps",
    "steps": "seed.steps",
    "wallclock_seconds": "seed.train_s",
    "train_time_seconds": "seed.train_s",
    "eval_time_seconds": "seed.eval_s",
    "eval_time_s": "seed.eval_s",
    "step_avg_ms": "seed.step_avg_ms",
    "pre_quant_val_loss": "seed.pre_quant_val_loss",
    "pre_quant_val_bpb": "seed.pre_quant_val_bpb",
    "model_params": "seed.parameters",
    "pytorch_version": "environment.torch",
    "torch_version": "environment.torch",
    "cuda_version": "environment.cuda",
    "python_version": "environment.python",
    "gpu": "environment.gpu",
    "seed": "seeds",
}

SAME_NAME = {
    "author",
    "github_id",
    "name",
    "blurb",
    "val_loss",
    "val_bpb",
    "val_loss_std",
    "val_bpb_std",
    "bytes_total",
    "bytes_code",
}

AGGREGATE_PATTERN = re.compile(r".*_(mean|max|min|std)$|^(delta|comparison)_.*")
ALONE = "stated"  # seed_results key for values that a public file states without naming a seed


def import_public(raw: dict[str, Any], folder: Path | None = None) -> Submission:
    """Map one public `submission.json` (any of the contest's key sets) to a Submission with origin `imported`. Drops nothing.

    Raises ImportProblem for seeds that are no integers, pydantic.ValidationError when name or val_bpb is missing or a type is impossible."""
    out: dict[str, Any] = {
        "origin": "imported",
        "track": track_of(folder),
        "stated": {},
        "notes": {},
        "unknown": {},
        "environment": {},
    }
    alone: dict[str, Any] = {}
    for key, value in raw.items():
        if key in SAME_NAME:
            out[key] = value
        elif key == "date" and isinstance(value, str):
            out["date"] = value[:10]  # some files carry a timestamp
        elif key == "track" and isinstance(value, str):
            out["track"] = value if value.startswith("track_") else f"track_{value}"
        elif key == "seeds" and isinstance(value, list | dict):
            out["seeds"] = _seed_numbers(key, value)
            if isinstance(value, dict):
                out["seed_results"] = _import_seeds(value, out["unknown"])
        elif key == "seed_results" and isinstance(value, dict):
            out["seed_results"] = _import_seeds(value, out["unknown"])
            out.setdefault("seeds", _seed_numbers(key, value))
        elif (
            key in ("hardware", "gpu")
            and isinstance(value, str)
            and (match := re.fullmatch(r"(\d+)\s*[x×]\s*(.+)", value))
        ):
            out["environment"] |= {"gpus": int(match[1]), "gpu": match[2]}
        elif key.startswith("bytes_model") or key == "artifact_bytes":
            alone["artifact_bytes"] = value
        elif key.endswith("_version") and key not in RENAMED and isinstance(value, str):
            out["environment"].setdefault("packages", {})[key.removesuffix("_version")] = value
        elif key in RENAMED:
            place, _, name = RENAMED[key].partition(".")
            if place == "seed":
                alone[name] = value
            elif place == "seeds":
                out["seeds"] = [value]
            else:
                out[place][name] = value
        elif AGGREGATE_PATTERN.match(key) and isinstance(value, int | float):
            out["stated"][key] = value
        elif isinstance(value, str):
            out["notes"][key] = value
        else:
            out["unknown"][key] = value
    if alone and "seed_results" not in out:
        out["seed_results"] = {
            str((out.get("seeds") or [ALONE])[0]): {
                "val_bpb": raw.get("val_bpb"),
                "val_loss": raw.get("val_loss"),
            }
            | alone
        }
    out["environment"] = out["environment"] or None
    return Submission.model_validate(_settle_totals(out))


def _seed_numbers(key: str, seeds: list | dict) -> list[int]:
    try:
        numbers = [int(seed_key(seed) if isinstance(seed, str) else seed) for seed in seeds]
    except (TypeError, ValueError, OverflowError):
        raise ImportProblem(f"{key}: expected integers, found {seeds!r:.80}") from None
    if isinstance(seeds, dict) and len(set(numbers)) < len(numbers):
        raise ImportProblem(f"{key}: expected every seed once, found {list(seeds)!r:.80}")
    return numbers


def seed_key(text: str) -> str:
    """`42` of `42`, ` 42` and `seed_42`."""
    return re.sub(r"^\s*seed[_ -]?", "", text).strip()


def _import_seeds(seeds: dict[str, Any], unknown: dict[str, Any]) -> dict[str, Any]:
    """Per-seed values by our names; what has no name goes to `unknown` as `seed_results.SEED.key`."""
    out = {}
    for seed, values in seeds.items():
        seed, row = seed_key(seed), {}
        for key, value in (values if isinstance(values, dict) else {"val_bpb": values}).items():
            name = RENAMED.get(key, f"seed.{key}").removeprefix("seed.")
            if name in SeedResult.model_fields:
                row[name] = value
            else:
                unknown[f"seed_results.{seed}.{key}"] = value
        out[seed] = row
    return out


def _settle_totals(out: dict[str, Any]) -> dict[str, Any]:
    """Public files use `artifact_bytes` for the whole submission as well as for the weights alone. If the record's `bytes_total` lies
    within the range of the seeds' values, they are totals: weights alone would all be smaller, by the size of the code."""
    rows = [
        row for row in out.get("seed_results", {}).values() if row.get("artifact_bytes") is not None
    ]
    sizes = [row["artifact_bytes"] for row in rows]
    whole = all(isinstance(size, int) for size in (*sizes, out.get("bytes_total")))
    if sizes and whole and min(sizes) <= out["bytes_total"] <= max(sizes):
        for row in rows:
            row["bytes_total"] = row.pop("artifact_bytes")
    return out


def track_of(folder: Path | None) -> str | None:
    """Track named by the parent folder, as in records/track_docs_cpu/DATE_slug."""
    parent = folder.resolve().parent.name if folder else ""
    return parent if parent.startswith("track_") else None
