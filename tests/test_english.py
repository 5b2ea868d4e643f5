"""Texts are plain English: docstrings, comments, messages, YAML comments, templates, documents."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    path
    for folder, suffixes in (
        ("src", (".py", ".j2", ".js", ".css")),
        ("conf", (".yaml",)),
        ("tests", (".md",)),
        ("docs", (".md",)),
        (".", ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile")),
    )
    for path in sorted((ROOT / folder).glob("*" if folder == "." else "**/*"))
    if path.name.endswith(suffixes)
]
# Each pattern, and the words to use instead.
WORDS = {
    r"anew": "again",
    r"mend(?:s|ed|ing)?": "fix, repair",
    r"foret(?:ell|ells|old|elling)": "predict, estimate",
    r"beside": "next to, compared with, in addition to",
    r"by heart": "memorized",
    r"go(?:es|ing)? on|went on": "resume, continue",
    r"whoever": "anyone who, a user who",
    r"(?:memori|normali|optimi|summari|recogni|initiali|generali|quanti|visuali)s(?:e|es|ed|ing)"
    r"|(?:memori|normali|optimi|generali|initiali)sation": "American spelling: -ize",
    r"neighbour\w*|colour\w*|behaviour\w*|favour\w*": "American spelling: -or",
    r"grey|centre[sd]?|labelled|labelling|modelled|analys(?:e|ed|es)": "American spelling",
    r"(?:evaluations?|images|steps|hits|seconds|jobs|moves|trials|passes|generators?|FLOPs) an?"
    r" (?:image|second|step|attack|run|job|cluster|label|prompt|batch|epoch|trial|sample)": "per",
    r"(?:it|code|stage|model|sampler|command|file|config\w*|key|job|report|page|table|name|manifest|"
    r"rule|checkpoint|folder|test|run|message|software|loader|library|process|step|notice|line"
    r"|section|log|error|settings?|artifact|record|W&B|that|which|\w+\.(?:yaml|json|py|csv))"
    r" (?:says?|knows?|knew|sees|saw|asks|asked for|speaks?|tells|looks)": "not a person",
    r"(?:is|are|was|were|be) (?:told|asked|said)": "no person: request, pass, state",
}
FUNCTION_WORDS = (
    "a|an|the|after|again|alone|also|and|as|at|before|between|beyond|but|by|for|from|here|if|in"
    "|into|is|it|like|more|never|no|not|of|on|once|one|only|out|over|per|so|than|that|them|then"
    "|there|this|through|to|together|too|twice|under|until|up|upon|what|when|where|which|while"
    "|with|within|without"
)
IRREGULAR = (
    "Drawn|Made|Kept|Found|Given|Taken|Seen|Held|Built|Written|Known|Shown|Left|Meant|Sent|Chosen"
    "|Fed|Told|Lost|Put|Thrown|Hidden|Begun|Run|Done|Gone|Brought|Thought|Bound|Split|Cut|Worn"
)
# First words that end like a participle and are none, or that name a thing.
ALLOWED = {
    *("Nothing", "Anything", "Something", "Everything", "During", "String", "Bring", "Red", "Need"),
    *("Seed", "Speed", "Embed", "Feed", "Indeed", "Exceed", "Proceed", "Succeed", "Spring", "Ring"),
}
START = r"(?:^|(?<=[.!?:] ))"
SENTENCES = {
    rf"{START}Of (?!course)": "begin with the subject, not with 'Of'",
    rf"{START}What (?![^.?]*\?)": "begin with the subject, not with 'What'",
    rf"{START}(?:[A-Z][a-z]+ed|{IRREGULAR}) (?:{FUNCTION_WORDS})\b": "give the sentence a subject",
}


def python_texts(source):
    """(line, text) of docstrings, strings with a space and blocks of comments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    block, last = [], -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or "noqa" in token.string:
            continue
        if token.start[0] != last + 1:
            if block:
                yield last, " ".join(block)
            block = []
        block.append(token.string.lstrip("# "))
        last = token.start[0]
    if block:
        yield last, " ".join(block)


def comment_texts(source, sign="#"):
    """(line, text) of blocks of comments."""
    block = []
    for number, line in enumerate([*source.splitlines(), ""], 1):
        comment = re.search(rf"(?:^|\s){sign} (.*)", line)
        if comment:
            block.append(comment[1])
        if block and not (comment and line.lstrip().startswith(sign)):
            yield number, " ".join(block)
            block = []


def paragraphs(source):
    """(line, text) of paragraphs, without code."""
    source = re.sub(r"```.*?```", lambda m: "\n" * m[0].count("\n"), source, flags=re.DOTALL)
    source = re.sub(r"`[^`\n]*`", "`code`", source)
    number = 1
    for paragraph in re.split(r"(\n\s*\n)", source):
        yield number, paragraph
        number += paragraph.count("\n")


def texts(path):
    """(line, text) of everything in a file that a person reads as prose."""
    source = path.read_text()
    if path.suffix == ".py":
        return python_texts(source)
    if path.suffix == ".yaml":
        return comment_texts(source)
    if path.suffix == ".js":
        return comment_texts(source, "//")
    return paragraphs(source)


def faults(text):
    """Each odd phrase of a text, and the words to use instead."""
    # A paragraph break ends a sentence; a line break does not.
    text = re.sub(r"^[-*] ", "", text.strip())
    text = re.sub(r"\s*\n\s*\n\s*(?=\w)", ". ", text)
    text = re.sub(r"\s+", " ", re.sub(r"\n\s*[-*] ", ". ", text)).replace("..", ".")
    for pattern, instead in WORDS.items():
        for match in re.finditer(rf"\b(?:{pattern})\b", text, flags=re.IGNORECASE):
            yield match[0], instead
    for pattern, instead in SENTENCES.items():
        for match in re.finditer(pattern, text):
            if match[0].split()[0] not in ALLOWED:
                yield match[0], instead
    for match in re.finditer(r"(?:^|[,;.:] )who \w+", text, flags=re.IGNORECASE):
        yield match[0], "anyone who, a user who"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_are_plain_english(path):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {phrase!r}: {instead}"
        for line, text in texts(path)
        for phrase, instead in faults(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "Called before the first step.",
        "The number of steps. Drawn for each image.",
        "Of all images, two are copies.",
        "What a stage needs.",
        "Two evaluations an image.",
        "The sampler knows nothing of guidance.",
        "It goes on where it stopped.",
        "A list for whoever reads it.",
        "Who needs it, reads it.",
        "The scale is said\nbeside the rate.",
    ],
)
def test_odd_english_is_found(text):
    assert list(faults(text))


@pytest.mark.parametrize(
    "text",
    [
        "The engine calls this before the first step.",
        "What is a hit?",
        "Nothing in a key depends on the run time.",
        "Two evaluations per image; a resumed run continues with the next shard.",
    ],
)
def test_plain_english_passes(text):
    assert not list(faults(text))
