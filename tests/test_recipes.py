import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from kitchens import EPIC, write, write_kitchen
from stadapter.__main__ import main
from stadapter.backbones import view_model
from stadapter.cli.train import parse_train_flags
from stadapter.costs import gmacs_per_view
from stadapter.model import build_model
from stadapter.synthetic import write_clips
from stadapter.training.preparation import prepare
from stadapter.training.recipes import RECIPES, small
from stadapter.training.settings import TrainConfig
from stadapter.tuning import LoRA, STAdapter
from stadapter.vit import BackboneInfo
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


# Adapters before attention (A1) and before the MLP (A2) and their width; frames and stride; views in time x in space;
# clips a step of all processes and batches. The first and the third from the two released scripts; of the others trunk,
# frames and views from the paper, the rest by the rule in the docstring.
BY_HAND = """
recipe    trunk         places width frames stride views crop              scale    flip  epochs clips
k400-b16  base-patch16  A2     384   8      16     3x1   short_side_jitter 1.0-1.15 True  12     192
k400-l14  large-patch14 A2     384   32     8      3x1   short_side_jitter 1.0-1.15 True  12     192
ssv2-b16  base-patch16  A1+A2  384   8      None   1x3   random_resized    0.08-1.0 False 50     256
ssv2-l14  large-patch14 A1+A2  384   32     None   1x3   random_resized    0.08-1.0 False 50     256
ek100-b16 base-patch16  A1+A2  384   8      None   1x3   random_resized    0.08-1.0 False 50     256
"""


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "small"])
def test_a_recipe_has_the_values_written_down_by_hand(name: str) -> None:
    config = RECIPES[name]("clips", "run")
    tuning, varied = config.tuning, config.augmentation
    assert isinstance(tuning, STAdapter)
    assert config.epochs is not None
    launched = re.search(r"--num_processes (\d+) ", inspect.getdoc(RECIPES[name]) or "")
    assert launched is not None
    row = {
        "recipe": name,
        "trunk": str(config.backbone).removeprefix("openai/clip-vit-"),
        "places": "+".join(["A1"] * tuning.before_attention + ["A2"] * tuning.before_mlp),
        "width": tuning.width,
        "frames": config.num_frames,
        "stride": config.stride_frames,
        "views": f"{config.num_temporal_views}x{config.num_spatial_views}",
        "crop": varied.crop,
        "scale": "-".join(map(str, varied.scale)),
        "flip": varied.flip,
        "epochs": config.epochs,
        "clips": int(launched[1]) * config.batch_size * config.accumulation_steps,
    }
    heading, *lines = [line.split() for line in BY_HAND.strip().splitlines()]
    assert [str(value) for value in row.values()] == next(line for line in lines if line[0] == name)
    assert list(row) == heading
    assert varied.rand_augment == (None if name.startswith("k400") else "rand-m7-n4-mstd0.5-inc1")
    assert (tuning.kernel_size, tuning.activation, tuning.last_blocks) == ((3, 1, 1), None, None)
    assert (config.size, config.resize, config.dropout, config.gradient_clip) == (224, "released", 0.5, 0)
    assert (config.lr, config.lr_clips, config.weight_decay) == (1e-3, 256, 1e-2)
    assert config.warmup_fraction * config.epochs == pytest.approx(2)
    assert config.label_kind == ("verb+noun" if name == "ek100-b16" else "action")


@pytest.mark.parametrize(
    ("name", "gflops_per_view"),
    [("k400-b16", 152), ("k400-l14", 8248 / 3)],  # published, a multiply-add counted as one
)
def test_the_adapters_of_a_kinetics_recipe_cost_what_is_published(
    name: str, gflops_per_view: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stadapter.backbones.hash_weights", lambda vit: "")  # weights without values have none
    config = RECIPES[name]("clips", "run")
    width, layers, patch = (768, 12, 16) if name == "k400-b16" else (1024, 24, 14)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "patch_size": patch}
    with torch.device("meta"):
        tower = transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(**sizes, num_attention_heads=width // 64, image_size=224)
        )
    info = BackboneInfo(name, "clip_vision_model", None, "", 224, patch, (0.5,) * 3, (0.2,) * 3)
    tuning = replace(config.tuning, keep_unreachable=True)
    model = build_model(backbone=view_model(tower, info), labels=[str(label) for label in range(400)], tuning=tuning)
    model.head.has_class_token = False  # or what it does not read of the last block would not be computed
    counted = gmacs_per_view(model, num_frames=config.num_frames, size=224)
    assert counted == pytest.approx(gflops_per_view, rel=3e-3)


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


def write_kitchens(folder: Path) -> Path:
    """A miniature of EPIC-Kitchens-100, of a verb and a noun for each segment."""
    actions = [("take", "plate"), ("put", "door"), ("take", "pan")]
    rows = write_kitchen(folder / "P01" / "videos" / "P01_01.MP4", actions)
    write(folder / "annotations" / "EPIC_100_train.csv", EPIC + rows)
    return folder / "annotations"


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "small"])
def test_a_published_recipe_is_tried_and_takes_a_step_on_a_small_trunk(
    tmp_path: Path, clips: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trunk = save_trunk(tmp_path / "trunk", "clip")
    data = write_kitchens(tmp_path / "kitchens") if name == "ek100-b16" else clips
    command = ["train", "--recipe", name, "--data", str(data), "--out", str(tmp_path / "run")]
    smaller = {"backbone": trunk, "size": 32, "batch-size": 8, "epochs": 1, "num-workers": 0, "num-frames": 4}
    flags = [part for flag, value in smaller.items() for part in (f"--{flag}", str(value))]
    flags += ["--accumulation-steps", "1", "--val-fraction", "0", "--tuning.width", "8"]
    assert main([*command, *flags, "--dry-run"]) == 0
    assert re.search(r"│ training +│ +\d", capsys.readouterr().out)
    assert main([*command, *flags]) == 0
    spec = json.loads((tmp_path / "run" / "stadapter.json").read_text())
    recipe = RECIPES[name]("", "")
    assert spec["receipt"]["steps"] == 1
    assert spec["tuning"]["before_attention"] is name.startswith(("ssv2", "ek100"))
    assert spec["tuning"]["before_mlp"] is True
    assert spec["clip"]["stride_frames"] == recipe.stride_frames
    assert spec["clip"]["num_spatial_views"] == recipe.num_spatial_views
    assert spec["clip"]["resize"] == "released"
    heads = [head["name"] for head in spec["labels"] if isinstance(head, dict)]
    assert heads == (["verb", "noun"] if name == "ek100-b16" else [])
