"""Checks of the logs: complete, one for each seed, and of one experiment."""

from collections.abc import Iterator

from eval.papers.checks.report import Check, Evidence, cannot_tell, cite, fails, passes, say
from eval.papers.folder import Record, seed_in_name

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
    """Every log is complete and does not contradict itself."""
    clean = []
    for name, log in record.logs.items():
        if log.problems:
            yield fails("log", f"{name}: {log.problems[0]}", Evidence(file=name))
        else:
            clean.append(name)
    if clean:
        detail = f"{len(clean)} complete log(s): {', '.join(clean)}"
        for name, other in record.duplicates.items():
            detail += f"; {name} is a byte-identical copy of {other}"
        yield passes("log", detail)


def check_seeds(record: Record) -> Iterator[Check]:
    """Each stated seed has one log, and no log is of another seed."""
    if not record.logs:
        return
    misnamed = _misnamed(record)
    silent = [name for name, log in record.logs.items() if log.seed is None]
    yield from misnamed
    if silent:
        yield cannot_tell("seeds", f"no seed in {', '.join(silent)}")
    if len(record.by_seed) < len(record.logs) - len(silent):
        detail = (
            f"{len(record.logs)} different logs, but only the seeds {sorted(record.by_seed)}: "
            "one seed was run more than once"
        )
        yield fails("seeds", detail)
    stated = record.submission.seeds if record.submission else []
    difference = _seed_difference(record, stated) if stated else None
    if difference is not None:
        yield difference
    elif not misnamed and not silent:
        said = "as stated" if stated else "submission.json names none"
        lines = [cite(log, log.facts["result.seed"]) for log in record.logs.values()]
        yield passes("seeds", f"{_listed(sorted(record.by_seed))} ({said})", *lines)


def _misnamed(record: Record) -> list[Check]:
    """A complaint about each log whose name states another seed."""
    complaints = []
    for name, log in record.logs.items():
        if log.seed is not None and seed_in_name(name) not in (None, log.seed):
            line = cite(log, log.facts["result.seed"])
            complaints.append(fails("seeds", f"{name} is a log of seed {log.seed}", line))
    return complaints


def _seed_difference(record: Record, stated: list[int]) -> Check | None:
    """The first difference between the stated seeds and those of the logs."""
    lost = sorted(set(stated) - set(record.by_seed))
    if lost:
        return fails("seeds", f"no log for seed {_listed(lost)}", say(record, "seeds"))
    extra = sorted(set(record.by_seed) - set(stated))
    if extra:
        detail = f"log of seed {_listed(extra)}, which submission.json leaves out"
        return fails("seeds", detail, say(record, "seeds"))
    return None


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def check_comparable(record: Record) -> Iterator[Check]:
    """Seeds of one record share code, settings, data and machine shape; the seed alone differs."""
    if not record.logs:
        return
    same = []
    for label, key in SHARED_FACTS.items():
        facts = {name: log.facts[key] for name, log in record.logs.items() if key in log.facts}
        values = sorted({fact.value for fact in facts.values()})
        if len(values) > 1:
            lines = [cite(record.logs[name], fact) for name, fact in facts.items()]
            detail = f"the logs differ in {label}: {', '.join(values)}"
            yield fails("comparable", detail, *lines)
        elif values:
            same.append(f"{label} {values[0][:LONGEST_VALUE]}")
    if len(record.logs) > 1:
        yield passes("comparable", f"all {len(record.logs)} logs: {', '.join(same)}")
