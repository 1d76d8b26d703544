"""Rules of RNN, GRU and LSTM, and of attention: rows are the batch of each input that has one."""

from __future__ import annotations

from collections.abc import Sequence

from fitserve_contract.joinability.calls import Call, Rule, Rules, refuse_rows
from fitserve_contract.joinability.rules_elementwise import layer_normalization, value_like
from fitserve_contract.joinability.sizes import Size
from fitserve_contract.joinability.values import Kind, RowAxis, Value, constant, rows


def recurrent(call: Call) -> Sequence[Value]:
    """Rule of RNN, GRU, LSTM: input (T, N, I), lengths (N), states (D, N, H); layout 1 has the batch first."""
    value, shape = call.tensor(0), call.shape(0)
    is_first = bool(call.integer("layout", 0)) and call.version >= 14
    batch = 0 if is_first else 1
    if len(shape) != 3:
        raise call.refusal("of an unknown shape")
    if value.row is None:
        call.require_constants(0)
        return [constant(None)] * 3
    if value.row.axis != batch:
        raise call.refusal(f"over axis {value.row.axis}")
    call.require_constants(1, 3)
    call.require_constants(7)
    for index, axis in ((4, 0), (5, batch), (6, batch)):
        other = call.given(index)
        if other is not None and other.row != RowAxis(axis, value.row.before, value.row.after):
            raise call.refusal(f"with other rows, or none, in input {index}")
    directions = 2 if call.text("direction", "forward") == "bidirectional" else 1
    hidden: Size = call.integer("hidden_size", 0) or call.symbols.fresh()
    time = shape[1 if is_first else 0]
    inner, outer = (value.row.before, value.row.after), shape[batch]
    if is_first:
        all_steps, last = [outer, time, directions, hidden], [outer, directions, hidden]
        places = (0, 0)
    else:
        all_steps, last = [time, directions, outer, hidden], [directions, outer, hidden]
        places = (2, 1)
    return [
        rows(all_steps, RowAxis(places[0], *inner)),
        rows(last, RowAxis(places[1], *inner)),
        rows(last, RowAxis(places[1], *inner)),
    ]


def attending(
    batched: dict[int, int], outputs: Sequence[tuple[int, int]], least_ranks: dict[int, int], values_rank: int = 0
) -> Rule:
    """Returns the rule of an operator whose inputs have a batch axis each.

    Args:
        batched: Input to its batch axis; all other inputs must be constant.
        outputs: Rank and batch axis of each output; rank 0 is that of the first input.
        least_ranks: Input to its least rank, where a lower one means something else.
        values_rank: Rank of the values, input 2, where the last axis of the first output is theirs.
    """

    def rule(call: Call) -> Sequence[Value]:
        first, shape = call.tensor(0), call.shape(0)
        if first.row is None:
            call.require_constants(0)
            return [constant(None)] * len(outputs)
        if not first.row.is_plain or first.row.axis != 0 or len(shape) < 2:
            raise call.refusal("of rows that are not the first axis")
        for index, other in enumerate(call.inputs):
            if other is None:
                continue
            if index not in batched:
                if other.kind is not Kind.CONSTANT:
                    raise call.refusal(f"with rows in input {index}")
            elif other.row != RowAxis(batched[index]) or (other.rank or 0) < least_ranks.get(index, 0):
                raise call.refusal(f"with other rows, or none, in input {index}")
        found = list[Value]()
        for place, (rank, axis) in enumerate(outputs):
            sizes: list[Size] = [call.symbols.fresh() for _ in range(rank or len(shape))]
            # The first output is what the first input asks for; the others are keys and values.
            if place == 0 and rank in (0, len(shape)):
                sizes[: len(shape) - 1] = shape[:-1]
                values = call.given(2)
                if len(shape) == values_rank and values is not None and len(values.shape or ()) == values_rank:
                    sizes[-1] = call.shape(2)[-1]
            found.append(rows(sizes, RowAxis(axis)))
        return found

    return rule


def with_shared(rule: Rule, shared: Sequence[int]) -> Rule:
    """Returns the rule for inputs that may also be one constant for all rows, of size 1 along the batch.

    Args:
        rule: For the inputs that carry rows.
        shared: Inputs that may be constant.
    """

    def wrapped(call: Call) -> Sequence[Value]:
        inputs = list(call.inputs)
        for index in shared:
            value = call.given(index)
            if value is None or value.kind is not Kind.CONSTANT:
                continue
            if value.shape is None or (len(value.shape) > 2 and (len(value.shape) != 4 or value.shape[0] != 1)):
                raise call.refusal(f"with a constant along the rows in input {index}")
            inputs[index] = None
        return rule(Call(call.node, call.version, inputs, call.symbols, call.attributes))

    return wrapped


def rotary(positions: int) -> Rule:
    """Returns the rule of RotaryEmbedding, whose input `positions` holds (N, S) places, or one for all.

    Args:
        positions: Index of that input; the two tables follow, or stand before.
    """

    def rule(call: Call) -> Sequence[Value]:
        value, shape = call.tensor(0), call.shape(0)
        if value.row is not None and value.row != RowAxis(0):
            raise call.refusal("of rows that are not the first axis")
        for index, other in enumerate(call.inputs[1:], 1):
            if other is None:
                continue
            if other.kind is Kind.ROWS:
                # A table of two axes is looked up by place; one of three belongs to its rows.
                if other.row != value.row or other.rank != (2 if index == positions else 3):
                    raise call.refusal(f"with other rows in input {index}")
            elif value.row is not None and (index == positions and other.shape != (1,)):
                raise call.refusal(f"with constant places in input {index}")
            elif value.row is not None and index != positions and other.rank != 2:
                raise call.refusal(f"with a constant along the rows in input {index}")
        return [value_like(value, shape)]

    return rule


def embedding(call: Call) -> Sequence[Value]:
    """Rule of com.microsoft's EmbedLayerNormalization: ids, segments, tables, ..., mask and positions with rows."""
    ids, shape = call.tensor(0), call.shape(0)
    if ids.row != RowAxis(0) or len(shape) != 2:
        raise call.refusal("of rows that are not the first axis")
    call.require_constants(2, 6)
    for index in (1, 7, 8):
        other = call.given(index)
        if other is not None and other.row != RowAxis(0):
            raise call.refusal(f"with other rows, or none, in input {index}")
    table = call.shape(2)
    embedded = rows([shape[0], shape[1], table[-1]], RowAxis(0))
    return [embedded, rows([shape[0]], RowAxis(0)), embedded]


def normalized_heads(call: Call) -> Sequence[Value]:
    """Rule of the layer normalizations of com.microsoft."""
    refuse_rows(call, call.tensor(0), len(call.shape(0)) - 1)
    return layer_normalization(call)


_STANDARD = with_shared(
    attending({0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 0}, [(0, 0), (4, 0), (4, 0), (4, 0)], {3: 4}, 4), [3]
)

RULES: Rules = {
    **dict.fromkeys(("GRU", "LSTM", "RNN"), recurrent),
    "Attention": _STANDARD,
    "RotaryEmbedding": rotary(3),
}

MICROSOFT_RULES: Rules = {
    **dict.fromkeys(("LayerNormalization", "SimplifiedLayerNormalization"), normalized_heads),
    "Attention": with_shared(attending({0: 0, 3: 0, 4: 1, 5: 0}, [(3, 0), (5, 1)], {3: 2, 5: 4}), [5]),
    "EmbedLayerNormalization": embedding,
    "MultiHeadAttention": with_shared(
        attending({0: 0, 1: 0, 2: 0, 4: 0, 5: 0, 6: 0, 7: 0}, [(3, 0), (4, 0), (4, 0)], {4: 2, 5: 4}, 3), [5]
    ),
    "QAttention": attending({0: 0, 5: 0, 8: 1}, [(3, 0), (5, 1)], {5: 2}),
    "RotaryEmbedding": rotary(1),
}
