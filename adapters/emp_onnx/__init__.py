"""Effective Model Pruning of ONNX files."""
