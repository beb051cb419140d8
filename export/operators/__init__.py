"""What each TensorRT version's ONNX parser takes: tables as data, and a graph held against them."""
