"""What is measured, at which sizes."""

from dataclasses import dataclass
from typing import Literal

from stadapter.errors import SettingsError
from stadapter.field_types import check_at_least_1, check_types

Part = Literal["adapter", "model", "scale", "clips", "loop", "cold-start"]
Preset = Literal["12x384", "24x384"]
TrunkName = Literal["b16", "tiny"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure this program against the released ST-Adapter code and against the hardware's limit: equality is verified
    first, then all sides take turns. The exit code is 1 if anything is not equal."""

    parts: tuple[Part, ...] = ("adapter", "model", "clips", "loop", "cold-start")
    """What to measure: the adapter by itself, the whole model, loading clips, the training loop, starting the command;
    scale is the step also with gradient checkpointing and torch.compile, and copies to a GPU."""
    reference: str | None = None
    """Checkout of the released code (github.com/linziyi96/st-adapter) to measure against; default: none."""
    presets: tuple[Preset, ...] = ("12x384", "24x384")
    """Adapters before every MLP (the released Kinetics model), or also before attention (Something-Something-v2)."""
    trunk: TrunkName = "b16"
    """Size of the trunk, with random weights: b16 is CLIP's ViT-B/16 at 224 pixels, tiny is for a quick trial."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    """Precisions of this program to measure."""
    batch_size: int | None = None
    """Clips per step; default: 1 on a CPU, 32 on a GPU."""
    num_frames: int = 8
    """Frames per clip."""
    clip_heights: tuple[int, ...] = (240, 480, 1080)
    """Heights in pixels of the videos to load, made on the spot, 16:9."""
    clip_frames: tuple[int, ...] = (64, 300)
    """Lengths in frames of the videos to load."""
    clip_gops: tuple[int, ...] = (12, 250)
    """Frames from one keyframe to the next in the videos to load."""
    loop_clips: int | None = None
    """Videos that the training loop is measured with, of 64 frames and 240 pixels in height; default: 4 on a CPU, 1024
    on a GPU."""
    repeats: int = 5
    """Rounds in which all sides take turns; medians over the rounds are reported."""
    threads: int | None = None
    """Threads that torch computes with; default: torch's own choice."""
    device: str = "auto"
    """Where the adapter, the model and the loop are measured: auto, cpu, cuda."""
    max_reference_gib: float = 4.0
    """Memory in GiB that the released code may take to load a clip; it keeps whole videos as floats."""
    json: str | None = None
    """Write everything to this file, as JSON; - for standard output."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise SettingsError("no parts given: expected some; leave --parts out to measure all")
        check_types(self)
        check_at_least_1(self, "num_frames", "repeats", "batch_size", "loop_clips", "threads")
        if bad := [height for height in self.clip_heights if height < 64 or height % 2]:
            raise SettingsError(f"clip_heights {bad}: expected even numbers of pixels, 64 or more")
        if bad := [number for number in (*self.clip_frames, *self.clip_gops) if number < 1]:
            raise SettingsError(f"clip_frames or clip_gops {bad}: expected numbers of frames, at least 1")

    def clips_of_a_step(self, device_type: str) -> int:
        """The batch size for a kind of device."""
        if self.batch_size is not None:
            return self.batch_size
        return 1 if device_type == "cpu" else 32

    def clips_of_a_loop(self, device_type: str) -> int:
        """The number of videos for a kind of device."""
        if self.loop_clips is not None:
            return self.loop_clips
        return 4 if device_type == "cpu" else 1024
