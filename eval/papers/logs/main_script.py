"""Which file of a record folder is the script that was run."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from eval.errors import UserError
from eval.papers.logs.dump import SHORTEST_SCRIPT, code_lines
from eval.papers.logs.finding import LOG_SUFFIXES
from eval.papers.logs.lines import split_lines
from eval.papers.logs.reading import MAX_LOG_BYTES, as_utf8
from eval.papers.submission.files import Files
from eval.papers.submission.schema import CODE_FILE

LONGEST_COMMAND = 2000  # characters of a line of README that is read as a command
FIRST_LINES = 20  # of a script, blank ones left out, that tell it from others in a log
LAUNCHERS = ("torchrun", "torch.distributed.run", "torch.distributed.launch", "accelerate")
INTERPRETERS = (*LAUNCHERS, "python", "python3", "srun", "run")
# What no path holds: whatever else stands around a name in README ends it.
BETWEEN_PATHS = re.compile(r"[^\w./+-]")
LOGGED_SIZE = re.compile(r"\bCode size(?: \(\w+\))?: (\d{1,12}) bytes")
# What runs before the training, by its name.
PREPARATION = re.compile(r"prep|download|setup|install|build|data|token|fetch|cache", re.IGNORECASE)


@dataclass(frozen=True)
class _Folder:
    """What a folder tells of its scripts: their bytes by name, its logs' texts, its README."""

    sources: dict[str, bytes]
    texts: list[str]
    readme: str


def likely_scripts(names: Iterable[str], files: Files, readme: str) -> list[str]:
    """The scripts that may be the one that was run: one where anything tells, [] without any.

    `train_gpt.py` is it. Else what tells is, in the order of `RULES`: the source that a log
    prints, the size that a log states, the command in README, the name, and the fewest folders.
    """
    known = list(names)
    if CODE_FILE in known:
        return [CODE_FILE]
    left = [name for name in known if name.endswith(".py") and _base(name) != "__init__.py"]
    if len(left) < 2:
        return left
    sources = {name: _source(files, name) for name in left}
    folder = _Folder(sources, list(_log_texts(known, files)), readme)
    for rule in RULES:
        left = rule(left, folder) or left
        if len(left) == 1:
            break
    return left


def _base(name: str) -> str:
    return name.rpartition("/")[2]


# --- What the logs tell ---


def _log_texts(names: Iterable[str], files: Files) -> Iterator[str]:
    """The lines of each log, blank ones left out."""
    for name in names:
        if name.lower().endswith(LOG_SUFFIXES) and files.sizes[name] <= MAX_LOG_BYTES:
            lines = split_lines(as_utf8(_source(files, name)).replace(b"\r\n", b"\n"))
            yield "\n".join(["", *(text for _, text in lines), ""])


def _source(files: Files, name: str) -> bytes:
    """A file's bytes; none where it cannot be read, which whoever judges it tells."""
    try:
        return files.read(name)
    except UserError:
        return b""


def _printed(names: Sequence[str], folder: _Folder) -> list[str]:
    """The scripts that a log prints as a whole, else those whose first lines it prints."""
    whole = []
    begun = []
    for name in names:
        lines = code_lines(folder.sources[name])
        if _stands_in(lines, folder.texts):
            whole.append(name)
        if _stands_in(lines[:FIRST_LINES], folder.texts):
            begun.append(name)
    return whole or begun


def _stands_in(lines: Sequence[str], texts: Sequence[str]) -> bool:
    wanted = "\n".join(["", *lines, ""])
    return len(wanted) >= SHORTEST_SCRIPT and any(wanted in text for text in texts)


def _of_logged_size(names: Sequence[str], folder: _Folder) -> list[str]:
    logged: set[int] = set()
    for text in folder.texts:
        logged.update(map(int, LOGGED_SIZE.findall(text)))
    return [name for name in names if len(folder.sources[name]) in logged]


# --- What README tells ---


def _launched(names: Sequence[str], folder: _Folder) -> list[str]:
    """The scripts that README starts on several GPUs."""
    return _run_by(names, folder.readme, LAUNCHERS)


def _interpreted(names: Sequence[str], folder: _Folder) -> list[str]:
    """The scripts that README runs in any way, without those that prepare something."""
    run = _run_by(names, folder.readme, INTERPRETERS)
    return [name for name in run if not PREPARATION.search(_base(name))]


def _run_by(names: Sequence[str], readme: str, programs: Sequence[str]) -> list[str]:
    paths = set(_paths_run(readme, programs))
    return [name for name in names if _may_be_one_of(name, paths)]


def _paths_run(readme: str, programs: Sequence[str]) -> Iterator[str]:
    """The first script behind each of the programs' names in a command."""
    for line in readme.replace("\\\n", " ").splitlines():
        if len(line) > LONGEST_COMMAND or ".py" not in line:
            continue
        launched = False
        for word in BETWEEN_PATHS.split(line):
            if launched and word.endswith(".py"):
                yield word.removeprefix("./")
                launched = False
            launched = launched or _base(word) in programs


def _may_be_one_of(name: str, paths: set[str]) -> bool:
    """Whether one of the paths of commands, from whatever folder they run in, may be the file."""
    return any(f"/{name}".endswith(f"/{path}") or f"/{path}".endswith(f"/{name}") for path in paths)


# --- What the names tell ---


def _called_train(names: Sequence[str], _: _Folder) -> list[str]:
    return [name for name in names if _base(name).startswith("train")]


def _in_fewest_folders(names: Sequence[str], _: _Folder) -> list[str]:
    fewest = min(name.count("/") for name in names)
    return [name for name in names if name.count("/") == fewest]


def _called_as_it_should_be(names: Sequence[str], _: _Folder) -> list[str]:
    return [name for name in names if _base(name) == CODE_FILE]


# Each keeps those of the candidates that it speaks for.
RULES: tuple[Callable[[Sequence[str], _Folder], list[str]], ...] = (
    _printed,
    _of_logged_size,
    _launched,
    _called_train,
    _interpreted,
    _in_fewest_folders,
    _called_as_it_should_be,
)
