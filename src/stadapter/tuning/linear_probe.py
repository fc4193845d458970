"""Linear probe: the trunk stays as it is, and only the classifier learns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stadapter.vit import ImageViT


@dataclass(frozen=True)
class LinearProbe:
    """Train only the classifier, on the frozen trunk's averaged features: blind to the order of frames."""

    def apply(self, vit: "ImageViT") -> None:
        """Change nothing: the trunk is already frozen."""
