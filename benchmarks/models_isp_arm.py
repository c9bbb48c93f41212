"""Instructions per pixel of the ISP networks on emulated Arm cores: TFLite with and without the packing inside, two processes each.

    python benchmarks/models_isp_arm.py

Weights are random: they change no count. Writes results/models/isp_arm.json; needs `trimtab devices setup arm64` once.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from host import host

from trimtab.compress.cost import count
from trimtab.devices.profile import profile
from trimtab.export.convert import convert
from trimtab.export.source import module_source
from trimtab.models import files
from trimtab.models.architectures import architectures
from trimtab.models.raw.packing import FORMS
from trimtab.models.tasks.isp import isp_contract
from trimtab.models.tasks.isp_data import Sensor

RESULT = Path(__file__).parent / "results" / "models" / "isp_arm.json"
NETS = {"efficient_isp": "packed", "robust_isp": "packed", "rmfa_tiny": "planes"}
CORES = ("cortex-a53", "cortex-a76")
SIDE = 128
"""Of the mosaic."""
SENSOR = Sensor("RGGB", (63.0,) * 4, 1023.0)


def artifact(net: str, inside: bool, folder: Path) -> tuple[Path, dict[str, int], int]:
    """A TFLite artifact, the sizes of its input for a mosaic of 128×128, and its multiply-accumulates there."""
    torch.manual_seed(0)
    form = "mosaic" if inside else NETS[net]
    module = architectures.get(net)(**({"packing": "inside", "dtype": "uint16"} if inside else {})).eval()
    contract = isp_contract(form, SENSOR, dtype="uint16" if inside else "float32")
    side = SIDE // 2 if form == "packed" else SIDE
    dims = dict.fromkeys((symbol for symbol in contract.symbols if symbol != "N"), side)
    source = module_source(module, contract, label=f"{net}-{form}", seed=0)
    made = convert(source, [("tflite", "fp32")], folder / f"{net}-{form}")
    macs = count(module, [torch.zeros(1, FORMS[form], side, side).to(torch.uint16 if inside else torch.float32)]).macs
    return made[0].folder, dims, macs


def main() -> None:
    """Counts them all."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        for net in NETS:
            for inside in (False, True):
                place, dims, macs = artifact(net, inside, Path(work))
                for core in CORES:
                    runs = [profile([place], on=f"qemu:{core}", dims=dims, seed=0, force=True).counts[0] for _ in range(2)]
                    every = [value for run in runs for value in run.repeats]
                    rows.append(
                        {
                            "net": net,
                            "packing": "inside, uint16" if inside else "outside, float32",
                            "core": core,
                            "macs": macs,
                            "instructions": runs[0].instructions,
                            "stable": len(set(every)) == 1,
                            "emulator": runs[0].emulator,
                            "runtime": f"{runs[0].runtime} {runs[0].runtime_version}",
                        }
                    )
                    print(rows[-1], flush=True)
    record = {
        "command": "python benchmarks/models_isp_arm.py",
        "host": host(("torch", "ai-edge-litert", "numpy")),
        "side": SIDE,
        "rows": rows,
    }
    files.write_json(RESULT, record)


if __name__ == "__main__":
    main()
