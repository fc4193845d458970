"""The networks that are measured: this program's and the released one, with the same random weights."""

# B batch, T frames, H W pixels

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stadapter.backbones import CLIP_MEAN, CLIP_STD, quiet_loading, view_model
from stadapter.benchmark.config import BenchmarkConfig, Precision, Preset, TrunkName
from stadapter.benchmark.floors import Sizes
from stadapter.benchmark.released import Released, released_model
from stadapter.memory import forget_peak_memory
from stadapter.model import VideoClassifier, build_model, prepare_trunk
from stadapter.training.schedule import make_optimizer
from stadapter.tuning import LinearProbe, STAdapter
from stadapter.vit import BackboneInfo

NUM_CLASSES = 400
LABELS = tuple(f"class {index:03d}" for index in range(NUM_CLASSES))
_TRUNKS: dict[TrunkName, dict[str, int]] = {
    "b16": {"width": 768, "num_heads": 12, "num_blocks": 12, "patch_size": 16, "image_size": 224},
    "tiny": {"width": 64, "num_heads": 2, "num_blocks": 2, "patch_size": 16, "image_size": 64},
}
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def sizes_of(config: BenchmarkConfig, preset: Preset, device: torch.device) -> Sizes:
    """The sizes of a preset on the chosen trunk, and of a step's clips."""
    trunk = _TRUNKS[config.trunk]
    return Sizes(
        **trunk,
        mlp_width=4 * trunk["width"],
        bottleneck=trunk["width"] // 2,
        before_attention=preset == "24x384",
        before_mlp=True,
        num_images=config.num_frames * config.clips_of_a_step(device.type),
    )


def tuning_of(sizes: Sizes) -> STAdapter:
    """The strategy of a preset; without an activation, like the released code."""
    return STAdapter(
        width=sizes.bottleneck,
        before_attention=sizes.before_attention,
        before_mlp=sizes.before_mlp,
        activation=None,
    )


@dataclass(frozen=True)
class Networks:
    """A CLIP vision model with random weights, and the classifiers made from it."""

    vision: Any
    """The transformers model."""
    sizes: Sizes
    device: torch.device

    def ours(self, *, adapted: bool = True) -> VideoClassifier:
        """Our classifier, in fp32, as it is during training; or a linear probe of the bare trunk."""
        trunk, tuning = view_model(self.vision, _info(self.sizes)), tuning_of(self.sizes) if adapted else LinearProbe()
        model = build_model(backbone=trunk, labels=LABELS, tuning=tuning)
        disturb(model)
        return model.to(self.device)

    def released(self, released: Released, *, half: bool) -> nn.Module:
        """The released classifier with the same weights; frozen ones in fp16 if it computes in fp16, as upstream."""
        trained = self.ours().trained_tensors()
        model: nn.Module = released_model(
            released, self.vision.state_dict(), trained, sizes=self.sizes, num_classes=NUM_CLASSES
        )
        for parameter in model.parameters():
            if half and not parameter.requires_grad:
                parameter.data = parameter.data.half()
        return model.to(self.device)

    def clips(self, num_frames: int) -> Tensor:
        """Random normalised clips (B, T, 3, H, W)."""
        generator = torch.Generator().manual_seed(1)
        side, batch = self.sizes.image_size, self.sizes.num_images // num_frames
        return torch.randn(batch, num_frames, 3, side, side, generator=generator).to(self.device)

    def targets(self, num_frames: int) -> Tensor:
        """A class for each clip (B, 1)."""
        return torch.arange(self.sizes.num_images // num_frames, device=self.device)[:, None] % NUM_CLASSES


def make_networks(sizes: Sizes, device: torch.device) -> Networks:
    """Networks of these sizes, with weights that are a function of the sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Networks(make_vision(sizes), sizes, device)


def make_vision(sizes: Sizes) -> Any:
    """A transformers CLIP vision model with random weights, in eval mode."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp_width,
        num_hidden_layers=sizes.num_blocks,
        num_attention_heads=sizes.num_heads,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
    )
    model: Any = CLIPVisionModel(config)
    return model.eval().requires_grad_(False)


def save_vision(sizes: Sizes, folder: Path) -> Path:
    """Save such a model as a folder that `load_backbone` takes."""
    with quiet_loading():
        make_networks(sizes, torch.device("cpu")).vision.save_pretrained(folder)
    return folder


def disturb(module: nn.Module) -> None:
    """Give adapters that start as the identity an effect, as after some training."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and name.split(".")[-2] in ("down", "conv", "up"):
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device), alpha=0.02)


def ready(model: VideoClassifier, precision: Precision, *, training: bool) -> VideoClassifier:
    """The model as the training loop, or the classifier in use, sets it up for a precision."""
    prepare_trunk(model, next(model.parameters()).device, autocast_dtype(precision))
    return model.train(training)


def training_step(model: VideoClassifier, clips: Tensor, targets: Tensor) -> Callable[[], Tensor]:
    """One step as in the training loop, but without gradient clipping, like the released code; returns the loss."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = make_optimizer(trained, lr=0.0, weight_decay=0.0)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model.label_space.loss(model(clips), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def released_step(model: nn.Module, *, half: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """What the released main.py does with a batch (B, 3, T, H, W), without its metrics; returns the loss.

    In fp16 autocast with the loss scaled, or in fp32.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=0.0)
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    model.train()

    def step(clips: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16, enabled=half):
            logits = model(clips)
            loss = F.cross_entropy(logits, targets)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The autocast of a precision; none for fp32."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def autocast_dtype(precision: Precision) -> torch.dtype | None:
    """What is computed in besides fp32; None for fp32."""
    return DTYPES[precision] if precision != "fp32" else None


def runs_in_half(device: torch.device, precision: Precision) -> bool:
    """The released code trains in fp16 on a GPU; on a CPU it is measured in fp32 against all of ours."""
    return device.type == "cuda" and precision != "fp32"


def released_title(half: bool) -> str:
    """What the released side of a case is called."""
    return f"released, {'fp16' if half else 'fp32'}"


def forward_pass(model: nn.Module, clips: Tensor, dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
    """A call that returns the logits of clips, under autocast to a precision if one is given."""

    def forward() -> Tensor:
        with torch.autocast(clips.device.type, dtype) if dtype is not None else nullcontext():
            logits: Tensor = model(clips)
            return logits

    return forward


def inference(model: nn.Module, clips: Tensor, dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
    """The same without gradients."""
    return torch.inference_mode()(forward_pass(model, clips, dtype))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of everything that has one, by name."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def peak_bytes(step: Callable[[], object], model: nn.Module) -> int:
    """Peak GPU memory of a step: what the model and its optimizer hold, plus what the step takes."""
    step()
    forget_peak_memory(torch.device("cuda"))
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    trained = [p for p in model.parameters() if p.requires_grad]
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    own += sum(3 * p.numel() * p.element_size() for p in trained)  # a gradient and two moments
    return torch.cuda.max_memory_allocated() - before + own


def _info(sizes: Sizes) -> BackboneInfo:
    return BackboneInfo(
        name="random weights",
        family="clip_vision_model",
        revision=None,
        sha256="random weights",
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    )
