"""The report in a real browser: nothing is fetched, nothing goes wrong, and what is selected in one view is in all."""

import contextlib
import os
import re
import shutil

import pytest
from points import STUDY, points

from hwsim.report.study_page import render

NASTY = "</script><img src=x onerror=alert(1)>'\"&amp;\n\u2028]]><b>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DESKTOP = {"width": 1000, "height": 700}


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "CI needs a Chromium"
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pages: `plain` of 300 points, `hostile` with names that are markup, `large` of 5,000 points."""
    folder = tmp_path_factory.mktemp("pages")
    hostile = {
        **STUDY,
        "study": {**STUDY["study"], "title": NASTY},
        "command": NASTY,
        "versions": {NASTY: NASTY},
    }
    rows = {
        "plain": (STUDY, list(points(300))),
        "hostile": (hostile, [row | {"message": NASTY} for row in points(40, engines=(NASTY, "b"), failing=0.3)]),
        "large": (STUDY, list(points(5000))),
    }
    for name, (study, drawn) in rows.items():
        (folder / f"{name}.html").write_bytes(render(study, drawn))
    return folder


@contextlib.contextmanager
def shown(browser, path, fragment="", **options):
    """The page in a window that is offline; every error, dialog and request but its own fails the test."""
    context = browser.new_context(**{"viewport": DESKTOP, "offline": True, "reduced_motion": "reduce", **options})
    page = context.new_page()
    page.set_default_timeout(10_000)
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
    page.on(
        "request", lambda request: wrong.append(request.url) if request.url.split("#")[0] != path.as_uri() else None
    )
    page.goto(path.as_uri() + fragment)
    try:
        yield page
        assert not wrong
    finally:
        context.close()


def texts(page, selector):
    return page.eval_on_selector_all(selector, "all => all.map(one => one.innerText)")


def total(page):
    """Points that the table lists."""
    return int(re.match(r"([\d,]+) points", page.inner_text("#rows"))[1].replace(",", ""))


def column(page, title):
    """The shown numbers of a column of the table."""
    heads = texts(page, "#points thead th")
    index = next(i for i, head in enumerate(heads) if head.split("\n")[0] == title)
    cells = texts(page, f"#points tbody td:nth-child({index + 1})")
    return [float(cell.replace(",", "")) for cell in cells if cell]


def drag(page, box, start, end):
    """With the mouse, from one share of the box to another."""
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=3)
    page.mouse.up()
    page.wait_for_timeout(100)


def settle(page):
    """Everything is drawn within a frame or two."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def brush(page, start=(0.0, 0.0), end=(0.5, 0.4)):
    page.locator("#tradeoff svg.chart").scroll_into_view_if_needed()
    drag(page, page.locator("#tradeoff .surface").bounding_box(), start, end)
    settle(page)


def test_a_brush_filters_the_table_and_shows_in_every_view(browser, files):
    rows = list(points(300))
    with shown(browser, files / "plain.html") as page:
        assert total(page) == 300
        assert page.locator("#parallel").is_visible()
        brush(page)
        selected = total(page)
        assert 0 < selected < 300
        assert page.inner_text(".bar-top .count") == f"{selected} of 300 selected"
        assert page.locator("#parallel rect.brush").count() == 2
        assert page.locator("#tradeoff path.faded").count() > 0
        ranges = [part.split("+") for part in re.findall(r"in=([^&]+)", page.url)]
        inside = [
            row for row in rows if all(row[n] is not None and float(a) <= row[n] <= float(b) for n, a, b in ranges)
        ]
        assert len(inside) == selected
        page.click("text=Clear selection")
        settle(page)
        assert total(page) == 300


def test_a_view_is_in_its_address(browser, files):
    with shown(browser, files / "plain.html") as page:
        brush(page)
        page.select_option("#select-x", "cycles")
        page.fill("#filter", "hadamard")
        settle(page)
        before, address = (total(page), page.inner_text(".bar-top .count")), page.url
    with shown(browser, files / "plain.html", address[address.index("#") :]) as page:
        assert (total(page), page.inner_text(".bar-top .count")) == before
        assert page.input_value("#select-x") == "cycles"
        assert page.input_value("#filter") == "hadamard"


def test_an_axis_of_the_parallel_coordinates_selects(browser, files):
    with shown(browser, files / "plain.html") as page:
        axis = page.locator("#parallel g.axis .handle").nth(3)
        axis.scroll_into_view_if_needed()
        drag(page, axis.bounding_box(), (0.5, 0.02), (0.5, 0.3))
        settle(page)
        by_mouse = total(page)
        assert 0 < by_mouse < 300
        page.locator("#parallel g.axis").nth(3).focus()
        for key in ("+", "ArrowDown"):
            page.keyboard.press(key)
            settle(page)
        assert total(page) != by_mouse
        page.keyboard.press("Escape")
        settle(page)
        assert total(page) == 300


def test_the_legend_hides_and_shows_a_series(browser, files):
    expected = sum(row["unit"] == "cube" for row in points(300))
    with shown(browser, files / "plain.html") as page:
        button = page.locator("#tradeoff .legend button", has_text="cube")
        button.click()
        settle(page)
        assert total(page) == 300 - expected
        assert button.get_attribute("aria-pressed") == "false"
        button.click()
        settle(page)
        button.dblclick()
        settle(page)
        assert total(page) == expected


def test_the_table_sorts_and_turns_pages(browser, files):
    rows = sorted(row["area_um2"] for row in points(300) if row["area_um2"] is not None)
    with shown(browser, files / "plain.html") as page:
        head = page.locator("#points th", has_text=re.compile("^area\n?µm²$"))
        head.locator("button").click()
        settle(page)
        assert head.get_attribute("aria-sort") == "ascending"
        assert column(page, "area") == [float(f"{area:.0f}") for area in rows[:100]]
        head.locator("button").click()
        settle(page)
        assert column(page, "area")[0] == float(f"{rows[-1]:.0f}")
        page.click("#points .pager button:has-text('Next')")
        settle(page)
        assert column(page, "area")[0] == float(f"{rows[-101]:.0f}")


@pytest.mark.parametrize(
    "text, holds",
    [
        ("cube hadamard", lambda row: row["unit"] == "cube" and row["transform"] == "hadamard"),
        ("accuracy>0.9 area_um2<2e5", lambda row: (row["accuracy"] or 0) > 0.9 and row["area_um2"] < 2e5),
        ("rows>=16 dataflow=ws", lambda row: row["params"]["rows"] >= 16 and row["params"]["dataflow"] == "WS"),
        ("status!=done", lambda row: row["status"] != "done"),
        ('"not finished after"', lambda row: row["status"] == "timeout"),
    ],
)
def test_the_filter(browser, files, text, holds):
    with shown(browser, files / "plain.html") as page:
        page.fill("#filter", text)
        settle(page)
        assert total(page) == sum(holds(row) for row in points(300))
        assert page.inner_text("#problem") == ""


def test_the_filter_says_what_it_does_not_understand(browser, files):
    with shown(browser, files / "plain.html") as page:
        for text, answer in (("areaa<3", "no column areaa; columns are: accuracy"), ("cycles<much", "is a number")):
            page.fill("#filter", text)
            settle(page)
            assert answer in page.inner_text("#problem")
            assert page.get_attribute("#filter", "aria-invalid") == "true"


def test_everything_by_keyboard(browser, files):
    with shown(browser, files / "plain.html") as page:
        page.locator("#tradeoff svg.chart").focus()
        page.keyboard.press("ArrowRight")
        settle(page)
        first = page.inner_text(".tip")
        page.keyboard.press("ArrowRight")
        settle(page)
        assert page.inner_text(".tip") != first
        page.keyboard.press("Space")
        settle(page)
        assert total(page) == 1
        page.keyboard.press("Escape")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("Shift+ArrowRight")
        settle(page)
        assert total(page) >= 2
        page.keyboard.press("Enter")
        settle(page)
        assert page.locator("#point-name").is_visible()
        assert page.evaluate("document.activeElement.id") == "point"
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("#points")
        assert page.locator("#study").is_visible()


def test_the_page_of_a_point(browser, files):
    row = next(r for r in points(300) if r["unit"] == "systolic" and r["status"] == "done")
    with shown(browser, files / "plain.html", f"#point={row['key'][:12]}") as page:
        assert page.inner_text("#point-name") == row["engine"]
        assert page.locator("#study").is_hidden()
        text = page.inner_text("#point")
        assert f"{row['cycles']:,}" in text
        assert f"{row['accuracy']:.4f}" in text
        lanes = row["params"]["rows"] * row["params"]["cols"]
        for words in (
            f"pe \u00d7 {lanes:,}",
            "Energy by kind of operation",
            "Schedule of the array",
            "What papers report",
        ):
            assert words in text
        assert re.search(r"Cycle \d+ of \d+: [1-9]\d* of " + f"{lanes} PEs work", page.inner_text("#cycle"))
        page.locator("#point input[type=range]").focus()
        page.keyboard.press("Home")
        settle(page)
        assert page.inner_text("#cycle").startswith("Cycle 0 of")
        page.click("#back")
        settle(page)
        assert page.locator("#point").is_hidden()
        page.go_back()
        settle(page)
        assert page.inner_text("#point-name") == row["engine"]


def test_a_failed_point_says_why(browser, files):
    row = next(r for r in points(300) if r["status"] == "error")
    with shown(browser, files / "plain.html", f"#point={row['key'][:16]}") as page:
        text = page.inner_text("#point")
        assert row["message"] in text
        assert "Traceback: <b>" in text
    with shown(browser, files / "plain.html", "#point=0000nothing") as page:
        assert "No such point" in page.inner_text("#point")


def test_names_are_text_everywhere(browser, files):
    with shown(browser, files / "hostile.html") as page:
        assert page.inner_text("h1").startswith("</script><img src=x onerror=alert(1)>")
        page.locator("#tradeoff svg.chart").focus()
        for _ in range(12):
            page.keyboard.press("ArrowRight")
        settle(page)
        page.fill("#filter", "onerror")
        page.select_option("#select-by", "engine")
        settle(page)
        assert any("<img src=x onerror=alert(1)>" in text for text in texts(page, "#points td.name"))
        page.locator("#points tbody a").first.click()
        settle(page)
        assert "<img src=x" in page.inner_text("#point-name")
        assert page.locator("img, b b, #point h1 b").count() == 0


def test_a_hostile_address_is_data(browser, files):
    fragment = (
        "#x=%3Cimg%3E&by=nothing&in=cycles+a+b&in=%3Cimg&hide=%3Cscript%3E&q=%3Cimg+src=x%3E&pick=zz+&sort=-no&axes=q"
    )
    with shown(browser, files / "plain.html", fragment) as page:
        assert page.locator("img").count() == 0
        assert page.inner_text("#problem").startswith("no column src")
        page.fill("#filter", "<img")
        settle(page)
        assert total(page) == 0
        page.fill("#filter", "")
        settle(page)
        assert total(page) == 300


def test_dark_and_light(browser, files):
    def ground(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    with shown(browser, files / "plain.html", color_scheme="dark") as page:
        dark = ground(page)
        page.click("#theme")
        settle(page)
        light = ground(page)
        assert dark != light
        page.click("#theme")
        settle(page)
        assert ground(page) == dark
    with shown(browser, files / "plain.html", color_scheme="light") as page:
        assert ground(page) == light


def test_a_phone(browser, files):
    row = next(r for r in points(300) if r["status"] == "done")
    phone = {"viewport": {"width": 380, "height": 800}, "has_touch": True, "is_mobile": True}
    for fragment in ("", f"#point={row['key'][:16]}"):
        with shown(browser, files / "plain.html", fragment, **phone) as page:
            settle(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= 380
    with shown(browser, files / "plain.html", **phone) as page:
        page.locator("#tradeoff .surface").scroll_into_view_if_needed()
        box = page.locator("#tradeoff .surface").bounding_box()
        for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
            page.touchscreen.tap(box["x"] + share * box["width"], box["y"] + 0.2 * box["height"])
            settle(page)
            if page.locator(".tip.pinned").is_visible():
                break
        page.click(".tip.pinned button:has-text('Open')")
        settle(page)
        assert page.locator("#point-name").is_visible()


def test_without_javascript(browser, files):
    with shown(browser, files / "plain.html", java_script_enabled=False) as page:
        chart = page.locator("#tradeoff svg.chart")
        assert chart.is_visible()
        assert "area at equal throughput [µm² per GMAC/s]" in chart.text_content()
        assert page.locator("#front tbody tr").count() > 3
        assert page.locator("#points tbody tr").count() == 200
        assert not texts(page, ".controls button")


def test_five_thousand_points(browser, files):
    path = files / "large.html"
    assert path.stat().st_size < 3_000_000
    with shown(browser, path) as page:
        assert total(page) == 5000
        page.locator("#points th button", has_text="cycles").first.click()
        settle(page)
        values = column(page, "cycles")
        assert values == sorted(values)
        assert page.locator("#points tbody tr").count() == 100
        brush(page)
        assert 0 < total(page) < 5000
