"""Continue a prompt with a record's model, token by token.

Of a script like today's train_gpt.py the model alone speaks. Any other script is asked through the
scoring contract, one run per token, which is slow; what its score mixes in takes part then.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data.common import BOS
from eval.errors import UserError
from tools.script import add_record_arguments, choose_artifact, find_record, load_script

if TYPE_CHECKING:  # so that --help need not wait for torch
    from data.tokenizer import Tokenizer
    from tools.models import NextToken


def configure(parser: argparse.ArgumentParser) -> None:
    add_record_arguments(parser)
    parser.add_argument("--prompt", default="", help="the text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="[200]")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 = greedy [0.8]")
    parser.add_argument("--top-k", type=int, default=0, help="likeliest tokens; 0 = all [0]")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="smallest set with that probability [1.0]"
    )
    parser.add_argument("--seed", type=int, default=1337, help="of the sampling [1337]")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="default: the one in data/tokenizers with the record's sha256",
    )


def run(args: argparse.Namespace) -> int:
    check_options(args)
    record = find_record(args.record)
    artifact = choose_artifact(record, args)
    if artifact is None:
        raise UserError(
            f"{record.script}: expected a record folder, found a script; add --artifact"
        )
    from tools.models import open_model
    from tools.text import claimed_sha256, find_tokenizer

    with open_model(load_script(record.script), record.script, artifact) as model:
        sha256 = model.tokenizer_sha256 or claimed_sha256(record)
        print_continuation(model, find_tokenizer(args.tokenizer, sha256), args)
    return 0


def print_continuation(model: NextToken, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    """The prompt and what follows, until the model begins another document."""
    import torch

    from tools.sampling import continue_tokens, sample
    from tools.text import TextStream, check_vocabulary, encode

    generator = torch.Generator().manual_seed(args.seed)

    def pick(logits_V: torch.Tensor) -> int:
        check_vocabulary(tokenizer, len(logits_V))
        return sample(logits_V, args.temperature, args.top_k, args.top_p, generator)

    prompt = encode(tokenizer, args.prompt)
    output = TextStream(tokenizer, sys.stdout)
    output.write(prompt)
    for token in continue_tokens(model, [BOS, *prompt], args.max_new_tokens, pick):
        if token == BOS:
            break
        output.write([token])
    output.close()


def check_options(args: argparse.Namespace) -> None:
    whole = args.top_k >= 0 and args.max_new_tokens >= 0
    if not whole or not 0 <= args.temperature < math.inf or not 0 < args.top_p <= 1:
        raise UserError(
            "generate: expected a finite temperature >= 0, top-k >= 0, 0 < top-p <= 1, "
            "max-new-tokens >= 0; change these flags"
        )
