"""A classifier at work: the same answer from a path, from frames, in a batch, and from the evaluation."""

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from stadapter.__main__ import main
from stadapter.artefact import save_artefact
from stadapter.backbones import load_backbone
from stadapter.clips import ClipConfig, load_clip
from stadapter.errors import ArtefactError, SettingsError, STAdapterError, VideoError
from stadapter.evaluation import evaluate
from stadapter.machine import choose_device
from stadapter.manifest import read_manifest
from stadapter.model import build_model
from stadapter.predict import Classifier, Prediction, PredictionFailure, VideoPart, video_windows
from stadapter.synthetic import write_clips, write_video
from stadapter.tuning import STAdapter
from stadapter.video import VideoReader, packets, probe, read_frames
from stadapter.video.container import Opened
from trunks import save_trunk

LABELS = ["down", "left", "right", "up"]
CLIP_CONFIG = ClipConfig(num_frames=3, size=16, num_temporal_views=2, num_spatial_views=3)


@pytest.fixture(scope="module")
def trunk_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trunk(tmp_path_factory.mktemp("trunks") / "dinov2", "dinov2")


@pytest.fixture(scope="module")
def run(trunk_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_model(backbone=trunk_folder, labels=LABELS, tuning=STAdapter(width=4))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in model.trained_tensors().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return save_artefact(tmp_path_factory.mktemp("runs") / "run", model, CLIP_CONFIG, receipt={"seed": 1})


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, clips_per_class=2, size=32, num_frames=12)
    return folder


@pytest.fixture(scope="module")
def classifier(run: Path) -> Classifier:
    return Classifier.load(run)


@pytest.fixture
def video(clips: Path) -> Path:
    return clips / "up" / "up_01.mp4"


def read_all(path: Path) -> np.ndarray:
    """The frames of a file, uint8 (T, H, W, 3)."""
    with VideoReader(path) as reader:
        return reader.read(range(reader.num_frames)).permute(0, 2, 3, 1).numpy()


def test_a_prediction_names_a_class_and_scores_them_all(classifier: Classifier, video: Path) -> None:
    prediction = classifier.predict(video)
    assert prediction.video == str(video)
    assert set(prediction.scores) == set(LABELS)
    assert list(prediction.scores.values()) == sorted(prediction.scores.values(), reverse=True)
    assert sum(prediction.scores.values()) == pytest.approx(1, abs=1e-6)
    assert (prediction.label, prediction.score) == next(iter(prediction.scores.items()))
    assert list(prediction.top(2)) == list(prediction.scores)[:2]


def test_of_one_head_every_class_has_a_score_however_many_there_are(trunk_folder: Path, video: Path) -> None:
    labels = [str(number) for number in range(120)]
    classifier = Classifier(build_model(backbone=trunk_folder, labels=labels).eval(), CLIP_CONFIG)
    assert classifier.num_scores == len(classifier.predict(video).scores) == 120


def test_scores_are_averaged_over_the_views_after_softmax(classifier: Classifier, video: Path) -> None:
    views = load_clip(video, CLIP_CONFIG)
    assert len(views) == 6
    with torch.no_grad():
        alone = [classifier.model(classifier.model.normalise(view[None])).softmax(-1)[0] for view in views]
    expected = dict(zip(LABELS, torch.stack(alone).mean(0).tolist(), strict=True))
    assert classifier.predict(video).scores == pytest.approx(expected, abs=1e-6)


def test_a_path_and_its_frames_give_the_same_scores(classifier: Classifier, video: Path) -> None:
    frames = read_all(video)
    expected = classifier.predict(video).scores
    assert classifier.predict(frames).scores == expected
    assert classifier.predict(torch.from_numpy(frames)).scores == expected
    assert classifier.predict(str(video)).scores == expected
    assert classifier.predict(frames).video == "array"


def test_prediction_and_evaluation_agree(classifier: Classifier, clips: Path) -> None:
    report = evaluate(classifier.model, read_manifest(clips), CLIP_CONFIG, batch_size=3)
    for row in report.predictions:
        prediction = classifier.predict(clips / row.name)
        assert prediction.label == row.predicted
        assert prediction.score == pytest.approx(row.score, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_batch_gives_the_answers_of_single_calls_in_order(
    classifier: Classifier, clips: Path, batch_size: int
) -> None:
    paths = sorted(clips.glob("*/*.mp4"))
    results = list(classifier.predict_many(paths, batch_size=batch_size))
    assert [result.video for result in results] == [str(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        assert isinstance(result, Prediction)
        assert result.scores == pytest.approx(classifier.predict(path).scores, abs=1e-6)


def test_a_bad_file_is_a_row_and_does_not_end_the_batch(classifier: Classifier, video: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.mp4").write_bytes(b"no video")
    (tmp_path / "empty").mkdir()
    bad = [tmp_path / "junk.mp4", tmp_path / "none.mp4", tmp_path / "empty", np.zeros((0, 4, 4, 3), np.uint8)]
    results = list(classifier.predict_many([video, *bad, video], batch_size=2))
    assert [type(result) for result in results] == [Prediction, *[PredictionFailure] * 4, Prediction]
    for failure, name in zip(results[1:5], ["junk.mp4", "none.mp4", "empty", "array"], strict=True):
        assert isinstance(failure, PredictionFailure)
        assert failure.error
        assert name in str(failure)


def test_a_batch_takes_videos_only_as_they_are_needed(classifier: Classifier, video: Path) -> None:
    taken = []

    def videos() -> Iterator[Path]:
        for number in range(100):
            taken.append(number)
            yield video

    results = classifier.predict_many(videos(), batch_size=2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 4


def test_what_was_given_before_the_giver_failed_is_classified(classifier: Classifier, video: Path) -> None:
    def given() -> Iterator[Path]:
        yield from [video] * 5
        raise ConnectionError("the store of the videos is gone")

    answers = classifier.predict_many(given(), batch_size=2)
    assert len(list(islice(answers, 5))) == 5
    with pytest.raises(ConnectionError, match="the store"):
        next(answers)


def test_a_classifier_is_evaluated_on_whatever_holds_labelled_clips(classifier: Classifier, clips: Path) -> None:
    manifest = read_manifest(clips)
    expected = evaluate(classifier.model, manifest, classifier.clip_config)
    assert classifier.evaluate(clips) == classifier.evaluate(manifest) == expected
    assert classifier.evaluate(str(clips), time_check=True).time_check is not None


def test_no_videos_give_no_predictions(classifier: Classifier) -> None:
    assert list(classifier.predict_many([])) == []


def test_a_batch_size_of_none_is_refused_at_once(classifier: Classifier) -> None:
    with pytest.raises(SettingsError, match="batch_size 0"):
        classifier.predict_many([], batch_size=0)


def test_a_part_of_a_file_is_classified_by_its_times(classifier: Classifier, video: Path) -> None:
    part = classifier.predict(video, start_seconds=0.5, end_seconds=1.0)  # 10 frames a second
    assert part.scores == pytest.approx(classifier.predict(read_all(video)[5:10]).scores, abs=1e-6)
    assert part.scores != classifier.predict(video).scores


def test_a_part_of_a_folder_of_images_is_classified_by_its_rate(
    classifier: Classifier, video: Path, tmp_path: Path
) -> None:
    for number, frame in enumerate(read_all(video)):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    part: dict[str, Any] = {"start_seconds": 0.1, "end_seconds": 0.5}
    rate = probe(video).frames_per_second
    assert classifier.predict(tmp_path, **part, frames_per_second=rate).scores == pytest.approx(
        classifier.predict(video, **part).scores
    )
    assert torch.equal(read_frames(tmp_path, [1], **part, frames_per_second=rate), read_frames(video, [1], **part))
    with pytest.raises(VideoError, match=r"has no frame rate, .* from Python, set frames_per_second"):
        classifier.predict(tmp_path, **part)


@pytest.mark.parametrize(
    ("window", "stride", "expected"),
    [
        (1.0, None, [(0, 1), (1, 2), (1.4, 2.4)]),
        (0.6, None, [(0, 0.6), (0.6, 1.2), (1.2, 1.8), (1.8, 2.4)]),
        (1.0, 0.7, [(0, 1), (0.7, 1.7), (1.4, 2.4)]),
        (2.4, None, [(0, 2.4)]),
        (9.0, 1.0, [(0, 9)]),
    ],
)
def test_windows_cover_a_video_to_its_end(
    tmp_path: Path, window: float, stride: float | None, expected: list[tuple[float, float]]
) -> None:
    path = tmp_path / "long.mp4"
    write_video(path, np.zeros((60, 32, 32, 3), np.uint8), frames_per_second=25)  # 2.4 s
    parts = video_windows(path, window_seconds=window, stride_seconds=stride)
    assert [(part.start_seconds, part.end_seconds) for part in parts] == expected
    for part in parts:
        assert read_frames(path, [0], start_seconds=part.start_seconds, end_seconds=part.end_seconds).shape[0] == 1


def test_windows_of_a_video_are_classified_as_its_parts(classifier: Classifier, video: Path) -> None:
    parts = video_windows(video, window_seconds=0.3)
    assert len(parts) > 1
    for part, answer in zip(parts, classifier.predict_many(parts, batch_size=2), strict=True):
        assert isinstance(answer, Prediction)
        alone = classifier.predict(video, start_seconds=part.start_seconds, end_seconds=part.end_seconds)
        assert answer.scores == pytest.approx(alone.scores)
        assert (answer.start_seconds, answer.end_seconds) == (part.start_seconds, part.end_seconds)
        assert str(answer).startswith(f"{video} [{part.start_seconds:g} to {part.end_seconds:g} s]: ")


def test_a_long_video_is_opened_once_for_all_its_windows(
    classifier: Classifier, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening reads the tables of all frames: once for each window, that grows with the square of the length."""
    parts = video_windows(video, window_seconds=0.2, stride_seconds=0.1)
    alone = [classifier.predict(part).scores for part in parts]
    opened: list[Path] = []
    open_container = packets.open_container

    def noted(path: Path, *, at_a_glance: bool) -> Opened:
        opened.append(path)
        return open_container(path, at_a_glance=at_a_glance)

    monkeypatch.setattr(packets, "open_container", noted)
    together = list(classifier.predict_many([*parts[1:], parts[0]], batch_size=2))
    assert len(opened) <= 2 < len(parts)  # the first window starts with the file, which is then opened again
    for part, found in zip(alone[1:], together, strict=False):
        assert isinstance(found, Prediction)
        assert found.scores == pytest.approx(part, abs=1e-5)


def test_what_cannot_be_cut_into_windows_says_why(video: Path, tmp_path: Path) -> None:
    for settings in ({"window_seconds": 0.0}, {"window_seconds": 1.0, "stride_seconds": -1.0}):
        with pytest.raises(SettingsError, match="expected a number of seconds above 0"):
            video_windows(video, **settings)
    for stride in (None, 1e-9, 1e-320):
        with pytest.raises(
            VideoError, match=r"a window every .* s of .* s; expected at most 1,000,000 windows: choose longer"
        ):
            video_windows(video, window_seconds=1e-9, stride_seconds=stride)
    for number in range(8):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.png")
    with pytest.raises(VideoError, match="duration unknown"):
        video_windows(tmp_path, window_seconds=1)
    parts = video_windows(tmp_path, window_seconds=1, frames_per_second=4)
    assert [(part.start_seconds, part.end_seconds, part.frames_per_second) for part in parts] == [(0, 1, 4), (1, 2, 4)]


def test_frames_have_no_times(classifier: Classifier, video: Path) -> None:
    with pytest.raises(SettingsError, match="cut an array"):
        classifier.predict(read_all(video), start_seconds=0.5)
    with pytest.raises(SettingsError, match="cut an array"):
        classifier.predict(read_all(video), end_seconds=0.5)


@pytest.mark.parametrize("frames", [np.zeros((4, 8, 8), np.uint8), np.zeros((4, 8, 8, 3), np.float32)])
def test_what_is_no_video_is_refused(classifier: Classifier, frames: np.ndarray) -> None:
    with pytest.raises(VideoError, match="uint8"):
        classifier.predict(frames)


def test_a_loaded_network_is_in_eval_mode_and_can_be_trained_on(classifier: Classifier, video: Path) -> None:
    model = classifier.model
    classifier.predict(video)
    assert not model.training
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    loss = model(model.normalise(load_clip(video, CLIP_CONFIG))).square().sum()
    gradients = torch.autograd.grad(loss, list(model.trained_tensors().values()))
    assert any(gradient.count_nonzero() for gradient in gradients)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_labels_preprocessing_and_receipt_are_those_of_the_run(classifier: Classifier) -> None:
    assert classifier.labels == tuple(LABELS)
    assert classifier.clip_config == CLIP_CONFIG
    assert classifier.receipt == {"seed": 1}


def test_a_classifier_trained_by_hand_is_saved_and_loaded_again(
    trunk_folder: Path, video: Path, tmp_path: Path
) -> None:
    model = build_model(backbone=trunk_folder, labels=LABELS, tuning=STAdapter(width=8))
    model.head.requires_grad_(False)  # by hand, for a part of its training
    for parameter in model.trained_tensors().values():
        torch.nn.init.normal_(parameter, std=0.1)
    classifier = Classifier(model.eval(), ClipConfig(num_frames=4, size=16))
    folder = classifier.save(tmp_path / "runs" / "own")
    loaded = Classifier.load(folder)
    assert loaded.clip_config == classifier.clip_config
    assert loaded.predict(video) == classifier.predict(video)
    assert main(["predict", str(folder), str(video), "--format", "csv"]) == 0
    assert Classifier.load(loaded.save(folder)).predict(video) == classifier.predict(video)


def test_what_could_not_be_loaded_again_is_not_saved(trunk_folder: Path, tmp_path: Path) -> None:
    model = build_model(backbone=trunk_folder, labels=LABELS, tuning=STAdapter(width=8))
    classifier = Classifier(model.eval(), ClipConfig(num_frames=4, size=16))
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="file: cannot be written"):
        classifier.save(tmp_path / "file")
    norm = model.trunk.block_list()[0].norm1
    model.trunk.unfreeze(norm.parameters())
    with pytest.raises(ArtefactError, match=r"2 parameters learn besides .* trunk\.blocks\.0\.norm1\.bias"):
        classifier.save(tmp_path / "run")
    norm.requires_grad_(False)
    torch.nn.init.constant_(model.head.classifier.weight, float("nan"))
    with pytest.raises(ArtefactError, match=r"head\.classifier\.weight: not finite numbers"):
        classifier.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_classifiers_share_one_loaded_trunk(run: Path, trunk_folder: Path, video: Path) -> None:
    trunk = load_backbone(trunk_folder)
    first, second = Classifier.load(run, backbone=trunk), Classifier.load(run, backbone=trunk)
    for ours, theirs in zip(first.model.trunk.parameters(), second.model.trunk.parameters(), strict=True):
        assert (ours.data_ptr() == theirs.data_ptr()) != ours.requires_grad
    assert first.predict(video) == second.predict(video)


def test_half_precision_names_nearly_the_same_scores(run: Path, trunk_folder: Path, video: Path) -> None:
    trunk = load_backbone(trunk_folder)
    full = Classifier.load(run, backbone=trunk)
    half = Classifier.load(run, backbone=trunk, dtype=torch.bfloat16)
    before = full.predict(video).scores
    assert half.model.trunk.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in half.model.trained_tensors().values()} == {torch.float32}
    assert half.predict(video).scores == pytest.approx(before, abs=0.05)
    assert half.predict(video).scores != before
    assert full.predict(video).scores == before


def test_an_unusable_dtype_or_device_is_refused_before_loading() -> None:
    with pytest.raises(SettingsError, match=r"torch\.int8.*torch\.float32"):
        Classifier.load("nowhere", dtype=torch.int8)
    with pytest.raises(SettingsError, match="device toaster: expected auto, cpu, cuda"):
        Classifier.load("nowhere", device="toaster")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingsError, match="device cuda"):
        choose_device("cuda")


@pytest.mark.parametrize("nothing", [None, [np.zeros((8, 32, 32, 3), np.uint8)]])
def test_what_is_no_video_is_refused_by_its_kind(classifier: Classifier, nothing: Any) -> None:
    with pytest.raises(VideoError, match=f"{type(nothing).__name__} found"):
        classifier.predict(nothing)


def test_one_path_for_many_videos_is_refused(classifier: Classifier) -> None:
    with pytest.raises(SettingsError, match=r"videos 'clip\.mp4': expected several"):
        classifier.predict_many("clip.mp4")


def test_the_device_chosen_by_itself_is_usable() -> None:
    torch.zeros(1, device=choose_device("auto"))
    assert choose_device("cpu") == torch.device("cpu")


def test_scores_that_are_no_numbers_are_an_error(run: Path, video: Path) -> None:
    classifier = Classifier.load(run)
    with torch.no_grad():
        classifier.model.trained_tensors()["head.classifier.bias"].fill_(torch.nan)
    with pytest.raises(STAdapterError, match=r"up_01\.mp4: the scores are not finite"):
        classifier.predict(video)
    (failure,) = classifier.predict_many([video])
    assert isinstance(failure, PredictionFailure)


def test_a_prediction_prints_as_a_line() -> None:
    scores = dict(zip("abcdef", [0.5, 0.2, 0.1, 0.1, 0.06, 0.04], strict=True))
    line = "clip.mp4: a 50.0 %, b 20.0 %, c 10.0 %, d 10.0 %, e 6.0 %"
    assert str(Prediction("clip.mp4", "a", 0.5, scores)) == line
    assert str(PredictionFailure("some/clip.mp4", "clip.mp4: damaged")) == "clip.mp4: damaged"
    assert str(PredictionFailure("clip.mp4", "damaged")) == "clip.mp4: damaged"


def test_windows_end_with_the_pictures_and_not_with_the_sound(tmp_path: Path) -> None:
    path = tmp_path / "talk.mkv"
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=44100)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        for _ in range(50):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(video.encode(None))
        for _ in range(430):
            sound = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            sound.rate = 44100
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    assert [part.end_seconds for part in video_windows(path, window_seconds=1)] == [1, 2]


def test_windows_cover_frames_of_uneven_times_to_their_end(tmp_path: Path) -> None:
    """Also where a time comes twice, and at a rate that the file states and does not keep."""
    path = tmp_path / "uneven.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for tick in [0, 40, 80, 80, *range(500, 10_000, 500)]:
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert [part.end_seconds for part in video_windows(path, window_seconds=2)] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("rate", [0, -5, math.nan])
def test_windows_of_no_rate_are_refused(tmp_path: Path, rate: float) -> None:
    with pytest.raises(SettingsError, match=r"frames_per_second .*: expected a number above 0"):
        video_windows(tmp_path, window_seconds=1, frames_per_second=rate)


def test_a_part_has_its_own_times(classifier: Classifier, video: Path) -> None:
    with pytest.raises(SettingsError, match="a part has its own times"):
        classifier.predict(VideoPart(video, 0.1), end_seconds=0.2)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((np.zeros((4, 8, 8, 3), np.uint8), 0, 1), "ndarray found; expected the path of a video"),
        ((None,), "NoneType found; expected the path of a video"),
        (("clip.mp4", "1"), "start_seconds '1': expected a number"),
        (("clip.mp4", 0, [2]), r"end_seconds \[2\]: expected a number"),
    ],
)
def test_a_part_is_of_a_path_between_numbers(part: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        VideoPart(*part)


def test_windows_are_of_a_path_and_of_a_length_in_numbers(classifier: Classifier, video: Path) -> None:
    with pytest.raises(SettingsError, match="Tensor found; expected the path of a video"):
        video_windows(read_frames(video, [0]), window_seconds=1)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="window_seconds None: expected a number"):
        video_windows(video, window_seconds=None)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="expected several, in a list"):
        classifier.predict_many(VideoPart(video, 0.1))  # type: ignore[arg-type]
