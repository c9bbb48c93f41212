"""Which stock networks the contract of classifiers is run on."""

from __future__ import annotations

from trimtab.models.architectures import architectures

BACKBONES = frozenset({"vgg19", "wide_resnet101_2", "deit_base"})
"""Kept for their published weights alone; 86 to 144 million parameters are too many to build for every test. Their relatives vgg16_bn,
resnet50 and deit_small stand for them, and tests/models/test_backbones.py has their names and counts."""

CLASSIFIERS = [entry.name for entry in architectures if entry.card.task == "classification" and entry.name not in BACKBONES]
