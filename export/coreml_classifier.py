"""Class names put to a converted package: a Core ML classifier, which apps and Vision read as labels with confidences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LABEL = "classLabel"
PROBABILITIES = "classLabel_probs"
"""The names that coremltools gives a classifier's outputs, and that apps expect."""


def labelled(model: Any, classes: Sequence[str], scores: str, *, keep_scores: bool) -> Any:
    """The model with an operation that names the class of the output `scores` (1, classes), and gives probabilities by name.

    coremltools itself drops all other outputs of a classifier, or fails where there are some; here they stay, so that the logits
    can be proven. `scores` goes unless `keep_scores`.
    """
    import coremltools as ct

    spec = model.get_spec()
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    _classify(block.operations.add(), classes, scores)
    kept = [name for name in block.outputs if keep_scores or name != scores]
    block.outputs[:] = [LABEL, PROBABILITIES, *kept]
    described = [feature for feature in spec.description.output if feature.name in kept]
    label, probabilities = type(described[0])(name=LABEL), type(described[0])(name=PROBABILITIES)
    label.type.stringType.SetInParent()
    probabilities.type.dictionaryType.stringKeyType.SetInParent()
    del spec.description.output[:]
    spec.description.output.extend([label, probabilities, *described])
    spec.description.predictedFeatureName = LABEL
    spec.description.predictedProbabilitiesName = PROBABILITIES
    return ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)


def _classify(operation: Any, classes: Sequence[str], scores: str) -> None:
    """Fill in a MIL `classify` operation, as coremltools writes it."""
    from coremltools.proto import MIL_pb2

    operation.type = "classify"
    operation.inputs["probabilities"].arguments.add().name = scores
    names = operation.inputs["classes"].arguments.add().value
    names.type.listType.type.tensorType.dataType = MIL_pb2.STRING
    names.type.listType.length.constant.size = len(classes)
    for name in classes:
        _text(names.immediateValue.list.values.add(), name)
    label = operation.outputs.add(name=LABEL)
    label.type.tensorType.dataType = MIL_pb2.STRING
    probabilities = operation.outputs.add(name=PROBABILITIES).type.dictionaryType
    probabilities.keyType.tensorType.dataType = MIL_pb2.STRING
    probabilities.valueType.tensorType.dataType = MIL_pb2.FLOAT64
    _text(operation.attributes["name"], "classify")


def _text(value: Any, text: str) -> None:
    """Make a MIL value the string `text`."""
    from coremltools.proto import MIL_pb2

    value.type.tensorType.dataType = MIL_pb2.STRING
    value.immediateValue.tensor.strings.values.append(text)
