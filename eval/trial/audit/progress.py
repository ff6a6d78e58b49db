"""The progress bar of an audit."""


class Progress:
    """One bar over the runs of the scorer, on stderr; silent when not wanted."""

    def __init__(self, shown: bool):
        from tqdm import tqdm

        self.bar = tqdm(total=0, unit="run", disable=not shown, leave=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def expect(self, runs: int) -> None:
        """More runs will come."""
        self.bar.total = (self.bar.total or 0) + runs
        self.bar.refresh()

    def say(self, what: str) -> None:
        """Show what is done that is no run."""
        self.bar.set_description(what)

    def step(self, what: str) -> None:
        """Count a run, and show its name."""
        self.bar.set_description(what)
        self.bar.update(1)
