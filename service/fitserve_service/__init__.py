"""Serves exported ONNX models over gRPC: prediction, evaluation, control, the Open Inference Protocol, health."""
