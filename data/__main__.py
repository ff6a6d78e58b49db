"""`python -m data COMMAND`: corpora to tokenizer to shards.

Bad input prints one line and exits with code 2.
"""

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

# Each command imports what it needs when it runs, so that --help answers at once.
from data.common import DATA_ROOT, SHARD_TOKENS, UserError, default_workers, sha256_file

Command = Callable[[argparse.Namespace], int]

# --- values of options ----------------------------------------------------------------------------


def fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text}")
    return value


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return int(text)


def machine(text: str) -> tuple[int, int]:
    share, _, machines = text.partition("/")
    if not (share.isdecimal() and machines.isdecimal() and int(share) < int(machines)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N - 1, got {text!r}")
    return int(share), int(machines)


def dataset_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", text):
        raise argparse.ArgumentTypeError(f"expected letters, digits, - and _, got {text!r}")
    return text


# --- commands -------------------------------------------------------------------------------------


def run_docs(args: argparse.Namespace) -> int:
    from data.build import build
    from data.corpora import docs_corpus, docs_recipe
    from data.job import Job

    job = Job(args.data_root, "docs", vocab_size=args.vocab_size, workers=args.workers)
    build(job, docs_recipe(), lambda: docs_corpus(args.workers))
    return 0


def run_text(args: argparse.Namespace) -> int:
    from data.build import build
    from data.corpora import content_suffix, text_corpus, text_files
    from data.job import Job

    files = text_files(args.files)
    job = Job(
        data_root=args.data_root,
        name=args.name,
        vocab_size=args.vocab_size,
        tokenizer=args.tokenizer,
        val_fraction=args.val_fraction,
        workers=args.workers,
    )
    contents = "".join(content_suffix(path) + sha256_file(path) for path in files)
    recipe = {
        "inputs_sha256": hashlib.sha256(contents.encode()).hexdigest(),
        "documents": args.documents,
        "min_characters": args.min_characters,
    }
    build(job, recipe, lambda: text_corpus(files, args.documents, args.min_characters))
    return 0


def run_fineweb(args: argparse.Namespace) -> int:
    from data.fineweb import Request, fineweb
    from data.hub import Export

    request = Request(
        export=Export(args.repo_id, args.revision, args.prefix),
        variant=args.variant,
        train_shards=args.train_shards,
        with_docs=args.with_docs,
        data_root=args.data_root,
        workers=args.workers,
    )
    fineweb(request)
    return 0


def run_retokenize(args: argparse.Namespace) -> int:
    from data.job import Job
    from data.retokenize import CHUNK_BYTES, SLURM_CHUNK_BYTES, Cluster, retokenize

    job = Job(
        data_root=args.data_root,
        name=args.name,
        vocab_size=args.vocab_size,
        tokenizer=args.tokenizer,
        workers=args.workers,
    )
    cluster = Cluster(args.machine, args.slurm, args.slurm_time)
    chunk_bytes = SLURM_CHUNK_BYTES if args.slurm else CHUNK_BYTES
    retokenize(job, args.docs, args.val_documents, args.shard_tokens, chunk_bytes, cluster)
    return 0


def run_bytes(args: argparse.Namespace) -> int:
    from data.corpora import text_files
    from data.tokenizer import load_tokenizer
    from data.truth import print_report

    tokenizers = {path.stem: load_tokenizer(path) for path in args.tokenizer}
    print_report(tokenizers, text_files(args.files))
    return 0


def run_verify(args: argparse.Namespace) -> int:
    from data.verify import verify

    verdicts = [verify(folder) for folder in args.folders]
    return 0 if all(verdicts) else 2


# --- the command line -----------------------------------------------------------------------------

# What add_subparsers returns; argparse gives this type no public name.
Commands = Any


def add_command(
    commands: Commands, name: str, run: Command, summary: str, detail: str = ""
) -> argparse.ArgumentParser:
    """A command's own parser. `summary` is its line in the list of commands."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary} {detail}".strip(),
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_place_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-root",
        type=Path,
        default=DATA_ROOT,
        help="folder that holds datasets/ and tokenizers/",
    )
    parser.add_argument("--workers", type=positive, default=default_workers(), help="processes")


def add_name_option(parser: argparse.ArgumentParser, **default: Any) -> None:
    """Takes `default=...` or `required=True`."""
    parser.add_argument(
        "--name",
        type=dataset_name,
        help="dataset name; the folder is NAME_sp<vocabulary>",
        **default,
    )


def add_tokenizer_options(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--vocab-size", type=positive, default=1024, help="pieces of the tokenizer to train"
    )
    choice.add_argument(
        "--tokenizer",
        type=Path,
        help="an existing SentencePiece .model, or the .json of a byte tokenizer",
    )


def add_docs(commands: Commands) -> None:
    parser = add_command(
        commands,
        "docs",
        run_docs,
        "Build the embedded corpus: docstrings of the pinned packages.",
    )
    parser.add_argument("--vocab-size", type=positive, default=1024, help="pieces of the tokenizer")
    add_place_options(parser)


def add_text(commands: Commands) -> None:
    parser = add_command(
        commands,
        "text",
        run_text,
        "Build a dataset from your own UTF-8 text or JSON-lines files "
        "(one object a line, its text field).",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        help="files, or folders to search for text and JSON-lines files",
    )
    add_name_option(parser, default="text")
    parser.add_argument(
        "--documents",
        choices=("blocks", "lines", "files"),
        default="blocks",
        help="what a document is in plain text: blank-line-separated blocks "
        "joined up to --min-characters, one line, or a whole file",
    )
    parser.add_argument(
        "--min-characters",
        type=positive,
        default=1000,
        help="blocks: join neighbours until a document is this long",
    )
    parser.add_argument(
        "--val-fraction",
        type=fraction,
        default=1 / 16,
        help="share of documents held out, chosen by their sha256",
    )
    add_tokenizer_options(parser)
    add_place_options(parser)


def add_fineweb(commands: Commands) -> None:
    parser = add_command(
        commands,
        "fineweb",
        run_fineweb,
        "Download the published FineWeb export: full validation set, the first N training shards.",
    )
    parser.add_argument(
        "--variant",
        default="sp1024",
        help="sp1024, sp2048, sp4096, sp8192, byte260, or a dataset's name in the export",
    )
    parser.add_argument(
        "--train-shards",
        type=positive,
        default=80,
        help="training shards of 100 M tokens, from the first",
    )
    parser.add_argument(
        "--with-docs",
        action="store_true",
        help="also fetch the document list (45 GB), for python -m data retokenize",
    )
    parser.add_argument(
        "--repo-id",
        default="willdepueoai/parameter-golf",
        help="dataset repository; HF_ENDPOINT names another hub",
    )
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.add_argument(
        "--prefix", default="datasets", help="folder of the export in the repository"
    )
    add_place_options(parser)


def add_retokenize(commands: Commands) -> None:
    parser = add_command(
        commands,
        "retokenize",
        run_retokenize,
        "Make shards from a document list of any size (JSON lines).",
        "After an interruption, run it again: it resumes.",
    )
    parser.add_argument(
        "--docs",
        type=Path,
        required=True,
        help="JSON lines with a text field, validation documents first (docs_selected.jsonl)",
    )
    add_name_option(parser, required=True)
    parser.add_argument(
        "--val-documents",
        type=positive,
        default=50_000,
        help="how many of the first documents are validation",
    )
    parser.add_argument(
        "--shard-tokens", type=positive, default=SHARD_TOKENS, help="tokens in a shard"
    )
    add_tokenizer_options(parser)
    add_place_options(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--machine",
        type=machine,
        default="0/1",
        metavar="I/N",
        help="do share I of N; run it on N machines with a common file system",
    )
    where.add_argument(
        "--slurm",
        metavar="PARTITION",
        help="submit to Slurm through datatrove instead, --workers items at a time",
    )
    parser.add_argument("--slurm-time", default="24:00:00", help="time limit of the Slurm jobs")


def add_bytes(commands: Commands) -> None:
    parser = add_command(
        commands,
        "bytes",
        run_bytes,
        "Report source, decoded and counted bytes of tokenizers on files; "
        "refuse a wrong byte table.",
    )
    parser.add_argument(
        "files", nargs="+", type=Path, help="text or JSON-lines files, or folders of them"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        action="append",
        required=True,
        help="a SentencePiece .model; may be repeated",
    )


def add_verify(commands: Commands) -> None:
    parser = add_command(
        commands,
        "verify",
        run_verify,
        "Measure whole datasets again, against their manifests: "
        "sha256, counts, token range, bytes, overlap.",
        "It hashes every shard and the tokenizer, and decodes every validation document to count "
        "its bytes. Training checks only headers and lengths, and logs the sha256 of the "
        "manifest, so run this once after every download or copy. "
        "It exits with code 2 when anything differs, and says what to do.",
    )
    parser.add_argument("folders", nargs="+", type=Path, help="dataset folders")


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (add_docs, add_text, add_fineweb, add_retokenize, add_bytes, add_verify):
        add(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Returns the exit code; 141 where nobody reads what is printed."""
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding lacks is shown escaped: a letter must not end a command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    args = command_line().parse_args(argv)
    try:
        code = args.run(args)
        sys.stdout.flush()  # here, where somebody catches a closed pipe
        return code
    except UserError as error:
        message = str(error)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        message = f"{error.filename or 'input or output'}: {error.strerror or error}"
    except BrokenProcessPool:
        message = (
            "a worker process was killed (out of memory?); nothing half-written counts, "
            "run the command again, with fewer --workers"
        )
    except KeyboardInterrupt:
        print("error: interrupted; nothing half-written is left behind", file=sys.stderr)
        return 130
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
