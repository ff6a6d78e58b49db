"""`python -m tools COMMAND`: look at runs and records, and run variations.

Bad input prints one line and exits with code 2.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from eval.errors import UserError

COMMANDS = {
    "runs": "list, compare, follow and draw runs",
    "sweep": "train variations with several seeds, and compare them",
    "params": "parameters by group, and their bytes in the artifact",
    "generate": "continue a prompt with a record's model",
}
RUN_A_RECORD = ("params", "generate")
WARNING = "This runs the record's code in your account: use it only for records that you trust."


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """Parser of all commands by name; the `chosen` one also knows its arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m tools",
        description=f"Runs and records. {' and '.join(RUN_A_RECORD)}: {WARNING}",
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(
        dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}"
    )
    for name, summary in COMMANDS.items():
        command = subparsers.add_parser(name, help=summary, allow_abbrev=False)
        if name == chosen:
            module = importlib.import_module(f"tools.{name}")
            warning = WARNING if name in RUN_A_RECORD else ""
            command.description = f"{module.__doc__} {warning}".rstrip()
            module.configure(command)
            command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: the command's own, 2 for bad input, 130 when interrupted, 141 when unread."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = build_parser(arguments[0] if arguments else None)
    args, settings = parser.parse_known_args(arguments)
    if settings and args.command != "params":
        parser.error(f"unrecognized arguments: {' '.join(settings)}")
    args.settings = settings
    try:
        code = args.run(args)
        sys.stdout.flush()  # here, where somebody catches a closed pipe
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        place = error.filename or "input or output"
        print(f"error: {place}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
