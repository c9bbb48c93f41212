"""What the page of an analysis costs: seconds to build, bytes, seconds until a browser shows it.

    python benchmarks/lottery_page.py [--repeats 5]

The record is made of random figures (6 models × 10 000 samples × 9 corruptions): quantised noise packs worse than real samples do,
so the bytes are an upper estimate. Result: results/lottery/page.json.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from host import host
from trials import RESULTS

from trimtab.analysis_data import page_arrays, thumbnails
from trimtab.analysis_page import in_script, page_info, render_analysis
from trimtab.compress.analyse.analysis_record import FORMAT, AnalysisRecord
from trimtab.models import files

MODELS, SAMPLES, CLASSES = 6, 10_000, 10
KINDS = (
    *(("gaussian_noise", "noise"), ("shot_noise", "noise"), ("impulse_noise", "noise")),
    *(("gaussian_blur", "blur"), ("motion_blur", "blur"), ("brightness", "weather")),
    *(("contrast", "digital"), ("pixelate", "digital"), ("jpeg", "digital")),
)
SEVERITIES = (1, 2, 3, 4, 5)
IMAGES, SIDE = 256, 28


def random_record(seed: int) -> AnalysisRecord:
    """A record of the full size whose samples are drawn independently: nothing repeats that a packer could use."""
    rng = np.random.default_rng(seed)
    k, clean = len(KINDS), (MODELS, SAMPLES)
    corrupted = (MODELS, k, SAMPLES)
    targets = rng.integers(0, CLASSES, SAMPLES).astype(np.int16)
    predicted = {
        shape: np.where(rng.random(shape) < 0.8, targets, rng.integers(0, CLASSES, shape)) for shape in (clean, corrupted)
    }
    arrays: dict[str, np.ndarray] = {"targets": targets}
    for prefix, shape, dtype in (("clean_", clean, np.float32), ("", corrupted, np.float16)):
        arrays[f"{prefix}norm"] = rng.gamma(9.0, 1.0, shape).astype(dtype)
        arrays[f"{prefix}angle"] = rng.normal(60.0, 12.0, shape).clip(0, 180).astype(dtype)
        arrays[f"{prefix}margin"] = rng.normal(1.5, 1.0, shape).astype(dtype)
        arrays[f"{prefix}confidence"] = rng.beta(4.0, 1.0, shape).astype(dtype)
        arrays[f"{prefix}predicted"] = predicted[shape].astype(np.int16)
    right = predicted[clean] == targets
    arrays["survived"] = (rng.integers(0, len(SEVERITIES) + 1, corrupted) * right[:, None]).astype(np.uint8)
    arrays["images"] = rng.integers(0, 256, (IMAGES, 1, SIDE, SIDE)).astype(np.uint8)
    arrays["image_index"] = np.sort(rng.choice(SAMPLES, IMAGES, replace=False)).astype(np.int32)
    return AnalysisRecord(_info(rng, arrays["image_index"], targets), arrays)


def _info(rng: np.random.Generator, pictured: np.ndarray, targets: np.ndarray) -> Any:
    """Figures of the right shapes; the page's cost does not depend on what they say."""
    k, names = len(KINDS), [f"model {m}" for m in range(MODELS)]
    kinds = [name for name, _ in KINDS]
    shares = {
        name: rng.uniform(0.5, 0.95, shape).tolist()
        for name, shape in (
            ("accuracy", (MODELS, k, len(SEVERITIES))),
            ("clean", (MODELS,)),
            ("class clean", (MODELS, CLASSES)),
            ("class", (MODELS, k, CLASSES)),
        )
    }
    likeness = rng.uniform(-1, 1, (MODELS, k, k))
    areas = ("auc_margin", "auc_confidence", "auc_norm", "auc_angle", "difference", "low", "high")
    return {
        "format": FORMAT,
        "created": "2026-01-01T00:00:00+00:00",
        "command": "",
        "data": "random",
        "data_id": "random",
        "split": "test",
        "samples": SAMPLES,
        "classes": [f"class {c}" for c in range(CLASSES)],
        "seed": 0,
        "models": [
            {"name": n, "hash": "0" * 64, "accuracy": a, "params": 10_000, "nonzero": 5000, "macs": 300_000}
            for n, a in zip(names, shares["clean"], strict=True)
        ],
        "corruptions": [{"name": name, "family": family, "help": name} for name, family in KINDS],
        "severities": list(SEVERITIES),
        "severity_kept": 3,
        "accuracy": shares["accuracy"],
        "clean_accuracy": shares["clean"],
        "class_accuracy": {"clean": shares["class clean"], "corrupted": shares["class"]},
        "survival": [
            {
                "model": n,
                "corruption": c,
                "n": SAMPLES,
                "survived": SAMPLES // 2,
                "reason": "",
                **dict(zip(areas, rng.random(len(areas)).tolist(), strict=True)),
            }
            for n in names
            for c in (*kinds, "all")
        ],
        "redundancy": {
            "mean": likeness.mean(0).tolist(),
            "by_model": likeness.tolist(),
            "clusters": [kinds],
            "nearest": kinds[:2],
        },
        "worst_classes": [],
        "worst_samples": [
            {
                "index": int(i),
                "target": int(targets[i]),
                "fall": 1.0,
                "before": 1.0,
                "by_model": [1.0] * MODELS,
                "against": names[0],
            }
            for i in pictured[:128]
        ],
        "versions": {"trimtab": "0"},
    }


def until_shown(page: Path, repeats: int) -> list[float] | None:
    """Seconds from opening the file to all six views drawn, in headless Chromium cut off from the network; None without one."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        return None
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        for _ in range(repeats):
            tab = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True).new_page()
            started = time.perf_counter()
            tab.goto(page.as_uri())
            tab.wait_for_selector("html[data-ready]", timeout=120_000)
            found.append(time.perf_counter() - started)
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    record = random_record(0)
    seconds, text = [], ""
    for _ in range(args.repeats):
        started = time.perf_counter()
        text = render_analysis(record)
        seconds.append(time.perf_counter() - started)
    pack = page_arrays(record)
    with tempfile.TemporaryDirectory() as folder:
        shown = until_shown(files.write_text(Path(folder) / "page.html", text), args.repeats)
    found = {
        "command": f"python benchmarks/lottery_page.py --repeats {args.repeats}",
        "about": f"{MODELS} models × {SAMPLES} samples × {len(KINDS)} corruptions, {IMAGES} pictures of {SIDE}×{SIDE}, all random",
        "conditions": host(("plotly", "numpy", "jinja2", "playwright")),
        "build_seconds": [round(s, 3) for s in seconds],
        "build_seconds_median": round(statistics.median(seconds), 3),
        "bytes": len(text.encode()),
        "bytes_of_samples": len(pack.packed()),
        "bytes_of_figures": len(in_script(page_info(record)).encode()),
        "bytes_of_pictures": sum(len(picture["src"]) for picture in thumbnails(record)),
        "shown_seconds": None if shown is None else [round(s, 3) for s in shown],
    }
    files.write_json(RESULTS / "lottery" / "page.json", found)
    print(found)


if __name__ == "__main__":
    main()
