"""Checks of the logs: complete, one for each seed, and of one experiment."""

from collections.abc import Iterable

from eval.papers.checks.report import Check, Evidence, cannot_tell, cite, fails, passes, say
from eval.papers.folder import Record, seed_in_name
from eval.papers.submission.schema import TRACKS


def check_logs(record: Record) -> Iterable[Check]:
    for name, log in record.logs.items():
        if log.problems:
            yield fails("log", f"{name}: {log.problems[0]}", Evidence(file=name))
    clean = [name for name, log in record.logs.items() if not log.problems]
    if clean:
        copies = "".join(
            f"; {name} is a byte-identical copy of {other}"
            for name, other in record.duplicates.items()
        )
        yield passes("log", f"{len(clean)} complete log(s): {', '.join(clean)}{copies}")


def check_seeds(record: Record) -> Iterable[Check]:
    if not record.logs:
        return
    wrong = [
        (n, log)
        for n, log in record.logs.items()
        if log.seed is not None and seed_in_name(n) not in (None, log.seed)
    ]
    for name, log in wrong:
        yield fails(
            "seeds", f"{name} is a log of seed {log.seed}", cite(log, log.facts["result.seed"])
        )
    silent = [name for name, log in record.logs.items() if log.seed is None]
    if silent:
        yield cannot_tell("seeds", f"no seed in {', '.join(silent)}")
    if len(record.by_seed) < len(record.logs) - len(silent):
        yield fails(
            "seeds",
            f"{len(record.logs)} different logs, but only the seeds {sorted(record.by_seed)}: one seed was run more than once",
        )
    stated = record.submission.seeds if record.submission else []
    logged = sorted(record.by_seed)
    if stated and (lost := sorted(set(stated) - set(logged))):
        yield fails("seeds", f"no log for seed {', '.join(map(str, lost))}", say(record, "seeds"))
    elif stated and (extra := sorted(set(logged) - set(stated))):
        yield fails(
            "seeds",
            f"log of seed {', '.join(map(str, extra))}, which submission.json leaves out",
            say(record, "seeds"),
        )
    elif not wrong and not silent:
        said = "as stated" if stated else "submission.json names none"
        lines = [cite(log, log.facts["result.seed"]) for log in record.logs.values()]
        yield passes("seeds", f"{', '.join(map(str, logged))} ({said})", *lines)


def check_comparable(record: Record) -> Iterable[Check]:
    """Seeds of one record share code, settings, data and machine shape; the seed alone differs."""
    names = {
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
    if not record.logs:
        return
    same = []
    for label, key in names.items():
        facts = {name: log.facts[key] for name, log in record.logs.items() if key in log.facts}
        values = {fact.value for fact in facts.values()}
        if len(values) > 1:
            lines = [cite(record.logs[name], fact) for name, fact in facts.items()]
            yield fails(
                "comparable", f"the logs differ in {label}: {', '.join(sorted(values))}", *lines
            )
        elif values:
            same.append(f"{label} {next(iter(values))[:40]}")
    if len(record.logs) > 1:
        yield passes("comparable", f"all {len(record.logs)} logs: {', '.join(same)}")
    track = TRACKS.get(record.track_name)
    if track and track.gpus:
        ranks = {
            name: log
            for name, log in record.logs.items()
            if log.integer("env.world_size") is not None
        }
        wrong = [log for log in ranks.values() if log.integer("env.world_size") != track.gpus]
        if wrong:
            yield fails(
                "world_size",
                f"{record.track_name} is {track.gpus} GPUs",
                *(cite(log, log.facts["env.world_size"]) for log in wrong),
            )
        elif ranks:
            yield passes(
                "world_size",
                f"{track.gpus} ranks",
                *(cite(log, log.facts["env.world_size"]) for log in ranks.values()),
            )
        else:
            yield cannot_tell("world_size", "no log states the number of ranks")


def check_parameters(record: Record) -> Iterable[Check]:
    counts = {
        name: log
        for name, log in record.logs.items()
        if log.integer("model.parameters") is not None
    }
    if not counts:
        yield cannot_tell("parameters", "no log states the number of parameters")
        return
    log = next(iter(counts.values()))
    yield passes(
        "parameters",
        f"{log.integer('model.parameters'):,}",
        cite(log, log.facts["model.parameters"]),
    )
