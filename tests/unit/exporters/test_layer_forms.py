"""Attention, bags and differences are traced as forms that answer as torch, and whose rows are proved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from everyday_modules import Does, Everyday, check_served, publish
from torch import nn
from torch.nn import functional

from fitserve_exporters.graph import layer_forms
from fitserve_exporters.graph.layer_forms import attention, embedding_bag

SHAPES = [(5, 6), (2, 5, 6), (2, 3, 5, 6), (2, 3, 4, 5, 6), (2, 2, 3, 4, 5, 6)]


def masks(shape: tuple[int, ...]) -> list[torch.Tensor | None]:
    """Masks of every number of axes that torch takes."""
    sizes = (*shape[:-1], 7)
    whole = torch.rand(sizes) > 0.3
    whole[..., 1, :] = False
    narrow = [torch.rand(1, *sizes[1:])] if len(sizes) > 2 else []
    added = torch.where(whole, torch.rand(sizes), -torch.inf)
    return [None, torch.rand(sizes[-2:]), whole, added, *narrow]


class Masked(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_of_any_number_of_axes_is_torchs(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    key, value = torch.randn(*shape[:-2], 7, 6), torch.randn(*shape[:-2], 7, 4)
    axes: list[int] = []

    class Spied:
        @staticmethod
        def scaled_dot_product_attention(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            axes.append(query.ndim)
            return functional.scaled_dot_product_attention(query, *args, **kwargs)

    monkeypatch.setattr(layer_forms, "functional", Spied)

    query = torch.randn(shape)
    for mask in masks(shape):
        for args, kwargs in (
            ((query, key, value, mask), {}),
            ((query, key), {"value": value, "attn_mask": mask, "scale": 0.3}),
        ):
            expected = functional.scaled_dot_product_attention(*args, **kwargs)
            torch.testing.assert_close(attention(*args, **kwargs), expected)
    expected = functional.scaled_dot_product_attention(query, key, value, None, 0.0, True)
    torch.testing.assert_close(attention(query, key, value, None, 0.0, True), expected)
    assert set(axes) == {4}


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_are_torchs(mode: str) -> None:
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(9, 4, mode=mode)
    ids = torch.randint(0, 9, (3, 5))
    torch.testing.assert_close(embedding_bag(ids, bag.weight, mode=mode), bag(ids))
    torch.testing.assert_close(embedding_bag(ids, bag.weight, None, None, 2.0, False, mode), bag(ids))


@pytest.mark.parametrize("settings", [{"padding_idx": 1}, {"max_norm": 1.0}, {"offsets": torch.tensor([0])}], ids=str)
def test_other_bags_are_left_to_torch(settings: dict[str, Any]) -> None:
    assert embedding_bag(torch.tensor([[1, 2]]), torch.ones(3, 2), **settings) is NotImplemented


def test_bags_are_weighted_as_by_torch() -> None:
    torch.manual_seed(0)
    table, ids, weights = torch.randn(9, 4), torch.randint(0, 9, (3, 5)), torch.rand(3, 5)
    given = {"per_sample_weights": weights, "mode": "sum"}
    expected = functional.embedding_bag(ids, table, **given)
    torch.testing.assert_close(embedding_bag(ids, table, **given), expected)


@pytest.mark.parametrize("axes", [3, 4, 5])
def test_attention_is_published_as_joinable(tmp_path: Path, axes: int) -> None:
    shape = (5, *(2, 3)[: axes - 3], 6, 4)

    def attend(module: Any, x: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(module.query(x), x, x, is_causal=True)

    case = Everyday(lambda: Does(attend, query=nn.Linear(4, 4)), torch.randn(shape))
    published, module = publish(case, tmp_path)
    assert published.manifest.onnx["joining"] == "joinable"
    check_served(case, published, module)


@pytest.mark.parametrize("is_added", [False, True])
@pytest.mark.parametrize("axes", [3, 4])
def test_queries_without_any_key_are_answered_as_by_torch(tmp_path: Path, axes: int, is_added: bool) -> None:
    mask = torch.rand(5, 1, 6, 6) > 0.4
    mask[:, :, 2] = False
    mask = torch.where(mask, torch.rand(mask.shape), -torch.inf) if is_added else mask
    case = Everyday(
        Masked, {"x": torch.randn(5, *(2, 6, 4)[4 - axes :]), "mask": mask.squeeze(1) if axes == 3 else mask}
    )
    published, module = publish(case, tmp_path)
    assert not module(*case.example.values())[..., 2, :].any()
    assert published.manifest.onnx["joining"] == "joinable"
    check_served(case, published, module)


def test_bags_are_published_as_joinable(tmp_path: Path) -> None:
    case = Everyday(lambda: nn.EmbeddingBag(9, 4, mode="max"), torch.randint(0, 9, (5, 6)))
    published, module = publish(case, tmp_path)
    assert published.manifest.onnx["joining"] == "joinable"
    check_served(case, published, module)


DIFFERENCES: dict[str, Any] = {
    "1.0 - x": lambda _, x: (1.0 - x) * -10000.0,
    "rsub": lambda _, x: torch.rsub(x, 1.5, alpha=2),
    "integers": lambda _, x: 1 - x,
    "reals": lambda _, x: 1.0 - x.float(),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_integers_are_subtracted_from_numbers(tmp_path: Path, name: str) -> None:
    case = Everyday(lambda: Does(DIFFERENCES[name]), torch.randint(0, 2, (5, 6)))
    check_served(case, *publish(case, tmp_path))
