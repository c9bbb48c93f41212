"""Converters that live in virtual environments of their own: litert-torch, TensorFlow, tflite-support."""
