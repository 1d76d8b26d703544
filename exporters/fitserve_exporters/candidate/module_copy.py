"""Copies a trained module for export: on the CPU, in evaluation mode, with plain weights. The original stays."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.nn.utils import parametrize

from fitserve_exporters.candidate.padded_encoder import use_plain_encoders
from fitserve_exporters.errors import ExportError

_NOT_ATTRIBUTES: Final = ("_parameters", "_modules", "_forward_hooks", "_forward_pre_hooks")
"""Entries of a module's `__dict__` that are not looked through for what cannot be copied: they can be."""

_OLD_NORMS: Final = ("WeightNorm", "SpectralNorm")
"""Forward pre-hooks of `torch.nn.utils.weight_norm` and `spectral_norm`."""


def on_cpu(module: nn.Module) -> nn.Module:
    """Returns a copy in evaluation mode on the CPU, unwrapped from torch.compile and DataParallel.

    Weights under weight_norm, spectral_norm or a parametrization become plain weights of the same value.

    Raises:
        ExportError: it is no eager module with all its weights, or it cannot be copied.
    """
    eager = unwrapped(module)
    _check_weights(eager)
    copied = _copy(eager).cpu().eval()
    for part in list(copied.modules()):
        _bake_weights(part)
    use_plain_encoders(copied)
    return copied.requires_grad_(False)


def unwrapped(module: object) -> nn.Module:
    """Returns the eager module inside the wrappers of torch.compile, DataParallel and DistributedDataParallel.

    Raises:
        ExportError: it is not a module, or a module of TorchScript, which cannot be traced.
    """
    while isinstance(module, nn.Module):
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module._orig_mod
        elif isinstance(module, torch.jit.ScriptModule):
            raise ExportError(
                "module: expected an eager torch.nn.Module, got a TorchScript module; give the module that was "
                "scripted or traced: build it in Python and load the same weights with load_state_dict"
            )
        else:
            return module
    raise ExportError(f"module: expected a torch.nn.Module, got {_kind_of(module)}")


def widen_bfloat16(module: nn.Module) -> int:
    """Turns bfloat16 parameters and buffers into float32, which holds each of their values; returns how many."""
    halves = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.dtype == torch.bfloat16]
    for tensor in halves:
        tensor.data = tensor.data.float()
    return len(halves)


def _kind_of(value: object) -> str:
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f"the class {value.__name__}; give an instance with trained weights: {value.__name__}(...)"
    if isinstance(value, Mapping):
        return (
            f"a mapping ({type(value).__name__}), as of state_dict(); build the module and load it with "
            "load_state_dict, then give the module"
        )
    if isinstance(value, torch.export.ExportedProgram):
        return "an ExportedProgram; give the eager module that it was exported from"
    if isinstance(value, str | bytes):
        return f"{type(value).__name__}; load the file and give the module"
    if callable(value):
        return f"a {type(value).__name__}; wrap it: class Net(torch.nn.Module) with this function as its forward"
    return type(value).__name__


def _check_weights(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise ExportError(
                f"module: part '{name}' is quantized by torch, which has no ONNX form; give the module before its "
                "quantization, and ask for the variant int8"
            )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ExportError(
                f"module: weight '{name}' is not initialized: expected a trained module, got a lazy layer that never "
                "ran; run the module once on an example, then train or load its weights"
            )
        if tensor.device.type == "meta":
            raise ExportError(
                f"module: weight '{name}' is on the meta device and has no values; load the weights first: "
                "module.to_empty(device='cpu'), then load_state_dict"
            )


def _copy(module: nn.Module) -> nn.Module:
    """Copies a module with the activations it keeps; what Python cannot copy (locks, files, generators) is shared."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in _leaves(part.__dict__):
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(module, dict(memo))
    except Exception as error:  # an attribute's own __deepcopy__ or __reduce__ may raise anything
        shared = _uncopyable(module, memo)
        try:
            return copy.deepcopy(module, {**memo, **shared})
        except Exception:
            raise ExportError(
                f"module: cannot be copied: {type(error).__name__}: {error}; give a module without the attribute that "
                "cannot be copied: del it, or leave it out in __deepcopy__"
            ) from error


def _uncopyable(module: nn.Module, memo: Mapping[int, Any]) -> dict[int, Any]:
    shared: dict[int, Any] = {}
    for part in module.modules():
        attributes = {name: value for name, value in part.__dict__.items() if name not in _NOT_ATTRIBUTES}
        for value in _leaves(attributes):
            try:
                copy.deepcopy(value, {**memo, **shared})
            except Exception:
                shared[id(value)] = value
    return shared


def _leaves(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Yields what dicts, lists, tuples and sets hold, however nested; modules are left to their own turn."""
    seen = set() if seen is None else seen
    if isinstance(value, dict | list | tuple | set | frozenset):
        if id(value) in seen:
            return
        seen.add(id(value))
        for part in list(value.values()) if isinstance(value, dict) else list(value):
            yield from _leaves(part, seen)
    elif not isinstance(value, nn.Module):
        yield value


def _bake_weights(part: nn.Module) -> None:
    for hook in list(part._forward_pre_hooks.values()):
        if type(hook).__name__ in _OLD_NORMS and type(hook).__module__.startswith("torch.nn.utils"):
            _remove_hook(part, hook)
    if parametrize.is_parametrized(part):
        # Removal deletes properties of the class, which a copy shares with its original: it gets a class of its own.
        kept = {name: value for name, value in type(part).__dict__.items() if name not in ("__dict__", "__weakref__")}
        part.__class__ = type(type(part).__name__, type(part).__bases__, kept)
        assert isinstance(part.parametrizations, nn.ModuleDict)
        for name in list(part.parametrizations):
            # Of several originals the result stays a parameter only if it needs a gradient.
            for original in part.parametrizations[name].parameters():
                original.requires_grad_(original.is_floating_point())
            parametrize.remove_parametrizations(part, name, leave_parametrized=True)


def _remove_hook(part: nn.Module, hook: Any) -> None:
    """Removes a norm of the old kind: `remove` leaves the weight that the hook would compute in evaluation mode."""
    with torch.no_grad():
        hook.remove(part)
    for hooks in (part._forward_pre_hooks, part._state_dict_hooks, part._load_state_dict_pre_hooks):
        for key, other in list(hooks.items()):
            if other is hook or getattr(other, "fn", None) is hook:
                del hooks[key]
