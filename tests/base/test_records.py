import pytest

from sidepipe.base.records import read_records, text_of


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


def test_empty_lines_are_no_rows_and_no_header(tmp_path):
    path = write(tmp_path / "a.csv", "\n\ncaption;n\n\na;1\n\n")
    assert read_records(path) == [(f"{path} line 5", {"caption": "a", "n": "1"})]


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
        ("a.csv", "caption,n\n", "no rows; remedy: write rows below its header$"),
        ("a.jsonl", "\n", "no rows; remedy: write one object per line$"),
        ("a.csv", "", "no rows"),
        ("a.jsonl", '{"a": 1}\n{"a"\n', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 must be an object"),
        ("a.jsonl", '{"a": 1}\n{"a": "b', "line 2 is not JSON: Unterminated string"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON: maximum recursion"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", "line 1 is not JSON: Exceeds the limit"),
        ("a.jsonl", '{"a": 1}\n{"a": 2, "b": 3, "A ": 4}', "line 2 has 2 columns 'a'; remedy"),
        ("a.jsonl", '{"a": "x", "a": "y"}', "line 1 has 2 columns 'a'"),
        ("a.jsonl", '{"a": {"b": 1, "b": 2}}', "line 1 has 2 columns 'b'"),
        ("a.jsonl", '{"a": "b"}\n{"a": "\\ud83d"}', r"line 2: 'a' must be text .*'\\ud83d'"),
        ("a.jsonl", '{"a": ["\\ud83d"]}', "line 1: 'a' must be text without"),
        ("a.jsonl", '{"\\ud83d": "b"}', "line 1: .* must be text without"),
        ("a.jsonl", '{"a": "\\u0000"}', r"line 1: 'a' must be text .*'\\x00'"),
        ("a.csv", "caption,n\na\0,1\n", "line 2 holds a NUL character"),
        ("a.csv", "caption,n,Caption \na,1,b\n", "line 1 has 2 columns 'caption'; remedy"),
        ("a.csv", 'caption,n\na,1\n"b,2\nc,3\n', "line 3 cannot be read: .*close its quotes"),
        ("a.csv", 'caption,n\n"a"b,1\n', "line 2 cannot be read: .*double those"),
        ("a.csv", 'caption,n\n"a\nb",1\nc\n', "line 4 must have 2 values, .* got 1"),
        ("a.csv", "caption;url\na; b;c\n", "line 2 must have 2 values, .* got 3"),
        ("a.csv", "id;caption;n\n1;a;2\n2;b; c\n", "line 3: 'n' begins with a space, .*' c'; "),
        ("a.csv", "caption,n\na,2\nb, c\n", "line 3: 'n' begins with a space, unlike in other"),
        ("a.parquet", "x", r"must end with \.csv or \.jsonl, got '\.parquet'"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, name, text, match):
    with pytest.raises(ValueError, match=match):
        read_records(write(tmp_path / name, text))


def test_another_encoding_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "a.csv").write_bytes("caption\nü\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.csv line 2 cannot be read.*byte 8.*UTF-8"):
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


def test_values_behind_a_space_are_read_where_all_of_a_column_are(tmp_path):
    path = write(tmp_path / "a.csv", 'n,caption,m\n 1, a,\n 2,"b, c", 3\n')
    assert rows(path) == [
        {"n": " 1", "caption": " a", "m": ""},
        {"n": " 2", "caption": "b, c", "m": " 3"},
    ]


def test_a_value_of_json_lines_may_begin_with_a_space(tmp_path):
    """No separator could have made it."""
    path = write(tmp_path / "a.jsonl", '{"n": 1, "note": " hi"}\n{"n": 2, "note": "there"}\n')
    assert rows(path) == [{"n": 1, "note": " hi"}, {"n": 2, "note": "there"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-bom"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_every_encoding_that_names_itself_is_read(tmp_path, encoding, line_end):
    text = line_end.join(["caption,n", "\u00fc \u4e2d,1", ""])
    raw = b"\xfe\xff" + text.encode("utf-16-be") if "bom" in encoding else text.encode(encoding)
    (tmp_path / "a.csv").write_bytes(raw)
    assert rows(tmp_path / "a.csv") == [{"caption": "\u00fc \u4e2d", "n": "1"}]


def test_utf_16_without_a_mark_and_cut_off_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "a.csv").write_bytes("caption,n\na,1\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"a\.csv line 1 holds a NUL character.*UTF-8"):
        read_records(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes("caption,n\na,1\n".encode("utf-16")[:-1])
    with pytest.raises(ValueError, match=r"a\.csv line \d cannot be read: truncated data"):
        read_records(tmp_path / "a.csv")
