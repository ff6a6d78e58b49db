"""The canary's fixtures as files of a record folder, each script self-contained as public ones are.

A file of tests/fixtures/canary/honest or invalid is the part that differs from base.py. Variants
change the form alone: a wrapper around the code, code in two files, another import.
"""

import ast
import base64
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conftest import CLEAN_ENV, ROOT
from warm_support import run_warm

from eval.trial.canary.results import OwnWords
from eval.trial.canary.sources import SOURCES, TARGETS, Known, Source, draw_streams
from eval.trial.canary.verdict import Judgement, judge_run
from eval.trial.canary.world import Corpus, World, build_world

FIXTURES = ROOT / "tests" / "fixtures" / "canary"
VOCAB_SIZE = 1024
SEED = 7
TRAINING = (1 << 15,)  # tokens of each shard
GUARD = 'if __name__ == "__main__":'
PLAIN = "honest/plain"  # base.py alone
SCRIPT = "train_gpt.py"
LENIENT_IMPORT = """try:
    from flash_attn_interface import flash_attn_func
except ImportError:
    flash_attn_func = None
"""
STRICT_IMPORT = "from flash_attn_interface import flash_attn_func\n"


def catalogue(kind: str) -> list[str]:
    """Names `kind/file` of the fixtures of one kind, honest or invalid."""
    return sorted(f"{kind}/{path.stem}" for path in (FIXTURES / kind).glob("*.py"))


def source(name: str) -> str:
    """One file: base.py up to its entry point, the fixture's own code, the entry point.

    What the fixture defines again replaces what base.py defined."""
    base = (FIXTURES / "base.py").read_text("utf-8")
    if name == PLAIN:
        return base
    shared, guard, entry = base.partition(GUARD)
    own = without_import_of_base((FIXTURES / f"{name}.py").read_text("utf-8"))
    return shared + own.strip() + "\n\n\n" + guard + entry


def without_import_of_base(text: str) -> str:
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.module == "base":
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(lines)


def folder(name: str) -> dict[str, bytes]:
    return {SCRIPT: source(name).encode()}


def wrapped(name: str) -> dict[str, bytes]:
    """The script as text that decompresses itself."""
    packed = base64.b85encode(lzma.compress(source(name).encode())).decode()
    lines = ["import base64 as B, lzma as L", f"exec(L.decompress(B.b85decode({packed!r})))"]
    return {SCRIPT: "\n".join(lines).encode()}


def in_two_files(name: str) -> dict[str, bytes]:
    """A script that starts what a second file of the folder holds."""
    return {
        SCRIPT: b"from trainer import main\n\nmain()\n",
        "trainer.py": source(name).encode(),
    }


def without_fallback(name: str) -> dict[str, bytes]:
    """A script that cannot do without FlashAttention."""
    text = source(name)
    assert LENIENT_IMPORT in text
    return {SCRIPT: text.replace(LENIENT_IMPORT, STRICT_IMPORT).encode()}


# --- Running one, without a sandbox: these scripts are ours ---

SHIM = "cuda_on_the_cpu"
START = f"""
import importlib, os, runpy, sys

folder = sys.argv[1]
sys.path[:0] = [os.path.dirname(__file__), folder]
package = importlib.import_module({SHIM!r})
for theme in package.AFTER_IMPORT["torch"]:  # already imported in this fork
    importlib.import_module({SHIM!r} + "." + theme).lead()
os.chdir(folder)
sys.argv = [{SCRIPT!r}]
runpy.run_path({SCRIPT!r}, run_name="__main__")
"""
SMALL = {
    "NUM_LAYERS": "1",
    "MODEL_DIM": "32",
    "NUM_HEADS": "2",
    "TRAIN_SEQ_LEN": "128",
    "TRAIN_BATCH_TOKENS": "1024",
    "VAL_BATCH_SIZE": "16384",
    "ITERATIONS": "4",
    "VAL_LOSS_EVERY": "0",
    "SEED": "1",
}


@dataclass(frozen=True)
class Printed:
    """What a script printed, and the stream that it scored."""

    text: str
    source: Source
    known: Known


def printed(
    files: Mapping[str, bytes],
    source: str,
    place: Path,
    world_size: int = 1,
    targets: int = TARGETS,
    **settings: object,
) -> Printed:
    """Run a record folder on a stream of a source, in `place`, an empty folder."""
    tokenizer = SOURCES[source].tokenizer(VOCAB_SIZE)
    streams = draw_streams(SOURCES[source], SEED, VOCAB_SIZE, targets + 1, TRAINING)
    known = streams.validation
    corpus = Corpus(
        vocab_size=VOCAB_SIZE,
        validation=known.tokens,
        training=streams.training,
        validation_bytes=tokenizer.byte_counts(known.tokens),
        tokenizer=tokenizer.model,
        vocabulary=tokenizer.vocabulary,
    )
    world = build_world(corpus, files)
    write_world(world, place)
    start = place / "start.py"
    start.write_text(START, "utf-8")
    (place / SHIM).symlink_to(ROOT / "eval" / "trial" / "canary" / "inside")
    given = {name: value.replace("{tree}", str(place)) for name, value in world.variables.items()}
    given |= SMALL | {name: str(value) for name, value in settings.items()}
    done = run_warm([str(start), str(place / world.folder)], CLEAN_ENV | given, world_size)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    return Printed(done.stdout, SOURCES[source], known)


def write_world(world: World, place: Path) -> None:
    for name, content in world.files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    for name, target in world.links.items():
        link = place / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(place / target)


def judged(run: Printed, script: str = "") -> Judgement:
    tokenizer = run.source.tokenizer(VOCAB_SIZE)
    return judge_run(run.text, run.known, run.source, tokenizer, OwnWords(script))
