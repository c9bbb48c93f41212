"""Instructions that one inference of the zoo's networks takes on emulated Arm cores, in float32 and int8, counted by two processes each."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import devices_nets

from trimtab.devices.profile import profile
from trimtab.export.manifest import load_artifact

CORES = ("cortex-a53", "cortex-a72", "cortex-a76")
PRECISIONS = ("fp32", "int8")


def study(*, seed: int, repeats: int = 2) -> dict[str, Any]:
    """Per network, precision and core the counts of `repeats` processes, and whether all are one number."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for net in devices_nets.ZOO:
            made = devices_nets.artifacts(net, [("tflite", precision) for precision in PRECISIONS], Path(folder))
            places = list(made.values())
            for core in CORES:
                runs = [profile(places, on=f"qemu:{core}", seed=seed, force=True) for _ in range(repeats)]
                for index, place in enumerate(places):
                    artifact = load_artifact(place)
                    counts = [run.counts[index] for run in runs]
                    every = [value for entry in counts for value in entry.repeats]
                    rows.append(
                        {
                            "net": net,
                            "precision": artifact.precision,
                            "proven": artifact.parity.ok,
                            "core": core,
                            "instructions": counts[0].instructions,
                            "repeats": [list(entry.repeats) for entry in counts],
                            "stable": len(set(every)) == 1,
                            "outputs_ok": [entry.outputs_ok for entry in counts],
                            "emulator": counts[0].emulator,
                            "runtime": f"{counts[0].runtime} {counts[0].runtime_version}",
                        }
                    )
                    print(net, artifact.precision, core, f"{rows[-1]['instructions']:,}", rows[-1]["stable"], flush=True)
    return {"rows": rows}
