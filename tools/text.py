"""From text to token ids and back, with the tokenizer that a record names by its sha256."""

import hashlib
from pathlib import Path
from typing import TextIO

import numpy as np

import data.common
from data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from eval.errors import UserError
from tools.script import Record

TOKENIZERS = Path(__file__).resolve().parents[1] / "data" / "tokenizers"
REPLACEMENT = "\ufffd"  # what a decoder puts for bytes that are no whole character (yet)


def claimed_sha256(record: Record) -> str | None:
    """Of the tokenizer, by the record's submission.json."""
    found = record.submission().get("data")
    return found.get("tokenizer_sha256") if isinstance(found, dict) else None


def find_tokenizer(given: Path | None, sha256: str | None) -> Tokenizer:
    """The file given, which must have this sha256 where one is known, else the one that has it.

    Raises UserError.
    """
    candidates = sorted(TOKENIZERS.glob("*.model")) if given is None else [given]
    if given is None and sha256 == hashlib.sha256(ByteTokenizer.model).hexdigest():
        return ByteTokenizer()
    for path in candidates:
        unchecked = given is not None and sha256 is None
        if path.is_file() and (unchecked or data.common.sha256_file(path) == sha256):
            return read_tokenizer(path)
    wanted = f"the tokenizer with sha256 {sha256}" if sha256 else "the record's tokenizer"
    place = given or "data/tokenizers"
    raise UserError(f"{place}: expected {wanted}, found none; pass --tokenizer FILE")


def read_tokenizer(path: Path) -> Tokenizer:
    try:
        return load_tokenizer(path)
    except data.common.UserError as error:
        raise UserError(str(error)) from None


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text).tolist() if text else []


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises UserError unless the model has as many tokens."""
    if vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"--tokenizer: expected one of {vocab_size} tokens, as the model has, "
            f"found {tokenizer.vocab_size}; pass the record's own"
        )


class TextStream:
    """Prints text as its tokens come.

    A character whose bytes are spread over several tokens waits for the last of them.
    """

    def __init__(self, tokenizer: Tokenizer, file: TextIO):
        self.tokenizer = tokenizer
        self.file = file
        self.tokens: list[int] = []
        self.printed = 0  # characters

    def write(self, tokens: list[int]) -> None:
        self.tokens += tokens
        self.print_up_to(self.text().rstrip(REPLACEMENT))

    def close(self) -> None:
        """What still waits, as it is, and the end of the line."""
        self.print_up_to(self.text() + "\n")

    def text(self) -> str:
        return self.tokenizer.decode(np.array(self.tokens, np.uint16)) if self.tokens else ""

    def print_up_to(self, text: str) -> None:
        self.file.write(text[self.printed :])
        self.file.flush()
        self.printed = max(self.printed, len(text))
