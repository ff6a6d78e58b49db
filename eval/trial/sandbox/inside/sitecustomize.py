"""Tells the referee which paths, programs and addresses the submission's code asks for.

Every Python interpreter inside the sandbox loads this file. It sees what Python code does through
the interpreter, not what native code does by itself, and code that means to can silence it, by
flooding the pipe or by changing this module. It is a witness, not the wall: the wall is that
outside paths do not exist in the sandbox.
"""

import importlib
import json
import os
import sys

HERE = os.path.dirname(__file__)
SOURCE_SUFFIXES = (".py", ".pyi", ".rst", ".md", ".txt", ".html", ".ipynb")
# linecache and inspect read sources for tracebacks and for torch's compilers; tokenize is how
# linecache opens them.
FROZEN_READER = "<frozen importlib"
READERS = ("linecache.py", "tokenize.py", "inspect.py")
READER_PACKAGE = "importlib/"
READER_DEPTH = 3  # frames between the hook and the code that reads for an import
# 0.0.0.0 and :: are every address of the sandbox, and it has none but loopback's.
LOOPBACK = ("127.0.0.1", "::1", "localhost", "", "0.0.0.0", "::")
OWN_NAMES = ("localhost", "127.0.0.1", None, "sandbox")
PATH_EVENTS = ("open", "os.listdir", "os.scandir")
PROGRAM_EVENTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.symlink",
    "os.link",
    "os.kill",
)
LONGEST_LINE = 900  # characters


class Witness:
    """An audit hook. `facts` is what `_hook_facts` in stage.py writes; folders end in a slash."""

    def __init__(self, facts: dict):
        self.code = facts["code"]
        self.allowed = tuple(facts["allowed"])
        self.writable = tuple(facts["writable"])
        self.environment = tuple(facts["environment"])
        self.emptied = tuple(facts["emptied"])
        self.shown = tuple(facts["shown"])
        self.hidden = set(facts["hidden"])
        self.pipe = os.open(facts["events"], os.O_WRONLY | os.O_CLOEXEC)

    def __call__(self, event: str, args: tuple) -> None:
        """What the interpreter calls for each event. Never raises OSError."""
        try:
            if event in PATH_EVENTS:
                self._path(event, args)
            elif event == "import":
                self._import(args[0])
            elif event.startswith("socket."):
                self._network(event, args)
            elif event in PROGRAM_EVENTS:
                what = args[1] if event == "subprocess.Popen" else args[0]
                self._tell("program", f"{event} {what}")
        except OSError:
            return

    def _tell(self, kind: str, text: object) -> None:
        line = f"{kind} {text}"[:LONGEST_LINE].replace("\n", " ")
        os.write(self.pipe, line.encode(errors="replace") + b"\n")

    def _network(self, event: str, args: tuple) -> None:
        if event in ("socket.connect", "socket.bind"):
            address = args[1]  # a path for AF_UNIX, which is no network
            if isinstance(address, tuple) and str(address[0]) not in LOOPBACK:
                self._tell("network", f"{event} {address}")
        elif event == "socket.getaddrinfo" and args[0] not in OWN_NAMES:
            self._tell("network", f"{event} {args[0]}")

    def _import(self, name: str) -> None:
        """Packages that the rule set hides count when the submission's own code asks for them.

        Libraries probe for many."""
        if name.partition(".")[0] not in self.hidden:
            return
        frame = sys._getframe(2)
        while frame is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if frame is not None and frame.f_code.co_filename.startswith(self.code):
            self._tell("outside", f"package {name}")

    def _path(self, event: str, args: tuple) -> None:
        path = args[0]
        if isinstance(path, int) or path is None:
            return
        full = os.path.abspath(os.fsdecode(path))
        if full == "/" and event != "open":
            return  # the root is the sandbox's own
        writes = event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        kind = self._kind(full, event == "open", bool(writes))
        if kind is not None:
            self._tell(kind, full)

    def _kind(self, full: str, opens: bool, writes: bool) -> str | None:
        """As what a path counts, None where it may be opened or listed."""
        folder = full + "/"
        if writes and not folder.startswith(self.writable):
            return "write"
        if not folder.startswith(self.allowed):
            return "outside"
        if folder.startswith(self.writable) and not os.path.isdir(os.path.dirname(full)):
            # A file of the home folder that may be missing, or a path that lies below /tmp outside.
            return None if is_bytecode(full) and by_import() else "absent"
        below_emptied = folder.startswith(self.emptied) and folder not in self.emptied
        if below_emptied and not folder.startswith(self.shown) and not by_import():
            return "outside"
        is_text = full.startswith(self.environment) and full.endswith(SOURCE_SUFFIXES)
        if opens and is_text and not by_import():
            return "environment"
        return None


def is_bytecode(full: str) -> bool:
    """Whether a path is where an import looks for compiled code, which may never have been made."""
    return os.path.basename(os.path.dirname(full)) == "__pycache__" and full.endswith(".pyc")


def by_import() -> bool:
    """Whether the import system, or what shows source lines, opens the path."""
    frame = sys._getframe(4)  # behind this function, _kind, _path and __call__
    for _ in range(READER_DEPTH):
        if frame is None:
            return False
        name = frame.f_code.co_filename
        if name.startswith(FROZEN_READER) or name.endswith(READERS) or READER_PACKAGE in name:
            return True
        frame = frame.f_back
    return False


def install() -> None:
    """Start to watch this interpreter, and load what the run wants loaded first."""
    with open(os.path.join(HERE, "hook.json")) as handle:
        facts = json.load(handle)
    sys.addaudithook(Witness(facts))
    for package in facts["startup"]:
        importlib.import_module(package)


install()
