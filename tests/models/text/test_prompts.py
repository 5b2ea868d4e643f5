import os

import pytest
from PIL import Image

from sidepipe.models.text.prompts import Prompt, count_images, present_images, read_prompts

WEBSTER = (
    '{"caption": "The <i>Long</i> \\"Dark\\" Caf\\u00e9", "index": 1030727993, "url": "http://a.b/c.jpg"}\n'
    '{"caption": "Foyer painted in WHITE", "index": 879021888, "url": "https://a.b/d.png?x=1"}\n'
)
NEMO = (
    ";Caption;URL;type;mean_sscd;max_sscd;Index\n"
    '0;"""Watch"", twice";http://a.b/c.jpg;VM;0.83;0.84;0012\n'
    "1;Mothers influence, on her hippo;;TM;0.1;0.2;455502462\n"
)
MEMBENCH = (
    ",prompt,urls\n"
    "0,satisfied happy scientist,['https://a.b/s.jpg']\n"
    '1,"rug, by ""x""","[\'https://a.b/r 1.jpg\', \'https://a.b/s.jpg\']"\n'
)
OURS = "id,caption,image,memorized\na,one,x.png,true\nb,two,,False\nc,three,,\n"


def read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    return read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "sdv1_500.jsonl",
            WEBSTER,
            [
                Prompt("1030727993", 'The <i>Long</i> "Dark" Café', "http://a.b/c.jpg"),
                Prompt("879021888", "Foyer painted in WHITE", "https://a.b/d.png?x=1"),
            ],
        ),
        (
            "memorized_laion_prompts.csv",
            NEMO,
            [
                Prompt("0012", '"Watch", twice', "http://a.b/c.jpg"),
                Prompt("455502462", "Mothers influence, on her hippo"),
            ],
        ),
        (
            "SD1_final.csv",
            MEMBENCH,
            [
                Prompt("0", "satisfied happy scientist", "https://a.b/s.jpg"),
                Prompt("1", 'rug, by "x"', "https://a.b/r%201.jpg https://a.b/s.jpg"),
            ],
        ),
        (
            "ours.csv",
            OURS,
            [
                Prompt("a", "one", "", "x.png", True),
                Prompt("b", "two", "", "", False),
                Prompt("c", "three", "", "", None),
            ],
        ),
        (
            "ours.jsonl",
            '{"caption": "one", "memorized": true}\n{"text": "two", "memorized": null}\n',
            [Prompt("0", "one", memorized=True), Prompt("1", "two")],
        ),
        ("plain.txt", "a cat\na  dog \n\n", [Prompt("1", "a cat"), Prompt("2", "a dog")]),
    ],
)
def test_every_known_form_of_prompts_is_read(tmp_path, name, text, expected):
    assert read(tmp_path, name, text) == expected


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.txt", "a cat\n\na dog\n", r"a\.txt line 2: 'caption' must be text, got ''"),
        ("a.txt", "", r"a\.txt line 1: 'caption' must be text"),
        ("a.csv", "id,caption\n1,a\n2,\n", "line 3: 'caption' must be text, got ''"),
        ("a.csv", "id,words\n1,a\n", "line 2 has no 'caption', it has 'id', 'words'"),
        ("a.csv", "id,caption\n1,a\n1,b\n", r"line 3 repeats the id '1' of .*line 2"),
        ("a.csv", "id,caption,memorized\n1,a,maybe\n", "memorized must be true, false or empty"),
        ("a.csv", "caption;url\na;http://x/y\na cat; a dog\n", r"line 3.*' a dog'.*quote"),
        ("a.csv", "caption;url\na cat; a dog\n", "line 2: a url must hold '://', got ' a dog'; "),
        ("a.csv", "caption;id\na dog;7\na cat; sitting\n", "line 3: 'id' begins with a space"),
        ("a.csv", "caption,image\na,x.png\na cat, sitting\n", "line 3: 'image' begins with a"),
        ("a.csv", "caption,caption\na,b\n", "line 1 has 2 columns 'caption'"),
        ("a.jsonl", '{"caption": "a", "caption": "b"}\n', "line 1 has 2 columns 'caption'"),
        ("a.jsonl", '{"caption": "a"}\n{"caption": "\\udc00"}\n', "line 2: 'caption' must be text"),
        ("a.jsonl", '{"caption": "a', "line 1 is not JSON: Unterminated string"),
        ("a.csv", 'caption,id\n"a,1\nb,2\n', "line 2 cannot be read"),
        ("a.txt", "a\nb\0\n", "line 2 holds a NUL character"),
        ("a.csv", "prompt,urls\na,['x\n", r"urls must be a list or one url, got \"\['x\""),
        ("a.json", "[]", r"the suffix of .* must be one of \.csv, \.jsonl, \.txt, got '\.json'"),
    ],
)
def test_a_bad_file_of_prompts_is_an_error_that_names_the_line(tmp_path, name, text, match):
    with pytest.raises(ValueError, match=match):
        read(tmp_path, name, text)


def test_a_missing_file_of_prompts_is_named(tmp_path):
    for name in ("a.txt", "a.csv"):
        with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
            read_prompts(tmp_path / name)


def test_images_are_found_by_path_by_id_and_by_a_url_s_clear_end(tmp_path):
    names = ["own/x.png", "0012.jpg", "gt/77/b.png", "gt/77/a.png", "note.txt", "Lead 1.jpg"]
    for name in [*names, "main.jpg", "5.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            (tmp_path / name).write_text("no image")
        else:
            Image.new("L", (4, 4)).save(tmp_path / name)
    prompts = [
        Prompt("5", "own image before the id's", image="own/x.png"),
        Prompt("12", "zeros in front do not count"),
        Prompt("77", "a folder of its images"),
        Prompt("u", "by the url", "http://a.b/lead%201.jpg?635 http://a.b/other.jpg"),
        Prompt("m", "two urls end so", "http://a.b/1/main.jpg"),
        Prompt("n", "two urls end so", "http://a.b/2/main.jpg"),
        Prompt("v", "the url of another prompt", "http://a.b/lead%201.jpg?635"),
        Prompt("note", "a text of that name is no image"),
    ]
    table = present_images(prompts, tmp_path)
    assert table["id"].tolist() == [prompt.id for prompt in prompts]
    assert table["files"].tolist() == [
        ["own/x.png"],
        ["0012.jpg"],
        ["gt/77/a.png", "gt/77/b.png"],
        ["Lead 1.jpg"],
        *([], []),
        ["Lead 1.jpg"],
        [],
    ]
    assert table["found_by"].tolist() == ["image", "id", "id", "url", "", "", "url", ""]
    assert table["prompts_of_url"].tolist() == [0, 0, 0, 2, 1, 1, 2, 0]
    assert count_images(table) == {"prompts": 8, "with_image": 5, "sharing_a_url": 2, "urls": 4}


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="ground-truth images must be a folder, got"):
        present_images([Prompt("1", "a")], tmp_path / "nowhere")


def test_a_prompt_s_image_is_found_however_its_path_is_spelled(tmp_path):
    (tmp_path / "gt").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "gt/0.png")
    Image.new("L", (4, 4)).save(tmp_path / "gt/1", "PNG")
    spelled = ["0.png", "./0.png", "x/../0.png", f"{tmp_path}/gt/./0.png", "./1"]
    prompts = [Prompt(f"p{i}", "a", image=name) for i, name in enumerate(spelled)]
    found = present_images(prompts, tmp_path / "gt")["files"].tolist()
    assert found == [["0.png"]] * 4 + [["1"]]


def test_prompts_in_utf_16_and_urls_that_are_empty_words_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes("caption,url\n\u00fc,nan\nb,http://x/y\n".encode("utf-16"))
    assert read_prompts(tmp_path / "a.csv") == [
        Prompt("0", "\u00fc"),
        Prompt("1", "b", "http://x/y"),
    ]


def test_an_image_of_prompts_whose_name_is_not_utf_8_is_named(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    with pytest.raises(ValueError, match=r"the name of caf\\xe9\.png must be UTF-8, rename it"):
        present_images([Prompt("1", "a")], tmp_path)
