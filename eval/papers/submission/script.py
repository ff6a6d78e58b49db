"""Reads a script's source: as text, as a syntax tree, and for the Python that it needs.

Nothing of the script runs. The answer about Python does not depend on the Python that runs this
code: what newer grammars allow is told from the text.
"""

import ast
import codecs
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

Version = tuple[int, int]

OLDEST = (3, 10)  # older ones are not told apart
MOST_NESTED = 64  # f-strings within f-strings


def text_of(source: bytes) -> str:
    """The text of a source by its coding line, UTF-8 without one. Bytes beyond it are replaced."""
    lines = iter(source.splitlines(keepends=True)[:2])
    try:
        encoding, _ = tokenize.detect_encoding(lambda: next(lines, b""))
        codecs.lookup(encoding)
    except (SyntaxError, LookupError):
        encoding = "utf-8-sig"
    text = source.decode(encoding, errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


@lru_cache(maxsize=8)  # several readers ask for the same script, and parsing takes long
def tree_of(source: str | bytes) -> ast.Module | None:
    """The syntax tree, None where the running Python cannot parse the source.

    The tree is shared: nobody may change it.
    """
    try:
        return _parsed(source)
    except SyntaxError:
        return None


def parse_problem(source: str | bytes) -> str | None:
    """Why no Python known here can parse the source, None where one can."""
    if tree_of(source) is not None:
        return None
    try:
        _parsed(source)
    except SyntaxError as error:
        text = source if isinstance(source, str) else text_of(source)
        if python_needed(text) is not None:
            return None
        return f"line {error.lineno or 1}: {error.msg}"
    return None


def readable_tree(source: str | bytes) -> ast.Module | None:
    """The tree of a source, also of one in a newer grammar than the running Python's.

    What is new is then left out: the content of its f-strings and its type parameters. None for
    a source that is no Python.
    """
    tree = tree_of(source)
    if tree is not None:
        return tree
    text = source if isinstance(source, str) else text_of(source)
    return tree_of(_in_older_grammar(text))


def _parsed(source: str | bytes) -> ast.Module:
    """The tree. Raises SyntaxError for whatever is no Python."""
    try:
        return ast.parse(source)
    except SyntaxError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        # null bytes, an unknown coding, nesting beyond any script
        raise SyntaxError(str(error) or type(error).__name__) from None


# --- The Python that a source needs ---


def python_needed(source: str | bytes) -> Version | None:
    """The oldest Python that can parse the source, None where 3.10 can or none can."""
    text = source if isinstance(source, str) else text_of(source)
    plain = _in_older_grammar(text)
    tree = tree_of(plain)
    if tree is None:
        return None
    needed = max([OLDEST, *_of_text(text), *_of_tree(tree)])
    return needed if needed > OLDEST else None


def _of_tree(tree: ast.Module) -> Iterator[Version]:
    for node in ast.walk(tree):
        if isinstance(node, ast.TryStar):
            yield (3, 11)
        elif isinstance(node, ast.Subscript) and _has_star(node.slice):
            yield (3, 11)  # PEP 646: a[*b]


def _has_star(index: ast.expr) -> bool:
    """Whether an index holds a starred item outside parentheses, as PEP 646 allows."""
    return isinstance(index, ast.Tuple) and any(isinstance(i, ast.Starred) for i in index.elts)


def _of_text(text: str) -> Iterator[Version]:
    for string in _strings(text):
        if string.is_template:
            yield (3, 14)
        elif string.new:
            yield (3, 12)
    code = _code_alone(text)
    for new in _generics(code):
        has_default = DEFAULT.search(code, new.start, new.end) is not None
        yield (3, 13) if has_default else (3, 12)
    if BARE_EXCEPT_LIST.search(code):
        yield (3, 14)


TYPE_STATEMENT = re.compile(r"^[ \t]*(?P<keyword>type[ \t]+)\w+[ \t]*(?=[\[=])", re.MULTILINE)
DEFINITION = re.compile(r"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+\w+[ \t]*(?=\[)", re.MULTILINE)
ASSIGNS = re.compile(r"[ \t]*=(?!=)")
OPENS_BODY = re.compile(r"[ \t]*[(:]")
DEFAULT = re.compile(r"(?<![=!<>:])=(?!=)")  # of a type parameter
BRACKET = re.compile(r"[()\[\]{}]")
BARE_EXCEPT_LIST = re.compile(
    r"^(?P<head>[ \t]*except\*?)[ \t]+(?P<types>[\w.]+(?:[ \t]*,[ \t]*[\w.]+)+)[ \t]*:",
    re.MULTILINE,
)
COMMENT = re.compile(r"#[^\n]*")
BLANKED = re.compile(r"[^\n]")


@dataclass(frozen=True)
class Generic:
    """Type parameters in text[start:end], brackets included, or an empty place without any.

    `keyword` is where the word `type` of a type statement lies, None for a function or class.
    """

    start: int
    end: int
    keyword: tuple[int, int] | None = None


def _generics(code: str) -> Iterator[Generic]:
    """Type parameters and type statements of a source without strings and comments, in order."""
    found = []
    for match, end in _with_parameters(DEFINITION, code):
        if OPENS_BODY.match(code, end):
            found.append(Generic(match.end(), end))
    for match, end in _with_parameters(TYPE_STATEMENT, code):
        if ASSIGNS.match(code, end):
            found.append(Generic(match.end(), end, match.span("keyword")))
    yield from sorted(found, key=lambda generic: generic.start)


def _with_parameters(heads: re.Pattern[str], code: str) -> Iterator[tuple[re.Match[str], int]]:
    """Each head of a statement, and the place behind the brackets that may follow it.

    Ends at a bracket that nothing closes. No head lies within brackets, so that each bracket is
    looked at once.
    """
    start = 0
    while True:
        match = heads.search(code, start)
        if match is None:
            return
        start = match.end()
        if code.startswith("[", start):
            end = _behind_bracket(code, start)
            if end is None:
                return
            start = end
        yield match, start


def _behind_bracket(code: str, start: int) -> int | None:
    """Behind the bracket that closes the one at `start`; None where none does."""
    depth = 0
    for match in BRACKET.finditer(code, start):
        depth += 1 if match[0] in "([{" else -1
        if depth == 0:
            return match.end()
    return None


def _without_generics(text: str) -> str:
    """The source without type parameters and the keyword `type`, on the same lines."""
    pieces: list[str] = []
    done = 0
    for new in _generics(_code_alone(text)):
        if new.start < done:
            continue
        if new.keyword is not None:
            pieces.append(text[done : new.keyword[0]])
            done = new.keyword[1]
        lines = text.count("\n", new.start, new.end)
        pieces += [text[done : new.start], "\\\n" * lines]
        done = new.end
    return "".join([*pieces, text[done:]])


def _in_older_grammar(text: str) -> str:
    """The same statements where 3.11 can parse them, on the same lines.

    Strings that only newer grammars know become empty ones, type parameters are left out.
    """
    pieces: list[str] = []
    done = 0
    for string in _strings(text):
        if string.new:
            lines = text.count("\n", string.start, string.end)
            pieces += [text[done : string.start], '"""', "\n" * lines, '"""']
            done = string.end
    older = _without_generics("".join([*pieces, text[done:]]))
    return BARE_EXCEPT_LIST.sub(lambda match: f"{match['head']} ({match['types']}):", older)


# --- Strings of a source, by the grammar of Python 3.12 ---

TOKEN = re.compile(r"#[^\n]*|(?P<prefix>\b[a-zA-Z]{1,2})?(?P<quote>\"\"\"|'''|\"|')")
PREFIXES = {"r", "u", "b", "br", "rb", "f", "fr", "rf", "t", "tr", "rt"}
IN_LITERAL = re.compile(r"\\|\{|\"|'")  # what may end an f-string's text or open a field
IN_FIELD = re.compile(r"[(\[{)\]}:#\"']")
IN_FORMAT = re.compile(r"[{}\n]")


@dataclass(frozen=True)
class String:
    """A string literal: text[start:end], with its prefix in small letters."""

    start: int
    end: int
    prefix: str
    new: bool  # whether only the grammar of 3.12 reads it

    @property
    def is_template(self) -> bool:
        return "t" in self.prefix


def _strings(text: str, start: int = 0, depth: int = 0) -> Iterator[String]:
    """The string literals of a source, outermost ones only; comments are passed over."""
    while True:
        match = TOKEN.search(text, start)
        if match is None:
            return
        start = match.end()
        if match["quote"] is not None:
            string = _string_at(text, match, depth)
            yield string
            start = string.end


def _string_at(text: str, match: re.Match[str], depth: int) -> String:
    prefix = (match["prefix"] or "").lower()
    if prefix not in PREFIXES:  # a keyword right before it: `if"a"`
        prefix = ""
    start = match.start() if prefix else match.start("quote")
    plain_end = _plain_end(text, match["quote"], match.end())
    if not set(prefix) & {"f", "t"} or depth >= MOST_NESTED:
        return String(start, plain_end, prefix, False)
    scan = _FormattedString(text, match["quote"], depth)
    end = scan.end_of_literal(match.end())
    return String(start, end, prefix, scan.new or end != plain_end or "t" in prefix)


def _plain_end(text: str, quote: str, start: int) -> int:
    """Where a literal without fields ends: behind its quote, or with the line or text."""
    stop = "" if len(quote) == 3 else "|\n"
    for match in re.compile(rf"\\.|{quote}{stop}", re.DOTALL).finditer(text, start):
        if match[0] == quote:
            return match.end()
        if match[0] == "\n":
            return match.start()
    return len(text)


class _FormattedString:
    """One f-string or t-string. `new` tells whether a field holds what 3.11 does not allow:
    a backslash, a comment, or a string that is new itself."""

    def __init__(self, text: str, quote: str, depth: int):
        self.text = text
        self.quote = quote
        self.depth = depth
        self.new = False

    def end_of_literal(self, start: int) -> int:
        text = self.text
        while True:
            match = IN_LITERAL.search(text, start)
            if match is None:
                return len(text)
            start = match.end()
            if match[0] == "\\":
                start = self._behind_escape(start)
            elif match[0] == "{":
                doubled = text.startswith("{", start)
                start = start + 1 if doubled else self._end_of_field(start)
            elif text.startswith(self.quote, match.start()):
                return match.start() + len(self.quote)

    def _behind_escape(self, start: int) -> int:
        """Behind what follows a backslash; a brace there still opens a field."""
        if self.text.startswith("N{", start):
            close = self.text.find("}", start)
            return len(self.text) if close < 0 else close + 1
        return start if self.text.startswith(("{", "}"), start) else start + 1

    def _end_of_field(self, start: int) -> int:
        """Behind the brace that closes the field whose expression begins at `start`."""
        begin = start
        open_brackets = 0
        while True:
            match = IN_FIELD.search(self.text, start)
            if match is None:
                return len(self.text)
            start = match.end()
            if match[0] in "\"'":
                start = self._behind_string(match.start(), begin)
            elif match[0] == "#":
                self.new = True
                line_end = self.text.find("\n", start)
                start = len(self.text) if line_end < 0 else line_end
            elif match[0] in "([{":
                open_brackets += 1
            elif match[0] in ")]}" and open_brackets:
                open_brackets -= 1
            elif match[0] in ":}" and not open_brackets:
                self._note_backslash(begin, match.start())
                return start if match[0] == "}" else self._end_of_format(start)

    def _behind_string(self, quote_at: int, begin: int) -> int:
        """Behind a string within a field, whose prefix may stand before its quote."""
        earliest = max(begin, quote_at - 2)
        for start in range(earliest, quote_at + 1):
            match = TOKEN.match(self.text, start)
            if match is not None and match.start("quote") == quote_at:
                string = _string_at(self.text, match, self.depth + 1)
                self.new |= string.new
                return string.end
        return quote_at + 1

    def _end_of_format(self, start: int) -> int:
        """Behind the brace that closes a field, from its format specification on."""
        while True:
            match = IN_FORMAT.search(self.text, start)
            if match is None:
                return len(self.text)
            start = match.end()
            if match[0] == "}" or (match[0] == "\n" and len(self.quote) == 1):
                return start
            if match[0] == "{":
                start = self._end_of_field(start)

    def _note_backslash(self, start: int, end: int) -> None:
        self.new |= "\\" in self.text[start:end]


def _code_alone(text: str) -> str:
    """The source with blanks for strings and comments: every other character keeps its place."""
    pieces: list[str] = []
    done = 0
    for string in _strings(text):
        pieces += [COMMENT.sub(_blanks, text[done : string.start])]
        pieces += [BLANKED.sub(" ", text[string.start : string.end])]
        done = string.end
    return "".join([*pieces, COMMENT.sub(_blanks, text[done:])])


def _blanks(match: re.Match[str]) -> str:
    return " " * len(match[0])
