"""The test `isolation`: what the runs tried to reach and what they left behind."""

from collections.abc import Sequence

from eval.trial.audit.collector import Collector
from eval.trial.sandbox.job import Outcome


def judge_isolation(outcomes: Sequence[Outcome], mechanism: str, into: Collector) -> None:
    into.tolerance = "no attempt"
    into.tolerance_source = (
        "in the sandbox outside paths do not exist and there is no network, whoever asks; attempts are told by an audit hook in each Python "
        "interpreter, which does not see what native code does by itself, nor a mere look whether a path exists"
    )
    if mechanism == "none":
        into.skip(
            "no sandbox (--no-sandbox): nothing was contained, what is listed was seen by the audit hook alone"
        )
    kinds = {
        "outside": "opens nothing outside code, artifact, streams and the Python environment",
        "absent": "opens nothing below the temporary folder that it did not put there",
        "write": "writes nothing outside /out and the temporary folder",
        "network": "asks for no network",
        "environment": "reads no text of the Python environment",
    }
    for outcome in outcomes:
        into.ran_check(0 if mechanism == "none" else 1)
        for problem in outcome.problems:
            into.add(
                "INVALID",
                "sandbox",
                "a run that ends by itself and leaves its outputs only",
                problem,
                "the sandbox's limits",
            )
    for kind, rule in kinds.items():
        seen = sorted({what for outcome in outcomes for what in outcome.seen[kind]})
        into.figure(f"{kind}_events", len(seen), lambda a, b: a + b)
        for what in seen:
            into.add(
                "WARN" if kind in ("absent", "environment") else "INVALID",
                kind,
                "no attempt",
                what,
                rule,
            )
    programs = sorted({what for outcome in outcomes for what in outcome.seen["program"]})
    into.figure("program_events", len(programs), lambda a, b: a + b)
    into.figure("peak_memory_mib", max((o.peak_memory for o in outcomes), default=0) / 2**20)
