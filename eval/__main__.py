"""The referee's command line: `python -m eval COMMAND`.

Every command is a module of `eval.commands` with `configure(parser)`, which adds its arguments,
and `run(args)`, which returns the exit code. Only the module of the chosen command is imported."""

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Sequence

from eval.errors import UserError

COMMANDS = {
    "score": "score a record independently",
    "audit": "test a record by its behaviour",
    "canary": "run a public script as it is against a known entropy",
    "compare": "tell whether record B is better than record A",
    "check": "check the evidence in record folders",
    "pack": "build a record folder from run folders",
    "board": "write the boards from the records",
    "pr": "prepare the branch and the text of a record's pull request",
}

NEW_OBJECTS = 100_000  # between two searches for rubbish


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: the command's own, 2 for bad input, 130 when interrupted, 141 when unread."""
    prepare_process()
    arguments = sys.argv[1:] if argv is None else list(argv)
    chosen = arguments[0] if arguments else None
    try:
        args = build_parser(chosen).parse_args(arguments)
        code = args.run(args)
        sys.stdout.flush()  # here, where somebody catches a closed pipe
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "eval":
            raise  # a fault of ours
        print(
            f"error: this command needs {error.name}, which is not installed; "
            "install golf-referee[all], or work in a clone with its requirements.txt",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk, a file that vanished
        place = error.filename or "input or output"
        what = error.strerror or error
        print(f"error: {place}: {what}; what was there before is still there", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing half-written is left behind", file=sys.stderr)
        return 130


def prepare_process() -> None:
    """What the process needs before anything is printed or imported."""
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding lacks is shown escaped: a letter must not end a command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # Importing makes many objects, all of which stay; searching them for rubbish again and again,
    # as the default of 700 does, is a fifth of a short command's time.
    gc.set_threshold(NEW_OBJECTS)
    # pydantic would search every installed package for plugins, which costs more than a check.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """Parser of all commands by name; the `chosen` one also knows its arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m eval",
        description="Independent scoring, audit, statistics, packaging and board.",
        allow_abbrev=False,
    )
    names = ",".join(COMMANDS)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar=f"{{{names}}}")
    for name, summary in COMMANDS.items():
        command = subparsers.add_parser(name, help=summary, allow_abbrev=False)
        if name == chosen:
            module = importlib.import_module(f"eval.commands.{name}")
            command.description = module.__doc__
            module.configure(command)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
