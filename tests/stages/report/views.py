"""The page as a reader sees it now, through a browser's driver."""

import json
import re

from sidepipe.stages.report.stage import page_path


class View:
    """What stands on the page now."""

    def __init__(self, driver, folder, link=""):
        self.driver = driver
        # A page of the same address with another hash would not be loaded again.
        driver.get("about:blank")
        driver.get(page_path(folder).as_uri() + link)
        told = self.js("return document.getElementById('pair-data').textContent")
        self.told = json.loads(told)
        self.pairs = self.told["pairs"]

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def cards(self):
        """Buttons of the pairs on view, in their order."""
        found = self.driver.find_elements("css selector", "#pairs li:not([hidden]) > button")
        assert all(card.is_displayed() for card in found)
        return found

    def shown(self):
        """(attack, training image) of every pair on view."""
        words = [re.split(r"\n|training image |(?: · | held)", card.text) for card in self.cards()]
        return [(attack, train_id) for attack, _, _, train_id, *_ in words]

    def expected(self, key, keep=lambda pair: True):
        ordered = sorted(filter(keep, self.pairs), key=key)
        return [(self.told["attacks"][pair["attack"]], pair["train_id"]) for pair in ordered]

    def click(self, selector):
        self.one(selector).click()

    def press(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def status(self):
        return self.one("#shown").text

    def hash(self):
        return self.js("return location.hash")

    def wait(self, condition):
        self.driver.execute_async_script(
            "const done = arguments[0];"
            f"const wait = () => ({condition}) ? done() : setTimeout(wait);"
            "wait();"
        )

    def opened(self):
        """The title of the dialog, once its pictures are there."""
        self.wait("document.querySelector('#pair[open] canvas')")
        return self.one("#pair-title").text

    def closed(self):
        """Returns once the dialog is closed and the address says so: that comes a moment later."""
        self.wait("!document.getElementById('pair').open && !location.hash.includes('pair=')")
