"""The part of this room's door that needs the standard library alone: what a runner on a phone or board may use of it."""

from __future__ import annotations

from ..models.errors import UserError, did_you_mean
from ..models.registry import Registry
from . import ncnn_files, noise, openvino_core

__all__ = ["Registry", "UserError", "did_you_mean", "ncnn_files", "noise", "openvino_core"]
