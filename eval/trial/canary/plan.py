"""Chooses a script's settings for a small run, and others after a run that failed.

Own settings of the record come first, then small values from the table, then what the user gives.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from eval.trial.canary.knobs import Knobs
from eval.trial.canary.table import (
    HEAD_NAMES,
    KV_NAMES,
    LAYER_COUNTS,
    LAYER_NAMES,
    LAYER_NUMBERS,
    Family,
    Rule,
    Sizes,
    as_number,
    first_number,
    rule_for,
)

MOST_TRIES = 5
SMALLEST_STRIDE_OF_WINDOWS = 16  # below, a stride is about something else
# What may keep a script from scoring all of the stream, if the referee makes it smaller.
BOUNDS_OF_EVALUATION = (Family.CLOCK, Family.EVALUATION)
RECORD = "record"
SMALL = "small"
GIVEN = "given"


@dataclass(frozen=True)
class Setting:
    """One setting of a run. `own` is the script's or record's value, None where not known.

    `origin` says who chose it: the record's own command, the table of small values, or the user.
    `option` is the flag where it goes to the command line.
    """

    name: str
    value: str
    own: str | None
    origin: str
    option: str | None = None


@dataclass(frozen=True)
class Plan:
    """The settings of one try, and what led to it.

    `own` are the record's settings, `given` the user's, `fitted` those that fit the data of the
    run. `tokens` are the targets of the whole stream, of which 1 / `shorter` is used. `ranks` is
    the number of ranks that the script asked for, None where it did not.
    `released` are the families that keep their own values since an earlier try failed. `remedies`
    are the changes since the first try, `reasons` the same with the failures that led to them.
    """

    knobs: Knobs
    own: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    fitted: Mapping[str, str] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=Sizes)
    tokens: int = 1 << 15
    shorter: int = 1
    ranks: int | None = None
    released: frozenset[Family] = frozenset()
    remedies: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def targets(self) -> int:
        return self.tokens // self.shorter

    @property
    def shortened(self) -> bool:
        """Whether the referee itself may be why a part of the stream is not scored."""
        changed = [setting.name for setting in self.settings if setting.origin != RECORD]
        return self.shorter > 1 or any(_family(name) in BOUNDS_OF_EVALUATION for name in changed)

    @property
    def shortest_clock(self) -> float | None:
        """Seconds of the script's shortest limit of an evaluation, None where it has none.

        On a slow machine a limit of its own may end it too."""
        chosen = {setting.name: setting.value for setting in self.settings}
        constants = {name: value for name, (value, _) in self.knobs.constants.items()}
        values = {**constants, **self._own_values(), **chosen}
        clocks = [
            as_number(value) for name, value in values.items() if _family(name) is Family.CLOCK
        ]
        return min((clock for clock in clocks if clock is not None and clock > 0), default=None)

    @property
    def with_all_of_the_evaluation(self) -> "Plan":
        """The same plan with nothing that could keep the script from scoring the stream."""
        released = self.released.union(BOUNDS_OF_EVALUATION)
        return replace(self, shorter=1, released=released, reasons=())

    @property
    def settings(self) -> tuple[Setting, ...]:
        """All that is set, by name."""
        chosen = {setting.name: setting for setting in self._chosen()}
        return tuple(chosen[name] for name in sorted(chosen))

    @property
    def variables(self) -> dict[str, str]:
        """What goes into the environment."""
        return {s.name: s.value for s in self.settings if s.option is None}

    @property
    def arguments(self) -> tuple[str, ...]:
        """What goes to the command line."""
        words: list[str] = []
        for setting in self.settings:
            if setting.option is not None:
                words += [setting.option, setting.value]
        return tuple(words)

    @property
    def fixed(self) -> tuple[str, ...]:
        """Sizes that the script holds as constants, so that nothing can make them smaller."""
        found = []
        for name, (value, line) in self.knobs.constants.items():
            rule = rule_for(name)
            if rule is not None and rule.size and self._smaller(rule, value) != value:
                found.append(f"{name.lower()} = {value} (line {line})")
        return tuple(found)

    def _chosen(self) -> Iterator[Setting]:
        known = self._own_values()
        for name, value in self.own.items():
            yield Setting(name, value, self.knobs.default(name), RECORD)
        for name, knob in (self.knobs.variables | self.knobs.options).items():
            value = self._small_value(name, known)
            if value is not None and value != known.get(name):
                yield Setting(name, value, known.get(name), SMALL, knob.option)
        for name in self.knobs.mentioned - known.keys():
            rule = rule_for(name)
            if rule is not None and rule.exactly and rule.family not in self.released:
                yield Setting(name, self._size(rule), None, SMALL)
        for name, value in self.fitted.items():
            yield Setting(name, value, known.get(name), SMALL, self._option(name))
        for name, value in self.given.items():
            yield Setting(name, value, known.get(name), GIVEN, self._option(name))

    def _own_values(self) -> dict[str, str | None]:
        """What the record would run with, by the settings' names."""
        found = {name: knob.default for name, knob in self.knobs.variables.items()}
        found |= {name: knob.default for name, knob in self.knobs.options.items()}
        return found | self.own

    def _option(self, name: str) -> str | None:
        return self.knobs.options[name].option if name in self.knobs.options else None

    def _small_value(self, name: str, known: Mapping[str, str | None]) -> str | None:
        """A value for a quick run, None where the setting keeps its own."""
        own = known.get(name)
        rule = rule_for(name)
        if rule is not None:
            if rule.family in self.released:
                return None
            if name in KV_NAMES and first_number(HEAD_NAMES, known) == as_number(own):
                return str(self.sizes.heads)
            return self._smaller(rule, own)
        if LAYER_NUMBERS.fullmatch(name) and Family.DEPTH not in self.released:
            return self._layers_in_range(name, own, known)
        return None

    def _smaller(self, rule: Rule, own: str | None) -> str | None:
        """The rule's size where the own value is above it. None for a value that is no number."""
        number = as_number(own)
        if rule.share is not None:
            return None if number is None else f"{number * rule.share:g}"
        size = self._size(rule)
        if number is None:
            return size if rule.exactly and not own else None
        if number <= 0:
            return own
        if rule.size == "stride" and SMALLEST_STRIDE_OF_WINDOWS <= number < self.sizes.least_stride:
            return str(self.sizes.least_stride)
        if rule.exactly and rule.family is Family.WIDTH:
            return size  # heads and width fit each other, whatever the own ones are
        return own if number <= float(size) else size

    def _size(self, rule: Rule) -> str:
        return str(getattr(self.sizes.for_stream(self.targets), rule.size))

    def _layers_in_range(
        self, name: str, own: str | None, known: Mapping[str, str | None]
    ) -> str | None:
        """The numbers of layers in `own` as they lie in the smaller stack."""
        layers = first_number(LAYER_NAMES, known)
        if not own or not re.fullmatch(r"\d+(?:,\d+)*", own) or not layers:
            return None
        numbers = [int(text) for text in own.split(",")]
        small = self.sizes.layers
        if LAYER_COUNTS.fullmatch(name) or layers <= small:
            return own if len(numbers) > 1 else str(min(numbers[0], small))
        placed = [min(int(number * small / layers), small - 1) for number in numbers]
        return ",".join(map(str, dict.fromkeys(placed)))


def _family(name: str) -> Family | None:
    rule = rule_for(name)
    return None if rule is None else rule.family


# --- Another choice after a failure ---


@dataclass(frozen=True)
class Remedy:
    """A change of the plan, and the pattern of failures that ask for it.

    `release` is a family that goes back to its own values, `sizes` are other small sizes.
    `shorter` divides the stream. `ranks` is another number of ranks, taken only when asked for.
    `without_own` drops the record's settings: the script's defaults hold.
    """

    name: str
    symptom: str
    release: Family | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    shorter: int = 1
    ranks: int | None = None
    without_own: bool = False

    def applied(self, plan: Plan, reason: str) -> Plan:
        released = plan.released if self.release is None else plan.released | {self.release}
        return replace(
            plan,
            sizes=replace(plan.sizes, **self._sizes(plan)),
            shorter=plan.shorter * self.shorter,
            ranks=self.ranks or plan.ranks,
            own={} if self.without_own else plan.own,
            released=released,
            remedies=(*plan.remedies, self.name),
            reasons=(*plan.reasons, f"{self.name}, after: {reason}"),
        )

    def _sizes(self, plan: Plan) -> Mapping[str, int]:
        """Its sizes; for want of time none grows, and none changes that another failure set."""
        if self.shorter == 1:
            return self.sizes
        earlier = [remedy.sizes for remedy in REMEDIES if remedy.name in plan.remedies]
        needed = set().union(*earlier)
        free = self.sizes.keys() - needed
        return {name: min(self.sizes[name], getattr(plan.sizes, name)) for name in free}

    def helps(self, plan: Plan) -> bool:
        """Whether it would change anything that is set."""
        if self.name in plan.remedies:
            return False
        other_ranks = self.ranks is not None and self.ranks != plan.ranks
        changed = self.applied(plan, "").settings != plan.settings
        return changed or other_ranks or self.shorter > 1


# Failures that no size mends.
HOPELESS = re.compile(
    r"^(?:ModuleNotFound|Import|Syntax|Attribute|NotImplemented|Name|FileNotFound|Permission)Error",
    re.MULTILINE,
)
OUT_OF_TIME = "out of time"
OUT_OF_MEMORY = "out of memory"
# An assertion or an error of its own about the number of ranks, in one line.
ABOUT_RANKS = (
    r"(?i)(?:\bassert\b|(?:error|exception|exit)\b)(?!.*batch).*(?:world_size|nproc|\b8 gpus)"
)
# Where no symptom tells, they are tried in this order.
REMEDIES: tuple[Remedy, ...] = (
    Remedy(
        "a quarter of the stream and smaller sizes",
        f"^{OUT_OF_TIME}|^{OUT_OF_MEMORY}",
        sizes={
            "layers": 2,
            "width": 32,
            "calibration": 1,
            "adaptation_steps": 1,
            "adaptation_epochs": 1,
            "adaptation_sequences": 32,
        },
        shorter=4,
    ),
    Remedy("8 ranks, as in the contest", ABOUT_RANKS, ranks=8),
    Remedy("1 rank", ABOUT_RANKS, ranks=1),
    # A command in a README that nobody ran may name settings with which the script cannot run.
    Remedy("its defaults, not the record's settings", "UnboundLocalError", without_own=True),
    Remedy("its own rhythm of validation", "ZeroDivisionError|by zero", Family.RHYTHM),
    Remedy(
        "its own learning rates", "(?i)\\bnan\\b|\\binf\\b|singular|learning rate", Family.RATES
    ),
    Remedy("its own time limits", "(?i)wallclock|seconds|time.limit", Family.CLOCK),
    Remedy("its own layers", "(?i)layer|index out of range|blocks?\\.", Family.DEPTH),
    Remedy("a stride of 64", "(?i)stride", sizes={"stride": 64, "least_stride": 0}),
    Remedy(
        "width 128 in 4 heads",
        "(?i)head|rope|rotary|divisible|model_dim|group_size|embed_dim|dim|shape",
        sizes={"width": 128, "heads": 4, "kv_heads": 2, "side_width": 32},
    ),
    Remedy(
        "sequences of 512 in batches of 8192",
        "(?i)seq_len|sequence|stride|window|context|batch|grad_accum|chunk",
        sizes={"sequence": 512, "train_batch": 8192},
    ),
    Remedy("its own chunks of evaluation", "(?i)chunk|n_?gram", Family.EVALUATION),
    Remedy("its own adaptation", "(?i)ttt|epoch|adapt|lora", Family.ADAPTATION),
    Remedy("its own calibration", "(?i)calib|hessian|gptq|cholesky", Family.CALIBRATION),
    Remedy("its own width", "(?i)head|rope|rotary|divisible|dim|shape", Family.WIDTH),
    Remedy("its own sequences", "(?i)seq_len|sequence|stride|window|context", Family.SEQUENCE),
)


def retry(plan: Plan, failure: str) -> Plan | None:
    """Another choice after a run that ended with the text `failure`; None when none is left.

    The first remedy is taken that the failure's last lines ask for, else the next one that would
    change a setting. At most MOST_TRIES tries in all.
    """
    tail = failure[-1500:]
    if len(plan.reasons) + 1 >= MOST_TRIES or HOPELESS.search(tail):
        return None
    useful = [remedy for remedy in REMEDIES if remedy.helps(plan)]
    if failure.startswith((OUT_OF_TIME, OUT_OF_MEMORY)):
        useful = [remedy for remedy in useful if remedy.shorter > 1]
    else:
        useful = [remedy for remedy in useful if remedy.shorter == 1]
    asked_for = [remedy for remedy in useful if re.search(remedy.symptom, tail)]
    others = [remedy for remedy in useful if remedy.ranks is None]
    chosen = next(iter([*asked_for, *others]), None)
    if chosen is None:
        return None
    lines = [line.strip() for line in failure.splitlines() if line.strip()]
    return chosen.applied(plan, lines[-1][:200] if lines else "no message")
