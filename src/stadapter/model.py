"""A trunk, a strategy and a head put together: the video classifier."""

# B batch, V views, T frames, C classes, H W pixels

import numbers
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stadapter.backbones import load_backbone
from stadapter.errors import ArtefactError, SettingsError
from stadapter.heads import FrameAverageHead, Head
from stadapter.labels import Labels, LabelSpace
from stadapter.machine import copies_asynchronously
from stadapter.tuning import MakesHead, STAdapter, Tuning, checked_tuning
from stadapter.vit import ImageViT, share_weights
from stadapter.wording import listed

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ParameterCount:
    """How many scalars a model trains, out of how many it has."""

    trained: int
    total: int

    def __str__(self) -> str:
        percent = 100 * self.trained / self.total
        return f"trained {self.trained:,} of {self.total:,} parameters ({percent:.2f} %)"


class VideoClassifier(nn.Module):
    """A frozen image trunk with something small that learns, and names for its output classes.

    `forward` takes normalised float clips (B, T, 3, H, W) and returns fp32 logits (B, C); T, H and W are free as long
    as the patch size divides H and W. With several heads, such as verb and noun, C counts the classes of all;
    `label_space` splits them.

    Its head holds the trunk's own final norm. `torch.func.functional_call` therefore needs tie_weights=False: torch
    would set the norm twice and restore it wrongly.
    """

    mean: Tensor
    std: Tensor
    dtype: torch.dtype
    """What the frozen weights are stored and computed in; unless it is fp32, `forward` runs under autocast."""

    def __init__(self, *, trunk: ImageViT, head: Head, tuning: Tuning, labels: Labels) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.tuning = tuning
        self.label_space = LabelSpace.of(labels)
        self.dtype = torch.float32
        self.trained_names = frozenset(name for name, each in self.named_parameters() if each.requires_grad)
        """The parameters that the strategy trains, whatever has been frozen or unfrozen by hand since."""
        self.register_buffer("mean", torch.tensor(trunk.info.mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(trunk.info.std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the logits; with several heads each is prefixed by the name of its head."""
        return self.label_space.labels

    def forward(self, clips: Tensor) -> Tensor:
        with self._autocast():
            logits: Tensor = self.head(self.trunk(clips, prefix_only=not self.head.reads_patches))
            return logits.float()

    def frozen_tokens(self, clips: Tensor) -> Tensor:
        """The output for clips of the part of the trunk that never changes, without gradients, as input for `finish`.

        (B, T, N, D); if the whole trunk is frozen and the head reads only the prefix tokens, N is their number.
        """
        with torch.no_grad(), self._autocast():
            return self.trunk.frozen_tokens(clips, prefix_only=not self.head.reads_patches)

    def finish(self, tokens: Tensor, *, height: int, width: int) -> Tensor:
        """The logits that `forward` gives clips of `height` x `width` pixels, from their `frozen_tokens`."""
        reads_prefix = not self.head.reads_patches
        with self._autocast():
            logits: Tensor = self.head(self.trunk.finish(tokens, height=height, width=width, prefix_only=reads_prefix))
            return logits.float()

    def _autocast(self) -> AbstractContextManager[object]:
        """No autocast for fp32, so that one around the model takes effect."""
        return torch.autocast(self.mean.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()

    def normalise(self, clips: Tensor) -> Tensor:
        """uint8 clips (..., 3, H, W) to normalised fp32, on the model's device; float clips pass unchanged."""
        clips = clips.to(self.mean.device, non_blocking=copies_asynchronously(self.mean.device))
        if clips.is_floating_point():
            return clips
        return (clips.float() / 255 - self.mean) / self.std

    def trained_tensors(self) -> dict[str, Tensor]:
        """The parameters that the strategy trains, by name: all that an artefact stores."""
        return {name: parameter for name, parameter in self.named_parameters() if name in self.trained_names}

    def load_trained(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into the parameters that the strategy trains, by the names of `trained_tensors`.

        Raises:
            ArtefactError: a tensor is missing, unknown or of another shape; then nothing has been copied.
        """
        ours = self.trained_tensors()
        problems = [f"missing: {name}" for name in sorted(ours.keys() - tensors.keys())]
        problems += [f"unknown: {name}" for name in sorted(tensors.keys() - ours.keys())]
        problems += [
            f"{name}: shape {tuple(tensors[name].shape)}, expected {tuple(ours[name].shape)}"
            for name in sorted(ours.keys() & tensors.keys())
            if tensors[name].shape != ours[name].shape
        ]
        if problems:
            raise ArtefactError(
                f"the trained tensors do not fit the model, {len(problems)} mismatched: "
                f"{listed(problems, separator='; ')}; it needs the tuning, trunk and labels they were trained with"
            )
        with torch.no_grad():
            for name, parameter in ours.items():
                parameter.copy_(tensors[name])

    def cast_trunk(self, dtype: torch.dtype) -> None:
        """Store the frozen weights of the trunk as `dtype`, for example bf16, and compute in it from then on.

        What learns keeps its fp32 masters. Buffers (position tables) stay as they are, and so does every other model
        on the same trunk.
        """
        self.dtype = dtype
        for module in self.trunk.modules():
            own = list(module.parameters(recurse=False))
            learns = isinstance(module, nn.LayerNorm) and any(parameter.requires_grad for parameter in own)
            for parameter in own:
                if parameter.is_floating_point() and not parameter.requires_grad:
                    # A CPU cannot compute a norm if only its bias is fp32.
                    parameter.data = parameter.data.to(torch.float32 if learns else dtype)

    def count_parameters(self) -> ParameterCount:
        """Trained and total scalars; the whole trunk counts."""
        parameters = list(self.parameters())
        return ParameterCount(
            trained=sum(p.numel() for p in parameters if p.requires_grad), total=sum(p.numel() for p in parameters)
        )


class Finisher(nn.Module):
    """The trainable part of a classifier as a module, for wrappers of modules: `frozen_tokens` to logits.

    It holds the classifier itself, so that the same parameters learn.
    """

    def __init__(self, model: VideoClassifier, *, size: int) -> None:
        """`size` is the side of the clips, in pixels."""
        super().__init__()
        self.model, self.size = model, size

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.finish(tokens, height=self.size, width=self.size)


def build_model(
    *,
    backbone: ImageViT | str | os.PathLike[str],
    labels: Labels,
    tuning: Tuning | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> VideoClassifier:
    """Put a video classifier together, in fp32, on the device of its trunk.

    Args:
        backbone: a loaded trunk, which stays as it is and shares its weights with the new model; or anything that
            `load_backbone` takes. On one in bf16 or fp16 the model computes in that precision, and otherwise in fp32;
            what learns is always fp32. To train more of the model's trunk by hand, pass those parameters to
            `model.trunk.unfreeze`, which gives them memory of their own: others on the trunk would change along.
        labels: class names, in the order of the logits; or those of several heads, {"verb": [...], "noun": [...]}.
        tuning: the strategy; by default `STAdapter()`.
        dropout: before the classifier, 0 to 1.
        seed: for the fresh weights; the global random state is left alone.

    Raises:
        BackboneError: the trunk cannot be loaded.
        SettingsError: fewer than two labels, a repeated label or one that is no text, an already adapted trunk, or
            bad settings.
    """
    space = LabelSpace.of(labels)
    space.check()
    if not isinstance(dropout, numbers.Real) or not 0 <= dropout < 1:
        raise SettingsError(f"dropout {dropout!r}: expected at least 0 and less than 1")
    if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**63:
        raise SettingsError(f"seed {seed!r}: expected a whole number from 0 to below 2**63")
    tuning = tuning if tuning is not None else STAdapter()
    tuning = checked_tuning(tuning)
    loaded = backbone if isinstance(backbone, ImageViT) else load_backbone(backbone)
    loaded.lay_weights_side_by_side()
    trunk = share_weights(loaded)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))  # torch.manual_seed would also seed the accelerators
        tuning.apply(trunk)
        head = make_head(trunk, tuning, num_classes=sum(space.sizes), dropout=dropout)
    trunk.pack()
    model = VideoClassifier(trunk=trunk, head=head, tuning=tuning, labels=space).to(next(trunk.parameters()).device)
    if trunk.dtype not in _HALF:
        return model.to(torch.float32)  # whatever torch's default is for new tensors; a trunk in fp64 stays as it is
    for parameter in model.trained_tensors().values():
        parameter.data = parameter.data.float()
    model.cast_trunk(trunk.dtype)
    return model


def make_head(trunk: ImageViT, tuning: Tuning, *, num_classes: int, dropout: float) -> Head:
    """The strategy's own head, or the average over frames."""
    if isinstance(tuning, MakesHead):
        return tuning.make_head(trunk, num_classes=num_classes, dropout=dropout)
    return FrameAverageHead(
        norm=trunk.norm,
        width=trunk.width,
        num_classes=num_classes,
        has_class_token=trunk.has_class_token,
        dropout=dropout,
    )


def prepare_trunk(model: VideoClassifier, device: torch.device, autocast_dtype: torch.dtype | None) -> None:
    """Give the frozen weights the precision, and the attention the kernel, that are fastest on a device."""
    if autocast_dtype is not None:
        model.cast_trunk(autocast_dtype)
    model.trunk.use_attention(fastest_attention(device, autocast_dtype))


def fastest_attention(device: torch.device, autocast_dtype: torch.dtype | None) -> Literal["sdpa", "eager"]:
    """The kernel of the frozen attention that trains fastest."""
    # On a CPU the fused bf16 kernel is slower than plain products, its backward pass several times (docs/log.md).
    return "eager" if device.type == "cpu" and autocast_dtype is not None else "sdpa"
