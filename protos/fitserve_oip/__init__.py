"""Protocols that others define: the Open Inference Protocol with Triton's extensions, gRPC health, gRPC reflection.

Their messages live in a descriptor pool of our own (`pool`), because every other package that speaks these protocols
registers the same symbols in protobuf's default pool, in its own version of them.
"""
