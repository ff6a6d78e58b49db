"""What the referee takes from a record folder: the script, the artifacts by seed, and the claims."""

import hashlib
import os
import platform
import re
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from eval import schema
from eval.dataset import Dataset
from eval.errors import UserError
from eval.rules import Rules

REPOSITORY = Path(__file__).resolve().parents[1]
DATASETS = REPOSITORY / "data" / "datasets"
ARTIFACT = re.compile(r"artifact_seed(\d+)\.bin")
GIVEN = "given"  # stands for the seed of an artifact passed by hand


@dataclass
class RecordFolder:
    """`artifacts` by seed, in the record's order. `submission` is None where there is none that can be read: `problem` says why."""

    folder: Path
    code: Path
    artifacts: dict[str, Path]
    submission: schema.Submission | None = None
    problem: str | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def track(self) -> schema.Track | None:
        name = self.submission.track if self.submission else None
        return schema.TRACKS.get(name) if name else None

    def claim(self, seed: str) -> schema.SeedResult | None:
        if self.submission is None:
            return None
        results = self.submission.seed_results
        return (
            next(iter(results.values()))
            if seed == GIVEN and len(results) == 1
            else results.get(seed)
        )

    def claimed_environment(self, seed: str) -> schema.Environment | None:
        claim = self.claim(seed)
        if claim is not None and claim.environment is not None:
            return claim.environment
        return self.submission.environment if self.submission else None


def open_record(
    folder: Path, artifact: Path | None = None, seed: int | None = None
) -> RecordFolder:
    """Raises UserError when there is no script or no artifact to run."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: expected a record folder, found {'a file' if folder.exists() else 'nothing'}"
        )
    code = folder / schema.CODE_FILE
    if not code.is_file() or code.is_symlink():
        raise UserError(
            f"{code}: expected the record's script, found {'a symbolic link' if code.is_symlink() else 'none'}"
        )
    record = RecordFolder(folder, code, {})
    try:
        record.submission = schema.load_submission(folder)
    except UserError as error:
        record.problem = str(error)
    if artifact is not None:
        if not artifact.is_file():
            raise UserError(f"{artifact}: expected an artifact file, found none")
        record.artifacts[GIVEN if seed is None else str(seed)] = artifact
        return record
    found = {
        m[1]: path
        for path in folder.iterdir()
        if (m := ARTIFACT.fullmatch(path.name)) and path.is_file() and not path.is_symlink()
    }
    order = [str(s) for s in record.submission.seeds] if record.submission else []
    record.artifacts = {
        s: found[s] for s in [*order, *sorted(set(found) - set(order), key=int)] if s in found
    }
    record.missing = [s for s in order if s not in found]
    if seed is not None:
        if str(seed) not in found:
            raise UserError(
                f"{folder}: no artifact_seed{seed}.bin; it has seeds {', '.join(found) or 'none'}"
            )
        record.artifacts = {str(seed): found[str(seed)]}
    if not record.artifacts:
        raise UserError(
            f"{folder}: no artifact_seed*.bin; tracks with large weights keep them outside git, pass --artifact FILE"
        )
    return record


def open_dataset(record: RecordFolder, given: Path | None) -> Dataset:
    """The dataset that the record was scored on, by --dataset or by the name in submission.json."""
    if given is not None:
        return Dataset(given)
    name = record.submission.data.dataset if record.submission and record.submission.data else None
    if name is None:
        raise UserError(f"{record.folder}: submission.json names no dataset; pass --dataset DIR")
    return Dataset(DATASETS / Path(name).name)


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


def tolerance(record: RecordFolder, seed: str, rules: Rules) -> tuple[float, str]:
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


def sha256_of(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
