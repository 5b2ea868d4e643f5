"""The documents quote the numbers of their file, and their links have targets."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("demo", ROOT / "docs" / "demo.py")
demo = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(demo)
FOLDERS = (ROOT, ROOT / ".github" / "ISSUE_TEMPLATE", ROOT / "docs", ROOT / "docs" / "results")
DOCUMENTS = [page for folder in FOLDERS for page in sorted(folder.glob("*.md"))]


@pytest.mark.parametrize("page", demo.PAGES, ids=lambda page: page.name)
def test_the_demo_s_numbers_on_a_page_are_those_of_the_file(page):
    found = json.loads(demo.NUMBERS.read_text())
    assert demo.placed(page.read_text(), demo.table(found)) == page.read_text()


def test_a_page_keeps_what_stands_outside_its_marks():
    page = f"before\n{demo.BEGIN}old\n{demo.END}\nafter\n"
    new = demo.placed(page, "new\n")
    assert new == f"before\n{demo.BEGIN}new\n{demo.END}\nafter\n"
    assert demo.placed(new, "new\n") == new


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.*?) *$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_repository_has_its_file_and_its_heading(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_relative_to(ROOT), f"{link} is outside the repository"
        assert target.exists(), f"{link} has no file"
        assert not anchor or anchor in anchors(target), f"{link} has no heading"


def test_the_readme_is_short_and_its_table_has_at_most_six_rows():
    text = (ROOT / "README.md").read_text()
    table = text.split(demo.BEGIN)[1].split(demo.END)[0]
    assert len(re.findall(r"^\| `", table, flags=re.MULTILINE)) <= 6
    assert len(text.splitlines()) <= 120
