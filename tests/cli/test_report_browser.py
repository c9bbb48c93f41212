"""The report in a real browser: does it fit a phone, does it complain, does it ask for anything, is anything to be seen?"""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from report_kit import artifacts, record

from trimtab.report import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH, so the report can't be looked at")

WIDTHS = (360, 390, 1200)
LONG = "a_name_without_any_place_to_break_" * 5

# An <iframe srcdoc> has the width asked for (a headless window may not get below 500 px) and can be measured from outside,
# though the report's own policy lets no script run in it.
PROBE = """<!doctype html><meta charset="utf-8"><style>body{margin:0}</style>%s<pre id="found"></pre><script>
addEventListener("load", () => {
  console.log("probe here");
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    page.querySelectorAll("details").forEach(d => d.open = true);
    const box = e => e.getBoundingClientRect();
    const name = e => e.tagName + " " + (e.textContent || "").trim().slice(0, 40);
    const outside = [...page.querySelectorAll("body *")].filter(e => !e.closest(".scroll table, svg, .sr")
      && box(e).right > root.clientWidth + 0.5).map(name);
    const cut = [], overlaps = [];
    page.querySelectorAll("svg").forEach(svg => {
      const texts = [...svg.querySelectorAll("text")], frame = box(svg);
      texts.forEach((a, i) => {
        const r = box(a);
        if (r.left < frame.left - 2 || r.right > frame.right + 2 || r.top < frame.top - 2 || r.bottom > frame.bottom + 2)
          cut.push(name(a));
        texts.slice(i + 1).forEach(b => {
          const s = box(b), w = Math.min(r.right, s.right) - Math.max(r.left, s.left);
          if (w > 1 && Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top) > 0.3 * Math.min(r.height, s.height))
            overlaps.push(name(a) + " / " + name(b));
        });
      });
    });
    return {width: root.clientWidth, scroll: root.scrollWidth, outside, cut, overlaps,
      loaded: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name),
      plots: page.querySelectorAll("svg").length, smallest: Math.min(...[...page.querySelectorAll("svg text")].map(e =>
        parseFloat(getComputedStyle(e).fontSize) * box(e.closest("svg")).width / e.closest("svg").viewBox.baseVal.width))};
  });
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""


def chromium(folder, *arguments):
    """The finished process of one headless Chromium with a fresh profile, cut off from the network."""
    base = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    base += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr"]
    base += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
    return subprocess.run([*base, *map(str, arguments)], capture_output=True, text=True, timeout=180, check=True)


def frames(page, widths):
    return "".join(f'<iframe width="{w}" height="900" srcdoc="{html.escape(page)}" style="border:0"></iframe>' for w in widths)


def look(folder, page):
    """(measurements at every width, console lines other than the probe's own)."""
    (folder / "probe.html").write_text(PROBE % frames(page, WIDTHS), encoding="utf-8")
    done = chromium(folder, "--dump-dom", "--virtual-time-budget=5000", f"file://{folder / 'probe.html'}")
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL).group(1)))
    lines = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert any("probe here" in line for line in lines), f"the console is not being heard: {done.stderr[-2000:]}"
    return found, [line for line in lines if "probe here" not in line]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return look(tmp_path_factory.mktemp("report"), render(record()))


def test_the_page_is_no_wider_than_the_screen(seen):
    assert [m["width"] for m in seen[0]] == list(WIDTHS)
    for measured in seen[0]:
        assert measured["scroll"] <= measured["width"], measured
        assert measured["outside"] == [], measured


def test_no_text_of_a_plot_is_cut_or_lies_on_another(seen):
    for measured in seen[0]:
        assert measured["plots"] == 12
        assert measured["cut"] == []
        assert measured["overlaps"] == []
        assert measured["smallest"] >= 8.5  # CSS px on the narrowest screen: small, yet readable


def test_the_browser_has_nothing_to_complain_about_and_loads_nothing(seen):
    assert seen[1] == []
    assert [m["loaded"] for m in seen[0]] == [[], [], []]


def test_names_without_a_break_don_t_widen_the_page(tmp_path):
    run = record()
    parent, small = run.models
    parent = parent.model_copy(
        update={
            "architecture": LONG,
            "bundle": LONG,
            "layers": (parent.layers[1].model_copy(update={"path": LONG}), *parent.layers[2:]),
        }
    )
    entry = artifacts()[0]
    entry = entry.model_copy(
        update={"artifact": entry.artifact.model_copy(update={"name": LONG, "warnings": (LONG,), "ops": {LONG: 1}})}
    )
    rejected = artifacts()[-1]
    verdict = rejected.artifact.parity.model_copy(update={"reason": LONG, "evaluator": LONG})
    rejected = rejected.model_copy(update={"artifact": rejected.artifact.model_copy(update={"parity": verdict, "name": LONG})})
    timing = run.profile
    wordy = timing.measurements[0].conditions.model_copy(update={"runtime_version": LONG, "provider": LONG})
    rows = tuple(m.model_copy(update={"label": LONG + m.label, "conditions": wordy}) for m in timing.measurements)
    ratios = tuple(c.model_copy(update={"a": LONG + c.a, "b": LONG + c.b}) for c in timing.comparisons)
    timing = timing.model_copy(update={"measurements": rows, "comparisons": ratios, "device": LONG, "warnings": (LONG,)})
    step = run.steps[0].model_copy(
        update={"kind": LONG, "config": {LONG: LONG}, "notes": (LONG,), "figures": {LONG: [LONG] * 3}}
    )
    words = {"title": LONG, "command": LONG, "data": LONG, "notes": (LONG,), "host": {LONG: LONG}, "steps": (step,)}
    found, complaints = look(
        tmp_path, render(record(models=(parent, small), artifacts=(entry, rejected), profile=timing, **words))
    )
    assert complaints == []
    for measured in found:
        assert measured["scroll"] <= measured["width"], measured
        assert measured["outside"] == [], measured
        assert measured["cut"] == [], measured
        assert measured["overlaps"] == [], measured


@pytest.mark.parametrize(("scheme", "dark"), [("1", False), ("0", True)])
def test_there_is_something_to_see_in_light_and_dark(tmp_path, scheme, dark):
    page = '<!doctype html><meta name="color-scheme" content="light dark"><style>body{margin:0}</style>'
    (tmp_path / "view.html").write_text(page + frames(render(record(profile=None)), (390,)), encoding="utf-8")
    picture = tmp_path / "view.png"
    look_like = f"--blink-settings=preferredColorScheme={scheme}"
    chromium(tmp_path, look_like, "--window-size=520,900", f"--screenshot={picture}", f"file://{tmp_path / 'view.html'}")
    grey = np.asarray(Image.open(picture).convert("L").crop((0, 0, 390, 800)))
    paper = np.median(grey)
    ink = np.abs(grey.astype(int) - paper) > 100
    assert (paper < 60) if dark else (paper > 200)
    assert 0.01 < ink.mean() < 0.3  # text covers a few percent of a page: neither blank nor filled
