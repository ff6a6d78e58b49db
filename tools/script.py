"""Records on disk, and importing a record's script by its path."""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from eval.errors import UserError

CODE_FILE = "train_gpt.py"
PREFERRED_SEED = 1337


@dataclass(frozen=True)
class Record:
    """A script, and where the user named a folder, what lies in it."""

    script: Path
    folder: Path | None

    def artifacts(self) -> list[Path]:
        return sorted(self.folder.glob("artifact_seed*.bin")) if self.folder else []

    def submission(self) -> dict[str, Any]:
        """The folder's submission.json; an empty one where there is none that can be read."""
        if self.folder is None:
            return {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.folder / "submission.json").read_bytes())
            if isinstance(found, dict):
                return found
        return {}


def find_record(path: Path) -> Record:
    """From a record folder or a script. Raises UserError for anything else."""
    if path.is_dir():
        script = path / CODE_FILE
        if not script.is_file():
            raise UserError(f"{path}: expected a record folder with {CODE_FILE}, found none in it")
        return Record(script, path)
    if not path.is_file():
        raise UserError(f"{path}: expected a record folder or a script, found nothing there")
    return Record(path, None)


def add_record_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "record", type=Path, metavar="RECORD", help=f"a folder with {CODE_FILE}, or a script"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--artifact", type=Path, help="a file that this script exported")
    choice.add_argument(
        "--seed-artifact",
        type=int,
        metavar="SEED",
        help=f"which artifact_seed*.bin of the folder [{PREFERRED_SEED} where it is there]",
    )


def choose_artifact(record: Record, args: argparse.Namespace) -> Path | None:
    """What the arguments above ask for; None for a script alone. Raises UserError."""
    if args.artifact is not None:
        if not args.artifact.is_file():
            raise UserError(f"{args.artifact}: expected an artifact, found no file there")
        return args.artifact
    if record.folder is None and args.seed_artifact is None:
        return None
    seed = PREFERRED_SEED if args.seed_artifact is None else args.seed_artifact
    artifacts = record.artifacts()
    wanted = f"artifact_seed{seed}.bin"
    for path in artifacts:
        if path.name == wanted:
            return path
    if artifacts and args.seed_artifact is None:
        return artifacts[0]
    found = ", ".join(path.name for path in artifacts) or "none"
    place = record.folder or record.script
    raise UserError(f"{place}: expected {wanted}, found {found}; pass --artifact FILE")


def load_script(path: Path) -> ModuleType:
    """Imports a script by its path, which runs its code, and leaves no cache beside it.

    Two scripts of one name are two modules. Raises UserError where the import fails.
    """
    digest = hashlib.sha256(str(path.resolve()).encode() + path.read_bytes()).hexdigest()
    name = f"record_script_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: expected a Python script, found a file without the suffix .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        with importing_from(path.resolve().parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(
            f"{path}: expected a script that can be imported, "
            f"found {type(error).__name__}: {first_line(error)}"
        ) from None
    return module


@contextlib.contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Files beside a script may be imported, as when Python runs it. Nothing is written there."""
    writes_bytecode = not sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # where the script has removed it
            sys.path.remove(str(folder))
        sys.dont_write_bytecode = not writes_bytecode


def missing_names(module: ModuleType, names: Sequence[str]) -> list[str]:
    return [name for name in names if not hasattr(module, name)]


@contextlib.contextmanager
def refusals_of(module: ModuleType) -> Iterator[None]:
    """The script's own UserError becomes this package's."""
    refusal = getattr(module, "UserError", None)
    refusals = (refusal,) if isinstance(refusal, type) else ()
    try:
        yield
    except refusals as error:
        raise UserError(first_line(error)) from None


def first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else "no message"
