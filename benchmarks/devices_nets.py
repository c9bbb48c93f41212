"""Artifacts that the devices' benchmark measures: networks of the export benchmark."""

from __future__ import annotations

from pathlib import Path

import export_nets

from trimtab.export.convert import convert
from trimtab.export.manifest import MANIFEST

ZOO = ("resnet20", "vgg16_bn", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "vit_nano", "efficientnet_lite0")


def artifacts(name: str, pairs: list[tuple[str, str]], into: Path) -> dict[tuple[str, str], Path]:
    """(format, precision) → the artifact's folder, of one network; those that missed their gate too: their speed is what is asked."""
    net = export_nets.NETS[name]()
    made = convert(net.source, pairs, into / name, real=net.real, calibration=net.calibration)
    return {(m.artifact.format, m.artifact.precision): m.folder for m in made if (m.folder / MANIFEST).exists()}
