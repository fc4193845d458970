"""From tokens to scores: the heads against what torch computes from the same weights."""

import torch
import torch.nn.functional as F
from torch import nn

from stadapter.heads import AttentivePoolingHead, FrameAverageHead

TOKENS = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))  # (B, T, N, D)


def test_attentive_pooling_is_torchs_attention_of_one_query_over_all_tokens() -> None:
    head = AttentivePoolingHead(norm=nn.LayerNorm(8), width=8, num_classes=3, num_heads=2, num_frames=3)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    assert head.time_embedding is not None
    tokens = (head.norm(TOKENS) + head.time_embedding.weight[:, None]).flatten(1, 2)  # (B, T*N, D)
    keys, values = (layer(tokens).unflatten(2, (2, 4)).transpose(1, 2) for layer in (head.key, head.value))
    attended = F.scaled_dot_product_attention(head.query.expand(2, -1, -1, -1), keys, values)  # (B, H, 1, D/H)
    expected = head.classifier(head.pooled_norm(head.output(attended.flatten(1))))
    torch.testing.assert_close(head(TOKENS), expected)


def test_the_frame_average_is_of_class_tokens_and_without_them_of_patches() -> None:
    for has_class_token, features in ((True, TOKENS[:, :, 0].mean(1)), (False, TOKENS.flatten(1, 2).mean(1))):
        head = FrameAverageHead(norm=nn.LayerNorm(8), width=8, num_classes=3, has_class_token=has_class_token)
        torch.testing.assert_close(head(TOKENS), head.classifier(head.norm(features)))
        assert head.reads_patches is not has_class_token
