"""`python -m data docs|text|fineweb|retokenize|bytes|verify`: corpora to tokenizer to shards. Bad input prints one line and exits with code 2."""

import argparse
import hashlib
import re
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from data.build import Job, build
from data.common import DATA_ROOT, UserError, default_workers, sha256_file
from data.corpora import docs_corpus, docs_recipe, text_corpus, text_files
from data.shards import SHARD_TOKENS
from data.tokenizer import load_tokenizer
from data.truth import print_report
from data.verify import verify


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


def run_docs(args: argparse.Namespace) -> int:
    job = Job(args.data_root, "docs", args.vocab_size, None, 1 / 16, args.workers)
    build(job, docs_recipe(), lambda: docs_corpus(args.workers))
    return 0


def run_text(args: argparse.Namespace) -> int:
    files = text_files(args.files)
    job = Job(
        args.data_root, args.name, args.vocab_size, args.tokenizer, args.val_fraction, args.workers
    )
    contents = hashlib.sha256(
        "".join(path.suffix + sha256_file(path) for path in files).encode()
    ).hexdigest()
    recipe = {
        "inputs_sha256": contents,
        "documents": args.documents,
        "min_characters": args.min_characters,
    }
    build(job, recipe, lambda: text_corpus(files, args.documents, args.min_characters))
    return 0


def run_fineweb(args: argparse.Namespace) -> int:
    from data.hub import (
        Export,
        Request,
        fineweb,
    )  # the hub's client takes a while to import, and only this command needs it

    export = Export(args.repo_id, args.revision, args.prefix)
    fineweb(
        Request(
            export, args.variant, args.train_shards, args.with_docs, args.data_root, args.workers
        )
    )
    return 0


def run_retokenize(args: argparse.Namespace) -> int:
    from data.retokenize import CHUNK_BYTES, SLURM_CHUNK_BYTES, Cluster, retokenize

    job = Job(args.data_root, args.name, args.vocab_size, args.tokenizer, workers=args.workers)
    cluster = Cluster(args.machine, args.slurm, args.slurm_time)
    retokenize(
        job,
        args.docs,
        args.val_documents,
        args.shard_tokens,
        SLURM_CHUNK_BYTES if args.slurm else CHUNK_BYTES,
        cluster,
    )
    return 0


def run_bytes(args: argparse.Namespace) -> int:
    print_report(
        {path.stem: load_tokenizer(path) for path in args.tokenizer}, text_files(args.files)
    )
    return 0


def run_verify(args: argparse.Namespace) -> int:
    return 0 if all([verify(folder) for folder in args.folders]) else 2


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m data", description=__doc__, allow_abbrev=False)
    commands = root.add_subparsers(dest="command", required=True)

    def command(name: str, run, help_text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help_text,
            description=help_text,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    def building(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--data-root",
            type=Path,
            default=DATA_ROOT,
            help="folder that holds datasets/ and tokenizers/",
        )
        sub.add_argument("--workers", type=positive, default=default_workers(), help="processes")

    def tokenizer_options(sub: argparse.ArgumentParser) -> None:
        size = sub.add_mutually_exclusive_group()
        size.add_argument(
            "--vocab-size", type=positive, default=1024, help="pieces of the tokenizer to train"
        )
        size.add_argument(
            "--tokenizer",
            type=Path,
            help="an existing SentencePiece .model, or the .json of a byte tokenizer",
        )

    docs = command(
        "docs", run_docs, "Build the embedded corpus: docstrings of the pinned packages."
    )
    docs.add_argument("--vocab-size", type=positive, default=1024, help="pieces of the tokenizer")
    building(docs)

    text = command(
        "text",
        run_text,
        "Build a dataset from your own UTF-8 text or JSON-lines files (one object a line, its text field).",
    )
    text.add_argument(
        "files",
        nargs="+",
        type=Path,
        help="files, or folders to search for text and JSON-lines files",
    )
    text.add_argument(
        "--name",
        type=dataset_name,
        default="text",
        help="dataset name; the folder is NAME_sp<vocabulary>",
    )
    text.add_argument(
        "--documents",
        choices=("blocks", "lines", "files"),
        default="blocks",
        help="what a document is in plain text: blank-line-separated blocks joined up to --min-characters, one line, or a whole file",
    )
    text.add_argument(
        "--min-characters",
        type=positive,
        default=1000,
        help="blocks: join neighbours until a document is this long",
    )
    text.add_argument(
        "--val-fraction",
        type=fraction,
        default=1 / 16,
        help="share of documents held out, chosen by their sha256",
    )
    tokenizer_options(text)
    building(text)

    web = command(
        "fineweb",
        run_fineweb,
        "Download the published FineWeb export: full validation set, the first N training shards.",
    )
    web.add_argument(
        "--variant",
        default="sp1024",
        help="sp1024, sp2048, sp4096, sp8192, byte260, or a dataset's name in the export",
    )
    web.add_argument(
        "--train-shards",
        type=positive,
        default=80,
        help="training shards of 100 M tokens, from the first",
    )
    web.add_argument(
        "--with-docs",
        action="store_true",
        help="also fetch the document list (45 GB), for python -m data retokenize",
    )
    web.add_argument(
        "--repo-id",
        default="willdepueoai/parameter-golf",
        help="dataset repository; HF_ENDPOINT names another hub",
    )
    web.add_argument("--revision", default="main", help="branch, tag or commit")
    web.add_argument("--prefix", default="datasets", help="folder of the export in the repository")
    building(web)

    again = command(
        "retokenize",
        run_retokenize,
        "Make shards from a document list of any size (JSON lines); interrupted, it resumes.",
    )
    again.add_argument(
        "--docs",
        type=Path,
        required=True,
        help="JSON lines with a text field, validation documents first (docs_selected.jsonl)",
    )
    again.add_argument(
        "--name",
        type=dataset_name,
        required=True,
        help="dataset name; the folder is NAME_sp<vocabulary>",
    )
    again.add_argument(
        "--val-documents",
        type=positive,
        default=50_000,
        help="the first so many documents are validation",
    )
    again.add_argument(
        "--shard-tokens", type=positive, default=SHARD_TOKENS, help="tokens in a shard"
    )
    tokenizer_options(again)
    building(again)
    where = again.add_mutually_exclusive_group()
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
    again.add_argument("--slurm-time", default="24:00:00", help="time limit of the Slurm jobs")

    truth = command(
        "bytes",
        run_bytes,
        "Report source, decoded and counted bytes of tokenizers on files; refuse a wrong byte table.",
    )
    truth.add_argument(
        "files", nargs="+", type=Path, help="text or JSON-lines files, or folders of them"
    )
    truth.add_argument(
        "--tokenizer",
        type=Path,
        action="append",
        required=True,
        help="a SentencePiece .model; may be repeated",
    )

    check = command(
        "verify",
        run_verify,
        "Check datasets against their manifests: hashes, counts, token range, bytes, overlap.",
    )
    check.add_argument("folders", nargs="+", type=Path, help="dataset folders")
    return root


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: {error.filename or 'input or output'}: {error.strerror or error}",
            file=sys.stderr,
        )
        return 2
    except BrokenProcessPool:
        print(
            "error: a worker process was killed (out of memory?); nothing half-written counts, run the command again, with fewer --workers",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing half-written is left behind", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
