"""The frozen part of a run: the first blocks, if none of them is trained, and the tokens they give for every view."""

# B batch, T frames, N tokens, D width

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stadapter.clips import ClipConfig
from stadapter.errors import SettingsError
from stadapter.machine import describe_device
from stadapter.model import VideoClassifier, fastest_attention
from stadapter.paths import expanded
from stadapter.products import has_fast_kernel
from stadapter.samples import Batch, all_tokens
from stadapter.token_cache import TokenCache, default_folder
from stadapter.training.settings import TrainConfig
from stadapter.wording import counted

DEFAULT_GIGABYTES = 8.0
_NOTHING_FROZEN = (
    "this strategy already changes the first block; linear-probe, attentive-pooling and partial leave the first blocks "
    "as they are, and so do st-adapter, bottleneck and lora with --tuning.last-blocks"
)


@dataclass(frozen=True)
class FrozenPart:
    """The part of a model that stays the same throughout a run, and whether its tokens are worth keeping for reuse."""

    config: TrainConfig
    model: VideoClassifier
    clip_config: ClipConfig
    device: torch.device
    autocast_dtype: torch.dtype | None

    @property
    def num_blocks(self) -> int:
        """How many of the first blocks are frozen, or 0 if the embeddings are not."""
        return self.model.trunk.num_frozen_blocks()

    @property
    def room_bytes(self) -> int:
        """The most bytes that may be kept; 0 if nothing is kept, because nothing is reused or the user wants none."""
        if self.config.views_per_clip is None or not self.num_blocks:
            return 0
        given = self.config.token_cache_gigabytes
        return int(1e9 * (given if given is not None else DEFAULT_GIGABYTES))

    @property
    def folder(self) -> Path:
        """The folder of the cache."""
        given = self.config.token_cache_folder
        return expanded(given) if given is not None else default_folder()

    def check(self) -> None:
        """Refuse a cache that was requested but would stay empty.

        Raises:
            SettingsError: views are not reused, or no block gives them the same tokens again.
        """
        asked = self.config.token_cache_gigabytes
        if not asked or self.room_bytes:
            return
        reasons = [] if self.num_blocks else [_NOTHING_FROZEN]
        if self.config.views_per_clip is None:
            reasons.append("views of a clip are not reused without --views-per-clip")
        raise SettingsError(f"token_cache_gigabytes {asked:g} would keep nothing: {'; '.join(reasons)}")

    def cache(self) -> TokenCache | None:
        """The cache of tokens, if they are kept; opens nothing."""
        if not self.room_bytes:
            return None
        return TokenCache(self.folder, scope=self.scope(), max_bytes=self.room_bytes)

    def scope(self) -> dict[str, Any]:
        """What determines a view's tokens besides the view: any change here changes them, if only in rounding."""
        import av
        import numpy
        import PIL
        import transformers

        from stadapter import __version__

        clip, on_cpu = dataclasses.asdict(self.clip_config), self.device.type == "cpu"
        of_tests = ("num_temporal_views", "num_spatial_views")
        return {
            "backbone_sha256": self.model.trunk.info.sha256,
            "configuration": _that_computes(self.model.trunk.configuration or {}),
            "num_blocks": self.num_blocks,
            "reads_patches": self.model.head.reads_patches,
            "precision": str(self.autocast_dtype),
            "attention": fastest_attention(self.device, self.autocast_dtype),
            "is_compiled": self.config.compile,
            "device": torch.backends.cpu.get_cpu_capability() if on_cpu else describe_device(self.device),
            "fp32_by_onednn": on_cpu and has_fast_kernel(torch.ones(1)),
            "clip": {name: value for name, value in clip.items() if name not in of_tests},
            "augmentation": dataclasses.asdict(self.config.augmentation),
            "versions": [__version__, *(module.__version__ for module in (torch, transformers, av, numpy, PIL))],
        }

    def tokens(self, batch: Batch, cache: TokenCache | None = None) -> Tensor:
        """The tokens (B, T, N, D) of a batch: those in the cache are read, the others computed and added to it."""
        computed = self.compute(batch["clips"]) if batch["keys"] else None
        if cache is not None and computed is not None:
            cache.put(batch["keys"], computed)
        return all_tokens(batch, computed).to(self.device)

    def compute(self, clips: Tensor) -> Tensor:
        """The tokens (B, T, N, D) of clips (B, T, 3, H, W), uint8 or normalised."""
        return self.model.frozen_tokens(self.model.normalise(clips))

    def describe(self, *, num_clips: int, num_epochs: int, num_held_out: int) -> list[str]:
        """What reusing views saves, if they are reused, in a line; `num_held_out` clips are validated on the way."""
        count, blocks = self.config.views_per_clip, counted(len(self.model.trunk.blocks), "block")
        if count is None:
            return self._unused_folder("views are not reused without --views-per-clip")
        views = f"{counted(count, 'view')} per clip"
        if not self.room_bytes:
            told = views if self.num_blocks else f"{views}, and no tokens to keep: {_NOTHING_FROZEN}"
            return [told, *self._unused_folder("no tokens are kept")]
        num_views = num_clips * min(count, num_epochs) + num_held_out * self.clip_config.num_views
        size, room = num_views * self._view_bytes(), self.room_bytes
        return [
            f"{views}: the first {self.num_blocks} of {blocks} run once per view; their tokens, {size / 1e9:.2g} GB of "
            f"at most {room / 1e9:.3g} GB, are kept in {self.folder}"
        ]

    def _unused_folder(self, why: str) -> list[str]:
        given = self.config.token_cache_folder
        return [f"--token-cache-folder {given} is not used here: {why}"] if given is not None else []

    def _view_bytes(self) -> int:
        trunk, clip = self.model.trunk, self.clip_config
        reads_prefix = self.num_blocks == len(trunk.blocks) and not self.model.head.reads_patches
        patches = 0 if reads_prefix else (clip.size // trunk.info.patch_size) ** 2
        num_tokens = clip.num_frames * (trunk.num_prefix + patches)
        return num_tokens * trunk.width * (self.autocast_dtype or torch.float32).itemsize


def _that_computes(configuration: Mapping[str, Any]) -> dict[str, str]:
    """The part of a pre-trained model's configuration that may affect its tokens: all but its names and storage."""
    return {
        name: str(value)
        for name, value in sorted(configuration.items())
        if not name.startswith("_") and name not in ("dtype", "transformers_version", "architectures")
    }
