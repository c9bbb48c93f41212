"""The pictures of the README: a real RAW frame developed, and anomaly maps.

    python benchmarks/gallery.py [isp] [anomaly]

isp      a network learns unpaired from the left of the one real Bayer frame (data/n900_bayer_raw.png, MIT licence) and from the
         photographs of `models_isp.py`, which are of other scenes; a second one learns on from pairs of synthetic RAW. Both develop
         the whole frame. → docs/pictures/isp-n900.jpg
anomaly  EfficientAD learns gravel from patches of scikit-image's photograph (CC0; `pip install scikit-image`) and is shown others of the
         same photograph with defects drawn into them. → docs/pictures/anomaly-gravel.jpg

What is run are trimtab's own commands; docs/pictures/gallery.json has them, with the versions and hashes of what came out.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from host import host
from models_isp import photographs
from n900 import FRAME, OPTIONS
from PIL import Image, ImageDraw, ImageFilter

from trimtab.app import main as trimtab
from trimtab.models import files

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
RECORD = PICTURES / "gallery.json"
SIDE = 96
"""Pixels along a side of a texture patch."""
SHOWN = 4
SEED = 0
NAMED = "EfficientISP, unpaired"
TUNED = "then pairs of synthetic RAW"
"""Folders of the ISP networks, which are their captions."""
PAIRS = """format = 1

[[step]]
kind = "finetune"
epochs = 40
batch_size = 8
optimizer = "adamw"
lr = 2e-3
weight_decay = 0.0
amp = "off"
"""


def run(*command: object) -> list[str]:
    """The command that was run. Ends the script with the command's own words when it fails."""
    words = [str(word) for word in command]
    if code := trimtab(words):
        raise SystemExit(code)
    return words


def isp(work: Path) -> dict[str, Any]:
    """The N900 frame: fixed rendering and network side by side."""
    data = work / "camera"
    (data / "raw").mkdir(parents=True)
    shutil.copy(FRAME, data / "raw" / "n900.png")
    with photographs() as folder:
        (data / "rgb").symlink_to(folder)
        levels = [
            f"--data-arg={name}={value}" for name, value in zip(("pattern", "black", "white"), OPTIONS[1:6:2], strict=True)
        ]
        train = run(
            *(
                "train",
                "efficient-isp",
                "--unpaired",
                "--data",
                f"raws:{data}",
                "--size",
                "64x64",
                *levels,
                "--data-arg=patches=600",
            ),
            *(f"--set={key}={value}" for key, value in ISP.items()),
            *("--seed", SEED, "-o", work / NAMED),
        )
        files.write_text(work / "pairs.toml", PAIRS)
        pairs = run(
            *(
                "compress",
                work / NAMED,
                "--recipe",
                work / "pairs.toml",
                "--data",
                f"photos:{folder}",
                "--size",
                "64x64",
                *levels,
            ),
            *("--seed", SEED, "-o", work / TUNED),
        )
    develop = run(
        "isp",
        "develop",
        FRAME,
        "-o",
        work / "n900.png",
        "--model",
        work / NAMED,
        "--against",
        work / TUNED,
        "--strip",
        *OPTIONS,
    )
    strip = Image.open(work / "n900-strip.png").convert("RGB")
    strip.thumbnail((1400, 1400), Image.Resampling.LANCZOS)
    return {
        "picture": saved(strip, "isp-n900.jpg"),
        "commands": [train, pairs, develop],
        "recipe": PAIRS,
        "licence": "MIT (Halide)",
    }


def textures(root: Path) -> None:
    """Gravel in MVTec's layout: patches of the left half to learn from, of the right half to test, half of those with drawn defects."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("scikit-image is missing: pip install scikit-image")
    whole = Image.open(Path(spec.submodule_search_locations[0]) / "data" / "gravel.png").convert("RGB")
    rng = np.random.default_rng(SEED)

    def patch(low: int, high: int) -> Image.Image:
        left, top = int(rng.integers(low, high - SIDE)), int(rng.integers(0, whole.height - SIDE))
        return whole.crop((left, top, left + SIDE, top + SIDE))

    for part, count, band in (("train/good", 160, (0, 320)), ("test/good", 24, (320, 512))):
        (root / part).mkdir(parents=True)
        for number in range(count):
            patch(*band).save(root / part / f"{number:03}.png")
    for part in ("test/drawn", "ground_truth/drawn"):
        (root / part).mkdir(parents=True)
    for number in range(24):
        marred, mask = drawn(patch(320, 512), rng)
        marred.save(root / "test" / "drawn" / f"{number:03}.png")
        mask.save(root / "ground_truth" / "drawn" / f"{number:03}_mask.png")


def drawn(patch: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """The patch with a scratch, a smear or a lump of another grey in it, and the mask of where."""
    mask = Image.new("L", patch.size, 0)
    pen, (x, y) = ImageDraw.Draw(mask), rng.integers(SIDE // 4, 3 * SIDE // 4, 2)
    kind = int(rng.integers(3))
    if kind == 0:
        dx, dy = rng.integers(-SIDE // 3, SIDE // 3, 2)
        pen.line([(x, y), (x + dx, y + dy)], fill=255, width=4)
    else:
        r = int(rng.integers(8, 16))
        pen.ellipse([x - r, y - r, x + r, y + r], fill=255)
    instead = (
        patch.filter(ImageFilter.GaussianBlur(4))
        if kind == 1
        else Image.new("RGB", patch.size, (int(rng.integers(20, 60)),) * 3)
    )
    return Image.composite(instead, patch, mask), mask


def anomaly(work: Path) -> dict[str, Any]:
    """Gravel with drawn defects beside the maps of EfficientAD."""
    from trimtab.loading import fitted, open_task
    from trimtab.models.bundle import load_bundle
    from trimtab.report_pictures import anomaly_pictures

    textures(work / "gravel")
    train = run(
        *("train", "efficientad-s", "--data", f"mvtec:{work / 'gravel'}", "--size", f"{SIDE}x{SIDE}", "--seed", SEED),
        *(f"--model-arg={key}={value}" for key, value in ANOMALY_NET.items()),
        *(f"--set={key}={value}" for key, value in ANOMALY.items()),
        *("-o", work / "ad"),
    )
    bundle = load_bundle(work / "ad")
    task = fitted(bundle.contract, open_task("anomaly", {"data": f"mvtec:{work / 'gravel'}", "size": (SIDE, SIDE)}))
    shown = [opened(picture.data) for picture in anomaly_pictures(bundle, task, SHOWN)]
    sheet = Image.fromarray(np.concatenate([np.concatenate(shown[i : i + 2], axis=1) for i in range(0, SHOWN, 2)]))
    figures = {name: round(float(value), 4) for name, value in bundle.manifest.metrics.items()}
    return {
        "picture": saved(sheet, "anomaly-gravel.jpg"),
        "commands": [train],
        "metrics": figures,
        "licence": "photograph CC0 (scikit-image), defects drawn",
    }


ISP: dict[str, Any] = {
    "epochs": 10,
    "lr": 2e-3,
    "schedule": "cosine",
    "content_stage": 3,
    "texture_stages": [1, 3],
    "colour_stage": 0,
    "discriminator_lr": 1e-3,
    "discriminator_width": 0.25,
    "critic_every": 2,
}
"""A short run for a CPU (see docs/isp-training.md for the published schedule)."""
ANOMALY: dict[str, Any] = {
    "pdn-teacher.iterations": 600,
    "pdn-teacher.batch_size": 8,
    "pdn-teacher.lr": 1e-3,
    "efficientad.iterations": 1500,
    "efficientad.lr": 5e-4,
    "efficientad.p_hard": 0.998,
}
ANOMALY_NET: dict[str, Any] = {"width": 0.25, "out_channels": 64}
"""Scaled for a CPU and for patches of 96×96, like the experiment of docs/anomaly.md."""


def opened(address: str) -> np.ndarray:
    """uint8 (H, W, 3) of a picture in a `data:` address."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


def saved(picture: Image.Image, name: str) -> dict[str, Any]:
    """The picture's name, size and hash, once it is written."""
    PICTURES.mkdir(exist_ok=True)
    picture.save(PICTURES / name, "JPEG", quality=85)
    return {"name": name, "size": list(picture.size), "sha256": hashlib.sha256((PICTURES / name).read_bytes()).hexdigest()}


def main() -> None:
    """Makes what is named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=[[], *MAKERS], default=[])
    args = parser.parse_args()
    for name in args.which or MAKERS:
        with tempfile.TemporaryDirectory() as work:
            made = MAKERS[name](Path(work))
            text = json.dumps(made).replace(work, "WORK").replace(str(FRAME), f"benchmarks/data/{FRAME.name}")
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        record[name] = json.loads(text) | {"host": host(("torch", "numpy", "pillow"))}
        files.write_text(RECORD, json.dumps(record, indent=1) + "\n")


MAKERS = {"isp": isp, "anomaly": anomaly}

if __name__ == "__main__":
    main()
