"""The claim against what is here: artifact, hardware, machine and the tolerance that follows."""

import os
import platform
from importlib import metadata
from pathlib import Path

from eval.errors import UserError
from eval.files import sha256_of
from eval.papers.folder import GIVEN, Record
from eval.rules import Rules


def machine() -> dict[str, str]:
    """The facts on which a repetition to the last digits depends."""
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    facts = {
        "python": platform.python_version(),
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "platform": platform.platform(),
    }
    for package in ("torch", "numpy"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "none"
    return facts


def tolerance(record: Record, seed: str, rules: Rules) -> tuple[float, str]:
    """(relative tolerance on val_bpb, why): the tight one where processor and torch are those of the claim."""
    stated, here = record.claimed_environment(seed), machine()
    if stated is None or stated.cpu is None:
        return rules.score.relative_elsewhere, "the record does not say where it ran"
    differ = [
        name
        for name in ("cpu", "torch")
        if (getattr(stated, name) or here[name]).split("+")[0] != here[name].split("+")[0]
    ]
    if stated.gpu is not None:
        differ.append("gpu")
    if differ:
        return rules.score.relative_elsewhere, f"another {' and '.join(differ)} than the record's"
    return rules.score.relative_same_machine, "same processor and torch"


def gpus_here() -> list[str]:
    """Model of each NVIDIA GPU of this machine, as its driver says."""
    texts = [
        path.read_text(errors="replace")
        for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    ]
    return [
        line.partition(":")[2].strip()
        for text in texts
        for line in text.splitlines()
        if line.startswith("Model:")
    ]


def other_hardware(record: Record, seed: str, nproc: int) -> str | None:
    """Why seconds measured here are not those that the record's track limits; None where GPU model and number are the claimed ones."""
    stated, here = record.claimed_environment(seed), gpus_here()
    if stated is None or stated.gpu is None:
        return "the record does not say on which GPU it ran"
    count = stated.world_size or stated.gpus or (record.track.gpus if record.track else None)
    if (
        len(here) < (count or 1)
        or nproc != count
        or any(name.lower() != stated.gpu.lower() for name in here)
    ):
        return f"claimed on {count or '?'} x {stated.gpu}, run as {nproc} rank{'s' * (nproc > 1)} on {len(here)} x {here[0] if here else 'no GPU'}"
    return None


def name_given_artifact(record: Record) -> list[str]:
    """Find the seed of an artifact that was passed by hand without one, by its claimed hash. Returns what disagrees: no claim has that hash.
    Raises UserError where several seeds are claimed and none with a hash."""
    if (
        GIVEN not in record.artifacts
        or record.submission is None
        or len(record.submission.seed_results) < 2
    ):
        return []
    path, stated = (
        record.artifacts[GIVEN],
        {
            c.artifact_sha256: seed
            for seed, c in record.submission.seed_results.items()
            if c.artifact_sha256
        },
    )
    if not stated:
        seeds = ", ".join(record.submission.seed_results)
        raise UserError(
            f"{path}: expected --seed with it, found seeds {seeds} without a sha256 in submission.json; say which of them it belongs to"
        )
    found = sha256_of(path)
    if found in stated:
        record.artifacts = {stated[found]: path}
        return []
    return [f"{path.name}: sha256 {found[:16]}…, submission.json states it for no seed"]


def other_artifact(record: Record, seed: str) -> list[tuple[str, str, str]]:
    """(what, found, stated) where the artifact is not the claimed one."""
    claim, path = record.claim(seed), record.artifacts[seed]
    if claim is None:
        return []
    pairs = [
        ("artifact_sha256", sha256_of(path), claim.artifact_sha256),
        ("artifact_bytes", path.stat().st_size, claim.artifact_bytes),
    ]
    return [
        (name, str(found), str(stated))
        for name, found, stated in pairs
        if stated is not None and found != stated
    ]
