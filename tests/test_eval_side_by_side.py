"""Several runs of the sandbox at once: they overlap, and where one cannot be, none goes on."""

import time

import pytest
from sandbox_support import ISOLATED

from eval.errors import UserError
from eval.trial.sandbox import running as sandbox
from eval.trial.sandbox.job import GIB, Job, Limits, Tree

LIMITS = Limits(wall_seconds=60, memory_bytes=GIB)


def sleeper(seconds: float) -> Job:
    return Job({}, {}, ["-c", f"import time; time.sleep({seconds}); print('slept')"], limits=LIMITS)


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_runs_overlap_and_answer_in_order(mechanism):
    second = Job({}, {}, ["-c", "print('second')"], limits=LIMITS)
    started = time.monotonic()
    outcomes = sandbox.run_side_by_side([sleeper(1), second, sleeper(1), sleeper(1)], mechanism)
    assert [outcome.stdout for outcome in outcomes] == ["slept\n", "second\n", "slept\n", "slept\n"]
    assert time.monotonic() - started < sum(outcome.seconds for outcome in outcomes) - 0.5


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_one_that_cannot_be_ends_the_others(mechanism):
    impossible = Job({}, {}, ["-c", ""], limits=LIMITS, tree=Tree({"../outside": b""}))
    started = time.monotonic()
    with pytest.raises(UserError, match="expected a path below the run's tree"):
        sandbox.run_side_by_side([sleeper(50), impossible], mechanism)
    assert time.monotonic() - started < 25
