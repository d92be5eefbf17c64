"""A headless Chromium, and pages for it on a server of this machine."""

import itertools
import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

ARGUMENTS = (
    "headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage",
)  # fmt: skip
THEME = "prefers-color-scheme"


def program(name):
    found = shutil.which(name)
    assert found, (
        f"{name}: wanted this program, found none. Install it: apt-get install chromium chromium-driver"
    )
    return found


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Browser:
    """Pages in a browser: what is on them, by CSS selectors and texts."""

    def __init__(self, driver, folder, address):
        self.driver, self.folder, self.address = driver, folder, address
        self.numbers = itertools.count()

    def show(self, html, *, theme="light", width=1000, before=""):
        """Opens HTML as a page of its own."""
        page = f"<!doctype html><meta charset=utf-8><title>t</title><body>{before}{html}</body>"
        name = f"{next(self.numbers)}.html"  # A page of its own, which no cache has.
        (self.folder / name).write_text(page, encoding="utf-8")
        self.driver.set_window_size(width, 900)
        media = {"features": [{"name": THEME, "value": theme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get(f"{self.address}/{name}")
        self.wait(lambda: name in self.driver.current_url)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        (found,) = self.all(selector)
        return found

    def texts(self, selector):
        return [element.text for element in self.all(selector)]

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, is_so):
        """Returns what a function returns once that is true."""
        return WebDriverWait(self.driver, 20, poll_frequency=0.02).until(lambda _: is_so())

    def line(self, name):
        """Returns the one line that is called so, of those that can be seen."""
        lines = [e for e in self.all("summary") if e.is_displayed()]
        (found,) = [e for e in lines if e.text.split("\n")[0].split(" ")[0] == name]
        return found

    def open(self, *names):
        """Opens one line after the other, and returns the text of what the last one hides."""
        for name in names:
            summary = self.line(name)
            details = summary.find_element(By.XPATH, "..")
            if details.get_attribute("open") is None:
                summary.click()
            self.wait(lambda: details.find_elements(By.XPATH, "./*[2]"))
        return details.text

    def errors(self):
        """Returns what the console was told since it was asked last, but for mere information."""
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] != "INFO"]

    def clipboard(self):
        return self.driver.execute_async_script(
            "const done = arguments[0]; navigator.clipboard.readText().then(done)"
        )


@contextmanager
def browser(folder):
    """A browser whose pages lie in a folder."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    for argument in ARGUMENTS:
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    (folder / "favicon.ico").touch()
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        driver = webdriver.Chrome(options=options, service=Service(program("chromedriver")))
        try:
            grant = {
                "origin": address,
                "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"],
            }
            driver.execute_cdp_cmd("Browser.grantPermissions", grant)
            yield Browser(driver, folder, address)
        finally:
            driver.quit()
            server.shutdown()
