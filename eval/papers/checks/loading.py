"""Checks of what the script loads: files of the folder that nobody counts, modules it lacks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from eval.papers.checks.report import Check, Evidence, Severity, cannot_tell, fails, passes
from eval.papers.checks.script import (
    KNOWN_PACKAGES,
    Import,
    Loaded,
    Script,
    is_standard,
    module_files,
)
from eval.papers.checks.shipments import shipments_of
from eval.papers.folder import PACKED_NAMES, Record
from eval.papers.submission.schema import TRACKS, Track
from eval.papers.submission.script import text_of

CODE_FILES = re.compile(
    r".*\.(py|pyc|so|c|cc|cpp|cu|rs|js|sh|pyx|pth?|bin|npz|npy|model|zst|xz|br|gz|7z|zip)"
)
TOKENIZER_FILES = re.compile(r".*\.(model|vocab)")  # part of the data, which the contest provides
REQUIREMENTS = re.compile(r"(?:.*/)?requirements[\w.-]*\.(?:txt|in)")
OTHER_REQUIREMENTS = re.compile(
    r"(?:.*/)?(?:pyproject\.toml|setup\.(?:py|cfg)|environment\.ya?ml|Pipfile|uv\.lock"
    r"|Dockerfile.*)"
)
REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9][\w.-]*)", re.MULTILINE)
SPEAKING_FILES = re.compile(r".*\.(?:sh|py)")  # of how a run is set up, beside README
MOST_READ = 2_000_000  # bytes of such a file; a script is far smaller
INSTALLS = re.compile(r"\b(?:pip3?|uv|conda|mamba)\b.*\b(?:install|add)\b")
LONGEST_LINE = 2000  # characters; a longer one is data
# Where else modules may come from than the folder and a known package.
ELSEWHERE = re.compile(
    r"\b(?:pip3?|uv|conda|mamba)\b|\bsys\.path\b|\baddsitedir\b|\bimport site\b|site-packages"
    r"|\bPYTHONPATH\b"
)
# Modules that are not called like their package.
MODULES_OF = {
    "pillow": "pil",
    "opencv_python": "cv2",
    "opencv_python_headless": "cv2",
    "scikit_image": "skimage",
    "protobuf": "google",
    "python_levenshtein": "levenshtein",
    "gitpython": "git",
    "pyserial": "serial",
    "attrs": "attr",
}


@dataclass(frozen=True)
class Needed:
    """A module that a file cannot do without."""

    file: str
    found: Import

    @property
    def module(self) -> str:
        return self.found.module

    @property
    def at_once(self) -> bool:
        return self.found.at_once

    @property
    def line(self) -> Evidence:
        return Evidence(file=self.file, line=self.found.line, text=f"imports {self.module}")


def check_loaded(record: Record, script: Script, loaded: Loaded) -> Iterator[Check]:
    """Code that a run loads besides the script, and modules that nobody provides."""
    yield from _check_uncounted(record, script, loaded)
    yield from _check_modules(record, script, loaded)


# --- Files ---


def _check_uncounted(record: Record, script: Script, loaded: Loaded) -> Iterator[Check]:
    further = _further_files(record, script)
    if record.submission is not None and record.submission.origin == "packed":
        if further:
            names = ", ".join(further)
            detail = f"further files that a run could load, in no byte count here: {names}"
            yield fails("uncounted", detail)
        return
    if loaded.imported:
        yield _check_imported(record, script, loaded)
    named = [name for name in loaded.named if name in further and not _is_tokenizer(name)]
    if named:
        detail = f"{script.name} names {', '.join(named)}, which no byte count here includes"
        lines = [Evidence(file=script.name, line=loaded.named[name]) for name in named]
        yield cannot_tell("uncounted", detail, *lines)
    elif further and not loaded.imported:
        yield passes("uncounted", f"the script loads none of {', '.join(further)}")


def _further_files(record: Record, script: Script) -> list[str]:
    """Names of code and weights that `pack` does not write."""
    names = []
    for name in record.names:
        base = name.rpartition("/")[2]
        foreign = CODE_FILES.fullmatch(base) and not PACKED_NAMES.fullmatch(base)
        if foreign and name != script.name and "__pycache__" not in name and base[0] != ".":
            names.append(name)
    return names


def _is_tokenizer(name: str) -> bool:
    return TOKENIZER_FILES.fullmatch(name) is not None


def _check_imported(record: Record, script: Script, loaded: Loaded) -> Check:
    """Imported code counts as code, whether the log counts it or not."""
    names = ", ".join(loaded.imported)
    helpers = sum(record.names[name] for name in loaded.imported)
    lines = [
        Evidence(file=script.name, line=line, text=f"imports {name}")
        for name, line in loaded.imported.items()
    ]
    with_helpers = len(script.shipped) + helpers
    what = f"{script.name} imports {names}, {helpers:,} bytes"
    shipments = [s for s in shipments_of(record).values() if s.weights is not None]
    if shipments and all((s.counted_code or 0) >= with_helpers for s in shipments):
        return passes("uncounted", f"{what}, which the logs count", *lines)
    if not shipments:
        return cannot_tell("uncounted", f"{what}; no log says how much is left for it", *lines)
    track = TRACKS.get(record.track_name)
    cap = track.bytes_cap if track else Track.bytes_cap
    weights = max(s.weights.bytes for s in shipments)
    total = weights + with_helpers
    parts = f"weights {weights:,} + script {len(script.shipped):,} + these = {total:,} of {cap:,}"
    if total > cap >= weights + len(script.shipped):
        detail = f"{what}, in no byte count: {parts}"
        return fails("uncounted", detail, *lines, severity=Severity.BLOCKING)
    return cannot_tell("uncounted", f"{what}, in no byte count: {parts}", *lines)


# --- Modules ---


def _check_modules(record: Record, script: Script, loaded: Loaded) -> Iterator[Check]:
    """Modules without which the script ends and that nothing here provides."""
    if script.tree is None:
        return
    packages = KNOWN_PACKAGES | _required(record)
    relative = [one for file, one in loaded.imports if _broken_relative(record, script, file, one)]
    if relative:
        names = ", ".join(dict.fromkeys(one.module for one in relative))
        lines = [Evidence(file=script.name, line=one.line) for one in relative]
        yield fails("modules", f"{script.name} is no package, yet imports .{names}", *lines)
    needed = list(_unknown(record, loaded, packages))
    installed = _installed(record, script) if needed else set()
    unknown = [need for need in needed if need.module.lower() not in installed]
    yield from _not_provided(record, script, unknown)
    if not relative and not unknown:
        yield passes("modules", "what the script imports is in the folder or a known package")


def _unknown(record: Record, loaded: Loaded, packages: set[str]) -> Iterator[Needed]:
    """The first import of each module that is neither Python's, a known package nor here."""
    seen = set()
    for file, one in loaded.imports:
        known = one.module in packages or one.module.lower() in packages
        provided = one.level or is_standard(one.module) or known
        if provided or one.guarded or one.module in seen or module_files(record, one.module):
            continue
        seen.add(one.module)
        yield Needed(file, one)


def _not_provided(record: Record, script: Script, unknown: list[Needed]) -> Iterator[Check]:
    """FAIL where the script ends at once and nothing says where a module could come from."""
    elsewhere = _other_sources(record, script)
    hopeless = []
    for need in unknown:
        if need.at_once and not elsewhere and not _mentions(record, need.module):
            hopeless.append(need)
    rest = [need for need in unknown if need not in hopeless]
    if hopeless:
        names = ", ".join(need.module for need in hopeless)
        detail = f"{names}: not in the folder, and nothing here installs it or says where it lies"
        yield fails("modules", detail, *(need.line for need in hopeless))
    if rest:
        names = ", ".join(need.module for need in rest)
        detail = f"{names}: neither in the folder nor in its requirements; where from?"
        yield cannot_tell("modules", detail, *(need.line for need in rest))


def _other_sources(record: Record, script: Script) -> bool:
    """Whether the folder has a list of packages, or speaks of installing or of another path."""
    for name in record.names:
        if REQUIREMENTS.fullmatch(name) or OTHER_REQUIREMENTS.fullmatch(name):
            return True
    texts = [record.readme, *_scripts(record, script)]
    return any(ELSEWHERE.search(text) for text in texts)


def _scripts(record: Record, script: Script) -> Iterator[str]:
    """The text of the record's script and of the folder's others."""
    yield text_of(script.source)
    for name, size in record.names.items():
        if name != script.name and SPEAKING_FILES.fullmatch(name) and size <= MOST_READ:
            yield text_of(record.files.read(name))


def _mentions(record: Record, module: str) -> bool:
    """Whether README says anything of a module, under its own name or a package's."""
    text = record.readme.lower()
    name = module.lower()
    return name in text or name.replace("_", "-") in text


def _broken_relative(record: Record, script: Script, file: str, one: Import) -> bool:
    """A script that is run by its path has no package to import from."""
    if b"__package__" in script.source:
        return False
    return one.level > 0 and file == script.name and not one.guarded


def _required(record: Record) -> set[str]:
    """Names that lists of requirements give, as a module would be called."""
    found = set()
    for name in record.names:
        if REQUIREMENTS.fullmatch(name):
            text = record.files.read(name).decode(errors="replace")
            found |= {_module_of(package) for package in REQUIREMENT.findall(text)}
    return found


def _installed(record: Record, script: Script) -> set[str]:
    """Words of the lines with which scripts install packages, as a module would be called."""
    found = set()
    for text in _scripts(record, script):
        for line in text.split("\n"):
            if len(line) <= LONGEST_LINE and INSTALLS.search(line):
                found |= {_module_of(word) for word in re.findall(r"[A-Za-z][\w.-]*", line)}
    return found


def _module_of(package: str) -> str:
    """The name, in small letters, under which a package is imported."""
    name = package.lower().replace("-", "_").replace(".", "_")
    return MODULES_OF.get(name, name)
