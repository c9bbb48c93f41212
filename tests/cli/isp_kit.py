"""Networks and frames for tests of developing: Bundles of random weights, frames of noise in patches from dark to bright."""

import numpy as np
import torch

from trimtab.models.bundle import Manifest, save_bundle
from trimtab.models.contract import Contract, TensorSpec
from trimtab.models.raw.frame import RawFrame
from trimtab.models.source import Architecture

LEVELS = {"pattern": "GRBG", "black": 25.0, "white": 1023.0}


def contract_of(channels, *, dtype="float32", top=1.0, size=("h", "w"), out=("H", "W")):
    raw = TensorSpec(name="raw", shape=("N", channels, *size), layout="NCHW", dtype=dtype, value_range=(0.0, top))
    rgb = TensorSpec(name="rgb", shape=("N", 3, *out), layout="NCHW", value_range=(0.0, 1.0))
    return Contract(inputs=(raw,), outputs=(rgb,))


def isp_bundle(folder, name="efficient_isp", *, seed=0, contract=None, gain=1.0, **kwargs):
    """A Bundle of a stock network at random weights, times `gain`, so that differences are seen."""
    architecture = Architecture(name=name, kwargs=kwargs)
    torch.manual_seed(seed)
    module = architecture.build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(gain)
    if contract is None and kwargs.get("packing") == "inside":
        contract = contract_of(1, dtype=kwargs.get("dtype", "float32"), top=kwargs.get("white", 1023.0))
    contract = contract or contract_of(3 if name.startswith("rmfa") else 4)
    return save_bundle(folder, module, Manifest(architecture=architecture, contract=contract))


def frame_of(height, width, *, seed=0, **levels):
    """A frame of noise, its brightness rising to the right by a factor of 20 and another in every patch of 16."""
    rng = np.random.default_rng(seed)
    patches = rng.uniform(0.2, 1, (-(-height // 16), -(-width // 16)))
    light = np.kron(patches, np.ones((16, 16)))[:height, :width] * np.linspace(0.05, 1, width)
    mosaic = np.rint(25 + 998 * light * rng.uniform(0.5, 1, (height, width))).astype(np.uint16)
    told = {**LEVELS, **levels}
    return RawFrame(mosaic, told["pattern"], (told["black"],) * 4, told["white"])


def save_mosaic(path, frame):
    """The frame's counts as a 16-bit PNG or an array file; `path`."""
    from PIL import Image

    if path.suffix == ".npy":
        np.save(path, frame.mosaic)
    else:
        Image.fromarray(frame.mosaic).save(path)
    return path
