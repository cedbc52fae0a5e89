"""The page as Chromium shows it: no complaint, no request, a name for everything, light, dark, narrow and on paper."""

from __future__ import annotations

import base64
import io
import json
from importlib import resources

import pytest
from PIL import Image

from ostate.report.page import html
from tests.report.browser import CHROMIUM, page
from tests.report.test_page import one_page, subject

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    place = tmp_path_factory.mktemp("browser")
    file = place / "report.html"
    file.write_text(one_page(), encoding="utf-8")
    with page(place / "profile") as opened:
        opened.open(file)
        yield opened


def shot(tab):
    return Image.open(io.BytesIO(base64.b64decode(tab.ask("Page.captureScreenshot", format="png")["data"]))).convert("RGB")


def test_the_console_stays_silent_and_nothing_is_fetched(tab):
    assert tab.complaints() == []
    assert [address for address in tab.requests() if not address.startswith(("file:", "data:"))] == []


def test_everything_that_takes_a_role_has_a_name(tab):
    seen = {}
    for node in tab.tree():
        role, name = node["role"]["value"], node.get("name", {}).get("value", "")
        seen.setdefault(role, []).append(name)
    for role in ("image", "heading", "article", "region", "group", "link", "columnheader", "rowheader"):
        assert all(name.strip() for name in seen.get(role, [])), role
    assert len(seen["image"]) >= 7
    assert any("Update size" in name for name in seen["image"])


def test_dark_is_dark_and_light_is_light(tab):
    tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = shot(tab)
    tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    light = shot(tab)
    assert max(dark.getpixel((2, 2))) < 60
    assert min(light.getpixel((2, 2))) > 240
    assert len(light.getcolors(1 << 24)) > 50


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_the_page_never_scrolls_sideways(tab, width):
    tab.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    assert tab.run("document.documentElement.scrollWidth") <= width
    tab.ask("Emulation.clearDeviceMetricsOverride")


def test_it_prints_as_a_document(tab):
    printed = base64.b64decode(tab.ask("Page.printToPDF", printBackground=False)["data"])
    assert printed.startswith(b"%PDF")
    assert 2 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") <= 20


def test_a_script_that_got_in_would_not_run(tab):
    tab.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hurt=1\">')")
    tab.run("(() => { const s = document.createElement('script'); s.textContent = 'window.hurt = 1'; document.body.append(s); })()")
    assert tab.run("window.hurt") is None


@pytest.mark.parametrize("width", [390, 1400])
def test_pictures_fit_the_page_and_use_its_width(tab, width):
    tab.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    widest = tab.run("Math.max(...[...document.querySelectorAll('svg')].map(one => one.getBoundingClientRect().right))")
    columns = tab.run("getComputedStyle(document.querySelector('.figures:not(.small)')).gridTemplateColumns.split(' ').length")
    small = tab.run("getComputedStyle(document.querySelector('.figures.small')).gridTemplateColumns.split(' ').length")
    stacked = tab.run("getComputedStyle(document.querySelector('dl div')).display")
    tab.ask("Emulation.clearDeviceMetricsOverride")
    assert widest <= width
    assert (columns, small, stacked) == ((1, 1, "block") if width == 390 else (3, 4, "flex"))


ONE, SEVERAL = ("long_opt_step60",), ("long_opt_step2", "long_opt_step60")


@pytest.mark.parametrize(
    ("states", "width", "scheme"),
    [
        (ONE, 390, "light"),
        (ONE, 1400, "dark"),
        (SEVERAL, 390, "dark"),
        (SEVERAL, 1400, "light"),
        *(
            pytest.param(*rest, marks=pytest.mark.long)
            for rest in ((ONE, 390, "dark"), (ONE, 1400, "light"), (SEVERAL, 390, "light"), (SEVERAL, 1400, "dark"))
        ),
    ],
)
def test_axe_finds_nothing_to_complain_of(tmp_path, states, width, scheme):
    (tmp_path / "report.html").write_text(html([subject(name) for name in states]), encoding="utf-8")
    with page(tmp_path / "profile") as opened:
        opened.ask("Page.setBypassCSP", enabled=True)  # the page itself lets no script run
        opened.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        opened.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        opened.open(tmp_path / "report.html")
        opened.run("document.querySelectorAll('details').forEach(one => one.open = true)")
        opened.run((resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8"))
        rows = "{passes: found.passes.length, violations: found.violations.map(one => [one.id, one.help])}"
        ask = f"axe.run(document).then(found => JSON.stringify({rows}))"
        found = json.loads(opened.ask("Runtime.evaluate", expression=ask, returnByValue=True, awaitPromise=True)["result"]["value"])
    assert found["violations"] == []
    assert found["passes"] > 30
