"""Reads a public `submission.json`, of any key set, into our schema: one key at a time."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from eval.papers.submission.keys import (
    ENVIRONMENT_FIELDS,
    MILLISECONDS,
    PER_SEED_FIELDS,
    RECORD_FIELDS,
    SEED_FIELDS,
    Fault,
    stated_twice,
)
from eval.papers.submission.schema import SeedResult, Submission, track_named

AGGREGATE = re.compile(
    r"\w+_(?:mean|max|min|std)|(?:mean|std)_\w+|(?:delta|comparison)_\w*(?:bpb|loss|nats)"
)
HARDWARE = re.compile(r"(\d+)\s*[x×]\s*(.+)")
PER_SEED = re.compile(r"(?P<field>\w+?)_(?:per_seed|seed_?(?P<seed>\d{1,12}))")
# 42_aggressive and 42_5pct are several runs of a seed, `note` is none.
NO_SEED = re.compile(r"\d+[_ -]\w*[A-Za-z]\w*|(?!seed)[A-Za-z_ ]+", re.ASCII | re.IGNORECASE)
SEED_STATISTIC = re.compile(r"(mean|avg|average|std|stdev|stddev)")
WRAPPERS = ("results", "metrics")
ALONE = "stated"  # stands for the seed where a public file states values without naming one
LARGEST = 1 << 63  # integers beyond have no place in 64-bit arithmetic


@dataclass
class PublicImport:
    """A public file on its way into our schema.

    `fields` are those of a Submission, `alone` those of a SeedResult whose seed is not named.
    `keys` are the public keys by the path of the field that they fill, `problems` what is wrong
    with a key, `twice` the seeds with two results. `one_seed` is what the key `seed` holds: of
    several seeds it names but one.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    alone: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    stated: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, Any] = field(default_factory=dict)
    keys: dict[tuple[str, ...], str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    twice: list[Fault] = field(default_factory=list)
    one_seed: list[int] = field(default_factory=list)

    @property
    def seed_results(self) -> dict[str, dict[str, Any]]:
        return self.fields.setdefault("seed_results", {})


def import_public(raw: dict[str, Any], track: str | None) -> tuple[Submission, list[Fault]]:
    """Map one public `submission.json` to an imported Submission. Drops nothing in silence.

    `track` is the one that the parent folder names. Also returns what is wrong with each key that
    could not be used, and the seeds that have two results.
    """
    public = PublicImport()
    if track is not None:
        public.fields["track"] = track
    flat = _unwrapped(raw)
    _take_record_fields(public, flat)
    for key, value in flat.items():
        if key in public.keys.values() or value is None:
            continue
        for read in KEY_READERS:
            if read(public, key, value):
                break
        else:
            public.unknown[key] = value
    _place_unnamed_seed(public)
    submission = _validated(public)
    faults = [Fault(key, text) for key, text in public.problems.items()]
    return submission, [*public.twice, *faults]


def _unwrapped(raw: dict[str, Any]) -> dict[str, Any]:
    """The keys of a file that keeps its figures in an object of their own, side by side."""
    flat = dict(raw)
    for wrapper in WRAPPERS:
        inner = flat.get(wrapper)
        if isinstance(inner, dict) and not flat.keys() & inner.keys():
            flat |= flat.pop(wrapper)
    return flat


def _take_record_fields(public: PublicImport, raw: dict[str, Any]) -> None:
    """Fields of the record, each by the first of its keys that states a single value."""
    for name, keys in RECORD_FIELDS.items():
        for key in keys:
            if isinstance(raw.get(key), str | int | float):
                public.fields[name] = raw[key]
                public.keys[name,] = key
                break


def _place_unnamed_seed(public: PublicImport) -> None:
    """Values without a seed belong to the only one; to nobody in particular where there are more.

    Where there is one seed at most, the headline is its score.
    """
    fields = public.fields
    results = fields.get("seed_results", {})
    if public.one_seed:
        fields.setdefault("seeds", public.one_seed)
    if public.alone:
        seeds = fields.get("seeds", [])
        row = dict(public.alone)
        if len(seeds) <= 1 and not results:
            row |= {"val_bpb": fields.get("val_bpb"), "val_loss": fields.get("val_loss")}
        name = str(seeds[0]) if len(seeds) == 1 else ALONE
        fields["seed_results"] = results | {name: row | results.get(name, {})}
    _settle_totals(fields.get("seed_results", {}), fields.get("bytes_total"))


# --- Validation, one key at a time ---


def _validated(public: PublicImport) -> Submission:
    """The Submission without what is impossible; `problems` says why a key was left out."""
    document: dict[str, Any] = {
        **public.fields,
        "origin": "imported",
        "stated": public.stated,
        "notes": public.notes,
        "unknown": public.unknown,
        "environment": public.environment or None,
    }
    _drop_large_integers(public, document, ())
    while True:
        try:
            return Submission.model_validate(document)
        except ValidationError as error:
            for problem in error.errors():
                place = tuple(map(str, problem["loc"]))
                found = f"{problem['input']!r:.40}"
                _drop(public, document, place, f"{problem['msg']}, found {found}")


def _drop_large_integers(public: PublicImport, holder: dict, place: tuple[str, ...]) -> None:
    for key, value in list(holder.items()):
        if isinstance(value, dict):
            _drop_large_integers(public, value, (*place, key))
        elif isinstance(value, int) and abs(value) >= LARGEST:
            del holder[key]
            public.problems[_public_key(public, (*place, key))] = "expected an integer of 64 bits"


def _drop(public: PublicImport, document: dict, place: tuple[str, ...], text: str) -> None:
    """Take the value at a place out of the document, or the innermost one that holds it.

    A place may go on with what the validator calls a type. Where nothing is found all goes, so
    that every call takes something.
    """
    holders = [document]
    for key in place:
        if not isinstance(holders[-1], dict) or key not in holders[-1]:
            break
        holders.append(holders[-1][key])
    depth = len(holders) - 1
    if depth == 0:
        document.clear()
        document["origin"] = "imported"
    else:
        del holders[-2][place[depth - 1]]
    public.problems[_public_key(public, place[: max(depth, 1)])] = text


def _public_key(public: PublicImport, place: tuple[str, ...]) -> str:
    """What the author calls the value at a place of our schema."""
    if not place:
        return "submission.json"
    if place in public.keys:
        return public.keys[place]
    if place[0] in ("seed_results", "environment") and ("alone", place[-1]) in public.keys:
        return public.keys["alone", place[-1]]
    if place[0] in ("unknown", "stated", "notes") and len(place) > 1:
        return ".".join(place[1:])
    return ".".join(place)


# --- Readers of one kind of key each: whether they took the value ---


def _take_date(public: PublicImport, key: str, value: Any) -> bool:
    if key != "date" or not isinstance(value, str):
        return False
    public.fields["date"] = value[:10]  # some files carry a timestamp
    return True


def _take_track(public: PublicImport, key: str, value: Any) -> bool:
    """The folder decides; a track that nobody knows is a remark of the author's."""
    if key != "track" or not isinstance(value, str):
        return False
    known = track_named(value)
    if public.fields.setdefault("track", known) != known:
        public.notes[key] = value
    elif known is None:
        del public.fields["track"]
        public.notes[key] = value
    return True


def _take_seeds(public: PublicImport, key: str, value: Any) -> bool:
    """`seeds` is a list of numbers or of results, or holds the results by seed."""
    if key != "seeds" or not isinstance(value, list | dict):
        return False
    rows = _rows_by_seed(public, key, value)
    if rows is not None:
        numbers = _take_rows(public, key, rows)
    elif isinstance(value, list) and not any(isinstance(seed, list | dict) for seed in value):
        numbers = _seed_numbers(public, key, value)
    else:
        return False
    if numbers:
        public.fields["seeds"] = numbers
    return True


def _take_one_seed(public: PublicImport, key: str, value: Any) -> bool:
    if key != "seed" or not isinstance(value, int | str):
        return False
    public.one_seed = _seed_numbers(public, key, [value])
    return True


def _take_seed_results(public: PublicImport, key: str, value: Any) -> bool:
    if key not in ("seed_results", "results_by_seed", "per_seed", "per_seed_results"):
        return False
    rows = _rows_by_seed(public, key, value)
    if rows is None:
        return False
    numbers = _take_rows(public, key, rows)
    if numbers:
        public.fields.setdefault("seeds", numbers)
    return True


def _take_value_per_seed(public: PublicImport, key: str, value: Any) -> bool:
    """`val_bpb_per_seed` holds values by seed, `val_bpb_seed42` is the value of one."""
    match = PER_SEED.fullmatch(key)
    name = _seed_field(match["field"]) if match else None
    if name is None:
        return False
    if match["seed"]:
        values = {match["seed"]: value}
    elif isinstance(value, dict):
        values = {seed_key(seed): inner for seed, inner in value.items()}
    else:
        return False
    if not all(seed.isdecimal() for seed in values):
        return False
    for seed, inner in values.items():
        public.seed_results.setdefault(seed, {})[name] = inner
        public.keys["seed_results", seed, name] = key
    seeds = public.fields.setdefault("seeds", [])
    seeds += [int(seed) for seed in values if int(seed) not in seeds]
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
    return known and _take_alone(public, "artifact_bytes", key, value)


def _take_package(public: PublicImport, key: str, value: Any) -> bool:
    """`NAME_version` of a package that has no field of its own."""
    own_field = key in ENVIRONMENT_FIELDS
    if own_field or not key.endswith("_version") or not isinstance(value, str):
        return False
    packages = public.environment.setdefault("packages", {})
    packages[key.removesuffix("_version")] = value
    return True


def _take_seed_field(public: PublicImport, key: str, value: Any) -> bool:
    name = SEED_FIELDS.get(key)
    return name is not None and _take_alone(public, name, key, value)


def _take_alone(public: PublicImport, name: str, key: str, value: Any) -> bool:
    """A value of the seed that is not named; a list of several is nobody's."""
    if isinstance(value, list | dict) or name in public.alone:
        return False
    public.alone[name] = value
    public.keys["alone", name] = key
    return True


def _take_environment(public: PublicImport, key: str, value: Any) -> bool:
    name = ENVIRONMENT_FIELDS.get(key)
    if name is None or isinstance(value, list | dict):
        return False
    public.environment.setdefault(name, value)
    public.keys["environment", name] = key
    return True


def _take_aggregate(public: PublicImport, key: str, value: Any) -> bool:
    if not AGGREGATE.fullmatch(key) or not isinstance(value, int | float):
        return False
    public.stated[key] = value
    return True


def _take_note(public: PublicImport, key: str, value: Any) -> bool:
    if isinstance(value, str):
        public.notes[key] = value
    return isinstance(value, str)


# In this order: the first reader that takes a value has it.
KEY_READERS: tuple[Callable[[PublicImport, str, Any], bool], ...] = (
    _take_date,
    _take_track,
    _take_seeds,
    _take_one_seed,
    _take_seed_results,
    _take_value_per_seed,
    _take_hardware,
    _take_artifact_bytes,
    _take_package,
    _take_seed_field,
    _take_environment,
    _take_aggregate,
    _take_note,
)


# --- Seeds ---


def seed_key(text: str) -> str:
    """`42` of `42`, ` 42` and `seed_42`."""
    return re.sub(r"^\s*seed[_ -]?", "", text).strip()


def _seed_numbers(public: PublicImport, key: str, seeds: list | dict) -> list[int]:
    """The seeds as integers; none of them where one is impossible."""
    try:
        numbers = [int(seed_key(seed) if isinstance(seed, str) else seed) for seed in seeds]
    except (TypeError, ValueError, OverflowError):
        public.problems[key] = f"expected integers, found {seeds!r:.80}"
        return []
    if isinstance(seeds, dict) and len(set(numbers)) < len(numbers):
        public.problems[key] = f"expected every seed once, found {list(seeds)!r:.80}"
        return []
    return numbers


def _rows_by_seed(public: PublicImport, key: str, value: Any) -> dict[str, Any] | None:
    """Results by the name of the seed; None for a value that holds none, or results by settings.

    Of two results of a seed the last one counts, as of two values of a key.
    """
    if isinstance(value, dict):
        named = [name for name in value if not SEED_STATISTIC.fullmatch(name.lower())]
        return None if any(NO_SEED.fullmatch(name) for name in named) else value
    if not isinstance(value, list):
        return None
    named = [row for row in value if isinstance(row, dict) and "seed" in row]
    if not value or len(named) < len(value):
        return None
    rows: dict[str, Any] = {}
    for row in named:
        seed = str(row["seed"])
        result = _without_seed(row)
        if seed in rows:
            public.twice.append(stated_twice(f"{key}.{seed}", rows[seed], result))
        rows[seed] = result
    return rows


def _without_seed(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seed"}


def _take_rows(public: PublicImport, key: str, rows: dict[str, Any]) -> list[int]:
    """Take results by seed, statistics among them; returns the seeds.

    What has no name in our schema goes to `unknown` as `KEY.SEED.field`.
    """
    results = {}
    for name, value in rows.items():
        statistic = SEED_STATISTIC.fullmatch(name.lower())
        if statistic is None:
            results[name] = value
        elif isinstance(value, int | float):
            kind = "std" if name.lower().startswith("st") else "mean"
            public.stated[f"val_bpb_{kind}"] = value
        else:
            public.unknown[f"{key}.{name}"] = value
    numbers = _seed_numbers(public, key, results)
    if numbers:
        for name, value in results.items():
            seed = str(int(seed_key(name)))
            public.seed_results[seed] = _row(public, key, seed, value)
    return numbers


def _row(public: PublicImport, key: str, seed: str, value: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    values = value if isinstance(value, dict) else {"val_bpb": value}
    for inner, stated in values.items():
        name = _seed_field(inner)
        scalar = isinstance(stated, str | int | float)
        if name is None or name in row or not scalar:
            if stated is not None:
                public.unknown[f"{key}.{seed}.{inner}"] = stated
            continue
        seconds = inner in MILLISECONDS and isinstance(stated, int | float)
        row[name] = stated / 1000 if seconds else stated
        public.keys["seed_results", seed, name] = f"{key}.{seed}.{inner}"
    return row


def _seed_field(key: str) -> str | None:
    """The field of a SeedResult that a public key names."""
    named = SEED_FIELDS | MILLISECONDS | PER_SEED_FIELDS
    name = named.get(key, key)
    return name if name in SeedResult.model_fields and name != "environment" else None


def _settle_totals(seed_results: dict[str, Any], bytes_total: Any) -> None:
    """Tell totals from weights: public files call either of them `artifact_bytes`.

    If the record's `bytes_total` lies within the range of the seeds' values, they are totals.
    Weights alone would all be smaller, by the size of the code.
    """
    alone = seed_results.get(ALONE, {})
    if len(seed_results) > 1 and alone.get("artifact_bytes") == bytes_total is not None:
        alone["bytes_total"] = alone.pop("artifact_bytes")
    rows = [row for seed, row in seed_results.items() if seed != ALONE or len(seed_results) == 1]
    rows = [row for row in rows if row.get("artifact_bytes") is not None]
    sizes = [row["artifact_bytes"] for row in rows]
    all_integers = all(isinstance(size, int) for size in (*sizes, bytes_total))
    if sizes and all_integers and min(sizes) <= bytes_total <= max(sizes):
        for row in rows:
            size = row.pop("artifact_bytes")
            row.setdefault("bytes_total", size)
