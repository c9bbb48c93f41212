"""TFLite, written from a slimmed ONNX graph straight to an NHWC flatbuffer, without TensorFlow."""
