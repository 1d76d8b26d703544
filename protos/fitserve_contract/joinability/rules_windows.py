"""Rules of convolutions, pools and resampling: rows on the first axis, windows over the axes behind the channels."""

from __future__ import annotations

from collections.abc import Sequence

from fitserve_contract.joinability.calls import Call, Rule, Rules, axis_of, refuse_rows
from fitserve_contract.joinability.rules_elementwise import value_like
from fitserve_contract.joinability.sizes import Product, Size, divide, has_rows, times
from fitserve_contract.joinability.values import Kind, Value, like, mixed, rows


def rows_first(call: Call, value: Value, least_rank: int = 3) -> tuple[Size, ...]:
    """Returns the shape; refuses rows that are not on the first axis."""
    shape = value.shape
    if shape is None or len(shape) < least_rank:
        raise call.refusal("of an unknown shape")
    if value.row is not None and value.row.axis != 0:
        raise call.refusal(f"over axis {value.row.axis}")
    return shape


_MOST_WINDOW = 1 << 31
"""Sizes beyond which kernels may compute windows wrongly."""


def _windows(call: Call, sizes: Sequence[Size], kernel: Sequence[Size] | None, least: int) -> list[Size]:
    """Sizes of the axes that a window slides over; those that are not known get symbols of at least `least`."""
    count = len(sizes)
    strides = call.integers("strides") or [1] * count
    dilations = call.integers("dilations") or [1] * count
    pads = call.integers("pads") or [0] * 2 * count
    if len(strides) != count or len(dilations) != count or len(pads) != 2 * count:
        raise call.refusal("with attributes of another rank")
    widths = [size for size in kernel or () if isinstance(size, int)]
    numbers = [*strides, *dilations, *(size + 1 for size in pads), *widths]
    if len(widths) != count or min(numbers) < 1 or max(numbers) > _MOST_WINDOW:
        return [call.symbols.fresh(least) for _ in sizes]
    is_valid = call.text("auto_pad", "NOTSET") == "VALID"
    return [
        _window(
            call,
            size,
            dilations[axis] * (widths[axis] - 1) + 1,
            strides[axis],
            0 if is_valid else pads[axis] + pads[axis + count],
            least,
        )
        for axis, size in enumerate(sizes)
    ]


def _window(call: Call, size: Size, span: int, stride: int, padding: int, least: int) -> Size:
    """How often a window of `span` fits into an axis."""
    symbols = call.symbols
    low, high = symbols.range_of(size)
    auto, is_rounded_up = call.text("auto_pad", "NOTSET"), bool(call.integer("ceil_mode", 0))
    key = ("window", call.node.operator, auto, is_rounded_up, size, span, stride, padding, least)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        if isinstance(size, int) and max(call.integers("dilations") or [1]) == 1:
            return -(-size // stride)
        return symbols.unknown((least, high))
    # Where a result of nothing is an error, an axis of nothing does not come here.
    is_some = low > 0 or least > 0
    if stride == 1 and padding == span - 1 and is_some:
        return size
    free = low + padding - span
    if isinstance(size, int) and free >= 0 and not (is_rounded_up and free % stride):
        return free // stride + 1
    # A window wider than the axis is an error, none, or one: pools divide towards zero. A last one that would start in
    # the padding is left out by some kernels and not by others.
    fits = free // stride + 1 if free >= 0 else 1 - -free // stride
    most = max((high + padding - span) // stride + 1 + is_rounded_up, 1)
    made = symbols.derived(*key, span=(max(least, fits), most))
    if is_some and padding < span and not is_rounded_up:
        symbols.limit(made, size)
    return made


def convolution(call: Call, image: int = 0, weights: int = 1) -> Sequence[Value]:
    """Rule of Conv and its quantized forms: every input but the image is constant."""
    value = call.tensor(image)
    shape = rows_first(call, value)
    for index, other in enumerate(call.inputs):
        if index != image and other is not None and other.kind is not Kind.CONSTANT:
            raise call.refusal(f"with rows in input {index}")
    kernel = call.tensor(weights).shape
    sizes: Sequence[Size] | None = call.integers("kernel_shape") or (None if kernel is None else kernel[2:])
    channels = call.symbols.fresh() if kernel is None or not kernel else kernel[0]
    return [value_like(value, [shape[0], channels, *_windows(call, shape[2:], sizes, 1)])]


def quantized_convolution(call: Call) -> Sequence[Value]:
    """Rule of QLinearConv: image, scale, zero point, weights, ..."""
    if call.integer("channels_last", 0):
        raise call.refusal("with channels last")
    return convolution(call, 0, 3)


def summed_convolution(call: Call) -> Sequence[Value]:
    """Rule of com.microsoft's FusedConv: image, weights, bias, and a tensor of the result's shape that is added."""
    added = call.given(3)
    image = call.tensor(0)
    if added is None:
        return convolution(call)
    if added.kind is not image.kind or added.row != image.row:
        raise call.refusal("with other rows in input 3")
    bare = Call(call.node, call.version, call.inputs[:3], call.symbols, call.attributes)
    return convolution(bare)


def channels_last_convolution(call: Call) -> Sequence[Value]:
    """Rule of com.microsoft's NhwcConv."""
    value = call.tensor(0)
    shape = rows_first(call, value)
    call.require_constants(1)
    return [value_like(value, [shape[0], *(call.symbols.fresh() for _ in shape[1:])])]


def transposed_convolution(call: Call) -> Sequence[Value]:
    """Rule of ConvTranspose."""
    value = call.tensor(0)
    shape = rows_first(call, value)
    call.require_constants(1)
    weights = call.tensor(1).shape
    channels = None if weights is None or len(weights) < 3 else weights[1]
    width = call.symbols.fresh() if channels is None else times(channels, call.integer("group", 1))
    return [value_like(value, [shape[0], width, *_unwound(call, shape[2:], weights)])]


def _unwound(call: Call, sizes: Sequence[Size], weights: Sequence[Size] | None) -> list[Size]:
    count = len(sizes)
    kernel: Sequence[Size] = call.integers("kernel_shape") or ([] if weights is None else list(weights[2:]))
    strides, dilations = (call.integers(name) or [1] * count for name in ("strides", "dilations"))
    pads, extra = call.integers("pads") or [0] * 2 * count, call.integers("output_padding") or [0] * count
    is_plain = call.text("auto_pad", "NOTSET") == "NOTSET" and call.integers("output_shape") is None
    lengths = [len(kernel), len(strides), len(dilations), len(pads) // 2, len(extra)]
    if not is_plain or lengths != [count] * 5:
        return [call.symbols.fresh(1) for _ in sizes]
    result = list[Size]()
    for axis, (size, width) in enumerate(zip(sizes, kernel, strict=True)):
        if not isinstance(size, int) or not isinstance(width, int):
            result.append(call.symbols.fresh(1))
            continue
        padding = pads[axis] + pads[axis + count]
        length = strides[axis] * (size - 1) + extra[axis] + (width - 1) * dilations[axis] + 1 - padding
        result.append(length if 0 < length < _MOST_WINDOW else call.symbols.fresh(1))
    return result


def pool(call: Call) -> Sequence[Value]:
    """Rule of MaxPool, AveragePool, LpPool; the places of the largest are counted across rows."""
    value = call.tensor(0)
    shape = rows_first(call, value)
    call.require_constants(1)
    result = value_like(value, [*shape[:2], *_windows(call, shape[2:], call.integers("kernel_shape"), 0)])
    return [result, mixed("") if value.kind is Kind.ROWS else result]


def global_pool(call: Call) -> Sequence[Value]:
    """Rule of Global*Pool."""
    value = call.tensor(0)
    shape = rows_first(call, value)
    return [value_like(value, [*shape[:2], *[1] * (len(shape) - 2)])]


def quantized_pool(call: Call) -> Sequence[Value]:
    """Rule of com.microsoft's QLinear*Pool: scales and zero points for all."""
    if call.integer("channels_last", 0):
        raise call.refusal("with channels last")
    call.require_constants(1)
    bare = Call(call.node, call.version, call.inputs[:1], call.symbols, call.attributes)
    return (global_pool if "Global" in call.node.operator else pool)(bare)[:1]


def resize(call: Call) -> Sequence[Value]:
    """Rule of Resize and Upsample: the row axis keeps its size."""
    value = call.tensor(0)
    if value.shape is None:
        raise call.refusal("of an unknown shape")
    shape = value.shape
    if call.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise call.refusal("that crops")
    if any(other is not None and other.kind is Kind.ROWS for other in call.inputs[1:]):
        raise call.refusal("by what rows say")
    axes = [axis_of(call, axis, len(shape)) for axis in call.integers("axes") or range(len(shape))]
    _check_interpolation(call, value)
    if value.row is not None and value.row.axis in axes:
        _check_row_scale(call, axes.index(value.row.axis), shape[value.row.axis])
    result = [call.symbols.fresh() if axis in axes else size for axis, size in enumerate(shape)]
    if call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        return [value_like(value, result)]
    for place, axis in enumerate(axes):
        result[axis] = _resized(call, place, shape[axis])
    return [value_like(value, result)]


def _scales_and_sizes(call: Call) -> tuple[list[object] | None, list[object] | None]:
    if call.node.operator == "Upsample" and call.version < 9:
        attribute = call.attributes.get("scales")
        return (None if attribute is None else list(attribute.reals or [])), None
    scales_at = 1 if call.node.operator == "Upsample" or call.version < 11 else 2
    scales, sizes = call.elements(scales_at), call.elements(3) if scales_at == 2 else None
    return (
        None if scales is None or scales.size == 0 else list(scales.flat),
        None if sizes is None or sizes.size == 0 else list(sizes.flat),
    )


def _check_interpolation(call: Call, value: Value) -> None:
    """Over all axes of a tensor of up to three, kernels interpolate: the next row with weight 0, which spreads NaN."""
    if value.row is None or call.text("mode", "nearest") == "nearest":
        return
    if value.row.axis != 0 or len(value.shape or ()) < 4:
        raise call.refusal("interpolates over the rows")


_MOST_SCALED = 1 << 24


def _check_row_scale(call: Call, place: int, size: Size) -> None:
    """The rows are as many behind as before, whatever the other axes are."""
    if call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refusal("that keeps the aspect ratio of the rows")
    scales, sizes = _scales_and_sizes(call)
    if sizes is not None and place < len(sizes) and sizes[place] == size:
        return
    # The size is computed as a 32-bit float, which holds MOST_ROWS.
    is_held = call.symbols.range_of(size)[1] <= _MOST_SCALED
    if sizes is None and scales is not None and place < len(scales) and scales[place] == 1.0 and is_held:
        return
    raise call.refusal("of the rows by what is not known to be 1")


def _resized(call: Call, place: int, size: Size) -> Size:
    (scales, sizes), symbols = _scales_and_sizes(call), call.symbols
    if sizes is not None and place < len(sizes):
        wanted = sizes[place]
        is_size = isinstance(wanted, int | Product) and not has_rows(wanted) and symbols.least(wanted) > 0
        return wanted if is_size else symbols.fresh()  # type: ignore[return-value]
    scale = scales[place] if sizes is None and scales is not None and place < len(scales) else None
    if not isinstance(scale, float) or not 2**-10 <= scale <= 2**10:
        return symbols.fresh()
    low, high = symbols.range_of(size)
    # Kernels multiply as 32-bit floats.
    if high * max(scale, 1.0) <= _MOST_SCALED:
        if scale == int(scale):
            return times(size, int(scale))
        if 1 / scale == int(1 / scale) and (exact := divide(size, int(1 / scale))) is not None:
            return exact
    return symbols.fresh(1 if low > 0 and scale >= 1 else 0)


def rows_in(*places: int) -> Rule:
    """Returns the rule of operators with rows on the first axis of the inputs at `places`, all others constant.

    The result has the rank of the first input, with unknown sizes behind the rows.
    """

    def rule(call: Call) -> Sequence[Value]:
        first = call.tensor(0)
        shape = rows_first(call, first, 1)
        for index, other in enumerate(call.inputs):
            if other is None:
                continue
            if index in places and other.row != first.row:
                raise call.refusal(f"with other rows in input {index}")
            if index not in places and other.kind is not Kind.CONSTANT:
                raise call.refusal(f"with rows in input {index}")
        result = [shape[0], *(call.symbols.fresh() for _ in shape[1:])]
        return [value_like(first, result) if first.row is None else rows(result, first.row)]

    return rule


def short_time_transform(call: Call) -> Sequence[Value]:
    """Rule of STFT: signals (N, length, 1 or 2) to (N, frames, bins, 2)."""
    value = call.tensor(0)
    shape = rows_first(call, value)
    call.require_constants(1)
    return [like(value, [shape[0], call.symbols.fresh(1), call.symbols.fresh(1), 2], value.row)]


def determinant(call: Call) -> Sequence[Value]:
    """Rule of Det: of the last two axes."""
    value, shape = call.tensor(0), call.shape(0)
    for axis in (len(shape) - 2, len(shape) - 1):
        refuse_rows(call, value, axis)
    return [like(value, shape[:-2], value.row)]


def fourier_transform(call: Call) -> Sequence[Value]:
    """Rule of DFT: along one axis; the last one holds real and imaginary parts."""
    value, shape = call.tensor(0), call.shape(0)
    call.require_constants(1)
    axes = [call.integer("axis", 1)] if call.version < 20 else [-2] if call.given(2) is None else call.literals(2)
    if not axes:
        raise call.refusal("along an axis that is not known")
    axis = axis_of(call, axes[0], len(shape))
    refuse_rows(call, value, axis)
    refuse_rows(call, value, len(shape) - 1)
    result = [*shape[:-1], call.symbols.fresh(1)]
    result[axis] = call.symbols.fresh(1)
    return [value_like(value, result)]


RULES: Rules = {
    **dict.fromkeys(("Conv", "ConvInteger"), convolution),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), pool),
    **dict.fromkeys(("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"), global_pool),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    "ConvTranspose": transposed_convolution,
    "DFT": fourier_transform,
    "Det": determinant,
    "GridSample": rows_in(0, 1),
    "STFT": short_time_transform,
    "QLinearConv": quantized_convolution,
}

MICROSOFT_RULES: Rules = {
    **dict.fromkeys(("QLinearAveragePool", "QLinearGlobalAveragePool"), quantized_pool),
    "FusedConv": summed_convolution,
    "NhwcConv": channels_last_convolution,
    "QLinearConv": quantized_convolution,
}
