"""What looking at single operations costs, runtime by runtime, and where the operations of the zoo's networks run."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import devices_nets
import numpy as np

from trimtab.devices import conditions
from trimtab.devices.intervals import sitting_medians
from trimtab.devices.profile import profile

NETS = ("resnet20", "mobilenet_v2", "efficientnet_lite0")
FORMATS = ("onnx", "tflite", "openvino", "executorch", "ncnn", "mnn")
RUNS = 100
WATCHED = re.compile(r"took ([\d.]+) times")


def study(*, seed: int, repeats: int = 3) -> dict[str, Any]:
    """Per network and runtime the ratios of `repeats` profiles."""
    cpus = conditions.allowed_cpus()
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for net in NETS:
            places = devices_nets.artifacts(net, [(name, "fp32") for name in FORMATS], Path(folder))
            for index in range(repeats):
                found = profile(
                    list(places.values()),
                    preset="quick",
                    budget_s=2.0 * len(places),
                    seed=seed + index,
                    ops=RUNS,
                    affinity=cpus[-1:] if cpus else None,
                    force=True,
                )
                for measured in found.measurements:
                    (record,) = (r for r in found.ops if (r.label, r.runtime) == (measured.label, measured.runtime))
                    if measured.runtime == "openvino" and measured.format == "onnx":
                        continue  # the same runtime on the same network
                    key = (net, measured.runtime)
                    row = rows.setdefault(
                        key, {"net": net, "runtime": measured.runtime, "watched": [], "sum": [], "reason": record.reason}
                    )
                    if record.reason:
                        continue
                    plain_ns = float(np.median(sitting_medians(measured.samples_ns, measured.sittings)))
                    told = WATCHED.search(record.note)
                    row["watched"].append(float(told.group(1)) if told else None)
                    row["sum"].append(record.total / plain_ns)
                    row["operations"] = len(record.ops)
                    row["placement"] = {place: list(figures) for place, figures in record.placement().items()}
            print(net, {row["runtime"]: [row["watched"], row["sum"]] for row in rows.values() if row["net"] == net}, flush=True)
    return {"runs": RUNS, "rows": list(rows.values())}
