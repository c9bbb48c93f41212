"""TFLite metadata read and written by tflite-support itself."""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from .refusal import RefusedError


def prepare() -> None:
    """None, after libusb was loaded: tflite-support is linked to it for USB accelerators, and many systems lack it."""
    if sys.platform == "linux" and ctypes.util.find_library("usb-1.0") is None:
        import libusb_package  # type: ignore[import-not-found, unused-ignore]

        ctypes.CDLL(str(libusb_package.get_library_path()), mode=ctypes.RTLD_GLOBAL)


def main(job: dict[str, Any]) -> dict[str, Any]:
    """What `job["do"]` ("read" or "write") asks of the file at `job["path"]`."""
    prepare()
    return {"read": read, "write": write}[job["do"]](job)


def read(job: dict[str, Any]) -> dict[str, Any]:
    """The metadata as JSON has it, and the text of every associated file by name."""
    from tflite_support import metadata  # type: ignore[import-not-found, unused-ignore]

    try:
        shown = metadata.MetadataDisplayer.with_model_file(job["path"])
        found = json.loads(shown.get_metadata_json())
        names = list(shown.get_packed_associated_file_list())
        files = {name: shown.get_associated_file_buffer(name).decode(errors="replace") for name in names}
    except ValueError as error:
        raise RefusedError(f"it finds no metadata in {job['path']}: {error}", "write it with metadata") from error
    return {"metadata": found, "files": files}


def write(job: dict[str, Any]) -> dict[str, Any]:
    """The size of the file written at `job["out"]`: that at `job["path"]` with an image classifier's metadata."""
    from tflite_support.metadata_writers import image_classifier, writer_utils  # type: ignore[import-not-found, unused-ignore]

    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder) / "labels.txt"
        labels.write_text("".join(f"{label}\n" for label in job["labels"]))
        try:
            made = image_classifier.MetadataWriter.create_for_inference(
                writer_utils.load_file(job["path"]), job["mean"], job["std"], [str(labels)]
            )
            data = made.populate()
        except ValueError as error:
            raise RefusedError(
                f"it can't write metadata for {job['path']}: {error}", "check the labels, mean and std"
            ) from error
    writer_utils.save_file(data, job["out"])
    return {"size_bytes": Path(job["out"]).stat().st_size}
