"""A double of TensorRT's Python API: strict as the real binding, computing with ONNX Runtime.

Imported as ``tensorrt``. It plans nothing and proves nothing about speed or a GPU's arithmetic; it
shows whether the calls are right, in their order, and what happens when TensorRT fails.
"""
