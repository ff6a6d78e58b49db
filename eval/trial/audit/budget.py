"""The test `budget`: sizes against the cap, seconds against the clock."""

from eval.papers.folder import GIVEN, Record
from eval.trial.audit.collector import Collector
from eval.trial.runner.claims import (
    other_hardware,
)


def judge_clock(record: Record, seed: str, seconds: float, nproc: int, into: Collector) -> None:
    """Seconds of the official run against the track's clock, which binds where the hardware is that of the claim."""
    track = record.track
    into.ran_check()
    into.figure("eval_seconds_by_the_referee", seconds)
    cap = track.eval_seconds if track else None
    if cap is None:
        return
    differs = other_hardware(record, seed, nproc)
    if seconds > cap:
        verdict, why = (
            ("INVALID", "") if differs is None else ("WARN", f"; not comparable: {differs}")
        )
        into.add(
            verdict,
            "evaluation",
            f"at most {cap:g} s from start to end of the process",
            f"{seconds:.1f} s{why}",
            "evaluation budget of the track",
        )
    elif differs is not None:
        into.skip(f"the track's clock, {differs}")


def over_the_clock(record: Record, seed: str, seconds: float, nproc: int) -> bool:
    track = record.track
    limited = (
        track is not None
        and track.eval_seconds is not None
        and other_hardware(record, seed, nproc) is None
    )
    return limited and seconds > track.eval_seconds


def judge_sizes(record: Record, into: Collector) -> None:
    """Sizes on disk; what is counted is what a run gets to see, so an uncounted file that it needs shows as a failed run."""
    track = record.track
    code = record.script.stat().st_size
    cap = track.bytes_cap if track else 16_000_000
    into.ran_check()
    into.figure("code_bytes", code)
    for seed, artifact in record.artifacts.items():
        size = artifact.stat().st_size
        into.figure("artifact_bytes", size)
        if code + size > cap:
            into.add(
                "INVALID",
                f"seed {seed}",
                f"code + artifact at most {cap:,} bytes",
                f"{code:,} + {size:,} = {code + size:,}",
                "cap of the track",
            )
        if track and track.artifact_cap and size > track.artifact_cap and seed != GIVEN:
            into.add(
                "INVALID",
                artifact.name,
                f"at most {track.artifact_cap:,} bytes in git",
                f"{size:,}",
                "cap for committed artifacts",
            )
