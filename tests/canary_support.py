"""Runs of the canary in which the sandbox is only pretended: quick tests of what surrounds it."""

from collections.abc import Callable

from eval.trial.canary.launch import Call, ScriptRun
from eval.trial.canary.world import World
from eval.trial.sandbox.job import Outcome

Answer = Callable[[World, Call], tuple[str, str]]


class Pretended:
    """Stands for `launch`: notes each call, and answers with what a script would print.

    `answer` gives the printed text and the line that stopped the run, empty for none."""

    def __init__(self, answer: Answer, seconds: float = 1.0):
        self.answer = answer
        self.seconds = seconds
        self.calls: list[Call] = []

    def __call__(self, world: World, call: Call, mechanism: str) -> ScriptRun:
        self.calls.append(call)
        text, failure = self.answer(world, call)
        returncode = 1 if failure else 0
        outcome = Outcome("none", returncode, self.seconds, stdout=text, stderr=failure)
        return ScriptRun(outcome, text, {}, self.seconds, stopped_by=failure or None)


def score(loss: float = 6.94) -> str:
    return f"final_int8_zlib_roundtrip_exact val_loss:{loss:.8f}\n"
