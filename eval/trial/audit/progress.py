"""The progress bar of an audit."""


class Progress:
    """One bar on stderr, in tokens that are scored; silent when not wanted.

    Runs differ a hundredfold in length, so the time that is left follows from tokens, and a run
    counts when it has ended."""

    def __init__(self, shown: bool):
        from tqdm import tqdm

        self.runs = 0
        self.expected_runs = 0
        self.name = ""
        self.bar = tqdm(
            total=0,
            disable=not shown,
            leave=False,
            bar_format="{desc}{percentage:3.0f}% |{bar}| {elapsed}<{remaining}",
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def expect(self, runs: int, tokens: int) -> None:
        """More runs will come, with so many tokens in all."""
        self.expected_runs += runs
        self.bar.total = (self.bar.total or 0) + tokens
        self._show()

    def say(self, what: str) -> None:
        """Show what is done that is no run."""
        self.bar.set_description(what)

    def begin(self, what: str) -> None:
        """Show the name of a run that begins."""
        self.name = what
        self._show()

    def finish(self, tokens: int) -> None:
        """Count a run that has scored so many tokens."""
        self.runs += 1
        self.expected_runs = max(self.expected_runs, self.runs)
        self.bar.total = max(self.bar.total or 0, self.bar.n + tokens)
        self.bar.update(tokens)
        self._show()

    def _show(self) -> None:
        done = f"{self.runs} of {self.expected_runs} runs done"
        self.bar.set_description(f"{done}, {self.name}" if self.name else done)
