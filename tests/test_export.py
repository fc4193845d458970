"""A classifier as one file: what runs it elsewhere gives the scores of the run, and the file says how to use it."""

import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from stadapter import export
from stadapter.__main__ import main
from stadapter.artefact import save_artefact
from stadapter.backbones import load_backbone
from stadapter.clips import ClipConfig, load_clip
from stadapter.errors import ArtefactError, SettingsError, STAdapterError
from stadapter.export import Exported, export_model
from stadapter.labels import Labels
from stadapter.model import build_model
from stadapter.predict import Classifier
from stadapter.synthetic import write_clips
from stadapter.tuning import Tuning
from stadapter.vit import ImageViT, TokenLayout
from strategies import CASES, LABELS, disturb
from trunks import save_trunk

CLIP = ClipConfig(num_frames=4, size=16, num_spatial_views=3)
SAME_POSITIONS = pytest.mark.skipif(
    torch.__version__ < "2.13", reason="torch before 2.13 interpolates these positions otherwise in ONNX"
)
FREE_FRAMES = pytest.mark.skipif(torch.__version__ < "2.13", reason="torch before 2.13 exports it for one length alone")


def make_run(
    folder: Path,
    *,
    family: str = "dinov2",
    tuning: Tuning = CASES["st-adapter"],
    labels: Labels = LABELS,
    clip: ClipConfig = CLIP,
    num_blocks: int = 1,
) -> Path:
    """A run folder; every further block takes torch half a second to write as ONNX."""
    trunk = load_backbone(save_trunk(folder / "trunk", family, num_blocks=num_blocks))
    model = build_model(backbone=trunk, tuning=tuning, labels=labels)
    disturb(model)
    return save_artefact(folder / "run", model, clip, receipt={})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def exported(run: Path) -> Exported:
    return export_model(run, run.parent / "model.onnx")


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def by_onnx(path: Path, clips: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"clips": clips.numpy()})
    return torch.from_numpy(scores)


def by_run(run: Path, clips: Tensor, **settings: Any) -> Tensor:
    model = Classifier.load(run, **settings).model
    with torch.no_grad():
        return model.label_space.softmax(model(model.normalise(clips)))


@pytest.mark.parametrize(
    ("family", "strategy"),
    [
        ("clip", "st-adapter"),
        ("siglip", "st-adapter-both-3x3x3"),
        ("dinov2", "attentive-pooling"),
        pytest.param("dinov2_with_registers", "prompt", marks=SAME_POSITIONS),
        ("dinov3_vit", "lora"),
        pytest.param("vit", "aim-twice", marks=FREE_FRAMES),
        pytest.param("dinov2", "full-temporal", marks=FREE_FRAMES),
    ],
)
def test_an_onnx_model_gives_the_scores_of_its_run_for_any_views_and_frames(
    tmp_path: Path, family: str, strategy: str
) -> None:
    clip = ClipConfig(num_frames=4, size=24)
    run = make_run(tmp_path, family=family, tuning=CASES[strategy], clip=clip, num_blocks=2)
    exported = export_model(run, tmp_path / "model.onnx")
    assert exported.any_frames
    for views, frames in ((1, 4), (5, 3), (2, 9)):
        clips = noise(views, frames, 3, 24, 24)  # not the trunk's own size: its positions are interpolated
        torch.testing.assert_close(by_onnx(exported.path, clips), by_run(run, clips), rtol=0, atol=1e-6)


def test_a_torch_program_runs_where_nothing_else_is_installed(run: Path, tmp_path: Path) -> None:
    exported = export_model(run, tmp_path / "model.pt2")
    clips = noise(2, 7, 3, 16, 16)
    torch.save(clips, tmp_path / "clips.pt")
    script = """
import sys, torch
for name in ("stadapter", "transformers", "peft", "accelerate"):
    sys.modules[name] = None
about = {"stadapter.json": ""}
program = torch.export.load(sys.argv[1], extra_files=about).module()
torch.save((program(torch.load(sys.argv[2])).detach(), about["stadapter.json"]), sys.argv[3])
"""
    paths = [exported.path, tmp_path / "clips.pt", tmp_path / "scores.pt"]
    subprocess.run([sys.executable, "-c", script, *map(str, paths)], check=True, timeout=120)
    scores, about = torch.load(tmp_path / "scores.pt")
    torch.testing.assert_close(scores, by_run(run, clips), rtol=0, atol=1e-6)
    assert json.loads(about) == exported.description


def test_what_the_file_says_is_enough_to_name_a_video(exported: Exported, run: Path, tmp_path: Path) -> None:
    write_clips(tmp_path, classes=("left",), clips_per_class=1, size=32, num_frames=12)
    video = tmp_path / "left" / "left_00.mp4"
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["stadapter"])
    views = load_clip(video, ClipConfig(**about["clip"]))
    scores = session.run(None, {about["input"]["name"]: views.numpy()})[0].mean(0)
    expected = Classifier.load(run).predict(video)
    assert about["labels"][int(np.argmax(scores))] == expected.label
    named = dict(zip(about["labels"], scores.tolist(), strict=True))
    assert named == pytest.approx(expected.scores, abs=1e-6)


def test_the_file_tells_input_output_classes_clip_trunk_and_strategy(exported: Exported, run: Path) -> None:
    spec = json.loads((run / "stadapter.json").read_text())
    about = exported.description
    assert about["input"] == {"name": "clips", "dtype": "uint8", "shape": ["views", "frames", 3, 16, 16]}
    assert about["output"] == {"name": "scores", "dtype": "float32", "shape": ["views", 3]}
    assert (about["labels"], about["tuning"]) == (spec["labels"], spec["tuning"])
    assert json.loads(json.dumps(about["clip"])) == spec["clip"]
    assert about["backbone"]["sha256"] == spec["backbone"]["sha256"]
    assert exported.num_bytes == exported.path.stat().st_size
    assert 0 <= exported.largest_difference < 1e-6
    assert sorted(path.name for path in run.parent.iterdir()) == ["model.onnx", "run", "trunk"]


def test_a_run_that_resizes_as_released_takes_normalised_floats(tmp_path: Path) -> None:
    trunk = load_backbone(save_trunk(tmp_path / "seen", "clip"))
    clip = ClipConfig(num_frames=4, size=16, resize="released", mean=trunk.info.mean, std=trunk.info.std)
    run = make_run(tmp_path, family="clip", clip=clip)
    exported = export_model(run, tmp_path / "model.onnx")
    assert exported.description["input"]["dtype"] == "float32"
    clips = torch.randn(2, 4, 3, 16, 16)
    torch.testing.assert_close(by_onnx(exported.path, clips), by_run(run, clips), rtol=0, atol=1e-6)


def test_the_scores_of_each_of_several_heads_add_up_to_one(tmp_path: Path) -> None:
    run = make_run(tmp_path, labels={"verb": ["take", "put"], "noun": ["door", "pan", "cup"]})
    exported = export_model(run, tmp_path / "model.onnx")
    scores = by_onnx(exported.path, noise(3, 4, 3, 16, 16))
    assert exported.description["output"]["shape"] == ["views", 5]
    assert [head["name"] for head in exported.description["labels"]] == ["verb", "noun"]
    for part in scores.split([2, 3], dim=1):
        torch.testing.assert_close(part.sum(1), torch.ones(3))


class _FourFrames(nn.Module):
    """Adds to every frame the one opposite, of four."""

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        if layout.num_frames != 4:
            raise ValueError(f"{layout.num_frames} frames")
        frames = x.view(-1, 4, *x.shape[1:])  # (B, 4, N, D)
        return (frames + 0.1 * frames.flip(1)).flatten(0, 1)


@dataclass(frozen=True)
class OfFourFrames:
    """A strategy of somebody's own that knows clips of four frames alone."""

    def apply(self, vit: ImageViT) -> None:
        for block in vit.blocks:
            block.before_attention = _FourFrames()


def test_what_knows_one_number_of_frames_is_exported_for_that(tmp_path: Path) -> None:
    tuning = OfFourFrames()
    run = make_run(tmp_path, tuning=tuning)
    exported = export_model(run, tmp_path / "model.pt2", tuning=tuning)
    assert not exported.any_frames
    assert exported.description["input"]["shape"] == ["views", 4, 3, 16, 16]
    clips = noise(5, 4, 3, 16, 16)
    scores = torch.export.load(exported.path).module()(clips)
    torch.testing.assert_close(scores, by_run(run, clips, tuning=tuning), rtol=0, atol=1e-6)


class _Guarding(_FourFrames):
    """Looks at values, which no graph can follow."""

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        return super().forward(x, layout) if x.sum() > 0 else x


@dataclass(frozen=True)
class Unexportable:
    """A strategy of somebody's own that torch.export cannot take."""

    def apply(self, vit: ImageViT) -> None:
        for block in vit.blocks:
            block.before_attention = _Guarding()


def test_what_torch_cannot_write_as_onnx_is_told_in_a_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise torch.onnx.OnnxExporterError("no ONNX function for aten.new_thing\nand a long story")

    monkeypatch.setattr(torch.onnx, "export", refused)
    with pytest.raises(STAdapterError, match=r"^torch cannot write this network as ONNX: no ONNX function for \S+$"):
        export_model(run, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link_to_the_model(run: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "newest.pt2").symlink_to(tmp_path / "kept" / "1.pt2")
    exported = export_model(run, tmp_path / "newest.pt2")
    assert (tmp_path / "newest.pt2").is_symlink()
    assert exported.path == tmp_path / "kept" / "1.pt2"
    assert exported.path.stat().st_size == exported.num_bytes


def test_what_torch_cannot_export_is_told_in_a_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, tuning=Unexportable())
    with pytest.raises(STAdapterError, match=r"^torch\.export cannot take this network as a graph: \w.*$") as caught:
        export_model(run, tmp_path / "model.pt2", tuning=Unexportable())
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_of_one_frame_takes_more(tmp_path: Path) -> None:
    run = make_run(tmp_path, clip=ClipConfig(num_frames=1, size=16))
    exported = export_model(run, tmp_path / "model.onnx")
    for frames in (1, 5):
        clips = noise(1, frames, 3, 16, 16)
        torch.testing.assert_close(by_onnx(exported.path, clips), by_run(run, clips), rtol=0, atol=1e-6)


def test_weights_that_do_not_fit_into_a_model_lie_beside_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.onnx.ONNXProgram.save
    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", lambda self, path: original(self, path, external_data=True))
    exported = export_model(run, tmp_path / "model.onnx")
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["model.onnx", "model.onnx.data"]
    assert exported.num_bytes == sum(file.stat().st_size for file in files)
    clips = noise(2, 4, 3, 16, 16)
    torch.testing.assert_close(by_onnx(exported.path, clips), by_run(run, clips), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_what_gives_other_scores_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_bytes(b"an earlier one")
    original = export._write_program

    def broken(*args: Any) -> Any:
        network = original(*args)
        return lambda clips: network(clips).flip(1)

    monkeypatch.setattr(export, "_WRITERS", {f".{name.rpartition('.')[2]}": broken})
    with pytest.raises(STAdapterError, match=r"gives other scores than the run, off by 0\.\d+ for 2 views of 4 frames"):
        export_model(run, tmp_path / name)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"an earlier one"]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("model.pth", r"out model\.pth: expected a name that ends in \.onnx or \.pt2"),
        ("model", r"out model: expected a name that ends in \.onnx or \.pt2"),
        ("folder.onnx", r"out .*folder\.onnx is a folder; expected the name of a file"),
    ],
)
def test_a_name_that_is_none_is_refused_at_once(tmp_path: Path, out: str, message: str) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(SettingsError, match=message):
        export_model(tmp_path / "no-run", tmp_path / out)


def test_a_file_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"cannot write .*file/model\.pt2: "):
        export_model(run, tmp_path / "file" / "model.pt2")


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_a_full_disk_is_told_in_a_sentence_and_leaves_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40 * 1024, before[1]))
    try:
        code = main(["export", str(run), "--out", str(tmp_path / name)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert (code, list(tmp_path.iterdir())) == (1, []), said
    assert re.search(rf"^error: cannot write .*{name}: File too large; make room", said, re.MULTILINE), said


def test_packages_that_write_onnx_are_named_where_they_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(
        SettingsError, match=r"packages that write and check ONNX are not installed: pip install onnxscript$"
    ):
        export_model(tmp_path / "no-run", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_exporting_warns_of_nothing_and_leaves_logging_as_it_was(run: Path, tmp_path: Path) -> None:
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_model(run, tmp_path / "model.onnx")
    assert logging.root.manager.disable == level


def lines(capsys: pytest.CaptureFixture[str], arguments: Sequence[object]) -> tuple[int, list[str]]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err.splitlines()


def test_the_verb_says_what_it_wrote_and_how_it_was_checked(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "model.onnx"
    code, (begun, saved, shapes, checked) = lines(capsys, ["export", run, "--out", out])
    assert code == 0
    assert begun == f"exporting {run} …"
    assert saved.startswith(f"saved in {out}: ")
    assert shapes == "takes clips, uint8 (views, frames, 3, 16, 16), returns scores, float32 (views, 3)"
    assert "checked on random clips: no score is more than " in checked
    assert main(["export", str(run), "--out", str(tmp_path / "model.zip")]) == 2
