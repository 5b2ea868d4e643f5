"""The page of a sweep in headless Chromium, on a desk and on a phone."""

import pytest

from sidepipe.stages.report.document import page_path

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("width", [390, 1200])
def test_everything_stands_there_and_nothing_scrolls_sideways(driver, written, width):
    folder, _ = written
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        driver.get(page_path(folder).as_uri())
        pictures = driver.find_elements("css selector", ".figures img")
        assert len(pictures) == 6
        for picture in pictures:
            assert int(picture.get_property("naturalWidth")) > 0
            assert width / 3 < picture.size["width"] <= width
        across = len({picture.location["x"] for picture in pictures})
        assert across == (2 if width == 1200 else 1)
        wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert driver.execute_script(wide)
        assert driver.find_element("css selector", ".missing").is_displayed()
        assert driver.get_log("browser") == []
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_long_list_unfolds(driver, written):
    folder, _ = written
    driver.get(page_path(folder).as_uri())
    details = driver.find_element("css selector", "details")
    inner = details.find_element("css selector", "li")
    assert inner.is_displayed()
    details.find_element("css selector", "summary").click()
    assert not inner.is_displayed()
