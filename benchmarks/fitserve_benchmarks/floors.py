"""The two floors of a call on a device: bytes over bandwidth, operations over rate, both rates measured here.

Shapes: B examples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fitserve_benchmarks.subject import Batch

if TYPE_CHECKING:
    import torch

_COPIED_BYTES: Final = {"cpu": 1 << 27, "cuda": 1 << 30}
_MATRIX_SIZE: Final = {"cpu": 1024, "cuda": 8192}
_REPEATS: Final = 10


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """What a device was measured to do at best.

    Args:
        device: `cpu` or `cuda`.
        bytes_per_s: Reading and writing in a large copy on the device.
        operations_per_s: Multiplications and additions of a large fp32 product, without TF32.
        launch_s: The least time of a call that does nothing but one tiny kernel, waited for.
        copy_bytes_per_s: Copying from the host to the device, from pageable memory as numpy's is.
    """

    device: str
    bytes_per_s: float
    operations_per_s: float
    launch_s: float
    copy_bytes_per_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class Floor:
    """Times that no call can be faster than.

    Args:
        batch_size: Examples in the call.
        bytes_moved: Weights, inputs and outputs, each once.
        operations: Multiplications and additions.
        bytes_s: The bytes at the device's bandwidth.
        operations_s: The operations at its rate.
        copy_s: Inputs and outputs from and to the host, at the rate of such copies: host to host has this beside it.
    """

    batch_size: int
    bytes_moved: int
    operations: int
    bytes_s: float
    operations_s: float
    copy_s: float = 0.0

    @property
    def least_s(self) -> float:
        """The larger of the two."""
        return max(self.bytes_s, self.operations_s)


def device_properties(device: str) -> dict[str, int | str]:
    """Gives what torch knows of a GPU; empty for the CPU. What a torch does not tell is left out."""
    import torch

    if device == "cpu":
        return {}
    found = torch.cuda.get_device_properties(0)
    names = ("name", "major", "minor", "total_memory", "multi_processor_count", "L2_cache_size", "clock_rate")
    return {name: getattr(found, name) for name in names if hasattr(found, name)}


def measure_rates(device: str) -> DeviceRates:
    """Measures a device's bandwidth, its fp32 rate and the cost of a launch; takes about a second on a GPU."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    count = _COPIED_BYTES[device] // 4
    source, target = torch.ones(count, device=device), torch.empty(count, device=device)
    copy_s = _least_s(lambda: target.copy_(source), device)
    size = _MATRIX_SIZE[device]
    left, right = torch.rand(size, size, device=device), torch.rand(size, size, device=device)
    product_s = _least_s(lambda: left @ right, device)
    tiny = torch.zeros(1, device=device)
    launch_s = _least_s(lambda: tiny.add_(1), device)
    pageable = torch.ones(_COPIED_BYTES[device] // 16)
    landed = torch.empty_like(pageable, device=device)
    host_s = _least_s(lambda: landed.copy_(pageable), device)
    return DeviceRates(device, 2 * 4 * count / copy_s, 2 * size**3 / product_s, launch_s, 4 * len(pageable) / host_s)


def floor_of(module: torch.nn.Module, batch: Batch, rates: DeviceRates) -> Floor:
    """Computes the floors of one call of a module.

    Args:
        module: On the CPU.
        batch: Its inputs by name, in the order of its forward, each (B, ...).
        rates: Of the device.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    inputs = [torch.from_numpy(array) for array in batch.values()]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        outputs = module(*inputs)
    tensors = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    weights = [*module.parameters(), *module.buffers()]
    copied = _size_bytes([*inputs, *tensors])
    moved = copied + _size_bytes(weights)
    operations = int(counter.get_total_flops())
    return Floor(
        batch_size=len(inputs[0]),
        bytes_moved=moved,
        operations=operations,
        bytes_s=moved / rates.bytes_per_s,
        operations_s=operations / rates.operations_per_s,
        copy_s=copied / rates.copy_bytes_per_s,
    )


def training_floor(module: torch.nn.Module, batch: Batch, rates: DeviceRates) -> Floor:
    """Computes the floors of a training step: going back costs two products for each of going forward.

    The weights are read, their gradients written and read again, the weights written; what is kept between forward and
    backward is not counted, for a cache may hold it.

    Args:
        module: On the CPU.
        batch: As for `floor_of`.
        rates: Of the device.
    """
    forward = floor_of(module, batch, rates)
    trained = _size_bytes([weight for weight in module.parameters() if weight.requires_grad])
    moved, operations = forward.bytes_moved + 3 * trained, 3 * forward.operations
    times_s = moved / rates.bytes_per_s, operations / rates.operations_per_s
    return Floor(forward.batch_size, moved, operations, *times_s, forward.copy_s)


def _size_bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _least_s(call: Callable[[], Any], device: str) -> float:
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    call()
    wait()
    least_s = float("inf")
    for _ in range(_REPEATS):
        begin_s = time.perf_counter()
        call()
        wait()
        least_s = min(least_s, time.perf_counter() - begin_s)
    return least_s
