import pytest

from sidepipe.records import read_records, text_of


def write(path, text):
    path.write_bytes(text.encode())
    return path


def rows(path):
    return [row for _, row in read_records(path)]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_csv_says_in_its_header_what_separates_it(tmp_path, separator, line_end):
    lines = [f"Caption{separator}URL", f'"a {separator} b"{separator}', f"c{separator}d"]
    path = write(tmp_path / "a.csv", line_end.join([*lines, ""]))
    expected = [{"caption": f"a {separator} b", "url": ""}, {"caption": "c", "url": "d"}]
    assert rows(path) == expected


def test_the_same_rows_come_from_json_lines_which_keep_their_kinds(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"Caption": "ü", "n": 2}\n\n{"caption": "b, c", "n": null}')
    assert rows(path) == [{"caption": "ü", "n": 2}, {"caption": "b, c", "n": None}]
    assert [where[-6:] for where, _ in read_records(path)] == ["line 1", "line 3"]


def test_signs_that_only_look_like_line_ends_belong_to_the_text(tmp_path):
    odd = "before\u2028after\x0bthen\x85"
    assert rows(write(tmp_path / "a.csv", f"caption,n\n{odd},1\n")) == [{"caption": odd, "n": "1"}]
    assert rows(write(tmp_path / "a.jsonl", '{"caption": "\u2028"}\n')) == [{"caption": "\u2028"}]


def test_a_byte_order_mark_belongs_to_no_column(tmp_path):
    assert rows(write(tmp_path / "a.csv", "\ufeffcaption,n\na,1\n")) == [{"caption": "a", "n": "1"}]


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.csv", "caption,n\na,1\nb\n", "line 3 must have 2 values"),
        ("a.csv", "caption,n\na, b,1\n", "line 2 must have 2 values.*quote"),
        ("a.csv", "caption,n\n", "no rows"),
        ("a.csv", "", "no rows"),
        ("a.jsonl", '{"a": 1}\n{"a"\n', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 must be an object"),
        ("a.parquet", "x", r"must end with \.csv or \.jsonl, got '\.parquet'"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, name, text, match):
    with pytest.raises(ValueError, match=match):
        read_records(write(tmp_path / name, text))


def test_another_encoding_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "a.csv").write_bytes("caption\nü\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.csv cannot be read.*UTF-8"):
        read_records(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match=r"b\.csv is missing"):
        read_records(tmp_path / "b.csv")


def test_a_row_s_text_has_single_spaces_and_is_never_empty():
    assert text_of("here", {"caption": " a\n b "}, "caption") == "a b"
    for value in ("", "  ", None, 3):
        with pytest.raises(ValueError, match="here: 'caption' must be text"):
            text_of("here", {"caption": value}, "caption")
    with pytest.raises(ValueError, match=r"here has no 'caption', it has 'text', 'n'.*rename"):
        text_of("here", {"text": "a", "n": 1}, "caption")
