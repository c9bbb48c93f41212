"""Keeps coremltools' noise from the user's screen and gives its real warnings back."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from functools import partial

from .barred import without

_NOISE = (
    "Failed to load _ML",  # Apple's runtime is absent on Linux, on purpose
    "has not been tested with coremltools",
    "is not supported. Minimum required version",
    "Saving value type of",
    "Core ML embedding (gather) layer does not support any inputs",
    "Tuple detected at graph output",
    "It would be better to use kmeans1d",
    "When both 'convert_to' and 'minimum_deployment_target' not specified",
)
_BARS = (
    ("coremltools.converters.mil.frontend.torch.ops", "_tqdm"),
    ("coremltools.converters.mil.mil.passes.pass_pipeline", "tqdm"),
    ("coremltools.optimize.coreml._quantization_passes", "tqdm"),
    ("coremltools.optimize.coreml._post_training_quantization", "tqdm"),
)


class _Collector(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not any(noise in text for noise in _NOISE):
            self.heard.append(text)


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """A list that fills with coremltools' and torch's real warnings while the block runs; progress bars stay off.

    Deprecations of their own insides are not the user's business and are dropped.
    """
    heard: list[str] = []
    logger = logging.getLogger("coremltools")
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [_Collector(heard)], False
    bars: list[tuple[object, str, object]] = []
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with contextlib.ExitStack() as stack:
                if "coremltools" not in sys.modules:  # it imports these, where installed, for dialects that are not used here
                    for package in ("executorch", "torchao"):
                        stack.enter_context(without(package))
                importlib.import_module("coremltools")
            bars = _without_bars()
            yield heard
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        for module, name, bar in bars:
            setattr(module, name, bar)
        dull = (DeprecationWarning, FutureWarning, PendingDeprecationWarning, ResourceWarning)
        heard += dict.fromkeys(str(w.message) for w in caught if not issubclass(w.category, dull))


def _without_bars() -> list[tuple[object, str, object]]:
    """What was replaced, so that it can be put back. A coremltools that keeps its bars elsewhere just shows them."""
    replaced: list[tuple[object, str, object]] = []
    for module_name, name in _BARS:
        module = sys.modules.get(module_name)
        bar = getattr(module, name, None)
        if module is not None and bar is not None:
            replaced.append((module, name, bar))
            setattr(module, name, partial(bar, disable=True))
    return replaced
