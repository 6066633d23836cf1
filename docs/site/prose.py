"""A linter for prose: `python docs/site/prose.py [FILE ...]`; by default the guides, the README and every docstring.

It checks the rules of docs/explanation/style.md that a program can check, prints one line for each fault, and leaves
with 1 if there is any:

- `word`: a word or phrase that the style page replaces: in documents, docstrings, comments and messages.
- `name`: a name of a class, file, function or parameter that the style page replaces.
- `long`: a sentence of more than 60 words, in documents.
- `share`: a sentence in which a sparsity remains, or a `keep` is removed.
- `path`: an absolute path of one machine.

>>> [fault.rule for fault in faults("Channels live or die together. A sparsity of 0.3 remains.", "page.md")]
['word', 'share']
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 60

WORDS = {
    "live or die together": "are coupled",
    "lives or dies together": "is coupled",
    "how-manieth": "the index",
    "so manieth": "every n-th",
    "half-written ever bears": "is written atomically",
    "is a stranger": "is opaque",
    "cannot be had": "failed",
    "a study of one's own": "add a study",
    "to be had": "available",
    "is told in": "is described in",
    "are told in": "are described in",
    "as they lie": "without loading them",
    "nothing is touched": "nothing is changed",
    "going elsewhere": "export",
    "what is a weight worth": "what is the score of a weight",
}
"""A phrase that is not used, in small letters, and what to write."""

PATTERNS = {
    r"(?:weight|unit|model|channel|choice|it)s? (?:is|are) worth": "the score of",
    r"the worth of|a weight's worth|worth of (?:a|each|every)": "the score of",
    r"to the (?:last )?bit|to the last digit": "bit for bit",
    r"mak(?:e|es|ing) up for": "compensate for",
    r"some (?:hundred|thousand|tenth)s?": "a few hundred",
    r"(?:it|run|call|scan|search|training|comparison|job) goes on": "continue",
    r"(?:they|others|to|can|and) go on": "continue",
    r"goes on (?:from|with|after)|go on (?:from|with|after|where)": "continue",
    r"anew": "again",
    r"afresh": "from the start",
    r"foretells?|foretold|foretelling": "predict",
    r"vouch(?:es|ed)?": "record",
    r"manieth": "every n-th",
    r"strangers?|stranger's": "untrusted or opaque",
    r"half-written": "incomplete",
    r"(?:it|them|read|followed|pruned|drawn|shown|counted|times) all the same": "anyway",
    r"hands? (?:its|their|the) inputs? on": "pass the input on",
    r"what comes in|what goes out|what came of it|what comes of it": "the input, the result",
    r"too dear|is dear|so dear": "expensive",
    r"mend|mends|mended|mending": "repair",
    r"worked out from|works? out from": "computed from",
    r"leaves? whole|leave together": "be removed",
    r"(?:channels?|blocks?|units?|heads?|all that) (?:can|may) leave": "be removed",
    r"goes? by the name|goes? by that name": "has the name",
    r"at hand": "present",
    r"nothing costs nothing": "an empty model: cost 0",
    r"must earn it": "the score of a weight",
    r"by a shorter way|the very count": "faster, with the same count",
    r"going round|go round": "suffice",
    r"counted just now": "inside `uncounted()`",
}
"""A regular expression of words that are not used, and what to write."""

NAMES = frozenset(
    {
        *(
            "meter",
            "lean",
            "replay",
            "certain",
            "crew",
            "contest",
            "drawn",
            "found",
            "try",
            "base",
            "way",
        ),
        *(
            "lanes",
            "few_bits",
            "foretold",
            "beside",
            "replacing",
            "twin",
            "quick",
            "counted",
            "plain",
            "worth",
        ),
        *("told", "tidy", "thrift", "guard"),
    }
)
"""Words that are not the name of a class or of a file: private words, or words that several things once had."""

_ARGUMENTS = frozenset({"told", "worth"})
_STAY = frozenset(
    {"Counted"}
)  # a class that counts on an axis; the module of this name is `fixed_count_norms`

# Built from parts, so that this file and its test name no machine's folder themselves.
_PATH = re.compile(r"(?<![\w.~/-])/(?:" + "|".join(("work", "root", "home/[a-z]+", "Users/[a-z]+")) + r")/\w")
_SHARE = re.compile(
    r"\bsparsity of [\d.]+ (?:%|percent )?\s*(?:remains?|stays?|is kept)\b|\bkeep(?:=| of )[\d.]+ (?:is )?removed\b",
    re.IGNORECASE,
)
_COMPILED = [
    (re.compile(r"\b(?:" + key.replace(" ", r"[ \0]+") + r")\b"), better) for key, better in PATTERNS.items()
]
_FENCE = re.compile(r"^```.*?^```[ \t]*$", re.MULTILINE | re.DOTALL)
_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"[A-Za-z][\w'-]*")


@dataclass(frozen=True)
class Fault:
    """One breach of a rule."""

    file: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: [{self.rule}] {self.text}"


def faults(text: str, file: str, first: int = 1, sentences: bool = True) -> list[Fault]:
    """What breaks a rule.

    Args:
        text: Markdown, or a docstring.
        file: Its name in the messages.
        first: The line of the file on which the text begins.
        sentences: Whether the length of sentences is checked.
    """
    found: list[Fault] = []

    def add(at: int, rule: str, what: str) -> None:
        found.append(Fault(file, first + text.count("\n", 0, at), rule, what))

    flat = _SPACE.sub(lambda gap: " " * len(gap.group()), text)  # of the same length, so that places stay
    small = re.sub(r" (?= )", "\0", flat).lower()
    for phrase, better in WORDS.items():
        wanted = re.compile(r"\b" + re.escape(phrase).replace(r"\ ", r"[ \0]+") + r"\b")
        for hit in wanted.finditer(small):
            add(hit.start(), "word", f"{phrase!r}: write {better!r}")
    for pattern, better in _COMPILED:
        for hit in pattern.finditer(small):
            add(hit.start(), "word", f"{_readable(hit.group())!r}: write {better!r}")
    for hit in _SHARE.finditer(flat):
        add(
            hit.start(),
            "share",
            f"{hit.group()!r}: sparsity is the share removed, keep the share that remains",
        )
    for hit in _PATH.finditer(text):
        add(hit.start(), "path", f"{hit.group()!r}...: a path of one machine")
    if sentences:
        prose = _FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block.group()), text)
        at = 0
        for part in re.split(r"(\n[ \t]*\n|\n(?=[ \t]*(?:[-*|#]|\d+\. ))|(?<=[.:;?!])\s)", prose):
            count = 0 if part.lstrip().startswith("|") else len(_WORD.findall(part))
            if count > LONGEST:
                add(
                    at + len(part) - len(part.lstrip()),
                    "long",
                    f"a sentence of {count} words; at most {LONGEST}",
                )
            at += len(part)
    return sorted(found, key=lambda fault: fault.line)


def _readable(text: str) -> str:
    return text.replace("\0", "")


def names(source: str, stem: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every class, file and parameter with a name that the style page replaces.

    Args:
        source: Python.
        stem: The file's name without its ending.

    >>> list(names("class Meter: ...\\ndef f(told): ...", "lanes"))
    [(1, 'lanes'), (1, 'Meter'), (2, 'told')]
    """
    if stem.strip("_") in NAMES:
        yield 1, stem
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.ClassDef)
            and node.name.strip("_").lower() in NAMES
            and node.name not in _STAY
        ):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg) and node.arg in _ARGUMENTS:
            yield node.lineno, node.arg


def remarks(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every comment, and of every other text of several words, such as a message or a help text."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count(" ") > 1:
            yield node.lineno, node.value


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every text that stands alone as a statement: docstrings and descriptions of attributes."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.lineno, node.value.value


def faults_of(path: Path) -> list[Fault]:
    """What breaks a rule in a file."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
    if path.suffix != ".py":
        return faults(text, name)
    found = [
        Fault(name, line, "name", f"{word!r}: see the style page") for line, word in names(text, path.stem)
    ]
    parts = {part: line for line, part in [*remarks(text), *docstrings(text)]}  # a docstring counts once
    found += [fault for part, line in parts.items() for fault in faults(part, name, line, sentences=False)]
    return sorted(found, key=lambda fault: fault.line)


def files() -> list[Path]:
    """What is checked by default. The log, published figures and this linter's own page are not prose."""
    pages = [
        *ROOT.glob("docs/guide/*.md"),
        *ROOT.glob("docs/explanation/*.md"),
        ROOT / "docs/index.md",
        ROOT / "README.md",
    ]
    pages = [page for page in pages if page.name != "style.md"]
    return sorted([*pages, *ROOT.glob("src/secateur/**/*.py")])


def main() -> int:
    """Check the files named, or all of them."""
    chosen = [Path(name).resolve() for name in sys.argv[1:]] or files()
    found = [fault for path in chosen for fault in faults_of(path)]
    print("\n".join(map(str, found)), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
