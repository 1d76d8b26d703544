"""Model folders that a repository should not hold: cut off, flipped, escaping, endless, huge, lying about sizes.

Each is made from a seed and put into the repository under a name of its own, in one step. Shapes: B is a free axis.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fitserve_benchmarks.hostile_messages import HostileMessages

_OPSET: Final = 20
_IR_VERSION: Final = 10
_MODEL_FILE: Final = "model.onnx"

INNOCENT: Final = "innocent"
VICTIMS: Final = ("victim", "rows", "words")

_ENDLESS_SHARE: Final = 0.005
_HUGE_SHARE: Final = 0.02
_DEADLY_SHARE: Final = 0.02
"""Few of these: each costs the time or the memory that a canary grants."""


@dataclass(frozen=True, slots=True)
class HostileModel:
    """One that was put into the repository.

    Args:
        name: Model name.
        kind: What is wrong with it.
        is_escape: It reaches for a file outside: it must never be READY.
    """

    name: str
    kind: str
    is_escape: bool


class HostileModels:
    """Puts hostile models into a repository.

    Args:
        root: The repository.
        outside: A file that no answer may hold a byte of.
        random: Every choice.
    """

    def __init__(self, root: Path, outside: Path, random: Random) -> None:
        self._root = root
        self._outside = outside
        self._random = random
        self._whole = (scaled(), gather(), external("w.bin"))

    def put(self, number: int) -> HostileModel:
        """Makes the next one; takes the place of what had its number."""
        share = self._random.random()
        if share < _ENDLESS_SHARE:
            kind = "endless loop"
        elif share < _ENDLESS_SHARE + _HUGE_SHARE:
            kind = "bomb"
        elif share < _ENDLESS_SHARE + _HUGE_SHARE + _DEADLY_SHARE:
            kind = "deadly constant"
        else:
            kind = self._random.choice(list(_KINDS))
        name = f"hostile{number}"
        aside = self._root / f".{name}"
        folder = aside / "1"
        folder.mkdir(parents=True)
        _MAKERS[kind](self, folder)
        aside.rename(self._root / name)
        return HostileModel(name, kind, kind.startswith("escape"))

    def remove(self, model: HostileModel) -> None:
        """Takes one out of the repository."""
        shutil.rmtree(self._root / model.name)

    def cut_off(self, folder: Path) -> None:
        """A whole model up to somewhere."""
        content = self._random.choice(self._whole)
        _write(folder, content[: self._random.randint(0, len(content) - 1)])

    def flipped(self, folder: Path) -> None:
        """A whole model but for a few bits, lengths and pieces."""
        (folder / "w.bin").write_bytes(bytes(8))
        _write(folder, HostileMessages(self._random).damaged(self._random.choice(self._whole)))

    def made_up(self, folder: Path) -> None:
        """A ModelProto of random fields."""
        _write(folder, HostileMessages(self._random, ("w.bin",)).message(onnx.ModelProto.DESCRIPTOR, self._whole))

    def random_bytes(self, folder: Path) -> None:
        """No protobuf at all."""
        _write(folder, self._random.randbytes(self._random.choice((0, 1, 100, 100_000))))

    def escape_by_name(self, folder: Path) -> None:
        """External data by a path that leads out."""
        up = os.path.relpath(self._outside, folder)
        location = self._random.choice((str(self._outside), up, f"./{up}", f"x/../{up}", f"file://{self._outside}", ""))
        _write(folder, external(location))

    def escape_by_link(self, folder: Path) -> None:
        """External data by a link that leads out: of the file, of its folder, or a second name of it."""
        way = self._random.choice(("symbolic", "folder", "hard", "chain"))
        if way == "symbolic":
            (folder / "w.bin").symlink_to(self._outside)
        elif way == "hard":
            (folder / "w.bin").hardlink_to(self._outside)
        elif way == "chain":
            (folder / "w.bin").symlink_to("v.bin")
            (folder / "v.bin").symlink_to(self._outside)
        else:
            (folder / "d").symlink_to(self._outside.parent)
        _write(folder, external(f"d/{self._outside.name}" if way == "folder" else "w.bin"))

    def escape_by_device(self, folder: Path) -> None:
        """External data, or the model, that is no file: a pipe that nobody writes, a device."""
        name = self._random.choice(("w.bin", _MODEL_FILE))
        if name != _MODEL_FILE:
            _write(folder, external("w.bin"))
        if self._random.random() < 0.5:
            os.mkfifo(folder / name)
        else:
            (folder / name).symlink_to("/dev/zero")

    def lying_sizes(self, folder: Path) -> None:
        """Tensors whose dimensions, bytes, offsets and lengths do not fit each other."""
        (folder / "w.bin").write_bytes(bytes(8))
        lie = str(self._random.choice((-1, 0, 1, 4, 2**31, 2**50, 2**63 - 1, -(2**63))))
        key = self._random.choice(("offset", "length"))
        dims = self._random.choice(([2], [-1], [2**40], [2**32, 2**32], [0], [2**62, 4], []))
        is_outside = self._random.random() < 0.5
        _write(folder, external("w.bin", dims, {key: lie}) if is_outside else _with_weights(dims, bytes(8)))

    def texts(self, folder: Path) -> None:
        """A model that is well among texts that are not."""
        _write(folder, scaled())
        place = self._random.choice(("1/manifest.json", "1/SHA256SUMS", "model.toml", "labels.json", "traffic.json"))
        text = self._random.choice((b"", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe\0", b"x = 1" * 9, b"9" * 5_000))
        (folder.parent / place).write_bytes(text)

    def nested(self, folder: Path) -> None:
        """Graphs within graphs."""
        _write(folder, nested(self._random.choice((10, 60, 70, 2_000))))

    def endless(self, folder: Path) -> None:
        """A loop without an end."""
        _write(folder, endless())

    def bomb(self, folder: Path) -> None:
        """A few bytes that want a terabyte: when it runs, or while its constants are folded."""
        _write(folder, bomb(is_constant=self._random.random() < 0.5))

    def deadly(self, folder: Path) -> None:
        """A quotient of constants that is none: the runtime folds it as it loads, and dies (SIGFPE)."""
        _write(folder, deadly())


_MAKERS: Final[Mapping[str, Callable[[HostileModels, Path], None]]] = {
    "cut off": HostileModels.cut_off,
    "flipped bits": HostileModels.flipped,
    "made-up fields": HostileModels.made_up,
    "random bytes": HostileModels.random_bytes,
    "escape by name": HostileModels.escape_by_name,
    "escape by link": HostileModels.escape_by_link,
    "escape by device": HostileModels.escape_by_device,
    "lying sizes": HostileModels.lying_sizes,
    "broken texts": HostileModels.texts,
    "nested graphs": HostileModels.nested,
    "endless loop": HostileModels.endless,
    "bomb": HostileModels.bomb,
    "deadly constant": HostileModels.deadly,
}

_KINDS: Final = tuple(kind for kind in _MAKERS if kind not in ("endless loop", "bomb", "deadly constant"))


def put_good_models(root: Path) -> None:
    """Puts the innocent's model and those that are attacked into a repository."""
    for name, content in {INNOCENT: scaled(), "victim": scaled(), "rows": gather(), "words": words()}.items():
        folder = root / name / "1"
        folder.mkdir(parents=True)
        _write(folder, content)


def scaled() -> bytes:
    """x FP32 (B, 2) -> y = 2 x."""
    return _model([helper.make_node("Mul", ["x", "two"], ["y"])], {"two": np.array(2, np.float32)})


def gather() -> bytes:
    """index INT64 (B) in -5..4 -> y FP32 (B, 2): rows of a table; any other index is refused."""
    index = helper.make_tensor_value_info("index", TensorProto.INT64, ("B",))
    nodes = [helper.make_node("Gather", ["table", "index"], ["y"])]
    return _model(nodes, {"table": np.arange(10, dtype=np.float32).reshape(5, 2)}, [index])


def words() -> bytes:
    """x BYTES (B, 2) -> y, the same."""
    values = [helper.make_tensor_value_info(name, TensorProto.STRING, ("B", 2)) for name in ("x", "y")]
    return _model([helper.make_node("Identity", ["x"], ["y"])], {}, values[:1], values[1:])


def endless() -> bytes:
    """x -> y by a loop that goes on for ever."""
    inner = [
        helper.make_tensor_value_info("round", TensorProto.INT64, ()),
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, ()),
        _value("state"),
    ]
    outer = [helper.make_tensor_value_info("again", TensorProto.BOOL, ()), _value("next")]
    steps = [helper.make_node("Identity", ["go_on"], ["again"]), helper.make_node("Add", ["state", "one"], ["next"])]
    body = helper.make_graph(steps, "body", inner, outer)
    loop = helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body)
    return _model([loop], {"yes": np.array(True), "one": np.array(1, np.float32)})


def bomb(*, is_constant: bool) -> bytes:
    """x -> y = x + the sum of a terabyte."""
    grown = "one" if is_constant else "x"
    nodes = [
        helper.make_node("Expand", [grown, "size"], ["bomb"]),
        helper.make_node("ReduceSum", ["bomb"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    size = np.array([2**18, 2**19, 1, 2], np.int64)
    return _model(nodes, {"size": size, "one": np.ones((1, 1), np.float32)})


def deadly() -> bytes:
    """x -> y = x * (the lowest integer / -1)."""
    nodes = [
        helper.make_node("Div", ["lowest", "minus_one"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "factor"], ["y"]),
    ]
    return _model(nodes, {"lowest": np.array([-(2**31)], np.int32), "minus_one": np.array([-1], np.int32)})


def external(location: str, dims: Sequence[int] = (2,), entries: Mapping[str, str] | None = None) -> bytes:
    """x FP32 (B, 2) -> y = x + w, with w in the file `location`."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **(entries or {})}.items():
        tensor.external_data.add(key=key, value=value)
    return _model([helper.make_node("Add", ["x", "w"], ["y"])], {}, tensors=[tensor])


def nested(depth: int) -> bytes:
    """If within If, as deep as asked for; written from the inside out."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y0"])], "g", [], [_value("y0")]
    ).SerializeToString()
    for level in range(1, depth):
        attribute = b"\x0a\x0bthen_branch" + _field(6, graph) + b"\xa0\x01\x05"
        node = _field(1, b"yes") + _field(2, f"y{level}".encode()) + _field(4, b"If") + _field(5, attribute)
        graph = _field(1, node) + _field(2, b"g")
    return b"\x08\x0a" + _field(7, graph) + _field(8, b"\x10\x14")


def _with_weights(dims: Sequence[int], content: bytes) -> bytes:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=content)
    return _model([helper.make_node("Add", ["x", "w"], ["y"])], {}, tensors=[tensor])


def wide() -> bytes:
    """x FP32 (1, 1), s INT64 (2) -> y FP32 (a, b): x in the shape that s says."""
    describe = helper.make_tensor_value_info
    inputs = [describe("x", TensorProto.FLOAT, (1, 1)), describe("s", TensorProto.INT64, (2,))]
    outputs = [describe("y", TensorProto.FLOAT, ("a", "b"))]
    return _model([helper.make_node("Expand", ["x", "s"], ["y"])], {}, inputs, outputs)


def _model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, np.ndarray[Any, Any]],
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    tensors: Sequence[onnx.TensorProto] = (),
) -> bytes:
    initializers = [*tensors, *(numpy_helper.from_array(array, name) for name, array in weights.items())]
    graph = helper.make_graph(list(nodes), "g", inputs or [_value("x")], outputs or [_value("y")], initializers)
    opsets = [helper.make_opsetid("", _OPSET)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString())


def _value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ("B", 2))


def _field(number: int, content: bytes) -> bytes:
    length, rest = bytearray(), len(content)
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    return bytes((number << 3 | 2,)) + bytes(length) + bytes((rest,)) + content


def _write(folder: Path, content: bytes) -> None:
    (folder / _MODEL_FILE).write_bytes(content)
