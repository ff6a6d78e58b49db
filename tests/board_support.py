"""Boards to test: packed records of two corpora and two tracks, one with a hostile name."""

import argparse
import itertools
import math

import pytest
from records_support import TRICKY_SOURCE, FakeRun, audit, cli

from eval.commands import board, pack
from eval.commands.pack import slug_of
from eval.papers.rendering.board import BEGIN, END

NASTY = "A </script><script>document.title='broken'</script> | record & more"


def pack_one(root, name, bits, date="2026-11-24", track="track_docs_cpu", size=700, **more):
    """A packed record of two seeds, the second 0.01 bits per byte worse; returns its folder.

    `more` may name the `author` and the `base`; everything else belongs to the runs."""
    author = more.pop("author", "Ann Author")
    base = more.pop("base", None)
    runs = []
    for seed, extra in ((1337, 0.0), (42, 0.01)):
        nats = 2000 * math.log(2) * (bits + extra)
        run = FakeRun(seed=seed, nats=nats, artifact=b"w" * size, **more)
        runs.append(run.write(root / "runs" / f"{name[:5]}{seed}"))
    options = {
        "--name": name,
        "--date": date,
        "--author": author,
        "--github-id": "ann",
        "--blurb": f"Blurb of {name[:9]}",
        "--track": track,
        "--records-dir": root / "records",
    }
    if base is not None:
        options["--base"] = base
    assert cli(pack, *runs, *itertools.chain(*options.items())) == 0
    slug = slug_of(argparse.Namespace(slug=None, name=name))
    return root / "records" / track / f"{date}_{slug}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two corpora, two tracks, one record with a hostile name."""
    root = tmp_path_factory.mktemp("site")
    beta = pack_one(root, "Beta record", 1.20, date="2026-11-25", author="Bo Bauer")
    pack_one(root, "Alpha record", 1.30)
    pack_one(root, NASTY, 1.40, date="2026-12-02")
    pack_one(root, "Other corpus", 0.90, version="e" * 64)
    pack_one(root, "Big track", 1.10, track="track_non_record_16mb", size=2_100_000)
    audit(pack_one(root, "Hashed tables", 0.65, date="2026-11-26"), "INVALID")
    changed = TRICKY_SOURCE.replace("math.exp(-x)", "math.exp(-2 * x)")
    own = {"source": changed, "overrides": ("muon_lr=0.03",), "base": beta.name}
    audit(pack_one(root, "Delta audited", 1.50, date="2026-11-27", **own), "PASS")
    (root / "README.md").write_text(f"# Top\n\nbefore\n{BEGIN}\nold table\n{END}\nafter\n")
    assert cli(board, "--root", root) == 0
    return root
