"""How many bytes of text a token stands for, in any SentencePiece model and in pure bytes.

The table follows SentencePiece's own decoder (sentencepiece_processor.cc, DecodeSentencePiece),
not the look of the pieces:

* A byte-fallback piece is 1 byte.
* U+2581 is written as one space.
* Control and unused pieces are 0 bytes. So is the unknown piece: it stands for text that cannot
  be rebuilt, so any other number would be a guess.
* Every other piece is its UTF-8 bytes.
* Some decoders strip the space before the first word (add_dummy_prefix or
  remove_extra_whitespaces). With them, the leading space of a document's first token is 0 bytes.
"""

from dataclasses import dataclass

import numpy as np
import sentencepiece as spm

from data.common import BOS

BLOCK = 1 << 20  # tokens counted at a time
# An escape, because a source file saved in the wrong encoding once turned the literal into "?".
SPACE = "\u2581"


@dataclass(frozen=True)
class ByteTable:
    """What each of V tokens decodes to.

    pieces: V byte strings.
    sizes: int64 [V], their lengths.
    leading: bool [V], whether the piece begins with a space.
    strips_first: whether the decoder drops a document's first space.
    """

    pieces: list[bytes]
    sizes: np.ndarray
    leading: np.ndarray
    strips_first: bool

    @classmethod
    def of_pieces(cls, pieces: list[bytes], strips_first: bool = False) -> "ByteTable":
        sizes = np.array([len(piece) for piece in pieces], np.int64)
        leading = np.array([piece.startswith(b" ") for piece in pieces])
        return cls(pieces, sizes, leading, strips_first)

    @classmethod
    def of_sentencepiece(cls, sp: spm.SentencePieceProcessor) -> "ByteTable":
        pieces = [_decoded_piece(sp, i) for i in range(sp.vocab_size())]
        return cls.of_pieces(pieces, strips_first=_strips_first(sp))

    def token_bytes(self, tokens: np.ndarray, previous: int = BOS) -> np.ndarray:
        """Bytes of each token of a stream, int64 [N]. Every document begins with BOS.

        previous: the token before the stream's first.
        """
        sizes = self.sizes[tokens]
        if not self.strips_first or not len(tokens):
            return sizes
        first = np.concatenate([[previous], tokens[:-1]]) == BOS
        return sizes - (first & self.leading[tokens])

    def count(self, tokens: np.ndarray, previous: int = BOS) -> int:
        """Bytes of a stream of any length.

        Counts block by block: the int64 sizes of a whole shard of 100 M tokens take 800 MB.
        """
        total = 0
        for start in range(0, len(tokens), BLOCK):
            block = tokens[start : start + BLOCK]
            total += int(self.token_bytes(block, previous).sum())
            previous = int(block[-1])
        return total

    def decode(self, tokens: np.ndarray) -> bytes:
        """The bytes of one document, with or without its BOS."""
        ids = tokens.tolist()
        text = b"".join([self.pieces[i] for i in ids])
        content = ids[1:] if ids[:1] == [BOS] else ids
        if self.strips_first and content and self.leading[content[0]]:
            return text[1:]
        return text


def _decoded_piece(sp: spm.SentencePieceProcessor, i: int) -> bytes:
    """What the decoder writes for token i inside a document."""
    if sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i):
        return b""
    piece = sp.id_to_piece(i)
    if sp.is_byte(i):
        return bytes([int(piece[3:5], 16)])  # "<0x41>"
    return piece.replace(SPACE, " ").encode()


def _strips_first(sp: spm.SentencePieceProcessor) -> bool:
    """Whether the decoder drops the space at the start of a document.

    Asking the decoder is exact. The flags that decide it are in a protobuf that would need
    another package to read.
    """
    for i in reversed(range(sp.vocab_size())):  # words, not the rare user-defined symbols
        if _is_word_with_space(sp, i):
            return not sp.decode([i]).startswith(" ")
    return False


def _is_word_with_space(sp: spm.SentencePieceProcessor, i: int) -> bool:
    if sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i) or sp.is_byte(i):
        return False
    piece = sp.id_to_piece(i)
    return piece.startswith(SPACE) and piece != SPACE
