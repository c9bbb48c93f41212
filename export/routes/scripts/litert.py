"""A saved torch program → `.tflite` by litert-torch, images in NHWC at its doors."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from .refusal import RefusedError


def main(job: dict[str, Any]) -> dict[str, Any]:
    """The size of the file written at `job["out"]`.

    `job`: `program` (a `.pt2` file), `inputs` (each: its shape at the file's door and its dtype), `images_in` and `images_out` (the
    positions of images).
    """
    warnings.simplefilter("ignore")
    import litert_torch  # type: ignore[import-not-found, unused-ignore]
    import torch

    litert_torch.config.show_progress = False
    module = torch.export.load(job["program"]).module()
    module = litert_torch.to_channel_last_io(module, args=job["images_in"], outputs=job["images_out"])
    module.training = False  # an exported program can't be told by eval(), and was exported in that mode
    samples = tuple(torch.zeros(spec["shape"], dtype=getattr(torch, spec["dtype"])) for spec in job["inputs"])
    try:
        made = litert_torch.convert(module, samples)
    except Exception as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:250]
        raise RefusedError(
            f"it can't convert this network: {said}", "use trimtab's own writer, or replace the operator in the module"
        ) from error
    made.export(job["out"])
    return {"size_bytes": Path(job["out"]).stat().st_size}
