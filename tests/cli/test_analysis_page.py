"""The page of an analysis in headless Chromium, cut off from the network: six views, linked, by keyboard alone, whatever the names."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "compress"))

from analysis_kit import synthetic_record

from trimtab.analysis_page import render_analysis

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VIEWS = ("accuracy", "local", "survival", "redundancy", "classes", "samples")
SELECTS = ("model", "other", "board", "severity", "cls", "sample")
LARGEST = 8_000_000
ODD = (
    "</script><script>window.hacked=1</script>",
    "<b>fett</b> & <img src=x onerror=hacked=1>",
    "Größenänderung über alle Maße hinaus: 40 Zn",
    "%{x} $x$ &lt;",
)


@dataclass
class Shown:
    """An open page, what its console said, and what it asked for beside itself."""

    page: Any
    said: list[str]
    asked: list[str]

    def text(self, name: str) -> str:
        return self.page.text_content(f"#{name}")

    def readings(self) -> dict[str, str]:
        return {view: self.text(f"{view}-reading") for view in VIEWS}

    def value(self, select: str) -> int:
        return int(self.page.input_value(f"#{select}"))

    def fine(self) -> None:
        assert self.said == []
        assert self.asked == []


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH, so the page can't be looked at")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens a record's page: show(record, width=…, at="#…")."""
    contexts = []

    def opened(record, *, width=1280, at="", scheme="light"):
        path = tmp_path / f"{len(contexts)}.html"
        path.write_text(record if isinstance(record, str) else render_analysis(record), encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, offline=True, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        shown = Shown(page, [], [])
        page.on("console", lambda message: shown.said.append(message.text))
        page.on("pageerror", lambda error: shown.said.append(str(error)))
        page.on("request", lambda ask: None if ask.url.startswith((path.as_uri(), "data:")) else shown.asked.append(ask.url))
        page.goto(path.as_uri() + at)
        page.wait_for_selector("html[data-ready]", timeout=120_000)
        if width < 700:  # the controls stand folded up on a narrow screen
            page.click("#controls summary")
        return shown

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def record():
    return synthetic_record(models=3, corruptions=4, samples=300, classes=4)


@pytest.fixture(scope="module")
def html(record):
    return render_analysis(record)


def renamed(record, *, classes=(), models=()):
    """The record with other names of classes and models, everywhere they stand."""
    info = record.info
    new = {
        **dict(zip(info["classes"], classes, strict=False)),
        **dict(zip([m["name"] for m in info["models"]], models, strict=False)),
    }
    info["classes"] = [new.get(name, name) for name in info["classes"]]
    for row in info["models"]:
        row["name"] = new.get(row["name"], row["name"])
    for row in (*info["survival"], *info["worst_classes"], *info["worst_samples"]):
        for key in ("model", "name", "against"):
            if key in row:
                row[key] = new.get(row[key], row[key])
    return record


def test_six_views_are_drawn_without_network_or_complaint(show, html):
    shown = show(html)
    for view in VIEWS:
        assert len(shown.text(f"{view}-reading")) > 30
        assert shown.page.is_visible(f"#{view} h2")
    cells = {
        view: shown.page.evaluate(f"document.getElementById('{view}-plot').data[0].z.flat().length")
        for view in ("accuracy", "redundancy", "classes")
    }
    assert cells == {"accuracy": 3 * 5, "redundancy": 16, "classes": 12}
    for view in ("accuracy", "redundancy", "classes"):
        assert shown.page.locator(f"#{view}-plot .heatmaplayer image").count() == 1
    assert shown.page.locator("#local-plot .scatterlayer .point").count() == 300
    assert shown.page.locator("#survival-plot .scatterlayer .trace").count() == 2
    pictures = shown.page.evaluate("[...document.querySelectorAll('#samples-list img')].map(image => image.naturalWidth)")
    assert pictures == [28] * 24
    assert "Part of any likeness is the clean margin that all shifts share" in shown.text("redundancy")
    shown.fine()


def test_the_sentences_are_those_of_the_data(show, record, html):
    shown, info = show(html), record.info
    accuracy = np.array(info["accuracy"]).mean(2)
    falls = accuracy[0] - accuracy[1:]
    model, kind = np.unravel_index(falls.argmax(), falls.shape)
    names, kinds = [row["name"] for row in info["models"]], [row["name"] for row in info["corruptions"]]
    assert shown.text("accuracy-reading").startswith(
        f"{kinds[kind]} costs {names[model + 1]} the most: −{100 * falls.max():.1f} points"
    )
    chosen, board = shown.value("model"), shown.value("board")
    assert (chosen, board) == (2, 1 + accuracy[2].argmin())
    right = record.arrays["predicted"][chosen, board - 1] == record.arrays["targets"]
    angle = np.median(record.arrays["angle"][chosen, board - 1].astype(float))
    said = re.search(r"lie at (\d+\.\d)°.*; (\d+\.\d) % are wrong", shown.text("local-reading"))
    assert float(said[1]) == pytest.approx(angle, abs=0.16)  # a step of 10 bits over some 100°, and the text's rounding
    assert float(said[2]) == pytest.approx(100 * (1 - right.mean()), abs=0.051)
    row = next(row for row in info["survival"] if row["model"] == names[chosen] and row["corruption"] == kinds[board - 1])
    assert shown.text("auc-margin") == f"{row['auc_margin']:.3f}"
    assert f"AUC {row['auc_margin']:.3f} against {row['auc_confidence']:.3f}" in shown.text("survival-reading")
    change = (
        np.array(info["class_accuracy"]["corrupted"])[1:, board - 1]
        - np.array(info["class_accuracy"]["corrupted"])[0, board - 1]
    )
    worst = info["classes"][np.unravel_index(change.argmin(), change.shape)[1]]
    assert shown.text("classes-reading").startswith(f"{worst} loses the most")
    matrix = np.array(info["redundancy"]["by_model"])[chosen]
    assert f"r = {np.sort(matrix[np.triu_indices(4, 1)])[-1]:.2f}" in shown.text("redundancy-reading")
    first = info["worst_samples"][0]
    pictured = [fall for fall in info["worst_samples"] if fall["index"] in record.arrays["image_index"]]
    assert f"sample {(pictured or [first])[0]['index']} " in shown.text("samples-reading")


def test_choosing_by_keyboard_changes_the_other_views(show, html):
    shown = show(html)
    press = shown.page.keyboard.press

    def changed(act):
        before = shown.readings()
        act()
        shown.page.wait_for_timeout(50)
        after = shown.readings()
        return {view for view in VIEWS if after[view] != before[view]}

    shown.page.focus("#accuracy-plot")
    board = shown.value("board")
    assert {"local", "survival", "classes"} <= changed(lambda: press("ArrowUp" if board else "ArrowDown"))
    assert abs(shown.value("board") - board) == 1
    assert {"local", "survival", "redundancy"} <= changed(lambda: press("ArrowLeft"))
    assert shown.value("model") == 1
    shown.page.focus("#redundancy-plot")
    board = shown.value("board")
    for key in ("ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft"):
        press(key)
    press("ArrowRight" if board < 4 else "ArrowLeft")
    assert abs(shown.value("board") - board) <= 1
    shown.page.focus("#classes-plot")
    assert "local" in changed(lambda: press("ArrowDown"))
    assert shown.value("cls") == 0
    assert shown.page.get_attribute("#local-key [data-cls='0']", "aria-pressed") == "true"
    shown.page.focus("#samples-list button[tabindex='0']")
    press("ArrowRight")
    press("Enter")
    sample = shown.value("sample")
    assert sample >= 0
    assert shown.page.is_visible("#sample-detail")
    assert shown.page.evaluate("document.getElementById('local-plot').data.at(-1).marker.symbol") == "circle-open"
    shown.page.focus("#local-plot")
    press("ArrowRight")
    assert shown.value("sample") not in (-1, sample)
    shown.page.focus("#change")
    assert "local" in changed(lambda: press("Enter"))
    assert "angles change by" in shown.text("local-reading")
    shown.page.focus("#severity")
    assert "accuracy" in changed(lambda: press("ArrowDown"))
    shown.fine()


def test_the_tab_key_reaches_everything_and_shows_where_it_is(show, html):
    shown = show(html)
    seen, outlined = [], True
    for _ in range(60):
        shown.page.keyboard.press("Tab")
        name, outline = shown.page.evaluate(
            "[document.activeElement.id || document.activeElement.parentElement.id, getComputedStyle(document.activeElement).outlineStyle]"
        )
        if name in seen and name == "model":
            break
        seen.append(name)
        outlined &= outline != "none" or not name
    wanted = {
        *SELECTS,
        "reset",
        "change",
        "accuracy-plot",
        "local-plot",
        "redundancy-plot",
        "classes-plot",
        "local-key",
        "samples-list",
    }
    assert wanted <= set(seen)
    assert outlined


def test_a_click_on_a_cell_chooses_it(show, html):
    shown = show(html)
    box = shown.page.locator("#accuracy-plot .nsewdrag").bounding_box()
    shown.page.mouse.click(box["x"] + box["width"] / 6, box["y"] + box["height"] / 10)  # the first of 3 columns, of 5 rows
    shown.page.wait_for_function("document.getElementById('board').value === '0'")
    assert shown.value("model") == 0
    shown.page.click("#classes-worst button >> nth=0")
    assert shown.value("cls") >= 0
    shown.fine()


def test_the_address_keeps_what_is_chosen(show, html):
    shown = show(html)
    shown.page.select_option("#model", "1")
    shown.page.select_option("#board", "3")
    shown.page.select_option("#cls", "2")
    address = shown.page.evaluate("location.hash")
    again = show(html, at=address)
    assert [again.value(name) for name in ("model", "board", "cls")] == [1, 3, 2]
    assert again.readings() == shown.readings()
    wrong = show(html, at="#m=99&b=-4&c=x&s=7&i=1e9")
    assert wrong.readings() == show(html).readings()
    wrong.fine()


def test_names_are_text_and_never_markup(show):
    record = renamed(synthetic_record(models=4, samples=120, classes=4), classes=ODD, models=ODD)
    shown = show(record, width=400)
    for name in ("0", "1", "2", "3"):
        shown.page.select_option("#cls", name)
        shown.page.select_option("#model", name)
    shown.page.click("#samples-list button >> nth=0")
    assert shown.page.evaluate("window.hacked") is None
    assert shown.page.evaluate("document.querySelectorAll('main b:not(#chosen), main img[src=x]').length") == 0
    assert [shown.page.text_content(f"#cls option[value='{k}']") for k in range(4)] == list(ODD)
    ticks = shown.page.locator("#classes-plot .ytick").all_text_contents()
    assert any(tick.startswith("</scr") for tick in ticks)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 400
    shown.fine()


def test_no_other_script_may_run(show, html):
    shown = show(html)
    shown.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.head.append(s); }"
    )
    assert shown.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in line for line in shown.said)


@pytest.mark.parametrize(("models", "classes", "corruptions"), [(1, 2, 1), (8, 100, 10), (2, 2, 3)])
def test_few_and_many(show, models, classes, corruptions):
    record = synthetic_record(models=models, classes=classes, corruptions=corruptions, samples=400)
    for width in (1280, 400):
        shown = show(record, width=width)
        readings = shown.readings()
        assert all(len(text) > 20 for text in readings.values())
        if models == 1:
            assert "nothing to compare" in readings["accuracy"]
            assert "nothing to compare" in readings["redundancy"]
            assert shown.page.is_disabled("#change")
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
        left = shown.page.evaluate(
            "[...document.querySelectorAll('.views > section')].map(view => view.getBoundingClientRect().left)"
        )
        assert len(set(left)) == (1 if width == 400 else 2)  # views stand one below the other on a narrow screen
        shown.page.select_option("#board", "0")
        shown.page.select_option("#cls", str(classes - 1))
        shown.fine()


def test_what_is_not_defined_is_said(show):
    record = synthetic_record(models=2, samples=100)
    for row in record.info["survival"]:
        for key in ("auc_margin", "auc_confidence", "auc_norm", "auc_angle", "difference", "low", "high"):
            row[key] = None
        row["reason"] = "all samples survive, so there is nothing to tell apart"
    record.info["redundancy"]["by_model"] = [[[None] * 4] * 4] * 2
    record.info["class_accuracy"]["clean"] = [[None, 0.5, 0.5, 0.5]] * 2
    record.info["class_accuracy"]["corrupted"] = [[[None, 0.5, 0.4, 0.5]] * 4] * 2
    record.info["worst_samples"], record.info["worst_classes"] = [], []
    shown = show(record)
    assert "all samples survive" in shown.text("survival-reading")
    assert shown.text("auc-margin") == "–"
    assert "No correlation is defined" in shown.text("redundancy-reading")
    assert "No class lost accuracy" in shown.text("classes")
    for board in ("0", "1"):
        shown.page.select_option("#board", board)
        shown.page.select_option("#cls", "0")
    shown.fine()


def test_the_largest_page_is_below_8_mb_and_opens(show):
    record = synthetic_record(models=6, corruptions=9, samples=10_000, classes=10, severities=(1, 2, 3, 4, 5), images=256)
    page = render_analysis(record)
    assert len(page.encode()) <= LARGEST
    shown = show(page)
    shown.page.select_option("#board", "2")
    assert "a mean over corruptions" in shown.text("samples-reading")
    assert "of 10,000 samples are drawn" in shown.text("local-note")
    assert "The page holds" not in shown.text("local-note")  # all of them are in the file
    shown.fine()


def test_light_and_dark(show, html):
    shades = {}
    for scheme in ("light", "dark"):
        shown = show(html, scheme=scheme)
        shades[scheme] = shown.page.evaluate(
            "getComputedStyle(document.body).backgroundColor + document.getElementById('local-plot').layout.font.color"
        )
    assert shades["light"] != shades["dark"]
