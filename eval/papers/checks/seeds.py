"""Checks of the logs: complete, one for each seed, and of one experiment."""

from collections.abc import Iterator

from eval.papers.checks.provenance import without_a_run, written_by_hand
from eval.papers.checks.report import (
    Check,
    Evidence,
    Severity,
    cannot_tell,
    cite,
    cite_scores,
    fails,
    passes,
    say,
)
from eval.papers.folder import Record
from eval.papers.logs.choice import Group, seed_called_so, seed_of
from eval.papers.logs.log import Log

# Facts that all seeds of one record share, by what a report calls them.
SHARED_FACTS = {
    "parameters": "model.parameters",
    "world_size": "env.world_size",
    "code_bytes": "result.code_bytes",
    "torch": "env.torch",
    "training precision": "env.train_dtype",
    "dataset": "data.dataset",
    "data version": "data.version",
    "tokenizer": "data.tokenizer_sha256",
    "val_tokens": "data.val_tokens",
    "train shards": "data.train_files",
    "config": "config.sha256",
    "source": "source.sha256",
}
LONGEST_VALUE = 40  # characters of a shared fact in a check's detail


def check_logs(record: Record) -> Iterator[Check]:
    """Every log of the record is complete and does not contradict itself."""
    if not record.logs:
        yield cannot_tell("log", "no training log in the folder, so nothing proves the number")
        return
    clean = []
    for name, log in record.chosen.items():
        if written_by_hand(log) or without_a_run(log):
            continue  # which is told where the origin of the logs is
        if not log.shows_a_run:
            yield cannot_tell("log", f"{name}: {log.problems[0]}", Evidence(file=log.file))
        elif log.problems:
            yield fails("log", f"{name}: {log.problems[0]}", Evidence(file=log.file))
        elif log.doubts:
            detail = f"{name}: {log.doubts[0]}"
            yield cannot_tell("log", detail, Evidence(file=log.file), severity=Severity.EXPLAIN)
        else:
            clean.append(name)
    if clean:
        detail = f"{len(clean)} complete log(s): {', '.join(clean)} ({record.choice.why})"
        for name, other in record.duplicates.items():
            detail += f"; {name} is a byte-identical copy of {other}"
        yield passes("log", detail)


def check_seeds(record: Record) -> Iterator[Check]:
    """Each stated seed has one log, and no log is of another seed."""
    if not record.logs:
        return
    chosen = record.chosen
    misnamed = _misnamed(chosen)
    silent = [name for name, log in chosen.items() if seed_of(log) is None]
    known = sorted({seed_of(log) for log in chosen.values()} - {None})
    yield from misnamed
    if silent:
        unknown = f"no seed in {', '.join(silent)}"
        yield cannot_tell("seeds", unknown, severity=Severity.EXPLAIN)
    if len(known) < len(chosen) - len(silent):
        detail = (
            f"{len(chosen)} different logs, but only the seeds {known}: "
            "one seed was run more than once"
        )
        yield cannot_tell("seeds", detail, severity=Severity.EXPLAIN)
    yield from _further_runs(record)
    stated = record.submission.seeds if record.submission else []
    difference = _seed_difference(record, stated, bool(silent)) if stated else None
    if difference is not None:
        yield difference
    elif known and not misnamed and not silent:
        said = "as stated" if stated else "submission.json names none"
        lines = [_seed_line(log) for log in chosen.values()]
        yield passes("seeds", f"{_listed(known)} ({said})", *lines)


def _further_runs(record: Record) -> Iterator[Check]:
    """Runs of a seed beside the one that counts, which was perhaps chosen for its score."""
    worse = {}
    for log in record.chosen.values():
        own = record.score(log)
        for name, group in record.groups.items():
            other = record.logs[name]
            rerun = group is Group.RERUN and seed_of(other) == seed_of(log) is not None
            score = record.score(other) if rerun else None
            if own is not None and score is not None and score.val_bpb > own.val_bpb:
                worse[name] = score
    if worse:
        detail = f"further runs of the same seeds have worse scores: {', '.join(worse)}"
        lines = cite_scores(record, worse)
        yield cannot_tell("seeds", detail, *lines, severity=Severity.EXPLAIN)


def _seed_line(log: Log) -> Evidence:
    """Where a log states its seed: in a line, else in its name."""
    fact = log.facts.get("result.seed")
    return Evidence(file=log.file) if fact is None else cite(log, fact)


def _misnamed(logs: dict[str, Log]) -> list[Check]:
    """A complaint about each log whose name states another seed."""
    complaints = []
    for name, log in logs.items():
        stated = seed_called_so(name)
        if log.seed is not None and stated not in (None, log.seed):
            line = cite(log, log.facts["result.seed"])
            detail = f"{name} is a log of seed {log.seed}; seed {stated} was never run"
            complaints.append(fails("seeds", detail, line))
    return complaints


def _seed_difference(record: Record, stated: list[int], some_silent: bool) -> Check | None:
    """The first difference between the stated seeds and those of the logs."""
    named = {seed_called_so(name) for name in record.chosen}  # of misnamed logs, told already
    lost = sorted(set(stated) - set(record.by_seed) - named)
    if lost:
        verdict = cannot_tell if some_silent else fails
        return verdict("seeds", f"no log for seed {_listed(lost)}", say(record, "seeds"))
    left_out = [*record.chosen, *record.choice.siblings]
    well_named = [name for name in left_out if seed_called_so(name) not in stated]
    logged = {seed_of(record.logs[name]) for name in well_named} - {None}
    extra = sorted(logged - set(stated))
    if not extra:
        return None
    detail = f"log of seed {_listed(extra)}, which submission.json leaves out"
    # Where the headline holds it as well, only the list is short.
    severity = Severity.BLOCKING if record.choice.siblings else Severity.EXPLAIN
    return fails("seeds", detail, say(record, "seeds"), severity=severity)


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def check_comparable(record: Record) -> Iterator[Check]:
    """Seeds of one record share code, settings, data and machine shape; the seed alone differs."""
    if not record.logs:
        return
    same = []
    for label, key in SHARED_FACTS.items():
        facts = {name: log.facts[key] for name, log in record.chosen.items() if key in log.facts}
        values = sorted({fact.value for fact in facts.values()})
        if len(values) > 1:
            lines = [cite(record.logs[name], fact) for name, fact in facts.items()]
            detail = f"the logs differ in {label}: {', '.join(values)}"
            yield fails("comparable", detail, *lines)
        elif values:
            same.append(f"{label} {values[0][:LONGEST_VALUE]}")
    if len(record.chosen) > 1:
        yield passes("comparable", f"all {len(record.chosen)} logs: {', '.join(same)}")
