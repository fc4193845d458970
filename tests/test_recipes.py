import inspect
import json
from pathlib import Path

import pytest

from stadapter.__main__ import main
from stadapter.cli.train import parse_train_flags
from stadapter.recipes import RECIPES, k400_b16, small, ssv2_b16
from stadapter.settings import TrainConfig
from stadapter.synthetic import write_clips
from stadapter.train import prepare
from stadapter.tuning import LoRA, STAdapter
from trunks import save_trunk


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_whole_configuration_and_says_where_it_comes_from(name: str) -> None:
    recipe = RECIPES[name]
    config = recipe("clips", "run")
    assert isinstance(config, TrainConfig)
    assert (config.data, config.out) == ("clips", "run")
    said = inspect.getdoc(recipe) or ""
    assert "stadapter train" in said
    if name != "small":
        assert f"--recipe {name}" in said
        assert all(word in said for word in ("Source:", "Published:", "Hardware:"))


def test_small_is_the_default() -> None:
    assert small("clips", "run") == TrainConfig(data="clips", out="run")


def test_the_released_scripts_values_stand_in_the_recipes() -> None:
    """From the two training scripts of the released implementation, and the defaults of its main.py."""
    k400, ssv2 = k400_b16("clips", "run"), ssv2_b16("clips", "run")
    for config, warmup_epochs in ((k400, 2), (ssv2, 2)):
        assert config.warmup_fraction * config.epochs == pytest.approx(warmup_epochs)
        assert (config.lr, config.lr_clips, config.weight_decay, config.dropout) == (1e-3, 256, 1e-2, 0.5)
        assert (config.num_frames, config.size, config.batch_size, config.resize) == (8, 224, 64, "released")
    assert (k400.epochs, k400.stride_frames, k400.num_temporal_views, k400.num_spatial_views) == (12, 16, 3, 1)
    assert (ssv2.epochs, ssv2.stride_frames, ssv2.num_temporal_views, ssv2.num_spatial_views) == (50, None, 1, 3)
    assert (k400.augmentation.crop, k400.augmentation.scale, k400.augmentation.flip) == (
        "short_side_jitter",
        (1.0, 1.15),
        True,
    )
    assert (ssv2.augmentation.scale, ssv2.augmentation.flip) == ((0.08, 1.0), False)
    assert ssv2.augmentation.rand_augment == "rand-m7-n4-mstd0.5-inc1"


def test_flags_change_a_recipe_and_leave_the_rest() -> None:
    flags = parse_train_flags(
        ["--recipe", "ssv2-b16", "--data", "d", "--out", "o", "--epochs", "3", "--tuning.width", "64"]
    )
    assert (flags.epochs, flags.batch_size, flags.dropout) == (3, 64, 0.5)
    assert flags.tuning == STAdapter(width=64, before_attention=True, before_mlp=True, activation=None)
    other = parse_train_flags(["--recipe=k400-b16", "--data", "d", "--out", "o", "--tuning", "lora"])
    assert other.tuning == LoRA()
    assert other.stride_frames == 16


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    write_clips(tmp_path / "clips", clips_per_class=2, num_frames=12)
    return tmp_path / "clips"


def test_the_learning_rate_is_scaled_to_the_clips_of_a_step(tmp_path: Path, clips: Path) -> None:
    trunk = save_trunk(tmp_path / "trunk", "clip")
    settings = {"data": clips, "out": tmp_path / "run", "backbone": trunk, "batch_size": 4, "accumulation_steps": 2}
    assert prepare(TrainConfig(**settings, lr=1e-3)).lr == 1e-3
    assert prepare(TrainConfig(**settings, lr=1e-3, lr_clips=256)).lr == pytest.approx(1e-3 * 8 / 256)


def test_a_published_recipe_trains_on_a_small_trunk(tmp_path: Path, clips: Path) -> None:
    trunk = save_trunk(tmp_path / "trunk", "clip")
    command = ["train", "--recipe", "ssv2-b16", "--data", str(clips), "--out", str(tmp_path / "run")]
    small_enough = [
        "--backbone",
        str(trunk),
        "--size",
        "32",
        "--batch-size",
        "2",
        "--epochs",
        "1",
        "--num-workers",
        "0",
    ]
    assert main([*command, *small_enough, "--val-fraction", "0", "--tuning.width", "8"]) == 0
    spec = json.loads((tmp_path / "run" / "stadapter.json").read_text())
    assert spec["tuning"]["before_mlp"] is True
    assert spec["clip"]["num_spatial_views"] == 3
    assert spec["clip"]["resize"] == "released"
