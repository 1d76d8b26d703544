"""Runs on a GPU whose shapes come again and again: their buffers stay on it, and a CUDA graph may replay them.

A graph knows addresses, not arrays: inputs are copied to where they were when it was captured. The runtime captures
for the thread that runs, and while it does no other thread may allocate or copy on the GPU; so one thread of a
session's own captures before the version is READY, and replays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from fitserve_contract.tensor_bytes import Array
from fitserve_service.run_errors import DeviceMemoryError, GraphError, is_of_runtime, run_error

GRAPH_ID: Final = "gpu_graph_id"
"""Run option that names a graph. Source: onnxruntime_run_options_config_keys.h."""

_NO_GRAPH: Final = "-1"
_FIRST_GRAPH: Final = 1

_PATIENCE_S: Final = 5.0
"""How long a capture waits for a moment in which nobody uses the GPU, before it makes one."""

Form: TypeAlias = tuple[tuple[int, ...], ...]
"""Shapes of a run's inputs, in the model's order."""


class CaptureGate:
    """Lets runs on the GPU go on together, and a capture alone. Thread-safe."""

    def __init__(self) -> None:
        self._loading = threading.Lock()
        self._condition = threading.Condition()
        self._user_count = 0
        self._is_capturing = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Waits until nothing is being captured, and keeps captures waiting inside the block."""
        with self._condition:
            self._condition.wait_for(lambda: not self._is_capturing)
            self._user_count += 1
        try:
            yield
        finally:
            with self._condition:
                self._user_count -= 1
                self._condition.notify_all()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Waits until no other model loads and nothing is captured: a load may take long, and no run waits for it."""
        with self._loading:
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until nobody else uses the GPU, and keeps them waiting inside the block."""
        with self._loading:
            self._begin_capture()
            try:
                yield
            finally:
                with self._condition:
                    self._is_capturing = False
                    self._condition.notify_all()

    def _begin_capture(self) -> None:
        with self._condition:
            # A quiet moment costs nobody anything; a first run may take seconds, in which the others go on.
            self._condition.wait_for(lambda: self._user_count == 0, _PATIENCE_S)
            # From here on nobody new is let in: on a busy server there may be no such moment.
            self._is_capturing = True
            self._condition.wait_for(lambda: self._user_count == 0)


GATE: Final = CaptureGate()
"""The process's: a capture is disturbed by whatever any model does on the GPU."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What stays on the GPU for one form."""

    inputs: Mapping[str, Any]
    binding: Any
    graph_id: str
    options: Any


@dataclass(frozen=True, slots=True)
class Tools:
    """What only the module that imports the runtime can make.

    Args:
        new_buffer: Makes a tensor on the device, from a shape and a numpy dtype.
        new_options: Makes options for runs.
    """

    new_buffer: Callable[[Sequence[int], Any], Any]
    new_options: Callable[[], Any]


class DeviceRuns:
    """Runs one session. Thread-safe; runs of one session that keep buffers take turns.

    Args:
        session: The runtime's.
        input_names: Of the required inputs, in the model's order.
        output_names: Of all outputs that are tensors.
        tools: What makes buffers and options.
        has_graphs: The session was opened for CUDA graphs.
    """

    def __init__(
        self, session: Any, input_names: Sequence[str], output_names: Sequence[str], tools: Tools, *, has_graphs: bool
    ) -> None:
        self._session = session
        self._input_names = tuple(input_names)
        self._output_names = tuple(output_names)
        self._tools = tools
        self._has_graphs = has_graphs
        self._plain = self._marked(tools.new_options(), _NO_GRAPH)
        self._kept: dict[Form, _Kept] = {}
        self._turn = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="graphs") if has_graphs else None

    @property
    def kept_forms(self) -> tuple[Form, ...]:
        """Shapes whose buffers stay on the GPU."""
        return tuple(self._kept)

    def keep(self, feed: Mapping[str, Array]) -> None:
        """Keeps buffers for inputs of these shapes, and captures their run where there are graphs.

        Args:
            feed: Required inputs, numbers all; their values must be such that the model runs them.

        Raises:
            OperatorError: the model does not run these values, or the GPU has no memory for them.
            GraphError: the run cannot be captured.
        """
        form = self._form(feed)
        if form is not None and form not in self._kept:
            self._on_own_thread(self._keep, form, feed)

    def run(self, feed: Mapping[str, Array], output_names: Sequence[str], options: Any) -> Sequence[Array]:
        """Runs the model once; raises the runtime's own errors.

        Args:
            feed: Input name to array.
            output_names: Outputs wanted.
            options: The caller's, or None.
        """
        form = self._form(feed)
        kept = self._kept.get(form) if form is not None else None
        if kept is not None:
            return self._on_own_thread(self._replay, kept, feed, output_names, options)  # type: ignore[no-any-return]
        marked = self._plain if options is None else self._marked(options, _NO_GRAPH)
        with GATE.together():
            return self._session.run(output_names, feed, marked)  # type: ignore[no-any-return]

    def _on_own_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        if self._thread is not None:
            return self._thread.submit(work, *arguments).result()
        with self._turn:
            return work(*arguments)

    def _replay(self, kept: _Kept, feed: Mapping[str, Array], output_names: Sequence[str], options: Any) -> list[Array]:
        marked = kept.options if options is None else self._marked(options, kept.graph_id)
        with GATE.together():
            for name, value in kept.inputs.items():
                value.update_inplace(feed[name])
            self._session.run_with_iobinding(kept.binding, marked)
            # These are copies: the next run may write to the buffers at once.
            outputs = kept.binding.copy_outputs_to_cpu()
        found = dict(zip(self._output_names, outputs, strict=True))
        return [found[name] for name in output_names]

    def _keep(self, form: Form, feed: Mapping[str, Array]) -> None:
        try:
            with GATE.together():
                # What the outputs are like is known only once they were there.
                answers = self._session.run(self._output_names, feed, self._plain)
                kept = self._bound(feed, answers)
        except Exception as error:
            if not is_of_runtime(error):
                raise
            raise run_error(error, is_ended=False, is_on_gpu=True) from error
        with GATE.alone() if self._has_graphs else GATE.together():
            self._capture(kept)
        self._kept[form] = kept

    def _bound(self, feed: Mapping[str, Array], answers: Sequence[Array]) -> _Kept:
        binding = self._session.io_binding()
        inputs = {name: self._tools.new_buffer(feed[name].shape, feed[name].dtype) for name in self._input_names}
        for name, value in inputs.items():
            value.update_inplace(feed[name])
            binding.bind_ortvalue_input(name, value)
        for name, answer in zip(self._output_names, answers, strict=True):
            binding.bind_ortvalue_output(name, self._tools.new_buffer(answer.shape, answer.dtype))
        graph_id = str(_FIRST_GRAPH + len(self._kept)) if self._has_graphs else _NO_GRAPH
        return _Kept(inputs, binding, graph_id, self._marked(self._tools.new_options(), graph_id))

    def _capture(self, kept: _Kept) -> None:
        """Runs bound memory once; the runtime runs again by itself until the graph is captured."""
        try:
            self._session.run_with_iobinding(kept.binding, kept.options)
        except Exception as error:
            if not is_of_runtime(error):
                raise
            problem = run_error(error, is_ended=False, is_on_gpu=True)
            if isinstance(problem, DeviceMemoryError) or not self._has_graphs:
                raise problem from error
            raise GraphError(f"a run could not be captured as a CUDA graph: {problem}") from error

    def _form(self, feed: Mapping[str, Array]) -> Form | None:
        if len(feed) != len(self._input_names):
            return None
        return tuple(feed[name].shape for name in self._input_names)

    def _marked(self, options: Any, graph_id: str) -> Any:
        if self._has_graphs:
            options.add_run_config_entry(GRAPH_ID, graph_id)
        return options
