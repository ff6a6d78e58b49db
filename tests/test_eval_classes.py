"""Every class of invalid submission that the public contest saw, every honest kind and every disguise in tests/fixtures, before the referee.

A fixture is a complete record with evidence in order; what is wrong with it is its class and nothing else, so a verdict for another reason is a
failure here. The table in bench/results/validity_classes.json and in the README is compared with what is found."""

import ast
import io
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.trial.sandbox import running as sandbox

sys.path.insert(0, str(Path(__file__).parent / "fixtures"))
import classes
from build import SUBMISSIONS, Workshop, catalogue, join
from classes import CASES, NOT_EXPRESSIBLE, Case, Outcome

CLASSES = {
    *(f"A{n}" for n in range(1, 8)), *(f"B{n}" for n in range(1, 11)), *(f"C{n}" for n in range(1, 10)),
    "D2", "D3", "D4", "E1", "E2", "E4", "E5", "F1", "F2", "F3", "F5",
}  # fmt: skip
NO_FALSE_GAIN = ("B6", "B9")  # the published cases gained nothing either; what they break is a rule
needs_sandbox = pytest.mark.skipif(
    sys.platform != "linux" or all(sandbox.unavailable(name) for name in ("bubblewrap", "unshare")),
    reason="neither bubblewrap nor namespaces work here, and the audit refuses to run without",
)


@pytest.fixture(scope="module")
def shop() -> Iterator[Workshop]:
    with classes.workshop() as shop:
        yield shop


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, shop: Workshop) -> dict[str, Outcome | Exception]:
    """What the referee says about the cases that this session selects, found side by side on all cores."""
    asked = [
        item.callspec.params["case"]
        for item in request.session.items
        if item.name.startswith("test_verdict[")
    ]
    return classes.run_cases(shop, asked)


@needs_sandbox
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_verdict(case: Case, outcomes: dict[str, Outcome | Exception]):
    outcome = outcomes[case.name]
    if isinstance(outcome, Exception):
        raise outcome
    assert outcome.complaint() is None, f"{outcome.complaint()}\n{outcome.text}"
    committed = next(
        row
        for row in json.loads(classes.RESULTS.read_text())["rows"]
        if row["fixture"] == case.name.split("/")[-1]
    )
    assert (outcome.verdict, outcome.row()["caught_by"]) == (
        committed["verdict"],
        committed["caught_by"],
    )
    if case.against and not case.varies and case.cls not in NO_FALSE_GAIN:
        assert outcome.gain > 0, (
            f"claims {-outcome.gain:.4f} bpb more than {case.against}: this fixture would tempt nobody"
        )


@needs_sandbox
def test_ranks_do_not_change_the_score(shop: Workshop):
    """The one honest fixture that knows about ranks, alone and on two under torchrun: the same score, as claimed."""
    record, lines = shop.record("honest/several_ranks"), []
    for ranks in ("1", "2"):
        printed = io.StringIO()
        with redirect_stdout(printed):
            code = main(
                ["score", str(record), "--dataset", str(shop.corpus.dataset), "--nproc", ranks]
            )
        assert code == 0, printed.getvalue()
        lines.append(
            dict(
                token.split(":", 1)
                for token in printed.getvalue().splitlines()[0].split()
                if ":" in token
            )
        )
    assert lines[0]["nats"] == lines[1]["nats"]


def test_the_page_shows_the_committed_table():
    assert classes.page_parts()[1] == classes.markdown(json.loads(classes.RESULTS.read_text()))


def test_every_class_has_a_case():
    assert {case.cls for case in CASES} - {"honest", "known limit"} == CLASSES
    assert set(NOT_EXPRESSIBLE) <= CLASSES
    named = [case.name for case in CASES]
    assert len(named) == len(set(named))


def test_every_fixture_is_used():
    used = {case.name for case in CASES} | {"invalid/B6_smear_across_bos"}
    assert {name for kind in ("honest", "invalid", "evasive") for name in catalogue(kind)} <= used


@pytest.mark.parametrize(
    "name", [name for kind in ("honest", "invalid", "evasive") for name in catalogue(kind)]
)
def test_fixture_is_one_file(name: str):
    """What is run imports nothing of this repository, and keeps every line of its own code."""
    tree = ast.parse(join(name))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {
        node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert imported <= sys.stdlib_module_names | {
        "numpy",
        "sentencepiece",
        "networkx",
        "flash_attn_interface",
    }
    own = {
        node.name
        for node in ast.parse((SUBMISSIONS / f"{name}.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    last = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert own <= set(last)
