"""What needs a model hub: run with HF_HUB_OFFLINE=0 and `-m network`."""

import pytest
import torch

from stadapter.backbones import load_backbone

pytestmark = pytest.mark.network


@pytest.mark.parametrize(
    ("name", "width"),
    [("facebook/dinov2-small", 384), ("openai/clip-vit-base-patch32", 768), ("google/siglip-base-patch16-224", 768)],
)
def test_a_published_trunk_loads_from_the_hub(name: str, width: int) -> None:
    vit = load_backbone(name)
    side = vit.info.patch_size * 4
    assert vit(torch.zeros(1, 2, 3, side, side)).shape == (1, 2, 16 + vit.num_prefix, width)
    assert vit.info.revision
