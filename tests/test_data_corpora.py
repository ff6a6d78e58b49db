"""Documents: what becomes one, and which inputs are refused with file, position and remedy."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import corpora
from data.build import split_documents
from data.common import UserError

SOURCE = '''"""Module."""
def f():
    """First line.

        indented
    \tafter a tab
          deeper
    """
    class Inner:
        r"""Raw \\d."""
    try:
        pass
    except ValueError:
        def handler(): "one line"
    match 1:
        case 1:
            async def g(): """In a case."""
x = """no docstring"""
'''


def test_docstrings_at_any_depth():
    assert sorted(corpora.docstrings(SOURCE.encode())) == sorted(
        [
            "Module.",
            "First line.\n\nindented\nafter a tab\n  deeper",
            "Raw \\d.",
            "one line",
            "In a case.",
        ]
    )


def test_source_encodings_are_honoured():
    assert corpora.docstrings('# -*- coding: latin-1 -*-\n"""é"""'.encode("latin-1")) == ["é"]
    with pytest.raises(SyntaxError):
        corpora.docstrings(b'"""\xe9"""')


def test_unparsable_files_are_counted_not_hidden(monkeypatch, tmp_path):
    """One package of three files: fine, broken, and with a surrogate in its docstring.

    A test folder, a program outside the package and a file that is not Python are left out.
    """
    text = "word " * 50

    class Distribution:
        files = None

        @staticmethod
        def locate_file(file):
            return tmp_path / "site-packages" / file

    sources = {
        "p/good.py": f'"""{text}good"""\ndef f(): """short"""',
        "p/bad.py": "def (",
        "p/odd.py": f'"""{text}\\ud800"""',
        "p/tests/good.py": f'"""{text}test"""',
    }
    for name, source in sources.items():
        path = Distribution.locate_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    Distribution.files = [Path(name) for name in (*sources, "../../bin/tool.py", "p/data.txt")]
    monkeypatch.setattr(corpora, "DOCS_PACKAGES", ("p",))
    monkeypatch.setattr(corpora.importlib.metadata, "version", lambda name: "1.0+cpu")
    monkeypatch.setattr(corpora.importlib.metadata, "distribution", lambda name: Distribution)
    corpus = corpora.docs_corpus(1)
    assert corpus.documents == [f"{text}good"]
    assert corpus.provenance["files"] == 3
    assert corpus.provenance["unparsable_files"] == ["p/bad.py"]
    assert corpus.provenance["documents_not_unicode"] == 1
    # "+cpu" is a build of the same sources, not another version
    assert corpus.provenance["recipe"]["packages"] == {"p": "1.0"}


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(corpora, "DOCS_PACKAGES", ("no-such-package",))
    with pytest.raises(UserError, match="no-such-package is not installed"):
        corpora.docs_recipe()


LINES = st.text(alphabet="ab \t\r\n", max_size=80)


def full_lines(text: str) -> list[str]:
    return [line.strip("\r") for line in text.split("\n") if line.strip()]


@given(text=LINES, least=st.integers(1, 20))
def test_blocks_lose_no_line(text, least):
    documents = [document for document in corpora.blocks(text, least) if document.strip()]
    assert full_lines("\n".join(documents)) == full_lines(text)
    assert all(document in text for document in documents)  # verbatim pieces of the file


@settings(deadline=None)
@given(texts=st.lists(st.text(max_size=5), min_size=1), seed=st.randoms(use_true_random=False))
def test_the_split_depends_on_the_texts_alone(texts, seed):
    """Not on their order or repetition, and no text is in both splits.

    A larger fraction only moves documents from train to val.
    """
    many = [f"{i} common" for i in range(60)] + texts
    shuffled = many + texts
    seed.shuffle(shuffled)
    small = split_documents(many, 0.25)
    large = split_documents(shuffled, 0.5)
    assert split_documents(shuffled, 0.25) == small
    for splits in (small, large):
        assert sorted(splits["train"] + splits["val"]) == sorted(set(many))
    assert set(small["val"]) <= set(large["val"])


def test_blocks_join_up_to_the_minimum():
    text = "one\n\ntwo two\n\n\n  three\n\nfour"
    assert list(corpora.blocks(text, 1)) == ["one", "two two", "  three", "four"]
    assert list(corpora.blocks(text, 9)) == ["one\n\ntwo two", "  three\n\nfour"]
    assert list(corpora.blocks(text, 1000)) == [text]


def test_units_of_plain_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x\ny\n\nz\n")
    assert corpora.text_corpus([path], "lines", 1).documents == ["x", "y", "z"]
    assert corpora.text_corpus([path], "files", 1).documents == ["x\ny\n\nz\n"]
    assert corpora.text_corpus([path], "blocks", 1).documents == ["x\ny", "z"]


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text, "id": 1}) for text in ("é\n\nb", " ", "c")]
    path.write_text("\ufeff" + "\n".join(lines) + "\n\n", encoding="utf-8")
    assert corpora.text_corpus([path], "blocks", 1).documents == ["é\n\nb", "c"]


def test_suffixes_in_any_case_packed_or_not(tmp_path):
    """JSON lines are never taken for one document of raw JSON, and no file is left out."""
    lines = '{"text": "a"}\n{"text": "b"}\n'
    names = ["A.JSONL", "B.NDJSON.GZ", "c.jsonl", "d.jsonl.gz", "e.TXT", "f.md.gz"]
    for name in names:
        raw = ("\ufeff" + lines if ".J" in name.upper() or "ND" in name else "c\n").encode()
        (tmp_path / name).write_bytes(gzip.compress(raw) if name[-1] in "zZ" else raw)
    (tmp_path / "g.bin.gz").write_bytes(b"left out")
    files = corpora.text_files([tmp_path])
    assert [file.name for file in files] == names
    documents = corpora.text_corpus(files, "lines", 1).documents
    assert documents == ["a", "b"] * 4 + ["c", "c"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufeffone\n")
    assert corpora.text_corpus([path], "lines", 1).documents == ["one"]


@pytest.mark.parametrize(
    "raw",
    [b"", b'{"text": "a"}\n', gzip.compress(b"x" * 9)[:-9]],
    ids=["empty", "plain", "cut"],
)
def test_a_broken_archive_is_said_to_be_one(tmp_path, raw):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(raw)
    if not raw:
        assert corpora.text_corpus([path], "lines", 1).documents == []
        return
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: expected a whole gzip file"):
        corpora.text_corpus([path], "lines", 1)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        (b'{"text": "a"}\n{"body": "b"}\n', "line 2 has no text field"),
        (b"[1]\n", "line 1 has no text field"),
        (b'{"text": 5}\n', "line 1 has no text field that is a string"),
        (b'{"text": "\\ud800"}\n', "line 1 holds a lone surrogate"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "not UTF-8 at byte 24"),
        (b"[" * 100_000 + b"\n", "line 1 is not JSON"),
    ],
)
def test_bad_json_lines_are_located(tmp_path, raw, says):
    path = tmp_path / "a.jsonl"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=says):
        corpora.text_corpus([path], "blocks", 1)


def test_bad_utf8_is_located(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8 at byte 3 \(0xe9"):
        corpora.text_corpus([path], "files", 1)


def test_folders_and_missing_files(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "sub/a.jsonl", "sub/c.md", "ignored.png"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in corpora.text_files([tmp_path])] == ["b.txt", "a.jsonl", "c.md"]
    with pytest.raises(UserError, match="no such file"):
        corpora.text_files([tmp_path / "absent.txt"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="below this folder"):
        corpora.text_files([tmp_path / "empty"])
