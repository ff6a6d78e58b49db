"""A record's own run command and settings: from its README, scripts, submission.json and logs."""

import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from eval.papers.submission.schema import SUBMISSION_FILE
from eval.trial.canary.knobs import Knobs, variable_name

ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*)", re.DOTALL)
COMMAND_WORDS = re.compile(r"\.py\b|^\s*(?:export\s+)?\w+=\S", re.MULTILINE)
INLINE_CODE = re.compile(r"`([^`]+)`")
RANKS_FLAG = re.compile(r"--nproc[-_]per[-_]node(?:=(?P<ranks>\S+))?")
SEPARATORS = {"&&", "||", ";", "|", "&", ">", ">>", "2>&1", "do", "done", "then", "fi"}
LAUNCHERS = ("torchrun", "python", "python3", "accelerate", "uv", "env", "nohup", "time", "export")
SHELL_SUFFIXES = (".sh", ".bash")
SETTING_KEYS = (
    "config",
    "configuration",
    "env",
    "environment_variables",
    "hyperparameters",
    "settings",
)
# Facts of the machine and the data: the trial's own, whatever the record had.
MACHINE = re.compile(
    r"DATA_PATH|DATA_DIR|TOKENIZER_PATH|RANK|LOCAL_RANK|WORLD_SIZE|MASTER_\w+|CUDA_\w+|NCCL_\w+"
    r"|PYTORCH_\w+|TORCH_NCCL\w*|OMP_NUM_THREADS|PATH|PYTHONPATH|HOME|HF_\w+|WANDB_\w+|\w*TOKEN"
    r"|RUN_ID"
)
# The contest's scripts print some learning rates under another's name.
MISNAMED_IN_LOGS = re.compile(r"\w*_LR")
LOG_SETTING = re.compile(
    r"(?<![\w.])(?P<name>[a-z][a-z0-9_]*)[:=]\s*(?P<value>-?\d[\d.e_+-]*|True|False)(?=\s|$)"
)
MOST_TEXT = 1 << 20  # characters read of a README or script
HEADER_LINES = 400  # of a log, before its first step
LONGEST_HEADER_LINE = 300  # characters


@dataclass(frozen=True)
class Command:
    """One command line that runs a script.

    `script` is the path as written. `variables` stand before it or were exported above it. `ranks`
    is the number of processes, None where it is not stated. `where` names the file.
    """

    script: str
    variables: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    ranks: int | None = None
    where: str = ""

    @property
    def script_name(self) -> str:
        return PurePosixPath(self.script).name


@dataclass(frozen=True)
class OwnSettings:
    """What a record says it was run with.

    `variables` by name; `sources` names where each file contributed. `arguments` follow the script
    on the command line.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    script: str | None = None
    sources: tuple[str, ...] = ()


# --- Commands in a text ---


def commands_in(text: str, where: str = "") -> list[Command]:
    """Commands that run a Python script, in order of the text. Raises nothing.

    `where` names the file; in one of Markdown, only blocks of code export what follows them.
    """
    found: list[Command] = []
    exported: dict[str, str] = {}
    is_code = is_shell = where.endswith(SHELL_SUFFIXES)
    for line in _logical_lines(text[:MOST_TEXT]):
        if line.startswith("```") and not is_shell:
            is_code = not is_code
            exported = {}
        elif COMMAND_WORDS.search(line):
            for words in _split(line):
                command, exports = _read_words(words, exported, where)
                exported = exports if is_code else {}
                if command is not None:
                    found.append(command)
    return found


def _logical_lines(text: str) -> Iterator[str]:
    """Lines of code and of shells, those joined that a backslash continues.

    Markdown's own backslashes are undone; of a line of prose its `code` is given.
    """
    unescaped = re.sub(r"\\([_*-])", r"\1", text.replace("\r\n", "\n"))
    joined = re.sub(r"[ \t]*\\{1,2}[ \t]*\n[ \t]*", " ", unescaped)
    for line in joined.split("\n"):
        plain = line.strip()
        if plain.startswith("```"):
            yield plain
            continue
        for code in INLINE_CODE.findall(plain) or [plain]:
            yield code.removeprefix("$ ").removeprefix("> ")


def _split(line: str) -> Iterator[list[str]]:
    """The words of each command of a line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    try:
        words = list(lexer)
    except ValueError:  # an apostrophe of prose
        return
    command: list[str] = []
    for word in [*words, ";"]:
        if word in SEPARATORS or set(word) <= set(";&|<>"):
            yield command
            command = []
        else:
            command.append(word)


def _read_words(
    words: list[str], exported: Mapping[str, str], where: str
) -> tuple[Command | None, dict[str, str]]:
    """The command of some words, if they run a script, and what is exported after it."""
    variables: dict[str, str] = {}
    rest = [word for word in words if word not in ("export", "env")]
    while rest and ASSIGNMENT.fullmatch(rest[0]):
        match = ASSIGNMENT.fullmatch(rest.pop(0))
        if "$" not in match["value"] and "`" not in match["value"]:
            variables[match["name"]] = match["value"]
    if not rest:
        return None, {**exported, **variables}
    launcher = PurePosixPath(rest[0]).name
    if not launcher.startswith(LAUNCHERS):
        return None, dict(exported)
    place = next((i for i, word in enumerate(rest) if word.endswith(".py")), None)
    if place is None:
        return None, dict(exported)
    arguments = tuple(_plain_arguments(rest[place + 1 :]))
    command = Command(
        rest[place], {**exported, **variables}, arguments, _ranks(rest[:place]), where
    )
    return command, dict(exported)


def _plain_arguments(words: list[str]) -> Iterator[str]:
    """Arguments without those that a shell would fill in, nor the flags before them."""
    for i, word in enumerate(words):
        filled_in = i + 1 < len(words) and "$" in words[i + 1]
        if "$" not in word and not (word.startswith("--") and filled_in):
            yield word


def _ranks(words: list[str]) -> int | None:
    for i, word in enumerate(words):
        match = RANKS_FLAG.fullmatch(word)
        if match is None:
            continue
        stated = match["ranks"] or (words[i + 1] if i + 1 < len(words) else "")
        return int(stated) if stated.isdecimal() and len(stated) < 6 else None
    return None


def best_command(commands: list[Command], script_name: str | None = None) -> Command | None:
    """The command of the record's own run: of that script, with the most ranks and settings.

    Without a script's name, commands of training scripts come before others.
    """
    if script_name is not None:
        commands = [command for command in commands if command.script_name == script_name]
    training = [command for command in commands if "train" in command.script_name]
    candidates = training or commands
    return max(candidates, key=_weight, default=None)


def _weight(command: Command) -> tuple[int, bool, int]:
    """How much a command looks like the record's own run."""
    settings = len(command.variables) + len(command.arguments)
    return command.ranks or 0, "train" in command.arguments, settings


# --- All that a record folder says ---


def own_settings(
    files: Mapping[str, bytes], script_name: str, knobs: Knobs, source: str = ""
) -> OwnSettings:
    """What the record's files say that the script was run with; knobs of the script only.

    `source` is the script's text, which logs repeat. The command counts most, then
    submission.json, then a log's header. Raises nothing.
    """
    commands = _commands_of(files)
    command = best_command(commands, script_name)
    if command is None:  # renamed for the folder: what it runs is not there under that name
        command = best_command([c for c in commands if c.script_name not in files])
    stated = [
        (SUBMISSION_FILE, _settings_in_json(files.get(SUBMISSION_FILE, b""), script_name)),
        _settings_in_logs(files, source),
    ]
    if command is not None:
        stated = [(command.where, command.variables), *stated]
    known = knobs.variables.keys() | knobs.options.keys()
    variables: dict[str, str] = {}
    sources: list[str] = []
    for where, settings in stated:
        is_command = command is not None and settings is command.variables
        taken = {
            name: value
            for name, value in settings.items()
            if name not in variables and not MACHINE.fullmatch(name)
            if (is_command or name in known) and not _same(value, knobs.default(name))
        }
        variables |= taken
        if taken:
            sources.append(where)
    arguments = () if command is None else command.arguments
    return OwnSettings(variables, arguments, script_name, tuple(sources))


def _commands_of(files: Mapping[str, bytes]) -> list[Command]:
    """Commands in the README, in shell scripts and in the texts of submission.json."""
    found: list[Command] = []
    readmes = [name for name in files if name.lower().startswith("readme")]
    shells = [name for name in files if name.endswith(SHELL_SUFFIXES)]
    for name in [*sorted(readmes), *sorted(shells)]:
        found += commands_in(_text(files[name]), name)
    for text in _texts(_json(files.get(SUBMISSION_FILE, b""))):
        found += commands_in(text, SUBMISSION_FILE)
    return found


def script_in_texts(files: Mapping[str, bytes]) -> str | None:
    """The script among the files that the record's own command runs, None where none is named."""
    commands = [command for command in _commands_of(files) if command.script_name in files]
    command = best_command(commands)
    return None if command is None else command.script_name


def _settings_in_json(raw: bytes, script_name: str) -> dict[str, str]:
    """Values that submission.json keeps under a key such as config or hyperparameters."""
    found: dict[str, str] = {}
    stated = _json(raw)
    groups = stated.items() if isinstance(stated, dict) else ()
    for key, group in groups:
        if key.lower() in SETTING_KEYS and isinstance(group, dict):
            for name, value in group.items():
                if isinstance(value, str | int | float):
                    found[variable_name(name)] = _as_variable(str(value))
    return found


def _settings_in_logs(files: Mapping[str, bytes], source: str) -> tuple[str, dict[str, str]]:
    """`name:value` words in the header of the first log, and that log's name."""
    logs = sorted(name for name in files if name.endswith((".log", ".txt")) and "req" not in name)
    code = {line.strip() for line in source.splitlines()}
    for name in logs:
        found: dict[str, str] = {}
        for line in _header(_text(files[name]), code):
            for match in LOG_SETTING.finditer(line):
                variable = variable_name(match["name"])
                if not MISNAMED_IN_LOGS.fullmatch(variable):
                    found.setdefault(variable, _as_variable(match["value"]))
        if found:
            return name, found
    return "", {}


def _header(text: str, code: set[str]) -> Iterator[str]:
    """Short lines of a log before its first step, without the source that it may embed."""
    printed = text[:MOST_TEXT].rsplit("=" * 100, 1)[-1]
    lines = (line for line in printed.splitlines() if line.strip() not in code)
    for line in itertools.islice(lines, HEADER_LINES):
        if re.match(r"\s*step[: ]*\d", line):
            return
        if len(line) < LONGEST_HEADER_LINE:
            yield line


def _as_variable(value: str) -> str:
    return {"True": "1", "False": "0"}.get(value, value)


def _same(value: str, default: str | None) -> bool:
    """Whether a value is the script's default, as text or as a number."""
    if default is None:
        return False
    try:
        return float(value) == float(default)
    except ValueError:
        return value == default


def _text(raw: bytes) -> str:
    return raw[: 4 * MOST_TEXT].decode("utf-8", errors="replace")


def _json(raw: bytes) -> object:
    try:
        return json.loads(raw.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        return None


def _texts(value: object) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
