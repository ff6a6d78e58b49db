"""The test `isolation`: what the runs tried to reach and what they left behind."""

from collections.abc import Sequence

from eval.trial.audit.collector import Collector
from eval.trial.sandbox.job import Outcome

# Kind of event -> the rule that it breaks.
KINDS = {
    "outside": "opens nothing outside code, artifact, streams and the Python environment",
    "absent": "opens nothing below the temporary folder that it did not put there",
    "write": "writes nothing outside /out and the temporary folder",
    "network": "asks for no network",
    "environment": "reads no text of the Python environment",
}
ONLY_WARN = ("absent", "environment")


def judge_isolation(outcomes: Sequence[Outcome], mechanism: str, into: Collector) -> None:
    """Every event and every problem of the runs, as a finding or a warning."""
    into.tolerance = "no attempt"
    into.tolerance_source = (
        "in the sandbox outside paths do not exist and there is no network, whoever asks; "
        "attempts are told by an audit hook in each Python interpreter, which does not see "
        "what native code does by itself, nor a mere look whether a path exists"
    )
    if mechanism == "none":
        into.skip(
            "no sandbox (--no-sandbox): nothing was contained, "
            "what is listed was seen by the audit hook alone"
        )
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
    for kind, rule in KINDS.items():
        verdict = "WARN" if kind in ONLY_WARN else "INVALID"
        events = _events(outcomes, kind)
        into.figure(f"{kind}_events", len(events), lambda a, b: a + b)
        for what in events:
            into.add(verdict, kind, "no attempt", what, rule)
    into.figure("program_events", len(_events(outcomes, "program")), lambda a, b: a + b)
    into.figure("peak_memory_mib", max((o.peak_memory for o in outcomes), default=0) / 2**20)


def _events(outcomes: Sequence[Outcome], kind: str) -> list[str]:
    """What the hook reported of a kind in any run, each once, sorted."""
    return sorted(set().union(*(outcome.seen[kind] for outcome in outcomes)))
