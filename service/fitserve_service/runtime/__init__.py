"""Runs models in ONNX Runtime. Start with `run_limit`: it ends runs that take too long before a model is READY."""
