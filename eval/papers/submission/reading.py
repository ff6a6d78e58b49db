"""Reads `submission.json`: our own, and the many key sets of the public contest."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
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

    `submission` is None where there is none that can be read: `problem` says why. `stated` is the
    JSON object as its author wrote it.
    """

    submission: Submission | None
    problem: str | None
    stated: dict[str, Any]
    lines: list[str]


def load_submission(folder: Path) -> Submission:
    """Read a folder's `submission.json`, ours or a public one.

    Raises UserError, naming the file and the field, when it is missing, no JSON, or violates the
    schema.
    """
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
        advice = "a record folder holds submission.json (python -m eval pack writes it)"
        return Reading(None, f"{path}: missing; {advice}", {}, [])
    except OSError as error:
        advice = "repair it or pack the record again"
        problem = f"{path}: expected a readable file, found {error.strerror}; {advice}"
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
        # No UTF-8, no JSON, or numbers and nesting beyond any record.
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
        where = ".".join(map(str, first["loc"])) or "the record"
        count = error.error_count()
        raise UserError(
            f"{path}: {where}: {first['msg']} ({count} problem(s) in all); see records/schema.json"
        ) from None


# --- Public files ---

# Public keys by the place of their value in our schema: a field of a seed, of the environment, or
# the list of seeds. These are the keys that public records use.
SEED_FIELDS = {
    "step_stop": "steps",
    "steps": "steps",
    "wallclock_seconds": "train_s",
    "train_time_seconds": "train_s",
    "eval_time_seconds": "eval_s",
    "eval_time_s": "eval_s",
    "step_avg_ms": "step_avg_ms",
    "pre_quant_val_loss": "pre_quant_val_loss",
    "pre_quant_val_bpb": "pre_quant_val_bpb",
    "model_params": "parameters",
}
ENVIRONMENT_FIELDS = {
    "pytorch_version": "torch",
    "torch_version": "torch",
    "cuda_version": "cuda",
    "python_version": "python",
    "gpu": "gpu",
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
AGGREGATE = re.compile(r".*_(mean|max|min|std)$|^(delta|comparison)_.*")
HARDWARE = re.compile(r"(\d+)\s*[x×]\s*(.+)")
ALONE = "stated"  # stands for the seed where a public file states values without naming one


@dataclass
class PublicImport:
    """A public file on its way into our schema.

    `fields` are those of a Submission, `alone` those of a SeedResult whose seed is not named.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    alone: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    stated: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, Any] = field(default_factory=dict)


def import_public(raw: dict[str, Any], folder: Path | None = None) -> Submission:
    """Map one public `submission.json`, of any key set, to an imported Submission. Drops nothing.

    Raises ImportProblem for seeds that are no integers, pydantic.ValidationError when name or
    val_bpb is missing or a type is impossible.
    """
    public = PublicImport()
    public.fields["track"] = track_of(folder)
    for key, value in raw.items():
        for read in KEY_READERS:
            if read(public, key, value):
                break
        else:
            public.unknown[key] = value
    fields = public.fields
    if public.alone and "seed_results" not in fields:
        seeds = fields.get("seeds") or [ALONE]
        headline = {"val_bpb": raw.get("val_bpb"), "val_loss": raw.get("val_loss")}
        fields["seed_results"] = {str(seeds[0]): headline | public.alone}
    _settle_totals(fields.get("seed_results", {}), fields.get("bytes_total"))
    return Submission.model_validate(
        {
            **fields,
            "origin": "imported",
            "stated": public.stated,
            "notes": public.notes,
            "unknown": public.unknown,
            "environment": public.environment or None,
        }
    )


# --- Readers of one kind of key each: whether they took the value ---


def _take_same_name(public: PublicImport, key: str, value: Any) -> bool:
    if key in SAME_NAME:
        public.fields[key] = value
    return key in SAME_NAME


def _take_date(public: PublicImport, key: str, value: Any) -> bool:
    if key != "date" or not isinstance(value, str):
        return False
    public.fields["date"] = value[:10]  # some files carry a timestamp
    return True


def _take_track(public: PublicImport, key: str, value: Any) -> bool:
    if key != "track" or not isinstance(value, str):
        return False
    public.fields["track"] = value if value.startswith("track_") else f"track_{value}"
    return True


def _take_seeds(public: PublicImport, key: str, value: Any) -> bool:
    """`seeds` is a list of numbers, or holds the results by seed."""
    if key != "seeds" or not isinstance(value, list | dict):
        return False
    public.fields["seeds"] = _seed_numbers(key, value)
    if isinstance(value, dict):
        public.fields["seed_results"] = _seed_rows(value, public.unknown)
    return True


def _take_one_seed(public: PublicImport, key: str, value: Any) -> bool:
    if key == "seed":
        public.fields["seeds"] = [value]
    return key == "seed"


def _take_seed_results(public: PublicImport, key: str, value: Any) -> bool:
    if key != "seed_results" or not isinstance(value, dict):
        return False
    public.fields["seed_results"] = _seed_rows(value, public.unknown)
    public.fields.setdefault("seeds", _seed_numbers(key, value))
    return True


def _take_hardware(public: PublicImport, key: str, value: Any) -> bool:
    """`8x H100`: number and name of the GPUs."""
    if key not in ("hardware", "gpu") or not isinstance(value, str):
        return False
    match = HARDWARE.fullmatch(value)
    if match:
        public.environment |= {"gpus": int(match[1]), "gpu": match[2]}
    return match is not None


def _take_artifact_bytes(public: PublicImport, key: str, value: Any) -> bool:
    known = key == "artifact_bytes" or key.startswith("bytes_model")
    if known:
        public.alone["artifact_bytes"] = value
    return known


def _take_package(public: PublicImport, key: str, value: Any) -> bool:
    """`NAME_version` of a package that has no field of its own."""
    own_field = key in ENVIRONMENT_FIELDS
    if own_field or not key.endswith("_version") or not isinstance(value, str):
        return False
    packages = public.environment.setdefault("packages", {})
    packages[key.removesuffix("_version")] = value
    return True


def _take_seed_field(public: PublicImport, key: str, value: Any) -> bool:
    if key in SEED_FIELDS:
        public.alone[SEED_FIELDS[key]] = value
    return key in SEED_FIELDS


def _take_environment(public: PublicImport, key: str, value: Any) -> bool:
    if key in ENVIRONMENT_FIELDS:
        public.environment[ENVIRONMENT_FIELDS[key]] = value
    return key in ENVIRONMENT_FIELDS


def _take_aggregate(public: PublicImport, key: str, value: Any) -> bool:
    if not AGGREGATE.match(key) or not isinstance(value, int | float):
        return False
    public.stated[key] = value
    return True


def _take_note(public: PublicImport, key: str, value: Any) -> bool:
    if isinstance(value, str):
        public.notes[key] = value
    return isinstance(value, str)


# In this order: the first reader that takes a value has it.
KEY_READERS: tuple[Callable[[PublicImport, str, Any], bool], ...] = (
    _take_same_name,
    _take_date,
    _take_track,
    _take_seeds,
    _take_one_seed,
    _take_seed_results,
    _take_hardware,
    _take_artifact_bytes,
    _take_package,
    _take_seed_field,
    _take_environment,
    _take_aggregate,
    _take_note,
)


# --- Seeds ---


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


def _seed_rows(seeds: dict[str, Any], unknown: dict[str, Any]) -> dict[str, Any]:
    """Results of each seed by our names.

    What has no name there goes to `unknown` as `seed_results.SEED.key`.
    """
    rows = {}
    for stated_seed, stated in seeds.items():
        seed = seed_key(stated_seed)
        row = {}
        values = stated if isinstance(stated, dict) else {"val_bpb": stated}
        for key, value in values.items():
            name = SEED_FIELDS.get(key, key)
            if name in SeedResult.model_fields:
                row[name] = value
            else:
                unknown[f"seed_results.{seed}.{key}"] = value
        rows[seed] = row
    return rows


def _settle_totals(seed_results: dict[str, Any], bytes_total: Any) -> None:
    """Tell totals from weights: public files call either of them `artifact_bytes`.

    If the record's `bytes_total` lies within the range of the seeds' values, they are totals.
    Weights alone would all be smaller, by the size of the code.
    """
    rows = [row for row in seed_results.values() if row.get("artifact_bytes") is not None]
    sizes = [row["artifact_bytes"] for row in rows]
    all_integers = all(isinstance(size, int) for size in (*sizes, bytes_total))
    if sizes and all_integers and min(sizes) <= bytes_total <= max(sizes):
        for row in rows:
            row["bytes_total"] = row.pop("artifact_bytes")


def track_of(folder: Path | None) -> str | None:
    """Track named by the parent folder, as in records/track_docs_cpu/DATE_slug."""
    parent = folder.resolve().parent.name if folder else ""
    return parent if parent.startswith("track_") else None
