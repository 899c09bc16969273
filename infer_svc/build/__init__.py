"""Engines from ONNX files: precision, its accuracy, and what a flavour of TensorRT makes of it."""
