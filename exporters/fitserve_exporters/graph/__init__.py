"""From a candidate to one ONNX file: tracing, conversion, passes, names, signature.

Start with `onnx_export.export_onnx`.
"""
