"""Small nets for sequences, tables and graph-free relations. Shapes: N rows, S steps, D width."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

WORDS: Final = 50


class Recurrent(nn.Module):
    """A classifier of token ids by an LSTM or a GRU, one or two ways, the last state as features."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], *, is_batch_first: bool = True, is_two_way: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 8)
        self.net = kind(8, 6, batch_first=is_batch_first, bidirectional=is_two_way, num_layers=2)
        self.head = nn.Linear(12 if is_two_way else 6, 3)
        self.is_batch_first = is_batch_first

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps int64 (N, S) to logits (N, 3)."""
        embedded = self.words(tokens)
        states = self.net(embedded if self.is_batch_first else embedded.transpose(0, 1))[0]
        last = states[:, -1] if self.is_batch_first else states[-1]
        logits: Tensor = self.head(last)
        return logits


class Pooled(nn.Module):
    """Self-attention by hand with a padding mask, and a mean over the tokens that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Maps tokens and mask, int64 (N, S) twice, to unit vectors (N, 8)."""
        x = self.words(tokens)
        is_padding = (mask == 0).to(x.dtype) * -1e4
        y = self.norm(x + self.attention(x, x, x, key_padding_mask=is_padding, need_weights=False)[0])
        weights = mask.unsqueeze(-1).to(y.dtype)
        return functional.normalize((y * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=-1)


class LastToken(nn.Module):
    """A causal net whose features are those of the last token that the mask has."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Maps tokens and mask, int64 (N, S) twice, to (N, 8)."""
        length = tokens.shape[1]
        causal = torch.full((length, length), -1e4).triu(1)
        y = self.block(self.words(tokens), src_mask=causal)
        last = (mask.sum(1) - 1).clamp(min=0)
        features: Tensor = y.gather(1, last.view(-1, 1, 1).expand(-1, 1, y.shape[2])).squeeze(1)
        return features


class LastTokenByRow(LastToken):
    """The same, by an index of rows beside an index of tokens: `y[arange(N), last]`."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Maps tokens and mask, int64 (N, S) twice, to (N, 8)."""
        y = self.block(self.words(tokens))
        last = (mask.sum(1) - 1).clamp(min=0)
        features: Tensor = y[torch.arange(y.shape[0]), last]
        return features


class Table(nn.Module):
    """Embeddings of categories beside scaled numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10, 4) for _ in range(3))
        self.mean = nn.Buffer(torch.arange(4.0))
        self.body = nn.Sequential(nn.Linear(16, 8), nn.SELU(), nn.Linear(8, 1))

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """Maps int64 (N, 3) and float (N, 4) to (N, 1)."""
        embedded = [table(categories[:, place]) for place, table in enumerate(self.tables)]
        answer: Tensor = self.body(torch.cat([*embedded, (numbers - self.mean) / 2.0], dim=1))
        return answer


class WideAndDeep(nn.Module):
    """Crossed weights beside a deep net; several inputs, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.EmbeddingBag(20, 1, mode="sum")
        self.deep = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1))
        self.users = nn.Embedding(10, 6)

    def forward(self, user: Tensor, crossed: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Maps int64 (N), int64 (N, 5) and float (N, 4) to probability and logit, (N, 1) twice."""
        wide = self.wide.weight[crossed].sum(1)
        logit = wide + self.deep(torch.cat([self.users(user), numbers], 1))
        return logit.sigmoid(), logit


class TwoTowers(nn.Module):
    """A user's row against the same row's item: a product row by row, not across."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 6)
        self.right = nn.Linear(5, 6)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Maps (N, 4) and (N, 5) to scores (N)."""
        return (functional.normalize(self.left(user), dim=1) * functional.normalize(self.right(item), dim=1)).sum(1)


class RowMatrix(nn.Module):
    """A product with the row's own candidates, (N, M, D) against (N, D)."""

    def forward(self, query: Tensor, candidates: Tensor) -> Tensor:
        """Maps (N, 4) and (N, 6, 4) to probabilities (N, 6)."""
        return torch.einsum("nd,nmd->nm", query, candidates).softmax(-1)


class Experts(nn.Module):
    """Every expert answers every row; the gate weights them. No capacity, so no row takes another's place."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(6, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 6) to (N, 4)."""
        top, place = self.gate(x).topk(2, dim=-1)
        weights = torch.zeros_like(self.gate(x)).scatter(1, place, top.softmax(-1))
        return (torch.stack([expert(x) for expert in self.experts], 1) * weights.unsqueeze(-1)).sum(1)


class Temporal(nn.Module):
    """A causal dilated convolution over time with weight of the row's own statistics (RevIN): forecasts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3, dilation=2)
        self.head = nn.Linear(4 * 8, 3)

    def forward(self, series: Tensor) -> Tensor:
        """Maps (N, 12) to (N, 3)."""
        mean, spread = series.mean(1, keepdim=True), series.std(1, keepdim=True) + 1e-3
        y = functional.relu(self.conv(((series - mean) / spread).unsqueeze(1)))
        forecast: Tensor = self.head(y.flatten(1))
        return forecast * spread + mean
