"""Which logs are the record's own, and which of their scores the headline is.

A folder may hold the logs of the record's seeds beside reruns, ablations, evaluations and failed
trials, and each log prints several scores. What the record states decides between them, in this
order: its seeds, logs that are named alike, all logs, a log that README names. The label under
which all chosen logs print what the headline is the mean of names the record's score.
"""

import itertools
import math
import re
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from eval.papers.logs.log import Log, LoggedScore

# In a log's name, what says that it is no run of the record.
STUDY_NAME = re.compile(
    r"ablat|_no_|(?:^|_)without|base(?:line)?(?![a-z])|study|sweep|control|variant|exploration"
    r"|smoke|debug|(?:^|_)old",
    re.IGNORECASE,
)
# In the name of its file alone; a run that was stopped early is a whole one.
FAILED_NAME = re.compile(
    r"fail|(?<!early)(?<!early[_-])stopped(?![_-]?early)|abort|crash|(?:^|_)oom|diverge|incomplete",
    re.IGNORECASE,
)
EVALUATION_NAME = re.compile(r"(?:^|[_/])eval|_eval(?:[_.]|$)", re.IGNORECASE)
RERUN_NAME = re.compile(r"rerun|repeat|retry|repro|verif|(?:^|_)run[2-9](?:[_.]|$)", re.IGNORECASE)
SEED_IN_NAME = re.compile(r"seed[_-]?(\d{1,12})", re.IGNORECASE)
# Perhaps a seed, perhaps a step, a stage or a set of settings.
SHORT_SEED_IN_NAME = re.compile(r"(?<![a-z])s[_-]?(\d{1,12})", re.IGNORECASE)
RUN_IN_NAME = re.compile(r"(?<![a-z])(?:v|run|trial)[_-]?\d{1,3}(?!\d)", re.IGNORECASE)
# Facts that are the same in all runs of one experiment.
EXPERIMENT_FACTS = (
    "model.parameters",
    "env.world_size",
    "data.dataset",
    "data.val_tokens",
    "config.max_wallclock_seconds",
    "config.iterations",
    "config.train_seq_len",
    "config.train_batch_tokens",
    "config.sha256",
)
# Labels of figures that are somebody else's, or no score of one model.
FOREIGN_LABEL = re.compile(
    r"compar|leaderboard|baseline|previous|target|\bmin\b|best|sota|threshold|delta|oracle|\bgap\b"
    r"|improve|^\W*seed\W*$",
    re.IGNORECASE,
)
# Labels of scores of the weights before they were quantised.
UNQUANTISED_LABEL = re.compile(
    r"diagnostic|^diag\b|pre[-_ ]?quant|unquant|raw model|^(?:ema|swa)_eval|post_(?:ema|swa|avg"
    r"|average)|fp32|bf16",
    re.IGNORECASE,
)
# Doubt about a score that agrees with the headline.
ARTIFACT_SCORE = 1
ANY_SCORE = 3
MOST_CHOICES = 16  # of a run of each seed: among more, some mean agrees by chance
LAST_OF_LABEL = 3  # scores under one label that are tried, from the last


class Group(StrEnum):
    """What a log is to the record."""

    OWN = "run of the record"
    RERUN = "further run"
    STUDY = "ablation or other experiment"
    EVALUATION = "evaluation only"
    FAILED = "failed trial"


@dataclass(frozen=True)
class Claims:
    """What a record says about its number.

    `headline` in bits per byte; a mean that lies within one of the `tolerances` of it may be it,
    the smallest is tried first. `seeds` as stated, `by_seed` the bits per byte of each of them,
    `named` the sets of logs that README may say the headline is of.
    """

    headline: float | None = None
    tolerances: tuple[float, ...] = (5e-9,)
    seeds: tuple[int, ...] = ()
    by_seed: dict[int, float] = field(default_factory=dict)
    named: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Choice:
    """The record's own logs by name, their scores, and the group of every log.

    `label` is what all of them call the score that the headline is the mean of; None where none
    is. `siblings` are further runs of the same experiment, which a headline from fewer logs
    leaves out. `why` says in one sentence what was chosen.
    """

    own: tuple[str, ...]
    groups: dict[str, Group]
    why: str
    label: str | None = None
    scores: dict[str, LoggedScore] = field(default_factory=dict)
    siblings: tuple[str, ...] = ()
    by_readme: bool = False


@dataclass(frozen=True)
class _Candidate:
    """A set of logs that could be the record's own, and why."""

    names: tuple[str, ...]
    why: str
    by_readme: bool = False
    by_seeds: bool = False

    @property
    def is_stated(self) -> bool:
        return self.by_readme or self.by_seeds


@dataclass(frozen=True)
class _Match:
    """Scores of a candidate's logs, by name, whose mean is the headline."""

    label: str
    scores: dict[str, LoggedScore]
    doubt: int

    @property
    def decimals(self) -> int:
        return min(score.decimals for score in self.scores.values())


def choose(logs: dict[str, Log], claims: Claims) -> Choice:
    """The record's own logs among all of them, by name.

    Scores of the artifact are preferred to others that agree with the headline, exact agreement
    to a rounded one, and logs that leave out no run of their experiment to any choice among runs.
    """
    kinds = _kinds(logs)
    scored = [name for name, kind in kinds.items() if kind is not Group.FAILED]
    candidates = list(_candidates(logs, kinds, scored, claims))
    whole = [c for c in candidates if not _siblings(logs, c, scored, kinds)]
    chosen_few = [c for c in candidates if c not in whole and (c.by_readme or len(c.names) > 1)]
    for doubt in (ARTIFACT_SCORE, ANY_SCORE):
        for sets in (whole, chosen_few):
            for tolerance in claims.tolerances:
                for candidate in sets:
                    found = _matching_label(logs, candidate, claims, tolerance)
                    if found is not None and found.doubt <= doubt:
                        return _choice(logs, kinds, candidate, found)
    return _choice(logs, kinds, _without_match(logs, kinds, candidates, claims), None)


def _without_match(
    logs: dict[str, Log], kinds: dict[str, Group], candidates: list[_Candidate], claims: Claims
) -> _Candidate:
    """The record's own logs where the headline is of none, or of a few of many runs.

    Those of the stated seeds, else the logs that are named like the one that the headline is of,
    else all runs of its experiment.
    """
    if claims.seeds and candidates and candidates[0].by_seeds:
        return candidates[0]
    scored = [name for name, kind in kinds.items() if kind is not Group.FAILED]
    for candidate in candidates:
        found = _matching_label(logs, candidate, claims, claims.tolerances[0])
        if found is not None and found.doubt <= ARTIFACT_SCORE:
            families = {_family(name, logs[name]) for name in candidate.names}
            alike = {name for name in scored if _family(name, logs[name]) in families}
            runs = {*candidate.names, *alike, *_siblings(logs, candidate, scored, kinds)}
            names = tuple(name for name in logs if name in runs)
            return _Candidate(names, f"{_listed(candidate.names)} and its further runs")
    return candidates[0] if candidates else _Candidate(tuple(logs), "all logs")


def _kinds(logs: dict[str, Log]) -> dict[str, Group]:
    """What each log looks like, by its name and content alone.

    Where by their names all have failed, those with a final score have not.
    """
    ended = [name for name, log in logs.items() if log.final is not None]
    failed = {name for name in ended if FAILED_NAME.search(name.rpartition("/")[2])}
    believed = failed if len(failed) < len(ended) else set()
    whole = [name for name in ended if name not in believed]
    return {name: _kind(name, logs[name]) if name in whole else Group.FAILED for name in logs}


def _kind(name: str, log: Log) -> Group:
    """What a log with a final score looks like."""
    if STUDY_NAME.search(name):
        return Group.STUDY
    trained = any(step.train_loss is not None for step in log.steps)
    if not log.native and not trained and EVALUATION_NAME.search(name):
        return Group.EVALUATION
    return Group.RERUN if RERUN_NAME.search(name) else Group.OWN


# --- Candidates ---


def _candidates(
    logs: dict[str, Log], kinds: dict[str, Group], scored: list[str], claims: Claims
) -> Iterator[_Candidate]:
    """Sets of logs that could be the record's own, the likeliest first."""
    seeds = claims.seeds
    if seeds:
        by_seed = _one_for_each_seed(logs, kinds, claims)
        if by_seed:
            why = f"the logs of the stated seeds {_listed(seeds)}"
            yield _Candidate(by_seed, why, by_seeds=True)
    plain = [name for name in scored if kinds[name] is Group.OWN]
    yield from _named_alike(logs, plain or scored)
    if plain:
        yield _Candidate(tuple(plain), "all logs of complete runs" if plain[1:] else "the only log")
    yield from _one_run_for_each_seed(logs, plain)
    for names in claims.named:
        yield _Candidate(names, f"README names {_listed(names)}", by_readme=True)
        if len(names) > 1:
            for name in names:
                yield _Candidate((name,), f"README names {name}", by_readme=True)
    if scored and scored != plain:
        yield _Candidate(tuple(scored), "all logs with a score")
    ended = [name for name, log in logs.items() if log.final is not None]
    if ended != scored:
        yield _Candidate(tuple(ended), "all logs with a score, also those named failed")
    for name in scored:
        yield _Candidate((name,), f"{name} alone")


def _named_alike(logs: dict[str, Log], names: list[str]) -> Iterator[_Candidate]:
    """Logs whose names differ in the seed or the number of the run alone; most of them first."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(_family(name, logs[name]), []).append(name)
    for family in sorted(families.values(), key=len, reverse=True):
        if len(family) > 1:
            yield _Candidate(tuple(family), f"the {len(family)} logs that are named alike")


def _one_run_for_each_seed(logs: dict[str, Log], plain: list[str]) -> Iterator[_Candidate]:
    """One log of each seed, where some seed was run more than once, say with other settings."""
    by_seed: dict[int | None, list[str]] = {}
    for name in plain:
        by_seed.setdefault(seed_of(logs[name]), []).append(name)
    choices = math.prod(map(len, by_seed.values()))
    if None in by_seed or len(by_seed) < 2 or not 1 < choices <= MOST_CHOICES:
        return
    for names in itertools.product(*by_seed.values()):
        yield _Candidate(names, f"a log of each seed {_listed(by_seed)}", by_seeds=True)


def _one_for_each_seed(
    logs: dict[str, Log], kinds: dict[str, Group], claims: Claims
) -> tuple[str, ...]:
    """A log of each stated seed that has one: by its content, else by its name."""
    chosen: list[str] = []
    for seed in claims.seeds:
        names = [name for name, log in logs.items() if log.seed == seed]
        names = names or [name for name in logs if seed_in_name(name) == seed]
        names = [name for name in names if name not in chosen]
        if names:
            chosen.append(min(names, key=lambda name: _preference(logs[name], kinds, claims)))
    return tuple(chosen)


def _preference(log: Log, kinds: dict[str, Group], claims: Claims) -> tuple[bool, int, bool, str]:
    """Orders the logs of one seed: complete runs with the stated score come first."""
    stated = claims.by_seed.get(log.seed)
    as_stated = stated is not None and any(
        abs(score.val_bpb - stated) <= 10.0**-4 for score in log.scores
    )
    order = list(Group).index(kinds[log.name])
    named = seed_in_name(log.name) is not None
    return not as_stated, order, not named, log.name


def _family(name: str, log: Log) -> str:
    """A log's name without its seed or the number of its run."""
    seeds = SEED_IN_NAME if SEED_IN_NAME.search(name) else SHORT_SEED_IN_NAME
    family = RUN_IN_NAME.sub("run", seeds.sub("run", name))
    if log.seed is not None:
        family = re.sub(rf"(?<!\d){log.seed}(?!\d)", "run", family)
    return family.partition("#")[0] if log.run > 1 else family


def seed_in_name(name: str) -> int | None:
    """Seed that a file name states, or perhaps states by an `s` alone."""
    stated = seed_called_so(name)
    if stated is not None:
        return stated
    short = SHORT_SEED_IN_NAME.findall(name.rpartition("/")[2])
    return int(short[-1]) if short else None


def seed_called_so(name: str) -> int | None:
    """Seed that a file name states with the whole word, the last of several."""
    named = SEED_IN_NAME.findall(name.rpartition("/")[2])
    return int(named[-1]) if named else None


def seed_of(log: Log) -> int | None:
    """Seed that a log prints, else the one in its name."""
    return seed_in_name(log.name) if log.seed is None else log.seed


# --- The headline among their scores ---


def _matching_label(
    logs: dict[str, Log], candidate: _Candidate, claims: Claims, tolerance: float
) -> _Match | None:
    """The label, and each log's score under it, whose mean is the headline."""
    if claims.headline is None or not candidate.names:
        return None
    found = []
    for label, scores in common_scores([logs[name] for name in candidate.names]):
        mean = statistics.fmean(score.val_bpb for score in scores)
        if abs(mean - claims.headline) <= tolerance:
            named = dict(zip(candidate.names, scores, strict=True))
            found.append(_Match(label, named, _doubtful(scores[0])))
    return min(found, key=lambda match: (match.doubt, -match.decimals), default=None)


def common_scores(logs: list[Log]) -> Iterator[tuple[str, list[LoggedScore]]]:
    """Each label that all logs print, with their scores under it; the last of each log first."""
    tables = [_by_label(log.scores_in_order) for log in logs]
    for label in tables[0]:
        if not all(label in table for table in tables):
            continue
        shortest = min(len(table[label]) for table in tables)
        for back in range(1, min(shortest, LAST_OF_LABEL) + 1):
            yield label, [table[label][-back] for table in tables]


def _by_label(scores: Iterable[LoggedScore]) -> dict[str, list[LoggedScore]]:
    table: dict[str, list[LoggedScore]] = {}
    for score in scores:
        table.setdefault(score.label, []).append(score)
    return table


def _doubtful(score: LoggedScore) -> int:
    """0 for a score of the artifact, more for others that happen to be printed."""
    if foreign(score):
        return ANY_SCORE
    if unquantised(score):
        return 2
    return 0 if score.measured else ARTIFACT_SCORE


def foreign(score: LoggedScore) -> bool:
    """Whether the label is that of a comparison, or of a choice among several scores."""
    return not score.named_result and FOREIGN_LABEL.search(score.label) is not None


def unquantised(score: LoggedScore) -> bool:
    """Whether the label says that the weights were scored before they were quantised.

    What went through the artifact and back is what was shipped, whatever its precision.
    """
    shipped = "roundtrip" in score.label
    return not shipped and UNQUANTISED_LABEL.search(score.label) is not None


# --- The choice ---


def _siblings(
    logs: dict[str, Log], candidate: _Candidate, scored: list[str], kinds: dict[str, Group]
) -> tuple[str, ...]:
    """Runs of the same experiment that a candidate leaves out.

    What is named an ablation, a rerun or an evaluation is no run of the record. A further log of
    a chosen seed is a rerun, where README or the stated seeds choose the logs, and another
    experiment where it was written by another source.
    """
    own = [logs[name] for name in candidate.names]
    left_out = []
    for name in scored:
        log = logs[name]
        if name in candidate.names or kinds[name] is not Group.OWN:
            continue
        twins = [mine for mine in own if mine.seed == log.seed]
        rerun = bool(twins) and candidate.is_stated
        other = any(_other_source(mine, log) for mine in twins)
        if not rerun and not other and all(same_experiment(log, mine) for mine in own):
            left_out.append(name)
    return tuple(left_out)


def _other_source(a: Log, b: Log) -> bool:
    """Whether two logs show that different scripts wrote them."""
    if None not in (a.source, b.source):
        return a.source != b.source
    sizes = [log.integer("result.code_bytes") for log in (a, b)]
    return None not in sizes and sizes[0] != sizes[1]


def same_experiment(a: Log, b: Log) -> bool:
    """Whether no fact that both logs state tells their experiments apart."""
    for fact in EXPERIMENT_FACTS:
        stated = (a.text(fact), b.text(fact))
        if None not in stated and stated[0] != stated[1] and a.number(fact) != b.number(fact):
            return False
    return True


def _choice(
    logs: dict[str, Log],
    kinds: dict[str, Group],
    candidate: _Candidate,
    found: _Match | None,
) -> Choice:
    own = candidate.names
    seeds = {logs[name].seed for name in own}
    groups = {}
    for name, kind in kinds.items():
        further = kind is Group.OWN and name not in own
        other = not all(same_experiment(logs[name], logs[mine]) for mine in own)
        if name in own:
            groups[name] = Group.OWN
        elif further and other and logs[name].seed in seeds:
            groups[name] = Group.STUDY
        else:
            groups[name] = Group.RERUN if further else kind
    scored = [name for name, kind in kinds.items() if kind is not Group.FAILED]
    return Choice(
        own=own,
        groups=groups,
        why=_sentence(candidate, groups),
        label=found.label if found else None,
        scores=found.scores if found else {},
        siblings=_siblings(logs, candidate, scored, kinds),
        by_readme=candidate.by_readme,
    )


def _sentence(candidate: _Candidate, groups: dict[str, Group]) -> str:
    """`the logs of the stated seeds 1, 2; not counted: a.log (ablation …)`."""
    others = [f"{name} ({group})" for name, group in groups.items() if name not in candidate.names]
    left_out = f"; not counted: {', '.join(others)}" if others else ""
    return candidate.why + left_out


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
