"""`python -m eval canary`: one run of an untouched script against a known entropy.

The script, of the public contest's shape, runs in the sandbox as it is. It finds the contest's
files, but the tokens are drawn from sources whose probability the referee knows. No code spends
fewer nats than the entropy, so what the script prints may refute it. Its record's own settings are
applied first, then sizes shrink for a run of seconds, and CUDA is led to the CPU.

Exit code 0 for CONSISTENT, 1 for INVALID, 3 for NOT RUN, 2 for bad input.
"""

import argparse
import sys
from pathlib import Path

EXIT_CODES = {"CONSISTENT": 0, "INVALID": 1, "NOT RUN": 3}
DEVICES = ("cpu", "cuda")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, metavar="SCRIPT_OR_FOLDER", help="a script, or a record folder"
    )
    parser.add_argument(
        "--sources",
        type=_names,
        default=(),
        metavar="NAME,…",
        help="sources of tokens (default: the usual plan)",
    )
    parser.add_argument(
        "--world-sizes",
        type=_counts,
        default=(),
        metavar="N,…",
        help="numbers of ranks (default: 2 for uniform and long, else 1)",
    )
    parser.add_argument(
        "--env",
        action="append",
        type=_assignment,
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the script, before all others; may be repeated",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="time for all runs (default 180; 600 where a script counts in hashed tables)",
    )
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="targets of each stream (default: the source's)"
    )
    parser.add_argument("--all", action="store_true", help="go on after a refutation")
    parser.add_argument(
        "--python", type=Path, metavar="FILE", help="the interpreter that runs the script"
    )
    parser.add_argument(
        "--device", choices=DEVICES, default="cpu", help="cuda leads nothing to the CPU"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws other streams")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep streams, settings and what was printed"
    )
    parser.add_argument(
        "--no-sandbox", action="store_true", help="run the script unprotected; the report says so"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print the report as JSON")
    output.add_argument(
        "--format",
        choices=("text", "github"),
        default="text",
        help="github prints Markdown for a pull request",
    )


def run(args: argparse.Namespace) -> int:
    # The referee's numerical libraries load with the driver, which --help does not need.
    from eval.trial.canary.driver import try_script
    from eval.trial.canary.report import as_json, as_markdown, as_text
    from eval.trial.canary.schedule import Options

    options = Options(
        sources=args.sources,
        world_sizes=args.world_sizes,
        given=dict(args.env),
        seconds=args.seconds,
        tokens=args.tokens,
        every=args.all,
        python=args.python,
        device=args.device,
        keep=args.keep,
        mechanism="none" if args.no_sandbox else "auto",
        seed=args.seed,
        say=_say,
    )
    report = try_script(args.path, options)
    written = as_json if args.json else {"text": as_text, "github": as_markdown}[args.format]
    print(written(report), end="")
    return EXIT_CODES[report.verdict]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _names(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,2, found {text!r}") from None


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    return name, value
