"""What a record says about itself: the typed `submission.json` and the tracks.

One class, two origins. `packed` records are written by `python -m eval pack` and must be complete.
`imported` ones come from somebody else's `submission.json` (55 public files carry 39 different key
sets). They keep every stated value under a typed name and leave out what was never stated. The
contest's own keys (author, github_id, name, blurb, date, val_loss, val_bpb, bytes_total,
bytes_code) keep their meaning.
"""

import json
import re
import statistics
from dataclasses import dataclass
from datetime import date as Date
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

SCHEMA_VERSION = 1
# Files of a record folder
SUBMISSION_FILE = "submission.json"
CODE_FILE = "train_gpt.py"
AUDIT_FILE = "audit.json"
AUDIT_TEXT = "AUDIT.md"
ANONYMOUS = "anonymous"
DOCS_TRACK = "track_docs_cpu"
# What the contest asks of every submission.json; other keys are the author's choice.
CONTEST_FIELDS = ("name", "github_id", "val_bpb")
FOLDER_PATTERN = re.compile(r"(?P<date>\d{4}-\d{2}-\d{2})_(?P<slug>[a-z0-9]+(?:-[a-z0-9]+)*)")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Track:
    """Budgets of one track. Seconds are None where the track has no clock.

    `commits_artifacts` says whether weights live in git, `artifact_cap` how many bytes each such
    file may have: git is no artifact store.
    """

    title: str
    bytes_cap: int = 16_000_000
    train_seconds: float | None = None
    eval_seconds: float | None = None
    gpus: int | None = None
    commits_artifacts: bool = False
    artifact_cap: int | None = None


TRACKS = {
    "track_10min_16mb": Track(
        "10 minutes on 8×H100, 16 MB", train_seconds=600.0, eval_seconds=600.0, gpus=8
    ),
    "track_non_record_16mb": Track("any budget, 16 MB"),
    DOCS_TRACK: Track(
        "embedded corpus, fixed steps, any CPU", commits_artifacts=True, artifact_cap=2_000_000
    ),
}


def track_named(text: str) -> str | None:
    """The known track that a text names, however it is spelt; None for any other text."""
    name = text.strip().lower().replace("-", "_").replace(" ", "_")
    full = name if name.startswith("track_") else f"track_{name}"
    return full if full in TRACKS else None


class Strict(BaseModel):
    # Deferred: who only asks for help need not wait for the validators.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @model_validator(mode="after")
    def within_64_bits(self) -> Self:
        """Refuse integers that float64 arithmetic could not take; a string may hold one, too."""
        integers = {name: value for name, value in self if isinstance(value, int)}
        beyond = [name for name, value in integers.items() if abs(value) >= 1 << 63]
        if beyond:
            raise ValueError(f"{', '.join(beyond)}: expected integers of 64 bits")
        return self


class Environment(Strict):
    """Where a seed ran. None means: not stated, or no such thing on that machine."""

    python: str | None = None
    torch: str | None = None
    cuda: str | None = None
    driver: str | None = None
    gpu: str | None = Field(None, description="name of the GPU model")
    gpus: int | None = Field(None, ge=0, description="GPUs visible to the run")
    cpu: str | None = None
    cores: int | None = Field(None, ge=1)
    platform: str | None = None
    git_commit: str | None = Field(None, description="commit of the working tree that trained")
    world_size: int | None = Field(None, ge=1, description="number of ranks")
    packages: dict[str, str] = Field(
        default_factory=dict, description="further packages that the author names, with versions"
    )


class Data(Strict):
    """What was trained on and scored, bound by hashes.

    Scores with different `version` are never put on one board.
    """

    corpus: str
    version: Sha256 = Field(description="sha256 over the ordered documents of both splits")
    dataset: str
    tokenizer_sha256: Sha256
    train_tokens: int = Field(ge=1)
    val_tokens: int = Field(ge=2, description="tokens of the validation stream, BOS included")
    val_bytes: int = Field(
        ge=1, description="UTF-8 bytes of the validation documents before any normalisation"
    )
    train_files: int = Field(ge=1)
    manifest_sha256: Sha256 | None = None
    xz_bytes: int | None = Field(
        None, ge=1, description="size of the validation bytes under xz -9e, for scale"
    )


class RunConfig(Strict):
    preset: str | None = Field(
        None, description="named preset of the script; None for scripts without presets"
    )
    sha256: Sha256 = Field(description="canonical JSON of every setting but seed, data_dir and out")
    overrides: list[str] = Field(
        default_factory=list,
        description="settings that differ from the preset, as `name=value`, seed excluded",
    )


class SeedResult(Strict):
    """One training run.

    Losses in nats per token, bpb in bits per source byte, sizes in bytes, times in seconds.
    """

    val_loss: float | None = Field(None, ge=0)
    val_bpb: float | None = Field(None, ge=0)
    nats: float | None = Field(
        None, ge=0, description="sum of the negative log-likelihoods over the scored tokens"
    )
    scored_tokens: int | None = Field(None, ge=1)
    scored_bytes: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=0)
    train_s: float | None = Field(None, ge=0)
    eval_s: float | None = Field(None, ge=0)
    step_avg_ms: float | None = Field(None, ge=0)
    parameters: int | None = Field(None, ge=0)
    artifact_bytes: int | None = Field(None, ge=0)
    artifact_sha256: Sha256 | None = None
    artifact: str | None = Field(
        None, description="file in the folder, on tracks that commit artifacts"
    )
    bytes_total: int | None = Field(None, ge=0, description="code + artifact of this seed")
    pre_quant_val_loss: float | None = Field(None, ge=0)
    pre_quant_val_bpb: float | None = Field(None, ge=0)
    neural_val_loss: float | None = Field(
        None, ge=0, description="the model alone, without n-gram mixing or adaptation"
    )
    neural_val_bpb: float | None = Field(None, ge=0)
    log: str | None = None
    log_sha256: Sha256 | None = None
    environment: Environment | None = Field(
        None, description="only where it differs from the record's"
    )


# What a folder written by `pack` always states; an imported record may lack any of it.
PACKED_FIELDS = (
    "author",
    "github_id",
    "name",
    "date",
    "track",
    "rules_version",
    "val_loss",
    "val_bpb",
    "bytes_total",
    "bytes_code",
    "bytes_artifact",
    "code_sha256",
    "config",
    "data",
    "environment",
)

PACKED_SEED_FIELDS = (
    "val_loss",
    "val_bpb",
    "nats",
    "scored_tokens",
    "scored_bytes",
    "steps",
    "train_s",
    "eval_s",
    "artifact_bytes",
    "artifact_sha256",
    "bytes_total",
    "log",
    "log_sha256",
)


class Submission(Strict):
    """One record.

    `val_*` are means over all seeds, `bytes_total` and `bytes_artifact` the largest seed's.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    origin: Literal["packed", "imported"]
    author: str | None = None
    github_id: str | None = None
    name: str | None = Field(None, min_length=1)
    blurb: str = ""
    date: Date | None = None
    track: str | None = None
    rules_version: str | None = Field(
        None, description="rule set of the referee that the record was made under"
    )
    base_record: str | None = Field(
        None, description="folder name of the record that this one builds on"
    )
    val_loss: float | None = Field(None, ge=0)
    val_bpb: float | None = Field(None, gt=0)
    val_loss_std: float | None = Field(
        None, ge=0, description="sample standard deviation over the seeds, n - 1"
    )
    val_bpb_std: float | None = Field(None, ge=0)
    bytes_total: int | None = Field(None, ge=0)
    bytes_code: int | None = Field(None, ge=0)
    bytes_artifact: int | None = Field(None, ge=0)
    code_sha256: Sha256 | None = None
    seeds: list[int] = Field(default_factory=list)
    seed_results: dict[str, SeedResult] = Field(default_factory=dict)
    config: RunConfig | None = None
    data: Data | None = None
    environment: Environment | None = None
    stated: dict[str, float] = Field(
        default_factory=dict,
        description="imported: aggregates by public key, recomputed by `check`",
    )
    notes: dict[str, str] = Field(
        default_factory=dict, description="imported: free text by its public key"
    )
    unknown: dict[str, JsonValue] = Field(
        default_factory=dict, description="imported: keys that the importer has no name for"
    )

    @model_validator(mode="after")
    def _complete(self) -> "Submission":
        if self.origin == "imported":
            return self
        if list(self.seed_results) != [str(seed) for seed in self.seeds]:
            raise ValueError(
                f"seeds {self.seeds} and the keys of seed_results {list(self.seed_results)} differ"
            )
        missing = self._missing()
        if missing or not self.seeds:
            raise ValueError(f"a packed record states {', '.join(missing) or 'at least one seed'}")
        if self.stated or self.notes or self.unknown:
            raise ValueError("stated, notes and unknown belong to imported records")
        if self.track not in TRACKS:
            raise ValueError(f"track is one of {', '.join(TRACKS)}, found {self.track!r}")
        return self

    def _missing(self) -> list[str]:
        """Fields that a packed record has to state and this one does not."""
        missing = [name for name in PACKED_FIELDS if getattr(self, name) is None]
        for seed, result in self.seed_results.items():
            for name in PACKED_SEED_FIELDS:
                if getattr(result, name) is None:
                    missing.append(f"seed_results.{seed}.{name}")
        return missing


def json_schema() -> dict[str, Any]:
    """JSON Schema of `submission.json`, draft 2020-12.

    Packed records are complete: an if/then of the schema says what the validator enforces.
    """
    schema = Submission.model_json_schema()
    packed = {"properties": {"origin": {"const": "packed"}}}
    not_null = {"not": {"type": "null"}}
    stated = dict.fromkeys(PACKED_FIELDS, not_null)
    seed = {
        "required": list(PACKED_SEED_FIELDS),
        "properties": dict.fromkeys(PACKED_SEED_FIELDS, not_null),
    }
    then = {
        "required": [*PACKED_FIELDS, "seeds", "seed_results"],
        "properties": stated
        | {
            "seeds": {"minItems": 1},
            "track": {"enum": list(TRACKS)},
            "seed_results": {"minProperties": 1, "additionalProperties": seed},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "if": packed,
        "then": then,
    }


def dump_submission(submission: Submission) -> str:
    """JSON text with a fixed key order; None and empty tables are left out."""
    fields = _without_empty(submission.model_dump(mode="json", exclude_none=True))
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _without_empty(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_empty(inner) for key, inner in value.items() if inner != {}}


def allowed_difference(claim: float, relative: float) -> float:
    """How far a score may lie from a claimed val_bpb, in bits per byte.

    `relative` is a share of the claim. Half a unit of the last of its 8 decimals comes on top.
    """
    return relative * claim + 5e-9


def mean(values: list[float]) -> float:
    """Mean to 8 decimals, the precision of the logs' result lines.

    So a printed mean and its recomputation agree to the last digit.
    """
    return round(statistics.fmean(values), 8)


def sd(values: list[float]) -> float | None:
    """Sample standard deviation (n - 1) to 8 decimals; None for fewer than two values."""
    return round(statistics.stdev(values), 8) if len(values) > 1 else None
