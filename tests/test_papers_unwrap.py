"""Static reading of scripts: packed sources, and the Python that a source needs."""

import base64
import bz2
import gzip
import lzma
import time
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from eval.papers.submission import decoders
from eval.papers.submission.script import parse_problem, python_needed, readable_tree, text_of
from eval.papers.submission.unwrap import MOST_LAYERS, unwrap

PROGRAM = b'import os\n\nWIDTH = int(os.environ.get("MODEL_DIM", 512))\nprint(WIDTH)\n'
RAW = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]


def packed(data: bytes, statement: str) -> bytes:
    """`statement` with the text of `data` in base 85 for {}."""
    return statement.replace("{}", repr(base64.b85encode(data))).encode()


# Statements in the shapes that public scripts use, each with the data that stands in it.
SHELLS = {
    "lzma": (
        "import lzma,base64;exec(lzma.decompress(base64.b85decode({})))",
        lzma.compress(PROGRAM),
        ("exec", "lzma", "base85"),
    ),
    "lzma raw, names for the modules": (
        "import lzma as L,base64 as B\n"
        "exec(L.decompress(B.b85decode({}),format=L.FORMAT_RAW,"
        'filters=[{"id":L.FILTER_LZMA2,"dict_size":1<<20}]))',
        lzma.compress(PROGRAM, format=lzma.FORMAT_RAW, filters=RAW),
        ("exec", "lzma", "base85"),
    ),
    "zlib, step by step": (
        "from zlib import decompress\nfrom base64 import b85decode as d\n"
        'blob = {}\ncode = decompress(d(blob)).decode("utf-8")\n'
        'exec(compile(code, "train_gpt.py", "exec"), globals())',
        zlib.compress(PROGRAM),
        ("exec", "zlib", "base85"),
    ),
    "gzip, imported in place": (
        'exec(__import__("gzip").decompress(__import__("base64").b85decode({})))',
        gzip.compress(PROGRAM),
        ("exec", "gzip", "base85"),
    ),
    "bz2": (
        "import bz2, base64\nif True:\n    exec(bz2.decompress(base64.b85decode({})))",
        bz2.compress(PROGRAM),
        ("exec", "bz2", "base85"),
    ),
    "brotli": (
        "import brotli, base64\nexec(brotli.decompress(base64.b85decode({})))",
        brotli.compress(PROGRAM),
        ("exec", "brotli", "base85"),
    ),
    "zstd": (
        "import zstandard as z, base64\n"
        "exec(z.ZstdDecompressor().decompress(base64.b85decode({})))",
        zstandard.compress(PROGRAM),
        ("exec", "zstd", "base85"),
    ),
    "into a file": (
        "import lzma, base64, runpy\n"
        'open("inner.py", "wb").write(lzma.decompress(base64.b85decode({})))\n'
        'runpy.run_path("inner.py", run_name="__main__")',
        lzma.compress(PROGRAM),
        ("lzma", "base85"),
    ),
}


@pytest.mark.parametrize("shape", SHELLS)
def test_a_packed_program_is_read(shape):
    statement, data, layers = SHELLS[shape]
    found = unwrap(packed(data, statement))
    assert (found.source, found.layers, found.problem) == (PROGRAM, layers, None)


@pytest.mark.parametrize(
    ("expression", "layers"),
    [
        (f"b64decode({base64.b64encode(PROGRAM)!r})", ("exec", "base64")),
        (f"a85decode({base64.a85encode(PROGRAM)!r})", ("exec", "ascii85")),
        (f"b32decode({base64.b32encode(PROGRAM)!r})", ("exec", "base32")),
        (f"bytes.fromhex({PROGRAM.hex()!r})", ("exec", "hex")),
        (f"codecs.decode({PROGRAM.hex()!r}, 'hex')", ("exec", "hex")),
        (f"{PROGRAM.decode()[::-1]!r}[::-1]", ("exec",)),
        (f"''.join([{PROGRAM.decode()[:20]!r}, {PROGRAM.decode()[20:]!r}])", ("exec",)),
        (f"{PROGRAM.decode().replace('e', '~')!r}.replace('~', 'e')", ("exec",)),
    ],
)
def test_every_text_codec_is_read(expression, layers):
    shell = "import codecs\nfrom base64 import *\nfrom base64 import b64decode, a85decode"
    shell += f", b32decode\nexec({expression})\n"
    found = unwrap(shell.encode())
    assert (found.source, found.layers, found.problem) == (PROGRAM, layers, None)


def test_layers_within_layers():
    source = PROGRAM
    statement = "import lzma,base64\nexec(lzma.decompress(base64.b85decode({})))"
    for _ in range(3):
        source = packed(lzma.compress(source), statement)
    assert unwrap(source).source == PROGRAM
    assert unwrap(source).layers == ("exec", "lzma", "base85") * 3
    for _ in range(MOST_LAYERS):
        source = packed(lzma.compress(source), statement)
    assert "packed more than" in unwrap(source).problem


def test_a_readable_script_stays_as_it_is():
    helper = packed(zlib.compress(b"x = 1\n"), "exec(zlib.decompress(base64.b85decode({})))")
    script = b"import base64, zlib\n" + b"def f():\n    return model.eval()\n" * 20 + helper
    for source in (PROGRAM, script, b"", b"import re\nre.compile(pattern)\n"):
        found = unwrap(source)
        assert (found.source, found.layers, found.problem) == (source, (), None)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b'exec(open("other.py").read())\n', "open('other.py')"),
        (b"import base64\nexec(base64.b85decode(input()))\n", "input()"),
        (b"import zlib\nexec(zlib.decompress(b'no zlib'))\n", "zlib: Error -3"),
        (b"x = 'a' + y\ny = 'b' + x\nexec(x)\n", "too many expressions"),
        (b"a = b.x\nb = a.x\nexec(a.y())\n", "nested too deeply"),
        (b"x = 'a' * 10\n" + b"exec(x * 100_000_000)\n", "is not read"),
        (b"print 'a'\n", "line 1: "),
        (b"\x00\x01", "line 1: "),
        (b"(" * 5000, "line 1: "),
    ],
)
def test_what_cannot_be_read_is_said(source, said):
    found = unwrap(source)
    assert found.source == source
    assert said in found.problem
    assert "\n" not in found.problem


def test_names_that_double_each_other_end_soon():
    names = "\n".join(f"x{i + 1} = x{i} + x{i}" for i in range(90))
    assert "too many expressions" in unwrap(f"x0 = 1\n{names}\nexec(str(x90))".encode()).problem
    texts = names.replace("x0 + x0", "'a' * 1000")
    assert unwrap(f"{texts}\nexec(x90)".encode()).problem


@pytest.mark.parametrize("module", ["lzma", "zlib", "gzip", "bz2", "brotli", "zstandard"])
def test_a_bomb_is_cut_off(module, monkeypatch):
    monkeypatch.setattr(decoders, "MOST_BYTES", 1000)
    compress = __import__(module).compress
    shell = f"import base64, {module}\nexec({module}.decompress(base64.b85decode({{}})))"
    found = unwrap(packed(compress(b"#" * 1_000_000), shell))
    assert "grows beyond 1,000 bytes" in found.problem


def test_a_program_for_a_newer_python_is_unwrapped():
    newer = b"import os\nprint(f'{os.environ['MODEL_DIM']}')\n"
    found = unwrap(packed(lzma.compress(newer), SHELLS["lzma"][0]))
    assert (found.source, found.problem) == (newer, None)
    assert python_needed(found.source) == (3, 12)


@given(st.binary(max_size=80))
def test_no_bytes_raise(data):
    unwrap(data)
    unwrap(b"exec(" + data + b")")
    python_needed(data)


@given(st.text(alphabet="fr'\"{}\\#:!= xX[]()\n", max_size=40))
def test_no_strings_raise(text):
    python_needed(text)


# --- The Python that a source needs ---


@pytest.mark.parametrize(
    ("source", "version"),
    [
        ("f'{x['a']}'", (3, 12)),
        ("f'{x:{'a'}}'", (3, 12)),
        ("f\"{'\\n'.join(x)}\"", (3, 12)),
        ("f'''{\nx  # why\n}'''", (3, 12)),
        ("f'{\nx}'", (3, 12)),
        ("f'''{f'{x['a']}'}'''", (3, 12)),
        ("type X = int", (3, 12)),
        ("type X[T] = list[T]", (3, 12)),
        ("def f[T](x: T): pass", (3, 12)),
        ("class A[T](B):\n    pass", (3, 12)),
        ("def f[T: (int, str)](x: T): pass", (3, 12)),
        ("def f[\n    T: dict[str, int],  # why ]\n    *Ts,\n](x: T): pass", (3, 12)),
        ("class A[T: 'B]'](B):\n    pass", (3, 12)),
        ("class A[\n    T,\n]:\n    def g[S: (T,)](self): pass", (3, 12)),
        ("type A[T: list[int]] = dict[str, T]", (3, 12)),
        ("type A[\n    T\n] = T", (3, 12)),
        ("type A[T: (int, str) = int] = T", (3, 13)),
        ("def f[T = int](x): pass", (3, 13)),
        ("t'a{x}'", (3, 14)),
        ("try:\n    pass\nexcept A, B:\n    pass", (3, 14)),
        ("try:\n    pass\nexcept* A:\n    pass", (3, 11)),
        ("a[*b]", (3, 11)),
    ],
)
def test_newer_grammar_is_recognised(source, version):
    assert python_needed(source) == version
    assert python_needed(source.encode()) == version
    assert parse_problem(source) is None
    assert readable_tree(source) is not None


@pytest.mark.parametrize(
    "source",
    [
        "f\"{x['a']}\"",
        "f'{x!r:^{width}}'",
        "f'''{\nx\n}'''",
        "f'{{{x}}}' 'a'",
        "rf'\\{x}'",
        "f'\\N{DASH}{x}'",
        "f'{now:%Y-%m-%d}{\"#\"}'",
        "x = 1  # f'{x['a']}'",
        "'''f'{x['a']}' '''",
        "f'{d[\"a\"]}' if\"a\"else f'{1}'",
        "f'{f\"{1}\"}'",
        "x = '#' + f'{a}' + \"it's\"",
        "type = 3",
        "'''\ndef f[T: (int, str)](x): pass\n'''",
        "match x:\n    case 1:\n        pass",
        "print 'x'",
        "def (",
    ],
)
def test_older_grammar_needs_nothing_new(source):
    assert python_needed(source) is None


def test_a_newer_source_keeps_its_lines():
    source = "a = f'{x['a']}'\nb = f'''{\nx['''c''']\n}'''\nlast = 1\n"
    assert readable_tree(source).body[-1].lineno == 5


def test_the_text_of_a_source():
    assert text_of(b"\xef\xbb\xbfa = 1\r\nb = 2\r") == "a = 1\nb = 2\n"
    assert text_of("# coding: latin-1\na = 'é'".encode("latin-1")).endswith("'é'")
    assert text_of(b"a = '\xff'") == "a = '\ufffd'"


def test_type_parameters_over_several_lines_keep_their_lines():
    source = (
        "def f[\n    T: (int, str),\n](x: T):\n    return x\n\n\ntype A[\n    T\n] = T\nlast = 1\n"
    )
    assert readable_tree(source).body[-1].lineno == 10


@pytest.mark.parametrize("text", ["def a[\n" * 50_000, "def a[\n" * 20_000 + "]" * 20_000])
def test_brackets_cost_no_more_than_one_look_each(text):
    begin = time.process_time()
    assert python_needed(text) is None
    assert time.process_time() - begin < 2
