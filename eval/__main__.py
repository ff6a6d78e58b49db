"""The referee's command line: `python -m eval COMMAND`. Every command lives in a module of its own with `register(subparsers)`."""

import argparse
import importlib
import sys

from eval.errors import UserError

COMMANDS = ("score", "audit", "compare", "check", "pack", "board", "pr")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval",
        description="Independent scoring, audit, statistics, packaging and board.",
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(
        dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}"
    )
    arguments = sys.argv[1:] if argv is None else argv
    for name in (
        arguments[:1] if arguments[:1] and arguments[0] in COMMANDS else COMMANDS
    ):  # plotting and statistics load only where they are used
        importlib.import_module(f"eval.{name}").register(subparsers)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a file that vanished
        print(
            f"error: {error.filename or 'input or output'}: {error.strerror or error}; what was there before is still there",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing half-written is left behind", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
