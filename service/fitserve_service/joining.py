"""Many requests into one batch, and one answer back into many: `split(join(x))` is `x`.

Requests of one batch have the same inputs with the same shapes behind the first axis (their key says so).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from fitserve_service.signature import Signature, Tensor, axis_conflict


def joining_key(
    signature: Signature, inputs: Mapping[str, Tensor], output_names: tuple[str, ...], rows: int
) -> Hashable:
    """Gives what two requests must have in common to run together; None for one that must run alone.

    Alone run: requests to a model without a batch axis, without rows or elements, or with an optional input (which
    may hold for the whole batch).
    """
    if not signature.has_batch_axis or rows == 0:
        return None
    shapes = []
    for spec in signature.inputs:
        tensor = inputs.get(spec.name)
        if tensor is None:
            continue
        if spec.is_optional:
            return None
        if 0 in (shape := tensor.array.shape[1:]):
            # What a product over no elements gives is the runtime's to say: the proof does not cover it.
            return None
        shapes.append(shape)
    if axis_conflict(signature.inputs, inputs):
        # The runtime may take it; the proof that rows are independent does not.
        return None
    return (output_names, *shapes)


def join(parts: Sequence[Mapping[str, Tensor]], padded_rows: int = 0) -> dict[str, Tensor]:
    """Stacks the rows of requests with the same key.

    Args:
        parts: Inputs of each request.
        padded_rows: Copies of the last row to add, so that the batch has a bucket's size.

    Returns:
        Input name to the rows of all parts in order, (B + padded_rows, ...).
    """
    if len(parts) == 1 and not padded_rows:
        return dict(parts[0])
    joined = {}
    for name, tensor in parts[0].items():
        arrays = [part[name].array for part in parts]
        if padded_rows:
            arrays.append(np.repeat(arrays[-1][-1:], padded_rows, axis=0))
        joined[name] = Tensor(tensor.datatype, np.concatenate(arrays))
    return joined


def split(outputs: Mapping[str, Tensor], row_counts: Sequence[int]) -> list[dict[str, Tensor]]:
    """Deals the rows of a batch's outputs back to the requests; rows past their sum are padding and dropped.

    Args:
        outputs: Output name to (B, ...).
        row_counts: Rows of each request, in the order they were joined.

    Returns:
        Views, one mapping per request.
    """
    parts: list[dict[str, Tensor]] = []
    begin = 0
    for count in row_counts:
        end = begin + count
        parts.append({name: Tensor(t.datatype, t.array[begin:end]) for name, t in outputs.items()})
        begin = end
    return parts


def bucket_size(rows: int, buckets: Sequence[int]) -> int:
    """Gives the smallest bucket that holds the rows; the rows themselves where none does."""
    return next((size for size in buckets if size >= rows), rows)
