"""From the trunk's tokens to class scores."""

# B batch, T frames, N tokens, D width, C classes

from typing import Self

from torch import Tensor, nn


class FrameAverageHead(nn.Module):
    """Average over frames, the trunk's final norm, dropout, one linear layer: tokens (B, T, N, D) to logits (B, C).

    The class token is averaged over T; a trunk without one gives the mean over T and all patches. The norm comes
    **after** the average, as in the released ST-Adapter code.
    """

    def __init__(
        self, *, norm: nn.Module, width: int, num_classes: int, has_class_token: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm = norm
        self.has_class_token = has_class_token
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def train(self, mode: bool = True) -> Self:
        """Keep the norm, which is the trunk's own, in eval mode as the trunk is."""
        super().train(mode)
        self.norm.train(False)
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        features = tokens[:, :, 0].mean(1) if self.has_class_token else tokens.mean((1, 2))  # (B, D)
        logits: Tensor = self.classifier(self.dropout(self.norm(features)).to(self.classifier.weight.dtype))
        return logits
