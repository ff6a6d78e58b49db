"""What a person sees on stderr while a run of a script goes on, which itself prints nothing."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

HEARTBEAT_S = 30.0  # between lines where stderr is no terminal
REFRESHES_PER_S = 4


class Expected(NamedTuple):
    """How long a run will take, and who says so."""

    seconds: float
    by: str


@contextlib.contextmanager
def waiting(what: str, expected: Expected | None) -> Iterator[None]:
    """Shows `what`, the time that has passed and what is left by the expectation.

    On a terminal one line that changes and goes away; elsewhere a line now and every 30 s.
    """
    started = time.monotonic()

    def now() -> str:
        return describe(what, time.monotonic() - started, expected)

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(stderr=True)
        with Live(
            get_renderable=lambda: Text(now()),
            console=console,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
        ):
            yield
        return
    ended = threading.Event()

    def tell() -> None:
        print(now(), file=sys.stderr, flush=True)
        while not ended.wait(HEARTBEAT_S):
            print(now(), file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def describe(what: str, seconds: float, expected: Expected | None) -> str:
    """`scoring seed 42: 12 s, about 20 s left (seed 1337 took 32 s)`."""
    text = f"{what}: {seconds:.0f} s"
    if expected is None:
        return text
    left = expected.seconds - seconds
    source = f"({expected.by} {expected.seconds:.0f} s)"
    if left < 0:
        return f"{text}, longer than expected {source}"
    return f"{text}, about {left:.0f} s left {source}"
