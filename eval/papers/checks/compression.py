"""How small the shipped script becomes: what a log counts where it counts the script compressed."""

import lzma
import zlib

CLOSE = 0.25  # compressors, settings and minifiers differ by less than this share


def compressed_sizes(code: bytes) -> dict[str, int]:
    """Bytes of a script under each compressor at its strongest setting, by its name."""
    import brotli
    import zstandard

    return {
        "zlib": len(zlib.compress(code, 9)),
        "lzma": len(lzma.compress(code, preset=9 | lzma.PRESET_EXTREME)),
        "brotli": len(brotli.compress(code)),
        "zstd": len(zstandard.ZstdCompressor(level=22).compress(code)),
    }


def looks_compressed(counted: int, sizes: dict[str, int]) -> bool:
    """Whether a counted size is that of the script under one of the compressors, or close to it."""
    return any(abs(counted - size) <= CLOSE * size for size in sizes.values())
