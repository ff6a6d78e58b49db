"""The claim against what is here: artifact, hardware, machine and the tolerance that follows."""

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from eval.errors import UserError
from eval.files import sha256_of
from eval.papers.folder import GIVEN, Record
from eval.papers.submission.schema import allowed_difference
from eval.rules import Rules


def machine() -> dict[str, str]:
    """The facts on which a repetition to the last digits depends."""
    facts = {
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "platform": platform.platform(),
    }
    for package in ("torch", "numpy"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "none"
    return facts


def _cpu() -> str:
    """Model name of the processor, as the kernel says, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def other_versions(record: Record, seed: str) -> str | None:
    """What the record needs where another Python or torch is here; None where they are its own.

    Of Python the first two numbers count, of torch all but what follows a plus."""
    stated = record.claimed_environment(seed)
    if stated is None:
        return None
    here = machine()
    needed: list[str] = []
    if stated.python and _minor(stated.python) != _minor(here["python"]):
        needed.append(f"Python {_minor(stated.python)}")
    if stated.torch and stated.torch.split("+")[0] != here["torch"].split("+")[0]:
        needed.append(f"torch {stated.torch}")
    if not needed:
        return None
    found = f"Python {here['python']}, torch {here['torch']}"
    return f"needs {' and '.join(needed)}, as the record states; here is {found}"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


@dataclass(frozen=True)
class Repetition:
    """How far the referee's score may be from a claim: `relative` of val_bpb, and `why`."""

    relative: float
    why: str

    def allows(self, found: float, claimed: float) -> bool:
        """Whether two values of val_bpb are no further apart than they may be."""
        return abs(found - claimed) <= allowed_difference(claimed, self.relative)


def tolerance(record: Record, seed: str, rules: Rules) -> Repetition:
    """How far a rerun may be from the claim on this machine.

    It is the tight one where processor, number of cores and torch are those of the claim: sums run
    in another order with another number of threads."""
    stated = record.claimed_environment(seed)
    if stated is None or stated.cpu is None:
        return Repetition(rules.score.relative_elsewhere, "the record does not say where it ran")
    here = machine()
    claimed = {"cpu": stated.cpu or here["cpu"], "torch": stated.torch or here["torch"]}
    differ = [
        name for name, value in claimed.items() if value.split("+")[0] != here[name].split("+")[0]
    ]
    if stated.cores is not None and str(stated.cores) != here["cores"]:
        differ.append("number of cores")
    if stated.gpu is not None:
        differ.append("gpu")
    if differ:
        why = f"another {' and '.join(differ)} than the record's"
        return Repetition(rules.score.relative_elsewhere, why)
    return Repetition(rules.score.relative_same_machine, "same processor, cores and torch")


def repetition(record: Record, seed: str, rules: Rules, noise: float) -> Repetition:
    """The tolerance for one seed, where reruns of equal text differ by `noise`.

    `noise` is the mean size of the differences of single losses, as a share of the mean loss. A
    run may differ from another by no more in the mean than its tokens do in size, so that sums in
    random order are no fault. What a scorer can win by jitter stays below what another machine may
    change."""
    usual = tolerance(record, seed, rules)
    if noise <= usual.relative:
        return usual
    most = max(usual.relative, rules.score.relative_elsewhere)
    told = f"{usual.why}, and single losses differ by {noise:.2g} of the mean between reruns"
    return Repetition(min(noise, most), told)


def gpus_here() -> list[str]:
    """Model of each NVIDIA GPU of this machine, as its driver says."""
    models: list[str] = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                models.append(line.partition(":")[2].strip())
    return models


def other_hardware(record: Record, seed: str, nproc: int) -> str | None:
    """Why seconds measured here are not those that the record's track limits.

    None where model and number of the GPUs are the claimed ones."""
    stated = record.claimed_environment(seed)
    if stated is None or stated.gpu is None:
        return "the record does not say on which GPU it ran"
    here = gpus_here()
    count = stated.world_size or stated.gpus or (record.track.gpus if record.track else None)
    enough = len(here) >= (count or 1) and nproc == count
    if enough and all(name.lower() == stated.gpu.lower() for name in here):
        return None
    ranks = "1 rank" if nproc == 1 else f"{nproc} ranks"
    found = f"{len(here)} x {here[0]}" if here else "0 x no GPU"
    return f"claimed on {count or '?'} x {stated.gpu}, run as {ranks} on {found}"


def name_given_artifact(record: Record) -> list[str]:
    """Find the seed of an artifact that was passed by hand without one, by its claimed hash.

    Returns what disagrees: no claim has that hash. Raises UserError where several seeds are
    claimed and none with a hash."""
    if GIVEN not in record.artifacts or record.submission is None:
        return []
    claims = record.submission.seed_results
    if len(claims) < 2:
        return []
    path = record.artifacts[GIVEN]
    stated = {c.artifact_sha256: seed for seed, c in claims.items() if c.artifact_sha256}
    if not stated:
        raise UserError(
            f"{path}: expected --seed with it, found seeds {', '.join(claims)} "
            "without a sha256 in submission.json; say which of them it belongs to"
        )
    found = sha256_of(path)
    if found in stated:
        record.artifacts = {stated[found]: path}
        return []
    return [f"{path.name}: sha256 {found[:16]}…, submission.json states it for no seed"]


def other_artifact(record: Record, seed: str) -> list[tuple[str, str, str]]:
    """(what, found, stated) where the artifact is not the claimed one."""
    claim = record.claim(seed)
    if claim is None:
        return []
    path = record.artifacts[seed]
    pairs = [
        ("artifact_sha256", sha256_of(path), claim.artifact_sha256),
        ("artifact_bytes", path.stat().st_size, claim.artifact_bytes),
    ]
    return [
        (name, str(found), str(stated))
        for name, found, stated in pairs
        if stated is not None and found != stated
    ]
