"""Decompressors and text codecs by the name under which a script calls them, each with a bound.

They take the arguments of the functions that they stand for. None gives more than MOST_BYTES,
so that a small constant cannot fill the memory.
"""

import base64
import binascii
import bz2
import lzma
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MOST_BYTES = 64 << 20  # of one decoded value; the contest's scripts have a few hundred kB
MOST_MEMORY = 256 << 20  # of one decoder


class Undecodable(Exception):
    """A constant that is damaged, or grows beyond MOST_BYTES."""


@dataclass(frozen=True)
class Decoder:
    """`layer` is the word for what it takes off; `compressed` tells compression from a codec."""

    layer: str
    decode: Callable[..., bytes]
    compressed: bool = False

    def __call__(self, *values: object, **options: object) -> bytes:
        """The decoded bytes. Raises Undecodable."""
        try:
            data = self.decode(*values, **options)
        except (ValueError, TypeError, OSError, EOFError, MemoryError, OverflowError) as error:
            raise Undecodable(f"{self.layer}: {error}") from None
        except (lzma.LZMAError, zlib.error) as error:
            raise Undecodable(f"{self.layer}: {error}") from None
        if len(data) > MOST_BYTES:
            raise Undecodable(f"{self.layer}: it grows beyond {MOST_BYTES:,} bytes")
        return data


def _lzma(
    data: bytes,
    format: int = lzma.FORMAT_AUTO,
    memlimit: int | None = None,
    filters: Sequence[dict] | None = None,
) -> bytes:
    """A raw stream takes no limit of memory; its filters state what it needs."""
    raw = format == lzma.FORMAT_RAW
    if any(step.get("dict_size", 0) > MOST_MEMORY for step in filters or ()):
        raise ValueError("its dictionary is too large")
    decoder = lzma.LZMADecompressor(format, None if raw else MOST_MEMORY, filters)
    decoded = decoder.decompress(data, MOST_BYTES + 1)
    if not (raw or decoder.eof or len(decoded) > MOST_BYTES):
        raise EOFError("it ends early")
    return decoded


def _zlib(data: bytes, wbits: int = zlib.MAX_WBITS, bufsize: int = 0) -> bytes:
    decoder = zlib.decompressobj(wbits)
    decoded = decoder.decompress(data, MOST_BYTES + 1)
    if not (decoder.eof or len(decoded) > MOST_BYTES):
        raise EOFError("it ends early")
    return decoded


def _gzip(data: bytes) -> bytes:
    return _zlib(data, 16 + zlib.MAX_WBITS)


def _bz2(data: bytes) -> bytes:
    decoder = bz2.BZ2Decompressor()
    decoded = decoder.decompress(data, MOST_BYTES + 1)
    if not (decoder.eof or len(decoded) > MOST_BYTES):
        raise EOFError("it ends early")
    return decoded


def _brotli(data: bytes) -> bytes:
    import brotli

    decoder = brotli.Decompressor()
    try:
        decoded = decoder.process(data, output_buffer_limit=MOST_BYTES + 1)
    except brotli.error as error:
        raise ValueError(error) from None
    if not (decoder.is_finished() or len(decoded) > MOST_BYTES):
        raise EOFError("it ends early")
    return decoded


def _zstd(data: bytes, max_output_size: int = 0) -> bytes:
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=MOST_MEMORY)
    try:
        return decoder.stream_reader(data).read(MOST_BYTES + 1)
    except zstandard.ZstdError as error:
        raise ValueError(error) from None


LZMA = Decoder("lzma", _lzma, compressed=True)
ZLIB = Decoder("zlib", _zlib, compressed=True)
GZIP = Decoder("gzip", _gzip, compressed=True)
BZ2 = Decoder("bz2", _bz2, compressed=True)
BROTLI = Decoder("brotli", _brotli, compressed=True)
ZSTD = Decoder("zstd", _zstd, compressed=True)
BASE64 = Decoder("base64", base64.b64decode)
HEX = Decoder("hex", binascii.unhexlify)

# Functions by their full names. NAME() stands for a call without regard to its arguments.
DECODERS: Mapping[str, Decoder] = {
    "lzma.decompress": LZMA,
    "zlib.decompress": ZLIB,
    "gzip.decompress": GZIP,
    "bz2.decompress": BZ2,
    "brotli.decompress": BROTLI,
    "brotlicffi.decompress": BROTLI,
    "zstandard.decompress": ZSTD,
    "zstandard.ZstdDecompressor().decompress": ZSTD,
    "zstd.decompress": ZSTD,
    "compression.zstd.decompress": ZSTD,
    "base64.b64decode": BASE64,
    "base64.standard_b64decode": BASE64,
    "base64.urlsafe_b64decode": Decoder("base64", base64.urlsafe_b64decode),
    "base64.decodebytes": Decoder("base64", base64.decodebytes),
    "base64.b85decode": Decoder("base85", base64.b85decode),
    "base64.a85decode": Decoder("ascii85", base64.a85decode),
    "base64.b32decode": Decoder("base32", base64.b32decode),
    "base64.b16decode": Decoder("hex", base64.b16decode),
    "binascii.a2b_base64": Decoder("base64", binascii.a2b_base64),
    "binascii.unhexlify": HEX,
    "binascii.a2b_hex": HEX,
    "bytes.fromhex": Decoder("hex", bytes.fromhex),
}

# Names of codecs.decode(value, NAME), with the function that does the same.
CODECS: Mapping[str, Decoder] = {
    "base64": BASE64,
    "base_64": BASE64,
    "hex": HEX,
    "zlib": ZLIB,
    "zip": ZLIB,
    "bz2": BZ2,
}
