"""From the trunk's tokens to class scores."""

# B batch, T frames, N tokens, D width, C classes, H heads of the attention

from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from stadapter.errors import SettingsError
from stadapter.layers import TimeEmbedding


class FrameAverageHead(nn.Module):
    """Average over frames, the trunk's final norm, dropout, one linear layer: tokens (B, T, N, D) to logits (B, C).

    The class token is averaged over T; for a trunk without one, the mean is over T and all patches. The norm comes
    **after** the average, as in the released ST-Adapter code.
    """

    name: ClassVar[str] = "frame-average"

    def __init__(
        self, *, norm: nn.Module, width: int, num_classes: int, has_class_token: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm = norm
        self.has_class_token = has_class_token
        self.dropout = nn.Dropout(dropout)
        self.classifier = make_classifier(width, num_classes)

    @property
    def reads_patches(self) -> bool:
        """Whether it needs more of the last block's tokens than the prefix tokens."""
        return not self.has_class_token

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but keep the norm, which is the trunk's own, in eval mode like the trunk."""
        super().train(mode)
        self.norm.train(False)
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        features = tokens[:, :, 0].mean(1) if self.has_class_token else tokens.mean((1, 2))  # (B, D)
        logits: Tensor = self.classifier(self.dropout(self.norm(features)).to(self.classifier.weight.dtype))
        return logits


class AttentivePoolingHead(nn.Module):
    """One learned query attends over all tokens of all frames: tokens (B, T, N, D) to logits (B, C).

        tokens ─► trunk's norm (+ time) ─► keys, values ─► attention of the query ─► output ─► norm ─► linear layer

    Attention itself sums over tokens regardless of their order: only the time embedding tells frames apart.
    """

    name: ClassVar[str] = "attentive-pooling"
    reads_patches: ClassVar[bool] = True

    def __init__(
        self,
        *,
        norm: nn.Module,
        width: int,
        num_classes: int,
        num_heads: int,
        num_frames: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise SettingsError(f"num_heads {num_heads}: expected a number that divides the trunk's width, {width}")
        self.norm = norm
        self.num_heads = num_heads
        self.time_embedding = TimeEmbedding(num_frames=num_frames, width=width) if num_frames is not None else None
        self.query = nn.Parameter(torch.empty(num_heads, 1, width // num_heads))
        self.key = nn.Linear(width, width, bias=False)  # the softmax would cancel its bias
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.trunc_normal_(self.query, std=0.02)
        for layer in (self.key, self.value, self.output):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        for layer in (self.value, self.output):
            nn.init.zeros_(layer.bias)
        self.pooled_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = make_classifier(width, num_classes)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but keep the first norm, which is the trunk's own, in eval mode like the trunk."""
        super().train(mode)
        self.norm.train(False)
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens)
        if self.time_embedding is not None:
            tokens = tokens + self.time_embedding(tokens.shape[1])[:, None].to(tokens.dtype)
        tokens = tokens.flatten(1, 2)  # (B, T*N, D)
        keys, values = self._by_head(self.key(tokens)), self._by_head(self.value(tokens))  # (B, H, T*N, D/H)
        # Plain products: with a single query a fused kernel saves nothing.
        scores = self.query.to(keys.dtype) @ keys.transpose(2, 3) * self.query.shape[2] ** -0.5  # (B, H, 1, T*N)
        pooled = (scores.softmax(-1).to(values.dtype) @ values).flatten(1)  # (B, D)
        features = self.dropout(self.pooled_norm(self.output(pooled)))
        logits: Tensor = self.classifier(features.to(self.classifier.weight.dtype))
        return logits

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


Head = FrameAverageHead | AttentivePoolingHead


def make_classifier(width: int, num_classes: int) -> nn.Linear:
    """The last layer of every head, with fresh weights."""
    classifier = nn.Linear(width, num_classes)
    nn.init.normal_(classifier.weight, std=0.02)
    nn.init.zeros_(classifier.bias)
    return classifier
