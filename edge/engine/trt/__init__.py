"""TensorRT: graphs compiled on the device that runs them, proven equal before they serve."""
