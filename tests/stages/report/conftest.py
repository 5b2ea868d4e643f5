"""Reports that several tests look at, each made once, and a browser to look with."""

import shutil

import pytest
from tests.stages.report.pages import report
from tests.stages.report.planted import COSINE, L2, Outputs
from tests.stages.report.prompted import DETECT, Prompted

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--force-device-scale-factor=1"
)
NASTY = "<script>alert('$x^')</script> & 日本"


@pytest.fixture(scope="session")
def outputs(tmp_path_factory):
    return Outputs(tmp_path_factory.mktemp("outputs"), skipped=["bad.jpg", "worse.jpg"])


@pytest.fixture(scope="session")
def folder(outputs):
    return outputs.folder / "report"


@pytest.fixture(scope="session")
def made(outputs, folder):
    return report(folder, outputs)


@pytest.fixture(scope="session")
def page(made):
    return made[1]


@pytest.fixture(scope="session")
def unusual(tmp_path_factory):
    """A control smaller than the training set, no gallery, one rate, a hostile name."""
    folder = tmp_path_factory.mktemp("unusual")
    attacks = {"unconditional": ("none", 0.3, {}), NASTY: ("none", 0.1, {})}
    evaluate = {**L2, "gallery_pairs": 0, "false_positive_rates": [0.02]}
    made = Outputs(folder, attacks, evaluate, num_train=400, num_heldout=150, num_images=120)
    return made, *report(folder / "report", made)


@pytest.fixture(scope="session")
def similar(tmp_path_factory):
    """A single attack, with a hostile name, by similarity: larger is closer."""
    folder = tmp_path_factory.mktemp("similar")
    attacks = {NASTY: ("classifier", 0.2, {"t_min": 100, "t_max": 800})}
    made = Outputs(folder, attacks, COSINE, num_train=64, num_heldout=64, num_images=40)
    return made, *report(folder / "report", made)


@pytest.fixture(scope="session")
def blind(tmp_path_factory):
    """Attacks that nobody compared with the training images."""
    folder = tmp_path_factory.mktemp("blind")
    made = Outputs(folder, evaluate={**L2, "truth": "none"}, num_train=64, num_heldout=64)
    return made, *report(folder / "report", made)


@pytest.fixture(scope="session")
def prompted(tmp_path_factory):
    """Prompts alone, and everything that is asked of them."""
    made = Prompted(tmp_path_factory.mktemp("prompted"))
    return made, *report(made.folder / "report", made)


@pytest.fixture(scope="session")
def unknown(tmp_path_factory):
    """Prompts of files, of a model of which nobody knows what it was trained on."""
    folder = tmp_path_factory.mktemp("unknown")
    prompts = [NASTY, *(f"a bold backward {n} in room b at dusk" for n in ("two", "three", "six"))]
    prompts.append("a faint two and more than the encoder has ever heard of " * 2)
    (folder / "ours.txt").write_text("\n".join(prompts))
    (folder / "others.txt").write_text("\n".join(f"a faint two at {n} o'clock" for n in range(20)))
    files = {"prompts": f"{folder}/ours.txt", "calibration_prompts": f"{folder}/others.txt"}
    made = Prompted(folder, {**DETECT, **files}, methods=["none"], known=False)
    return made, *report(made.folder / "report", made)


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    missing = [name for name in (CHROMIUM, DRIVER) if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in [*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()
