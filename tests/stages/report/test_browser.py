"""The page in headless Chromium: what a reader sees after clicks, keys and links."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from tests.stages.report.conftest import NASTY
from tests.stages.report.planted import ATTACKS
from tests.stages.report.views import View

from sidepipe.stages.report.stage import page_path

pytestmark = pytest.mark.browser


@pytest.fixture
def view(driver, made, folder):
    seen = View(driver, folder)
    yield seen
    assert driver.get_log("browser") == []


def closest(pair):
    """One pair of each attack comes before the second of any."""
    return pair["rank"], pair["train_gamma"]


def test_all_pairs_are_shown_at_first_the_closest_of_each_attack_first(view):
    assert view.shown() == view.expected(closest)
    assert len(view.pairs) == 6 * len(ATTACKS)
    images = len({pair["train_id"] for pair in view.pairs})
    assert view.status() == f"18 of 18 pairs shown, of {images} different training images."
    assert view.one("#shown").get_attribute("role") == "status"


def test_an_attack_is_filtered_out_and_in(view):
    view.click("input[value=early]")
    view.click("input[value=unconditional]")
    assert view.shown() == view.expected(closest, lambda pair: pair["attack"] == 1)
    assert view.status().startswith("6 of 18 pairs")
    view.click("input[value=side]")
    assert view.cards() == []
    assert view.hash() == "#view:attack="
    view.click("button[type=reset]")
    view.wait("location.hash === '#gallery'")
    assert len(view.cards()) == 18


def test_only_new_hits_are_those_that_no_plain_sample_hit(view):
    view.click("input[name=new]")
    new = view.expected(closest, lambda pair: pair["new"])
    assert 0 < len(new) < sum(pair["hit"] for pair in view.pairs)
    assert view.shown() == new


def test_the_slider_leaves_the_pairs_that_are_close_enough(view):
    from selenium.webdriver import Keys

    view.one("input[type=range]").send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 4)
    at = float(view.one("#within-value").text)
    some = view.expected(closest, lambda pair: pair["train_gamma"] <= at)
    assert 0 < len(some) < len(view.pairs)
    assert view.shown() == some
    assert f"within={at}" in view.hash()


@pytest.mark.parametrize(
    ("order", "key"),
    [
        ("training", lambda pair: (pair["train_id"], pair["train_gamma"])),
        ("attack", lambda pair: (pair["attack"], pair["train_gamma"])),
        ("unlike", lambda pair: pair["train_gamma"] - pair["heldout_gamma"]),
    ],
)
def test_pairs_are_sorted(view, order, key):
    view.click(f"option[value={order}]")
    assert view.shown() == view.expected(key) != view.expected(closest)
    assert view.hash() == f"#view:sort={order}"


def canvas(view):
    """The difference image's pixels, gray."""
    uri = view.js("return document.querySelector('#pair canvas').toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("L")).astype(int)


def test_a_click_opens_the_pair_with_its_difference_image(view, outputs):
    view.click("option[value=attack]")
    view.cards()[6].click()
    pair = sorted(view.pairs, key=lambda pair: pair["attack"])[6]
    assert view.opened() == f"side: generated image {pair['index']}"
    generated, training, _ = np.load(outputs.inputs["side"] / "gallery.npy")[0, ..., 0].astype(int)
    # Small images stand on the page enlarged by a whole factor.
    pixels = canvas(view)
    factor = len(pixels) // 8
    assert np.array_equal(pixels, np.kron(abs(generated - training), np.ones((factor, factor))))
    said = view.one("#pair-shots").text
    assert f"training image {pair['train_id']}" in said
    assert f"mean {abs(generated - training).mean():.1f}" in said
    assert view.one("#pair-said").text.endswith("pair 7 of 18")
    assert len(view.driver.find_elements("css selector", "#pair img[alt]")) == 3


@pytest.mark.parametrize("key", ["ENTER", "SPACE"])
def test_a_key_opens_the_pair_escape_closes_it_and_focus_returns(view, key):
    from selenium.webdriver import Keys

    card = view.cards()[2]
    card.send_keys(getattr(Keys, key))
    view.opened()
    assert "pair=" in view.hash()
    view.press(Keys.ESCAPE)
    view.closed()
    assert view.driver.switch_to.active_element == card
    assert view.hash() == "#gallery"


def test_arrow_keys_and_buttons_go_through_the_pairs_on_view(view):
    from selenium.webdriver import Keys

    view.click("input[value=early]")
    titles = []
    view.cards()[0].click()
    assert not view.one("#previous").is_enabled()
    for _ in range(3):
        titles.append(view.opened())
        view.press(Keys.ARROW_RIGHT)
    last = view.opened()
    view.press(Keys.ARROW_LEFT)
    assert view.opened() == titles[-1] != last
    view.click("#next")
    assert view.opened() == last
    assert len({*titles, last}) == 4
    assert not any(title.startswith("early") for title in titles)
    view.click("#close")
    view.closed()
    assert view.driver.switch_to.active_element == view.cards()[3]


def test_a_link_reproduces_the_view(view, driver, folder):
    view.click("input[value=early]")
    view.click("input[name=hits]")
    view.click("option[value=unlike]")
    view.cards()[3].click()
    title, link, shown = view.opened(), view.hash(), view.shown()
    again = View(driver, folder, link)
    assert again.opened() == title
    assert again.shown() == shown
    assert again.one("input[name=hits]").is_selected()
    assert not again.one("input[name=new]").is_selected()
    assert again.one("select").get_attribute("value") == "unlike"
    assert again.hash() == link


def test_the_headlines_link_shows_an_attack_alone(view):
    view.click("a[href='#gallery-2']")
    # The page hears of its new address a moment after the click.
    view.wait("document.getElementById('shown').textContent.startsWith('6 of 18 pairs')")
    assert [attack for attack, _ in view.shown()] == ["side"] * 6


def test_an_unknown_link_shows_everything(driver, made, folder):
    seen = View(driver, folder, "#view:sort=toString&pair=99&within=x&attack=side&attack=none")
    assert [attack for attack, _ in seen.shown()] == ["side"] * 6
    assert driver.get_log("browser") == []


def test_without_scripts_the_pairs_stand_there_and_no_control_pretends_to_work(driver, folder):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.get("about:blank")
        driver.get(page_path(folder).as_uri())
        cards = driver.find_elements("css selector", "#pairs li > button")
        assert [card.is_displayed() for card in cards] == [True] * 18
        assert not any(card.is_enabled() for card in cards)
        assert not driver.find_element("css selector", "#filters").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_by_similarity_larger_is_closer_and_a_hostile_name_is_only_a_name(driver, similar):
    from selenium.webdriver import Keys

    made, _, _ = similar
    seen = View(driver, made.folder / "report")
    assert seen.shown() == seen.expected(lambda pair: -pair["train_gamma"])
    seen.one("input[type=range]").send_keys(Keys.END, Keys.ARROW_LEFT)
    at = float(seen.one("#within-value").text)
    some = seen.expected(lambda p: -p["train_gamma"], lambda p: p["train_gamma"] >= at)
    assert seen.shown() == some
    assert 0 < len(some) < len(seen.pairs)
    seen.cards()[0].click()
    assert seen.opened().startswith(NASTY)
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_never_scrolls_sideways(view, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    view.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert view.js(wide)
        view.cards()[0].click()
        view.opened()
        assert view.js(
            "const d = document.getElementById('pair'); return d.scrollWidth <= innerWidth"
        )
        view.click("#close")
        view.js("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert view.js(wide)
    finally:
        view.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_page_without_truth_shows_and_says_nothing_wrong(driver, blind):
    made, _, _ = blind
    driver.get(page_path(made.folder / "report").as_uri())
    assert driver.find_element("css selector", ".bets").is_displayed()
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("width", [400, 1280])
def test_a_page_on_prompts_colors_words_and_never_scrolls_sideways(driver, prompted, width):
    driver.get(page_path(prompted[0].folder / "report").as_uri())
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    js = driver.execute_script
    try:
        js("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert js(wide)
        js("document.querySelector('.token').style.setProperty('--share', 1)")
        colors = js(
            "return [...document.querySelectorAll('.token')].slice(0, 2)"
            ".map((word) => getComputedStyle(word).backgroundColor)"
        )
        assert colors[0] != colors[1]
        assert driver.find_element("css selector", ".token rt").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert driver.get_log("browser") == []


def test_the_answer_and_three_pairs_stand_on_the_first_screen(view):
    laptop = {"width": 1280, "height": 720, "deviceScaleFactor": 1, "mobile": False}
    view.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", laptop)
    try:
        end = "return document.querySelector('.answer').getBoundingClientRect().bottom + scrollY"
        assert view.js(end) < 720
    finally:
        view.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    pictures = view.driver.find_elements("css selector", ".answer img")
    assert len(pictures) == 9
    assert all(picture.is_displayed() for picture in pictures)


def test_a_bar_of_zero_has_an_edge(view):
    view.js("document.querySelector('.bar.heldout i').style.width = '0%'")
    assert view.js("return document.querySelector('.bar.heldout i').offsetWidth") > 0


def test_on_paper_the_page_takes_fewer_than_ten_pages(view):
    printed = view.driver.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27})["data"]
    assert 1 < base64.b64decode(printed).count(b"/Type /Page\n") < 10


def test_figures_are_dark_where_the_reader_asks_for_it(view):
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    shown = "return getComputedStyle(document.querySelector('img.drawn')).filter"
    assert view.js(shown) == "none"
    view.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        assert "invert" in view.js(shown)
    finally:
        view.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
