"""The referee judges every fixture: each class of invalid submission that the public contest saw,
every honest kind, and every disguise.

A fixture is a complete record with evidence in order. What is wrong with it is its class and
nothing else, so a verdict for another reason is a failure here. The table in
bench/results/validity_classes.json and in the docs is compared with what is found.
"""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_support import NEEDS_SANDBOX

sys.path.insert(0, str(Path(__file__).parent / "fixtures"))
import classes
from build import SUBMISSIONS, Workshop, catalogue, join
from classes import CASES, NOT_EXPRESSIBLE, Case, Outcome

CLASSES = {
    *(f"A{number}" for number in range(1, 8)),
    *(f"B{number}" for number in range(1, 11)),
    *(f"C{number}" for number in range(1, 10)),
    *("D2", "D3", "D4"),
    *("E1", "E2", "E4", "E5"),
    *("F1", "F2", "F3", "F5"),
}
NO_FALSE_GAIN = ("B6", "B9")  # the published cases gained nothing either; what they break is a rule
# What fixtures may import beside the standard library.
INSTALLED = {"numpy", "sentencepiece", "networkx", "flash_attn_interface"}


@pytest.fixture(scope="module")
def shop() -> Iterator[Workshop]:
    with classes.workshop() as shop:
        yield shop


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, shop: Workshop) -> dict[str, Outcome | Exception]:
    """What the referee says about the selected cases, found side by side on all cores."""
    asked = [
        item.callspec.params["case"]
        for item in request.session.items
        if item.name.startswith("test_verdict[")
    ]
    return classes.run_cases(shop, asked)


@NEEDS_SANDBOX
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_verdict(case: Case, outcomes: dict[str, Outcome | Exception]):
    outcome = outcomes[case.name]
    if isinstance(outcome, Exception):
        raise outcome
    assert outcome.complaint() is None, f"{outcome.complaint()}\n{outcome.text}"
    rows = {row["fixture"]: row for row in json.loads(classes.RESULTS.read_text())["rows"]}
    committed = rows[case.name.split("/")[-1]]
    assert outcome.verdict == committed["verdict"]
    assert outcome.row()["caught_by"] == committed["caught_by"]
    if case.against and not case.varies and case.cls not in NO_FALSE_GAIN:
        loss = f"claims {-outcome.gain:.4f} bpb more than {case.against}"
        assert outcome.gain > 0, f"{loss}: this fixture would tempt nobody"


def test_the_page_shows_the_committed_table():
    assert classes.page_parts()[1] == classes.markdown(json.loads(classes.RESULTS.read_text()))


def test_every_class_has_a_case():
    assert {case.cls for case in CASES} - {"honest", "known limit"} == CLASSES
    assert set(NOT_EXPRESSIBLE) <= CLASSES
    named = [case.name for case in CASES]
    assert len(named) == len(set(named))


FIXTURES = [*catalogue("honest"), *catalogue("invalid"), *catalogue("evasive")]


def test_every_fixture_is_used():
    used = {case.name for case in CASES} | {"invalid/B6_smear_across_bos"}
    assert set(FIXTURES) <= used


@pytest.mark.parametrize("name", FIXTURES)
def test_fixture_is_one_file(name: str):
    """What is run imports nothing of this repository, and keeps every line of its own code."""
    tree = ast.parse(join(name))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported <= sys.stdlib_module_names | INSTALLED
    own = ast.parse((SUBMISSIONS / f"{name}.py").read_text())
    assert functions(own) <= functions(tree)


def functions(tree: ast.Module) -> set[str]:
    """Names of the functions at the top of a module."""
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
