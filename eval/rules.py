"""Rule sets of the referee: named, versioned files under rulesets/.

So a verdict can be repeated, and a policy can be argued about.
"""

from enum import StrEnum
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from eval.errors import UserError

RULESETS = Path(__file__).resolve().parent / "rulesets"
CURRENT = "2026-12"


class Verdict(StrEnum):
    """Every verdict that a test of an audit or a check of the papers can give."""

    PASS = "PASS"
    NOT_RUN = "NOT RUN"
    INCOMPLETE = "INCOMPLETE"
    WARN = "WARN"
    POLICY = "POLICY"
    INVALID = "INVALID"
    FAIL = "FAIL"
    CANNOT_TELL = "CANNOT-TELL"


class Section(BaseModel):
    # Deferred: most commands want the verdicts alone, and no rule set.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Policy(Section):
    document_isolation: bool
    require_all_seeds: bool
    p_value: float
    improvement_nats: float


class ScoreTolerance(Section):
    relative_same_machine: float
    relative_elsewhere: float
    negative_nats: float


class Tolerance(Section):
    sum: float
    exact: float
    noise_factor: float
    noise_p95: float
    noise_limit: float
    noise_max: float
    noise_mean: float
    noise_bfloat16: float
    canary_bits: float
    fresh_bpb: float
    fresh_opening_bpb: float
    fresh_outside_bpb: float
    fresh_z: float


class LimitValues(Section):
    wall_seconds: float
    wall_factor: float
    memory_gib: int
    processes: int


class Packages(Section):
    visible: list[str]
    compilers: list[str]


class Profile(Section):
    late_splices: int
    tail_cut: bool
    probes: int
    pairs: int
    pair_tokens: int
    tiny_pairs: int
    dense_tokens: int
    sweeps: int
    sweep_limit: int
    fresh_tokens: int
    generator_tokens: int
    bursts: int = 0  # a rule set from before they were there has none


class Rules(Section):
    """One rule set. Comments in the file say why each value is what it is."""

    name: str
    policy: Policy
    score: ScoreTolerance
    tolerance: Tolerance
    limits: LimitValues
    packages: Packages
    profile: dict[str, Profile]


@cache
def load_rules(name: str = CURRENT) -> Rules:
    """Raises UserError for a rule set that does not exist or does not follow the schema."""
    import tomllib

    path = RULESETS / f"{name}.toml"
    try:
        rules = Rules.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in RULESETS.glob("*.toml")))
        raise UserError(f"rules {name!r}: no such rule set; known: {known}") from None
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise UserError(f"{path}: not a rule set: {error}") from None
    if rules.name != name:
        raise UserError(
            f"{path}: expected name {name!r}, found {rules.name!r}; a rule set is named as its file"
        )
    return rules
