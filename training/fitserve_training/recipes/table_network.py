"""The network behind the columns of a table. Shapes: N rows, D numbers, K categories, F features, O outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fitserve_contract.columns import TableColumns
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.moments import column_of
from fitserve_training.recipes.own_data import scale, set_scale

EMBEDDING_SIZE = 8
"""Features of each category, whatever its number of values."""


class TableNetwork(nn.Module):
    """A network on numbers that may be missing, and on codes of categories.

    A missing number becomes the median of the training rows; where training rows lack it, a feature of its own says so.
    Numbers are brought to mean 0 and standard deviation 1, codes to embeddings of EMBEDDING_SIZE. Rows with an infinite
    number, which stands for text that is none, are answered with NaN.

    Args:
        columns: Of the table.
        network: Maps features (N, F) to (N, O).
        output_count: O.
    """

    median: Tensor
    mean: Tensor
    sd: Tensor
    output_mean: Tensor
    output_sd: Tensor
    optional: Tensor
    first_codes: Tensor

    def __init__(self, columns: TableColumns, network: nn.Module, output_count: int) -> None:
        super().__init__()
        self.network = network
        self._number_count, self._category_count = len(columns.numbers), len(columns.categories)
        for name, fill in (("median", 0.0), ("mean", 0.0), ("sd", 1.0)):
            self.register_buffer(name, torch.full((self._number_count,), fill))
        for name, fill in (("output_mean", 0.0), ("output_sd", 1.0)):
            self.register_buffer(name, torch.full((output_count,), fill))
        optional = [place for place, column in enumerate(columns.numbers) if column.has_missing]
        self.register_buffer("optional", torch.tensor(optional, dtype=torch.int64))
        counts = [column.code_count for column in columns.categories]
        self.register_buffer("first_codes", torch.tensor([0, *counts[:-1]], dtype=torch.int64).cumsum(0))
        self.embedding = nn.Embedding(sum(counts), EMBEDDING_SIZE) if counts else None

    @staticmethod
    def feature_count(columns: TableColumns) -> int:
        """Counts the features F of a table's columns."""
        optional_count = sum(column.has_missing for column in columns.numbers)
        return len(columns.numbers) + optional_count + EMBEDDING_SIZE * len(columns.categories)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Maps numbers (N, D) and codes int64 (N, K), as far as there are such columns, to outputs (N, O)."""
        features: list[Tensor] = []
        if self._number_count:
            is_missing = torch.isnan(inputs[0])
            numbers = torch.where(is_missing, self.median, inputs[0])
            features.append((numbers - self.mean) / self.sd)
            if len(self.optional):
                features.append(is_missing.index_select(1, self.optional).to(numbers.dtype))
        if self.embedding is not None:
            features.append(self.embedding(inputs[-1] + self.first_codes).flatten(1))
        outputs: Tensor = self.network(torch.cat(features, dim=1))
        outputs = outputs * self.output_sd + self.output_mean
        if not self._number_count:
            return outputs
        # 0 for numbers and NaN for infinities, which layers behind might lose.
        return outputs + (numbers * 0).sum(dim=1, keepdim=True)

    def _take_scaling(self, place: int, numbers: Tensor) -> None:
        median = numbers.nanmedian()
        wide = torch.where(torch.isnan(numbers), median, numbers).double()
        set_scale(self.mean[place], self.sd[place], wide.mean(), wide.std(correction=0))
        self.median[place] = median

    def take_scalings(self, data: DataSet) -> None:
        """Takes medians and scalings from the training rows; a code that none of them has stands for nothing."""
        if self._number_count:
            for place in range(self._number_count):
                self._take_scaling(place, column_of(data.train, place))
        if self.embedding is not None:
            seen = torch.zeros(self.embedding.num_embeddings, dtype=torch.bool)
            seen[(data.train.whole().inputs[-1].cpu() + self.first_codes.cpu()).flatten()] = True
            with torch.no_grad():
                self.embedding.weight[~seen] = 0
        if not data.class_names:
            scale(self.output_mean, self.output_sd, data.train.targets, [0])
