"""trimtab: takes a trained vision checkpoint and makes it small and fast on a real device, with proof."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime's wheels report to their maker from their import on, unasked

__version__ = "0.1.0"
