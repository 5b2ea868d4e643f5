"""The numbers that the documents quote are those of their file."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("demo", ROOT / "docs" / "demo.py")
demo = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(demo)


@pytest.mark.parametrize("page", demo.PAGES, ids=lambda page: page.name)
def test_the_demo_s_numbers_on_a_page_are_those_of_the_file(page):
    found = json.loads(demo.NUMBERS.read_text())
    assert demo.placed(page.read_text(), demo.table(found)) == page.read_text()


def test_a_page_keeps_what_stands_outside_its_marks():
    page = f"before\n{demo.BEGIN}old\n{demo.END}\nafter\n"
    new = demo.placed(page, "new\n")
    assert new == f"before\n{demo.BEGIN}new\n{demo.END}\nafter\n"
    assert demo.placed(new, "new\n") == new
