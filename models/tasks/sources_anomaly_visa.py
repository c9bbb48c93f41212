"""VisA as it is published: DIR/CATEGORY/Data/… and DIR/split_csv/1cls.csv, which says what each picture is for.

Source: Zou et al., SPot-the-Difference Self-supervised Pre-training for Anomaly Detection and Segmentation, ECCV 2022 (CC BY 4.0).
"""

from __future__ import annotations

import csv
from pathlib import Path

from ..errors import UserError
from .anomaly_data import GOOD, AnomalyData, some
from .sources_anomaly_folder import Listed, assembled
from .sources_anomaly_masks import Masks

COLUMNS = ("object", "split", "label", "image", "mask")
LABELS = ("normal", "anomaly")
ANOMALY = "anomaly"


def open_visa(root: Path, *, size: tuple[int, int] | None, skip_bad: bool) -> AnomalyData:
    """The pictures of the category whose folder is `root`, split as ../split_csv/1cls.csv says.

    Raises UserError for a missing or malformed table, a category that it does not name, anomalies that it calls training
    pictures, and files that are missing.
    """
    table = root.parent / "split_csv" / "1cls.csv"
    if not table.is_file():
        raise UserError(
            f"{root} has no train/, and there is no {table}",
            hint="visa:DIR is a category's folder in MVTec's layout, or beside split_csv/ as published",
        )
    rows = [row for row in _rows(table) if row["object"] == root.name]
    if not rows:
        raise UserError(f"{table} has no row of {root.name!r}", hint="visa:DIR is the folder of one category, such as candle")
    if wrong := [row["image"] for row in rows if row["split"] == "train" and row["label"] != "normal"]:
        raise UserError(
            f"{table}: {len(wrong)} training picture(s) of {root.name} are anomalous: {some(wrong)}",
            hint="training sees normal pictures alone: 1cls.csv is the one-class split",
        )
    files = {split: [row for row in rows if row["split"] == split] for split in ("train", "test")}
    paths = {split: tuple(root.parent / row["image"] for row in chosen) for split, chosen in files.items()}
    masked = [(root.parent / row["image"], root.parent / row["mask"]) for row in files["test"] if row["mask"]]
    missing = [path for path in (*paths["train"], *paths["test"], *(mask for _, mask in masked)) if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} file(s) of {table} are missing: {some(missing)}", hint="unpack the data again")
    masks = Masks({(ANOMALY, image.stem): (mask,) for image, mask in masked})
    train = Listed(paths["train"], (GOOD,) * len(paths["train"]))
    test = Listed(paths["test"], tuple(GOOD if row["label"] == "normal" else ANOMALY for row in files["test"]))
    return assembled(root, {"train": train, "val": None, "test": test}, masks, size=size, skip_bad=skip_bad)


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = tuple(reader.fieldnames or ())
            rows = [{name: (row.get(name) or "").strip() for name in COLUMNS} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} cannot be read: {error}", hint="download the data again") from None
    if lacking := [name for name in COLUMNS if name not in columns]:
        raise UserError(f"{table} has no column {', '.join(lacking)}", hint=f"its columns are {', '.join(COLUMNS)}")
    for number, row in enumerate(rows, 2):
        if row["split"] not in ("train", "test") or row["label"] not in LABELS:
            raise UserError(
                f"{table}, line {number}: split {row['split']!r} and label {row['label']!r}",
                hint=f"split is train or test, label one of {', '.join(LABELS)}",
            )
    return rows
