"""How many bytes of text a token stands for, for any SentencePiece model and for pure bytes.

The table follows SentencePiece's own decoder (sentencepiece_processor.cc, DecodeSentencePiece), not the look of the pieces:
a byte-fallback piece is 1 byte; U+2581 is written out as one space; control, unused and unknown pieces are 0 bytes (an unknown
stands for text that cannot be rebuilt, so counting anything for it would be a guess); every other piece is its UTF-8 bytes.
A decoder that strips the space before the first word (add_dummy_prefix or remove_extra_whitespaces) makes the leading space of
a document's first token 0 bytes."""

from dataclasses import dataclass

import numpy as np
import sentencepiece as spm

from data.common import BOS

BLOCK = 1 << 20
SPACE = "\u2581"  # written as an escape: a source file saved with the wrong encoding once turned the literal into "?"


@dataclass(frozen=True)
class ByteTable:
    """pieces: V byte strings; sizes int64 [V]; leading bool [V]: begins with a space; strips_first: a document's first space is dropped."""

    pieces: list[bytes]
    sizes: np.ndarray
    leading: np.ndarray
    strips_first: bool

    @classmethod
    def of_pieces(cls, pieces: list[bytes], strips_first: bool = False) -> "ByteTable":
        leading = np.array([piece.startswith(b" ") for piece in pieces])
        return cls(
            pieces, np.array([len(piece) for piece in pieces], np.int64), leading, strips_first
        )

    @classmethod
    def of_sentencepiece(cls, sp: spm.SentencePieceProcessor) -> "ByteTable":
        pieces, probe = [], None
        for i in range(sp.vocab_size()):
            text = sp.id_to_piece(i)
            if sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i):
                pieces.append(b"")
            elif sp.is_byte(i):
                pieces.append(bytes([int(text[3:5], 16)]))  # "<0x41>"
            else:
                pieces.append(text.replace(SPACE, " ").encode())
                if text.startswith(SPACE) and text != SPACE:
                    probe = i
        # Asking the decoder is exact; the flags that decide it sit in a protobuf that would need another package to read.
        return cls.of_pieces(
            pieces, strips_first=probe is not None and not sp.decode([probe]).startswith(" ")
        )

    def token_bytes(self, tokens: np.ndarray, previous: int = BOS) -> np.ndarray:
        """int64 [N] bytes of each token of a stream whose documents each begin with BOS; `previous` is the token before the stream's first."""
        sizes = self.sizes[tokens]
        if self.strips_first and len(tokens):
            first = np.concatenate([[previous], tokens[:-1]]) == BOS
            sizes = sizes - (first & self.leading[tokens])
        return sizes

    def count(self, tokens: np.ndarray, previous: int = BOS) -> int:
        """Bytes of a stream of any length, by blocks: int64 sizes of a 100 M-token shard at once would take 800 MB."""
        total = 0
        for start in range(0, len(tokens), BLOCK):
            block = tokens[start : start + BLOCK]
            total += int(self.token_bytes(block, previous).sum())
            previous = int(block[-1])
        return total

    def decode(self, tokens: np.ndarray) -> bytes:
        """The bytes of one document (BOS or not)."""
        ids = tokens.tolist()
        joined = b"".join([self.pieces[i] for i in ids])
        content = ids[1:] if ids and ids[0] == BOS else ids
        return joined[1:] if self.strips_first and content and self.leading[content[0]] else joined
