"""Serves exported ONNX models over gRPC: prediction, evaluation, control, the Open Inference Protocol, health."""

from fitserve_contract import runtime_reports

runtime_reports.turn_off()
