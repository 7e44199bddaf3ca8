"""ONNX export and its parity check, Triton model repositories, a local Triton, and its client."""
