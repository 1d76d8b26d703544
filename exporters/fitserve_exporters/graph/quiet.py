"""Keeps what torch and a module's own code say while a graph is made from the terminal: it is not about the model."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Final

_TALKERS: Final = ("torch", "onnxscript", "onnx_ir", "onnx", "sympy")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops Python warnings, the logs of torch and onnx, and all that is written to stdout and stderr, also from C++.

    The file descriptors 1 and 2 are those of the whole process: other threads write to nowhere as well while it lasts.
    """
    with (
        warnings.catch_warnings(),
        _loggers_off(),
        _descriptors_off(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _loggers_off() -> Iterator[None]:
    known = [name for name in list(logging.root.manager.loggerDict) if name.split(".")[0] in _TALKERS]
    loggers = [logging.getLogger(name) for name in dict.fromkeys([*_TALKERS, *known])]
    before = [(logger.disabled, logger.propagate, logger.handlers[:]) for logger in loggers]
    for logger in loggers:
        # A logger made meanwhile is not disabled, but finds no handler above.
        logger.disabled, logger.propagate, logger.handlers[:] = True, logger.parent is not logging.root, []
    try:
        yield
    finally:
        for logger, (disabled, propagates, handlers) in zip(loggers, before, strict=True):
            logger.disabled, logger.propagate, logger.handlers[:] = disabled, propagates, handlers


@contextlib.contextmanager
def _descriptors_off() -> Iterator[None]:
    _flush()
    kept: dict[int, int] = {}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # a daemon may have closed it
                kept[descriptor] = os.dup(descriptor)
                os.dup2(nowhere, descriptor)
        yield
    finally:
        _flush()
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)


def _flush() -> None:
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
