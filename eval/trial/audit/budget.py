"""The test `budget`: sizes against the cap, seconds against the clock."""

from eval.papers.folder import GIVEN, Record
from eval.trial.audit.collector import Collector
from eval.trial.runner.claims import other_hardware

CONTEST_CAP = 16_000_000  # bytes, where the record names no track


def judge_clock(record: Record, seed: str, seconds: float, nproc: int, into: Collector) -> None:
    """Seconds of the official run against the track's clock.

    The clock binds where the hardware is that of the claim."""
    track = record.track
    into.ran_check()
    into.figure("eval_seconds_by_the_referee", seconds)
    cap = track.eval_seconds if track else None
    if cap is None:
        return
    differs = other_hardware(record, seed, nproc)
    if seconds > cap:
        found = f"{seconds:.1f} s"
        if differs is not None:
            found += f"; not comparable: {differs}"
        into.add(
            "INVALID" if differs is None else "WARN",
            "evaluation",
            f"at most {cap:g} s from start to end of the process",
            found,
            "evaluation budget of the track",
        )
    elif differs is not None:
        into.skip(f"the track's clock, {differs}")


def over_the_clock(record: Record, seed: str, seconds: float, nproc: int) -> bool:
    """Whether a run took longer than the track's clock, where that clock binds."""
    cap = record.track.eval_seconds if record.track else None
    if cap is None or other_hardware(record, seed, nproc) is not None:
        return False
    return seconds > cap


def judge_sizes(record: Record, into: Collector) -> None:
    """Sizes on disk.

    A run sees only what is counted, so an uncounted file that it needs shows as a failed run."""
    track = record.track
    code = record.script.stat().st_size
    cap = track.bytes_cap if track else CONTEST_CAP
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
