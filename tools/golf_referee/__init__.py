"""The referee as an installed command, `golf-referee`.

The wheel keeps the package `eval` in golf_referee/lib, not beside golf_referee: many projects call
a package so, and in one environment two of them would overwrite each other.
"""

import sys
from pathlib import Path

LIBRARY = Path(__file__).resolve().parent / "lib"


def main() -> int:
    """Exit code of the referee's command line."""
    sys.path.insert(0, str(LIBRARY))
    from eval.__main__ import main as referee

    return referee()
