"""From a released checkpoint and video files to scores, through the command line, as the released evaluation has them.

tests/released/ holds what the released code saved and computed; its README.md says how.
"""

import json
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from golden import make_golden_clip, part, read_golden, relative_error
from stadapter.__main__ import main
from stadapter.artefact import find_run
from stadapter.clips import ClipConfig
from stadapter.convert import convert_released
from stadapter.errors import ArtefactError, SettingsError
from stadapter.predict import Classifier
from stadapter.training.recipes import RECIPES

RELEASED = Path(__file__).parent / "released"
RUNS: dict[str, Any] = json.loads((RELEASED / "scores.json").read_text(encoding="utf-8"))
RECIPE_OF = {"k400": "k400-b16", "ssv2": "ssv2-b16"}
TOLERANCE = 1e-5
"""Relative, over the scores of a video. Measured: below 1e-6."""
FAR_OFF = 1e-2
"""What another choice of frames or crops changes at least."""


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trunk of both checkpoints, in Hugging Face layout."""
    folder = tmp_path_factory.mktemp("trunks") / "clip"
    config, weights = read_golden(RELEASED / "trunk.safetensors")
    make_golden_clip(config, {name: tensor.float() for name, tensor in weights.items()}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=RECIPE_OF)
def converted(
    request: pytest.FixtureRequest, trunk: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Which published run, and the run folder that the command made of its checkpoint."""
    out = tmp_path_factory.mktemp("runs") / request.param
    command = ["convert", str(RELEASED / f"{request.param}.pth"), "--recipe", RECIPE_OF[request.param]]
    assert main([*command, "--backbone", str(trunk), "--out", str(out)]) == 0
    return request.param, out


def test_evaluate_gives_the_released_scores_and_accuracies(converted: tuple[str, Path], tmp_path: Path) -> None:
    name, run = converted
    target = tmp_path / "report.json"
    flags = ["--data", str(RELEASED / "list.txt"), "--num-workers", "0", "--no-time-check", "--json", str(target)]
    assert main(["evaluate", str(run), *flags]) == 0
    report = json.loads(target.read_text(encoding="utf-8"))
    golden = RUNS[name]
    assert {prediction["name"] for prediction in report["predictions"]} == set(golden["scores"])
    for prediction in report["predictions"]:
        scores = golden["scores"][prediction["name"]]
        assert int(prediction["predicted"]) == scores.index(max(scores))
        assert prediction["score"] == pytest.approx(max(scores), rel=TOLERANCE)
        assert prediction["true_score"] == pytest.approx(scores[int(prediction["label"])], rel=TOLERANCE)
    assert golden["printed"] == f"* Acc@1 {100 * report['top1']:.3f} Acc@5 {100 * report['top5']:.3f}"


def test_the_numbers_of_a_released_list_are_places_among_the_classes_of_a_run_with_names(
    trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, target = ["push", "pull", "lift", "drop", "turn", "hold"], tmp_path / "report.json"
    (tmp_path / "labels.txt").write_text("\n".join(names))
    flags = ["--recipe", "k400-b16", "--backbone", str(trunk), "--labels", str(tmp_path / "labels.txt")]
    assert main(["convert", str(RELEASED / "k400.pth"), *flags, "--out", str(tmp_path / "run")]) == 0
    data = ["--data", str(RELEASED / "list.txt"), "--num-workers", "0", "--no-time-check", "--json", str(target)]
    assert main(["evaluate", str(tmp_path / "run"), *data]) == 0
    assert "class numbers are positions among the classifier's classes: 0 is 'push'" in capsys.readouterr().err
    report = json.loads(target.read_text(encoding="utf-8"))
    told = {prediction["name"]: prediction["label"] for prediction in report["predictions"]}
    assert told == {"landscape.mp4": "pull", "portrait.mp4": "hold", "short.mp4": "push", "long.mp4": "pull"}
    assert RUNS["k400"]["printed"].startswith(f"* Acc@1 {100 * report['top1']:.3f} ")


def test_predict_gives_the_released_score_of_every_class(
    converted: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name, run = converted
    golden = RUNS[name]["scores"]
    videos = [str(RELEASED / video) for video in golden]
    assert main(["predict", str(run), *videos, "--format", "json", "--top-k", "6"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == len(golden)
    for row, (video, scores) in zip(rows, golden.items(), strict=True):
        ours = torch.tensor([row["scores"][str(index)] for index in range(len(scores))])
        assert relative_error(ours, torch.tensor(scores)) < TOLERANCE, video


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("k400", {"num_temporal_views": 2}),
        ("k400", {"stride_frames": 8}),
        ("k400", {"num_spatial_views": 3}),
        ("k400", {"num_frames": 7}),
        ("ssv2", {"num_spatial_views": 1}),
        ("ssv2", {"stride_frames": 4}),
        ("ssv2", {"num_frames": 7}),
    ],
)
def test_the_released_scores_tell_other_test_views_apart(
    name: str, change: dict[str, int], trunk: Path, tmp_path: Path
) -> None:
    checkpoint = RELEASED / f"{name}.pth"
    run = convert_released(checkpoint, backbone=trunk, recipe=RECIPE_OF[name], out=tmp_path / "run", **change)  # type: ignore[arg-type]
    golden = RUNS[name]["scores"]["long.mp4"]
    scores = Classifier.load(run).predict(RELEASED / "long.mp4").scores
    ours = torch.tensor([scores[str(index)] for index in range(len(golden))])
    assert relative_error(ours, torch.tensor(golden)) > FAR_OFF


def test_the_views_of_a_recipe_are_those_of_the_released_script(converted: tuple[str, Path]) -> None:
    name, run = converted
    words = shlex.split(RUNS[name]["flags"])
    flags = {flag: int(value) for flag, value in pairwise(words) if value.isdigit()}
    recipe, clip = RECIPES[RECIPE_OF[name]]("", ""), Classifier.load(run).clip_config
    for settings in (recipe, clip):
        assert settings.num_frames == flags["--num_frames"]
        assert (settings.stride_frames or 0) == flags["--sampling_rate"]
        assert settings.num_temporal_views == flags["--num_temporal_views"]
        assert settings.num_spatial_views == flags["--num_spatial_views"]
        assert (settings.resize, settings.fit, settings.short_clips) == ("released", "crop", "repeat")
    assert clip.size == 32  # the trunk's own, as in the released code; the recipe's is that of its own trunk
    spec = json.loads((find_run(run) / "stadapter.json").read_text(encoding="utf-8"))
    assert spec["receipt"] == {"converted_from": f"{name}.pth", "recipe": RECIPE_OF[name]}


@pytest.mark.parametrize("name", ["pre_mlp", "both"])
def test_golden_clips_score_as_their_released_views_in_the_released_model(
    shared: Path, tmp_path: Path, name: str
) -> None:
    """golden_views.json: the released views of golden/pipeline, put through the released model of golden/model."""
    config, tensors = read_golden(shared / "golden" / "model" / f"{name}.safetensors")
    make_golden_clip(config, part(tensors, "backbone")).save_pretrained(tmp_path / "trunk")
    with safe_open(shared / "golden" / "pipeline" / "views.safetensors", "pt") as views:
        settings = json.loads(views.metadata()["config"])["views"]
    checkpoint = shared / "golden" / "model" / f"{name}.checkpoint.pth"
    golden = json.loads((RELEASED / "golden_views.json").read_text(encoding="utf-8"))[name]
    assert len(golden) == 15
    for view_name, view in settings.items():
        run = convert_released(
            checkpoint,
            backbone=tmp_path / "trunk",
            out=tmp_path / view_name,
            num_frames=view["num_frames"],
            stride_frames=view["sampling_rate"] or None,
            num_temporal_views=view.get("num_temporal_views"),
            num_spatial_views=view["num_spatial_views"],
        )
        classifier = Classifier.load(run)
        for video in ("landscape", "portrait", "short"):
            scores = classifier.predict(shared / "golden" / "pipeline" / f"{video}.mp4").scores
            ours = torch.tensor([scores[str(index)] for index in range(config["classes"])])
            assert relative_error(ours, torch.tensor(golden[f"{view_name}/{video}"])) < TOLERANCE, (view_name, video)


def test_the_command_says_which_clips_it_will_test_with(
    trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, said in {
        "k400": "tested with 8 frames 16 frames apart, 32 x 32 pixels: 3 temporal views x 1 crop",
        "ssv2": "tested with 8 frames spread over the video, 32 x 32 pixels: 1 temporal view x 3 crops",
    }.items():
        flags = ["--recipe", RECIPE_OF[name], "--backbone", str(trunk), "--out", str(tmp_path / name)]
        assert main(["convert", str(RELEASED / f"{name}.pth"), *flags]) == 0
        assert said in capsys.readouterr().err


def test_flags_change_the_views_of_a_recipe_and_leave_the_rest(trunk: Path, tmp_path: Path) -> None:
    views = {"num_frames": 16, "num_temporal_views": 1}
    run = convert_released(RELEASED / "k400.pth", backbone=trunk, recipe="k400-b16", out=tmp_path / "run", **views)  # type: ignore[arg-type]
    clip = Classifier.load(run).clip_config
    assert (clip.num_frames, clip.stride_frames, clip.num_temporal_views, clip.num_spatial_views) == (16, 16, 1, 1)


def test_without_a_recipe_a_clip_is_eight_frames_of_the_whole_video(trunk: Path, tmp_path: Path) -> None:
    run = convert_released(RELEASED / "k400.pth", backbone=trunk, out=tmp_path / "run")
    clip = Classifier.load(run).clip_config
    assert clip == ClipConfig(size=32, resize="released", mean=clip.mean, std=clip.std)


def test_a_checkpoint_of_another_run_than_its_recipe_is_refused(trunk: Path, tmp_path: Path) -> None:
    for name, other, message in (
        ("k400", "ssv2-b16", r"has adapter_pre_mlp; the run ssv2-b16 has adapter_pre_attn and adapter_pre_mlp"),
        ("ssv2", "k400-b16", r"has adapter_pre_attn and adapter_pre_mlp; the run k400-b16 has adapter_pre_mlp:"),
    ):
        with pytest.raises(ArtefactError, match=message):
            convert_released(RELEASED / f"{name}.pth", backbone=trunk, recipe=other, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["small", "ek100-b16", "k400", ""])
def test_a_recipe_that_is_no_run_of_the_released_code_is_refused(trunk: Path, tmp_path: Path, recipe: str) -> None:
    with pytest.raises(SettingsError, match=r"expected a run of the released code: k400-b16, .*ssv2-b16"):
        convert_released(RELEASED / "k400.pth", backbone=trunk, recipe=recipe, out=tmp_path / "run")


def test_the_trunk_is_the_recipes_unless_it_is_given(
    trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="no trunk and no recipe"):
        convert_released(RELEASED / "k400.pth", out=tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai").mkdir()
    (tmp_path / "openai" / "clip-vit-base-patch16").symlink_to(trunk)
    run = convert_released(RELEASED / "k400.pth", recipe="k400-b16", out=tmp_path / "run")
    assert Classifier.load(run).labels == tuple("012345")
