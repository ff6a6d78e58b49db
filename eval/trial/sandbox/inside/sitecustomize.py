"""Loaded by every Python interpreter inside the sandbox: tells the referee which paths, programs and addresses the code asks for.

It sees what Python code does through the interpreter, not what native code does by itself, and code that means to can silence it by
flooding the pipe. It is a witness, not the wall: the wall is that outside paths do not exist in the sandbox.
"""

import json
import os
import sys

HERE = os.path.dirname(__file__)
SOURCE_SUFFIXES = (".py", ".pyi", ".rst", ".md", ".txt", ".html", ".ipynb")
# linecache and inspect read sources for tracebacks and for torch's compilers; tokenize is how linecache opens them.
READERS = ("<frozen importlib", "linecache.py", "tokenize.py", "inspect.py", "importlib/")


# 0.0.0.0 and :: are every address of the sandbox, and it has none but loopback's.
LOOPBACK = ("127.0.0.1", "::1", "localhost", "", "0.0.0.0", "::")


def install() -> None:
    with open(os.path.join(HERE, "hook.json")) as handle:
        facts = json.load(handle)
    allowed, writable, code = tuple(facts["allowed"]), tuple(facts["writable"]), facts["code"]
    environment, emptied, shown, hidden = (
        tuple(facts["environment"]),
        tuple(facts["emptied"]),
        tuple(facts["shown"]),
        set(facts["hidden"]),
    )
    pipe = os.open(facts["events"], os.O_WRONLY | os.O_CLOEXEC)

    def tell(kind: str, text: object) -> None:
        os.write(pipe, f"{kind} {text}"[:900].replace("\n", " ").encode(errors="replace") + b"\n")

    def by_import() -> bool:
        frame = sys._getframe(3)
        for _ in range(3):
            if frame is None:
                return False
            name = frame.f_code.co_filename
            if name.startswith(READERS[0]) or name.endswith(READERS[1:4]) or READERS[4] in name:
                return True
            frame = frame.f_back
        return False

    def hook(event: str, args: tuple) -> None:
        try:
            if event == "open" or event == "os.listdir" or event == "os.scandir":
                opened(event, args)
            elif event == "socket.connect" or event == "socket.bind":
                address = args[1]  # a path for AF_UNIX, which is no network
                if isinstance(address, tuple) and str(address[0]) not in LOOPBACK:
                    tell("network", f"{event} {address}")
            elif event == "socket.getaddrinfo":
                if args[0] not in ("localhost", "127.0.0.1", None, "sandbox"):
                    tell("network", f"{event} {args[0]}")
            elif event == "import":
                imported(args[0])
            elif event in (
                "subprocess.Popen",
                "os.system",
                "os.exec",
                "os.posix_spawn",
                "os.symlink",
                "os.link",
                "os.kill",
            ):
                tell("program", f"{event} {args[0] if event != 'subprocess.Popen' else args[1]}")
        except OSError:
            return

    def imported(name: str) -> None:
        """Packages that the rule set does not show count when the submission's own code asks for them; libraries probe for many."""
        if name.partition(".")[0] in hidden:
            frame = sys._getframe(2)
            while frame is not None and "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            if frame is not None and frame.f_code.co_filename.startswith(code):
                tell("outside", f"package {name}")

    def opened(event: str, args: tuple) -> None:
        path = args[0]
        if isinstance(path, int) or path is None:
            return
        full = os.path.abspath(os.fsdecode(path))
        if full == "/" and event != "open":
            return  # the root is the sandbox's own
        folder = full + "/"
        writes = event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if writes and not folder.startswith(writable):
            tell("write", full)
        elif not folder.startswith(allowed):
            tell("outside", full)
        elif folder.startswith(writable) and not os.path.isdir(os.path.dirname(full)):
            tell(
                "absent", full
            )  # a file of the home folder that may be missing, or a path of the host that lies below /tmp there
        elif (
            folder.startswith(emptied)
            and folder not in emptied
            and not folder.startswith(shown)
            and not by_import()
        ):
            tell("outside", full)
        elif (
            event == "open"
            and full.startswith(environment)
            and full.endswith(SOURCE_SUFFIXES)
            and not by_import()
        ):
            tell("environment", full)

    sys.addaudithook(hook)


install()
