"""What is traced in place of torch's functions answers as they do, and has an ONNX form whose rows are proved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from everyday_modules import Does, Everyday, check_served, publish
from torch import nn
from torch.nn import functional

from fitserve_exporters.graph.equivalents import attention, embedding_bag

SHAPES = [(5, 6), (2, 5, 6), (2, 3, 5, 6), (2, 3, 4, 5, 6), (2, 2, 3, 4, 5, 6)]


def masks(shape: tuple[int, ...]) -> list[torch.Tensor | None]:
    """Masks of every number of axes that torch takes."""
    sizes = (*shape[:-1], 7)
    whole = torch.rand(sizes) > 0.3
    narrow = [torch.rand(1, *sizes[1:])] if len(sizes) > 2 else []
    return [None, torch.rand(sizes[-2:]), whole, *narrow]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_of_any_number_of_axes_is_torchs(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    key, value = torch.randn(*shape[:-2], 7, 6), torch.randn(*shape[:-2], 7, 4)
    axes: list[int] = []

    def spied(*args: Any, **kwargs: Any) -> torch.Tensor:
        axes.append((args[0] if args else kwargs["query"]).ndim)
        return functional.scaled_dot_product_attention(*args, **kwargs)

    query = torch.randn(shape)
    for mask in masks(shape):
        for args, kwargs in (
            ((query, key, value, mask), {}),
            ((query, key), {"value": value, "attn_mask": mask, "scale": 0.3}),
        ):
            expected = functional.scaled_dot_product_attention(*args, **kwargs)
            torch.testing.assert_close(attention(spied, args, kwargs), expected)
    expected = functional.scaled_dot_product_attention(query, key, value, None, 0.0, True)
    torch.testing.assert_close(attention(spied, (query, key, value, None, 0.0, True), {}), expected)
    assert set(axes) == {4}


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("settings", [{}, {"padding_idx": 1}, {"max_norm": 1.0}], ids=str)
def test_bags_are_torchs(mode: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(9, 4, mode=mode, **settings)
    ids = torch.randint(0, 9, (3, 5))
    given = {"mode": mode, **settings}
    torch.testing.assert_close(embedding_bag(functional.embedding_bag, (ids, bag.weight), given), bag(ids))


def test_bags_are_weighted_as_by_torch() -> None:
    torch.manual_seed(0)
    table, ids, weights = torch.randn(9, 4), torch.randint(0, 9, (3, 5)), torch.rand(3, 5)
    given = {"per_sample_weights": weights, "mode": "sum"}
    expected = functional.embedding_bag(ids, table, **given)
    torch.testing.assert_close(embedding_bag(functional.embedding_bag, (ids, table), given), expected)


@pytest.mark.parametrize("axes", [3, 4, 5])
def test_attention_is_published_as_joinable(tmp_path: Path, axes: int) -> None:
    shape = (5, *(2, 3)[: axes - 3], 6, 4)

    def attend(module: Any, x: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(module.query(x), x, x, is_causal=True)

    case = Everyday(lambda: Does(attend, query=nn.Linear(4, 4)), torch.randn(shape))
    published, module = publish(case, tmp_path)
    assert published.manifest.onnx["joining"] == "joinable"
    check_served(case, published, module)


def test_bags_are_published_as_joinable(tmp_path: Path) -> None:
    case = Everyday(lambda: nn.EmbeddingBag(9, 4, mode="max"), torch.randint(0, 9, (5, 6)))
    published, module = publish(case, tmp_path)
    assert published.manifest.onnx["joining"] == "joinable"
    check_served(case, published, module)
