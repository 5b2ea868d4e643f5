"""`groups` of `sidepipe.compare`: subjects are counted and not slices; wrong tables are refused."""

import csv

import numpy as np
import pytest
from PIL import Image

import sidepipe

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (30, 10, 8, 8, 1), dtype=np.uint8)  # patients, slices
HELDOUT = RNG.integers(0, 256, (40, 5, 8, 8, 1), dtype=np.uint8)
OTHERS = RNG.integers(0, 256, (15, 8, 8, 1), dtype=np.uint8)
GROUPS = {
    "train": np.repeat([f"p{i}" for i in range(30)], 10),
    "heldout": np.repeat([f"q{i}" for i in range(40)], 5),
}


def flat(images):
    return images.reshape(-1, 8, 8, 1)


def compared(generated, groups=GROUPS, **arguments):
    arguments = {"train": flat(TRAIN), "heldout": flat(HELDOUT), **arguments}
    return sidepipe.compare(generated, groups=groups, **arguments)


def test_ten_slices_of_one_patient_are_one_finding():
    generated = np.concatenate([TRAIN[3], OTHERS])
    naive, found = compared(generated, groups=None), compared(generated)
    assert (naive.hits, naive.unique) == (10, 10)
    assert (found.hits, found.unique) == (10, 1)
    assert [pair.train // 10 for pair in found.pairs if pair.hit] == [3]
    assert found._counts["num_different"] == 30
    assert found._counts["num_groups"] == {"train": 30, "heldout": 40}
    assert "different training groups                  1" in found.table()


def test_one_slice_each_of_ten_patients_is_ten_findings():
    assert compared(np.concatenate([TRAIN[:10, 0], OTHERS])).unique == 10


def test_a_slice_filed_under_two_patients_is_one_finding():
    train = TRAIN.copy()
    train[1, 0] = train[0, 0]
    found = compared(np.concatenate([train[:2, 0], OTHERS, OTHERS[:3]]), train=flat(train))
    assert (found.hits, found.unique) == (2, 1)


def test_the_false_positive_rate_is_one_of_groups():
    found = compared(np.concatenate([TRAIN[3], OTHERS]), false_positive_rate=0.001)
    assert found.false_positive_rate == 1 / 40
    assert "40 held-out groups are too few for a false positive rate of 0.1 %" in found.warnings[0]
    assert found._counts["calibrated"][0]["num_real"] == 40


def test_held_out_hits_on_slices_of_one_patient_are_one_draw_of_luck():
    """Five held-out slices are hit once each: a patient makes a wider interval than five images."""
    generated = np.concatenate([HELDOUT[0], OTHERS, OTHERS[:5]])
    naive, found = compared(generated, groups=None), compared(generated)
    assert naive.heldout_hits == found.heldout_hits > 5
    width = lambda result: result.excess.interval[1] - result.excess.interval[0]  # noqa: E731
    assert width(found) > 1.2 * width(naive)


def test_the_report_and_the_json_count_groups(tmp_path):
    found = compared(np.concatenate([TRAIN[3], OTHERS, TRAIN[4]]))
    page = found.report(tmp_path / "page.html").read_text()
    assert "<b>2 of 30 training groups are reproduced" in page
    assert "held-out groups" in page
    assert "(2 different groups)" in page
    assert "(2 different groups)" in str(found)
    assert found._inputs["train"]["num_groups"] == 30
    found.save(tmp_path / "out")
    with (tmp_path / "out" / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows if row["hit_on"] == "train"] == ["p3"] * 10 + ["p4"] * 10


# tables


@pytest.fixture
def folders(tmp_path):
    for name, images in (("train", TRAIN), ("heldout", HELDOUT)):
        for i, patient in enumerate(images):
            folder = tmp_path / name / f"{name[0]}{i}"
            folder.mkdir(parents=True)
            for k, image in enumerate(patient):
                Image.fromarray(image[:, :, 0]).save(folder / f"{k}.png")
    return tmp_path


def rows_of(folders, form="{file}"):
    return [
        (form.format(of=of, file=file.relative_to(folders / of), path=file), file.parent.name)
        for of in ("train", "heldout")
        for file in sorted((folders / of).rglob("*.png"))
    ]


def table(folders, rows):
    with (folders / "groups.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "group"), *rows])
    return folders / "groups.csv"


def from_folders(folders, rows, **arguments):
    return compared(
        np.concatenate([TRAIN[3], OTHERS]),
        groups=table(folders, rows),
        train=folders / "train",
        heldout=folders / "heldout",
        **arguments,
    )


@pytest.mark.parametrize("form", ["{file}", "{of}/{file}", "{path}", "./{file}"])
def test_a_table_names_files_in_several_ways(folders, form):
    found = from_folders(folders, rows_of(folders, form))
    assert (found.hits, found.unique) == (10, 1)


def test_a_file_of_several_images_is_one_group(tmp_path):
    for i, patient in enumerate(TRAIN):
        (tmp_path / "train").mkdir(exist_ok=True)
        np.save(tmp_path / "train" / f"p{i}.npy", patient[..., 0])
    rows = [(f"p{i}.npy", f"patient {i}") for i in range(30)]
    rows += [(f"heldout[{i}]", f"other {i // 5}") for i in range(200)]
    found = compared(
        np.concatenate([TRAIN[3], OTHERS]), groups=table(tmp_path, rows), train=tmp_path / "train"
    )
    assert (found.hits, found.unique) == (10, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], r"none for 1 of 300 in train: t0/0\.png; remedy: add a row each"),
        (lambda rows: rows[:-7], r"none for 7 of 200 in heldout: h8/3\.png, .* and 4 more"),
        (lambda rows: [*rows, ("x.png", "a")], r"got others, 1 \(with their lines\): x\.png \(502"),
        (
            lambda rows: [(file, "t0" if group == "h0" else group) for file, group in rows],
            r"groups must be in train or in heldout, got 1 in both: t0 \(10 and 5 images\)",
        ),
        (lambda rows: [*rows, ("t0/0.png", "t1")], r"group of t0/0\.png must be t0, got 't1'"),
        (
            lambda rows: [(file, "") for file, _ in rows],
            "line 2: 'group' must be text, got ''; remedy: write text there",
        ),
        (
            lambda rows: [(file, group if group[0] == "t" else "one") for file, group in rows],
            "heldout must be >= 20 groups, got 1; add images of other groups",
        ),
    ],
)
def test_a_wrong_table_is_refused(folders, change, message):
    with pytest.raises(ValueError, match=message):
        from_folders(folders, change(rows_of(folders)))


def test_a_name_of_both_folders_is_ambiguous(folders):
    for of, patient in (("train", "t0"), ("heldout", "h0")):
        (folders / of / patient).rename(folders / of / "same")
    rows = [(file, of) for file, of in rows_of(folders) if "same" not in file]
    with pytest.raises(ValueError, match=r"same/0\.png is in train and in heldout; remedy: write"):
        from_folders(folders, [*rows, ("same/0.png", "a")])


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ({"train": [1] * 300}, ValueError, r"groups must be of train and of heldout, got \['train"),
        ({**GROUPS, "train": [1]}, ValueError, r"groups\['train'\] must be 300 values, got 1"),
        ("no/groups.csv", FileNotFoundError, r"no/groups\.csv is missing"),
    ],
)
def test_wrong_groups_are_named(groups, error, message):
    with pytest.raises(error, match=message):
        compared(np.concatenate([TRAIN[3], OTHERS]), groups=groups)


def test_a_table_without_its_columns_is_named(tmp_path):
    for header in ("image,patient", "file,patient", "image,group"):
        (tmp_path / "groups.csv").write_text(f"{header}\na.png,1\n")
        found = header.replace(",", ", ")
        message = f"line 1 must be a header with the columns file and group, got '{found}'; rename"
        with pytest.raises(ValueError, match=message):
            compared(np.concatenate([TRAIN[3], OTHERS]), groups=tmp_path / "groups.csv")


def test_held_out_images_in_any_order_are_taken_by_group():
    order = np.random.default_rng(1).permutation(200)
    shuffled = {**GROUPS, "heldout": GROUPS["heldout"][order]}
    generated = np.concatenate([TRAIN[3], HELDOUT[0], OTHERS])
    found = compared(generated, groups=shuffled, heldout=flat(HELDOUT)[order])
    assert found.hits == compared(generated).hits
    assert found.threshold == compared(generated).threshold
    assert found.heldout_hits == compared(generated).heldout_hits
