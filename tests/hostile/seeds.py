"""Requests that are taken, from which hostile ones are made."""

from __future__ import annotations

from fitserve.inference.v1 import inference_pb2
from fitserve.types.v1 import tensor_pb2
from fitserve_oip import inference_pb2 as oip_pb2

PREDICT = inference_pb2.PredictRequest(
    inputs=[tensor_pb2.Tensor(name="x", datatype="FP32", shape=[1, 2], content=bytes(8))]
)
INFER = oip_pb2.ModelInferRequest(
    model_name="m",
    inputs=[oip_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])],
    raw_input_contents=[bytes(8)],
)
