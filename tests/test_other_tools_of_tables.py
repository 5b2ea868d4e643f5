"""Our measures of tables next to those of sdmetrics, syntheval and anonymeter, where installed.

docs/tables.md lists the agreement. None of the three is a dependency.
"""

import warnings

import numpy as np
import pandas as pd
import pytest

import sidepipe


def rows(seed, n, missing):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=n)
    frame = pd.DataFrame(
        {
            "cents": np.round(np.exp(latent + 0.3 * rng.normal(size=n)), 2),
            "age": np.round(40 + 12 * latent + 5 * rng.normal(size=n)),
            "color": np.where(latent > 0, "red", rng.choice(["green", "blue"], n)),
            "label": rng.choice(["yes", "no"], n),
        }
    )
    if missing:
        frame.loc[rng.random(n) < 0.1, "cents"] = np.nan
        frame["color"] = frame["color"].astype(object)
        frame.loc[rng.random(n) < 0.1, "color"] = None
    return frame


def tables(missing):
    train, heldout, generated = (rows(seed, 300, missing) for seed in (1, 2, 3))
    generated.iloc[:60] = train.iloc[:60].to_numpy()
    return generated.astype(train.dtypes.to_dict()), train, heldout


def compared(missing):
    generated, train, heldout = tables(missing)
    return sidepipe.compare(generated, train=train, heldout=heldout, false_positive_rate=0.05)


@pytest.fixture
def quiet():
    """Without warnings of their own, which are errors here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


COLUMNS = {
    "cents": {"sdtype": "numerical"},
    "age": {"sdtype": "numerical"},
    "color": {"sdtype": "categorical"},
    "label": {"sdtype": "categorical"},
}


def closer_to_training(train, generated, heldout, columns):
    """The share of sdmetrics, which counts a tie as closer to held-out rows."""
    from sdmetrics.single_table import DCROverfittingProtection

    found = DCROverfittingProtection.compute_breakdown(
        train, generated, heldout, {"columns": columns}, table_name=None
    )
    return found["synthetic_data_percentages"]["closer_to_training"]


@pytest.mark.parametrize("missing", [False, True])
def test_sdmetrics_finds_the_same_exact_copies(missing, quiet):
    pytest.importorskip("sdmetrics")
    from sdmetrics.single_table.privacy.dcr_utils import calculate_dcr

    generated, train, _ = tables(missing)
    distance = calculate_dcr(generated, train, {"columns": COLUMNS}).to_numpy(float)
    np.testing.assert_array_equal(distance < 1e-12, compared(missing).rows["exact"])


def test_sdmetrics_has_nearly_the_same_share_where_the_ranges_of_both_sets_agree(quiet):
    """It divides by the range of each set of its own: one outlier moves the share."""
    pytest.importorskip("sdmetrics")
    generated, train, heldout = tables(False)
    own = (compared(False).rows["closer_to_train"] == 1).mean()
    assert closer_to_training(train, generated, heldout, COLUMNS) > own + 0.1
    both = pd.concat([train, heldout])
    ends = pd.concat([both.nlargest(1, n) for n in ("cents", "age")])
    ends = pd.concat([ends, *(both.nsmallest(1, n) for n in ("cents", "age"))])
    equal = [pd.concat([some, ends], ignore_index=True) for some in (train, heldout)]
    assert closer_to_training(equal[0], generated, equal[1], COLUMNS) == pytest.approx(
        own, abs=0.05
    )


def test_of_categories_alone_sdmetrics_gives_the_same_share(quiet):
    pytest.importorskip("sdmetrics")
    frames = [frame[["color", "label"]].assign(size=frame["age"] // 10) for frame in tables(False)]
    generated, train, heldout = (frame.astype(str) for frame in frames)
    columns = {name: {"sdtype": "categorical"} for name in train.columns}
    kinds = dict.fromkeys(columns, "categorical")
    result = sidepipe.compare(
        generated, train=train, heldout=heldout, kinds=kinds, on_unseen="keep"
    )
    own = (result.rows["closer_to_train"] == 1).mean()
    assert closer_to_training(train, generated, heldout, columns) == pytest.approx(own)


def test_syntheval_has_nearly_the_same_mean_ratio(quiet):
    pytest.importorskip("syntheval")
    from syntheval.utils.nn_distance import _knn_distance

    generated, train, _ = tables(False)
    texts = ["color", "label"]
    both = pd.concat([train, generated], ignore_index=True)
    numbers = both.assign(**{name: pd.factorize(both[name])[0] for name in texts})
    one, other = numbers.iloc[:300], numbers.iloc[300:].reset_index(drop=True)
    nearest, second = _knn_distance(other, one, texts, 2, "gower")
    theirs = float(np.mean(np.asarray(nearest) / (np.asarray(second) + 1e-16)))
    # It adds ranges in place of the root of their squares.
    assert 1 - compared(False).scaled_ratio.area.share == pytest.approx(theirs, abs=0.05)


@pytest.mark.parametrize("missing", [False, True])
def test_anonymeter_finds_the_same_copies_where_no_number_is_missing(missing, quiet):
    pytest.importorskip("anonymeter.evaluators")  # first, for its modules import each other
    from anonymeter.neighbors.mixed_types_kneighbors import MixedTypeKNeighbors

    generated, train, _ = tables(missing)
    result = compared(missing)
    search = MixedTypeKNeighbors(n_neighbors=1).fit(train)
    distance, _ = search.kneighbors(generated, return_distance=True)
    found = np.asarray(distance)[:, 0] < 1e-12
    # A missing number has no distance from it, and a missing category is a category.
    own = result.rows["exact"].to_numpy() & generated["cents"].notna().to_numpy()
    assert own.sum() >= 50
    np.testing.assert_array_equal(found, own)
