"""Models and properties in the formats of other verifiers: ONNX and VNN-LIB."""

from robustness.exchange.onnx_file import PRODUCER, onnx_bytes
from robustness.exchange.property import box_of, vnnlib

__all__ = ["PRODUCER", "box_of", "onnx_bytes", "vnnlib"]
