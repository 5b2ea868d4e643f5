"""Writes docs/api.md from the docstrings of the public functions: python docs/api.py.

One sentence per line, as in every document.
"""

import inspect
import re
from pathlib import Path

import sidepipe
from sidepipe.memorization.metrics import Excess

PAGE = Path(__file__).with_name("api.md")
HEAD = """# Python API

`make api` writes this page from the docstrings.
The tests run every example.
`examples/refine_my_model.py` is the shortest complete program.
Images are uint8 arrays `(n, height, width, channels)` everywhere.
No function writes a file unless you ask for one.
The encoders that `compare` takes are in `sidepipe.features.encoders`.
The scores are also torchmetrics classes, in `sidepipe.memorization.metrics`.
"""
PUBLIC = {
    "sidepipe.load": sidepipe.load,
    "sidepipe.load_split": sidepipe.load_split,
    "sidepipe.Model": sidepipe.Model,
    "sidepipe.Model.sample": sidepipe.Model.sample,
    "sidepipe.Model.refine": sidepipe.Model.refine,
    "sidepipe.compare": sidepipe.compare,
    "sidepipe.Result": sidepipe.Result,
    "sidepipe.Result.report": sidepipe.Result.report,
    "sidepipe.Result.table": sidepipe.Result.table,
    "sidepipe.Result.save": sidepipe.Result.save,
    "sidepipe.TableResult": sidepipe.TableResult,
    "sidepipe.Ratio": sidepipe.Ratio,
    "sidepipe.audit": sidepipe.audit,
    "sidepipe.Audit": sidepipe.Audit,
    "sidepipe.Audit.save": sidepipe.Audit.save,
    "sidepipe.Estimate": sidepipe.Estimate,
    "sidepipe.Pair": sidepipe.Pair,
    "sidepipe.memorization.metrics.Excess": Excess,
}
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Source", "Example")
# Dataclasses that functions return: nobody calls their constructors.
RETURNED = (
    *(sidepipe.Model, sidepipe.Result, sidepipe.TableResult, sidepipe.Ratio, sidepipe.Audit),
    *(sidepipe.Estimate, sidepipe.Pair),
)


def page() -> str:
    """The whole document."""
    return "\n".join([HEAD, *(described(name, of) for name, of in PUBLIC.items())])


def described(name: str, of: object) -> str:
    """A heading, the call, and the docstring as Markdown."""
    text = inspect.getdoc(of) or ""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", text, flags=re.MULTILINE)
    found = [f"## `{name}`\n"]
    if of not in RETURNED:
        found.append(f"```\n{name}({arguments(of)})\n```\n")
    found.append(paragraphs(parts[0]))
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        body = inspect.cleandoc(body)
        if title == "Example":
            body = f"```python\n{body}\n```\n"
        else:
            body = items(body) if title in ("Args", "Attributes", "Raises") else paragraphs(body)
        found.append(f"**{title}**\n\n{body}")
    return "\n".join(found)


def arguments(of: object) -> str:
    """The arguments with their defaults, without types, which the list below them has in words."""
    assert callable(of)
    parameters = [p for p in inspect.signature(of).parameters.values() if p.name != "self"]
    text = str(inspect.Signature([p.replace(annotation=p.empty) for p in parameters]))
    return text.removeprefix("(").removesuffix(")")


def paragraphs(text: str) -> str:
    """One sentence per line, paragraphs apart."""
    return "".join(f"{sentences(part)}\n\n" for part in text.strip().split("\n\n")).rstrip() + "\n"


def items(text: str) -> str:
    """A list item for each `name: what it is`."""
    found = re.split(r"^(\w+): ", text, flags=re.MULTILINE)[1:]
    pairs = zip(found[::2], found[1::2], strict=True)
    return "".join(f"- `{name}`: {sentences(body, '  ')}\n" for name, body in pairs)


def sentences(text: str, indent: str = "") -> str:
    """The text with a line for each sentence."""
    text = " ".join(text.split()).replace("``", "`")
    return re.sub(r"(?<=\.) (?=[A-Z`])", f"\n{indent}", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
