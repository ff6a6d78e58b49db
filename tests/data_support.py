"""A small dataset built by `python -m data text`, and what the tests of the commands share."""

import hashlib
from pathlib import Path

from data.__main__ import main

REPO = Path(__file__).resolve().parents[1]
PARAGRAPHS = [
    f"Paragraph {i}: the quick brown fox jumps over {i * 7} lazy dogs.\n"
    "    Indented   twice — naïvely."
    for i in range(400)
]


def flags(**options: object) -> list[str]:
    """`--min-characters 1` from `min_characters=1`."""
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build_fox(root: Path) -> Path:
    """The paragraphs as a dataset, the first of them given twice; returns the root."""
    (root / "input.txt").write_text("\n\n".join([*PARAGRAPHS, PARAGRAPHS[0]]))
    assert main(command(root)) == 0
    return root


def command(root: Path, **options: object) -> list[str]:
    defaults = {
        "data_root": root,
        "name": "fox",
        "vocab_size": 400,
        "min_characters": 1,
        "workers": 2,
    }
    return ["text", str(root / "input.txt"), *flags(**(defaults | options))]


def files_of(root: Path) -> list[Path]:
    return [*(root / "datasets").rglob("*.*"), *(root / "tokenizers").rglob("*.*")]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in files_of(root)}


def copy_of(built: Path, root: Path) -> Path:
    """The dataset of `built` again under another root; returns its folder."""
    for name, raw in contents(built).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    (root / "input.txt").write_bytes((built / "input.txt").read_bytes())
    return root / "datasets" / "fox_sp400"
