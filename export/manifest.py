"""The torch-free door of this room: all that `devices` may use of it."""

from __future__ import annotations

from ..models.contract import Contract, TensorSpec
from ..models.errors import UserError, did_you_mean
from ..models.files import digest_of, new_folder, read_json, write_bytes, write_json, write_text
from ..models.progress import LogProgress, Progress
from ..models.registry import Registry
from . import ncnn_files, noise, openvino_core
from .artifact import GOLDEN, MANIFEST, SAMPLES, Artifact, Parity, load_artifact

__all__ = [
    "GOLDEN",
    "MANIFEST",
    "SAMPLES",
    "Artifact",
    "Contract",
    "LogProgress",
    "Parity",
    "Progress",
    "Registry",
    "TensorSpec",
    "UserError",
    "did_you_mean",
    "digest_of",
    "load_artifact",
    "ncnn_files",
    "new_folder",
    "noise",
    "openvino_core",
    "read_json",
    "write_bytes",
    "write_json",
    "write_text",
]
