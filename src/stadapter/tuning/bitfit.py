"""BitFit: only the biases learn (Ben Zaken, Goldberg, Ravfogel, ACL 2022, arXiv 2106.10199)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stadapter.errors import SettingsError

if TYPE_CHECKING:
    from stadapter.vit import ImageViT


@dataclass(frozen=True)
class BitFit:
    """BitFit (arXiv 2106.10199): train every bias of the trunk, including the norms'; blind to the order of frames.

    All biases learn, as published. A key's bias adds the same amount to all scores of a query, which the softmax
    cancels: it is counted and saved, but changes nothing.
    """

    def apply(self, vit: "ImageViT") -> None:
        """Let every bias learn, in fp32 and in its own storage.

        Raises:
            SettingsError: the trunk has none.
        """
        biases = [parameter for name, parameter in vit.weights().items() if name.endswith(".bias")]
        if not biases:
            raise SettingsError("BitFit on a trunk without biases trains nothing; choose another strategy")
        vit.unfreeze(biases)
