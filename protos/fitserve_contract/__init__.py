"""What two parts of fitserve must agree on: datatypes, tensors as bytes, tasks and their sums, the model repository.

Hand-written; stdlib, numpy and (for arrays in files) safetensors only, so that every other room may import it.
"""
