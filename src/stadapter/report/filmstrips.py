"""Some of the evaluated clips as strips of small pictures: the most confident correct and wrong predictions."""

# T frames, H W pixels

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from stadapter.clips import ClipConfig, load_frames
from stadapter.errors import STAdapterError
from stadapter.evaluation.figures import ClipPrediction, Report
from stadapter.manifest import Entry, Manifest
from stadapter.transforms import resize_fast

NUM_PICTURES = 8
_SHORT_SIDE_PIXELS, _LONG_SIDE_PIXELS = 96, 240
_JPEG_QUALITY = 78


@dataclass(frozen=True)
class Filmstrip:
    """Frames of one clip, and what was predicted for it."""

    prediction: ClipPrediction
    pictures: tuple[str, ...]
    """JPEG files as data: addresses; empty if the clip can no longer be read."""
    width: int
    """Pixels."""
    height: int
    problem: str
    """Why there are no pictures."""


def make_filmstrips(
    report: Report, manifest: Manifest | None, clip_config: ClipConfig, *, limit: int
) -> tuple[list[Filmstrip], list[Filmstrip]]:
    """Strips of the most confident correct predictions, and of the most confident wrong ones, at most `limit` each.

    Among the correct ones no class comes twice before all have come. Without a manifest there are none.
    """
    if manifest is None:
        return [], []
    entries = {(entry.name, entry.segment): entry for entry in manifest.entries}
    surest = sorted(report.predictions, key=lambda prediction: -prediction.score)
    hits = _by_turns([prediction for prediction in surest if prediction.is_correct])
    misses = [prediction for prediction in surest if not prediction.is_correct]

    def strips(predictions: Sequence[ClipPrediction]) -> list[Filmstrip]:
        return [
            make_filmstrip(prediction, entries.get((prediction.name, prediction.segment)), clip_config)
            for prediction in predictions
        ]

    return strips(hits[:limit]), strips(misses[:limit])


def make_filmstrip(prediction: ClipPrediction, entry: Entry | None, clip_config: ClipConfig) -> Filmstrip:
    """The frames that the model looked at, at most 8 of them; never an error."""
    if entry is None:
        return Filmstrip(prediction, (), 0, 0, "no longer in the data")
    try:
        frames = load_frames(
            entry.path,
            clip_config,
            start_seconds=entry.start_seconds,
            end_seconds=entry.end_seconds,
            frames_per_second=entry.frames_per_second,
        )  # (T, 3, H, W)
        pictures = [_picture(frames[place]) for place in _spread(len(frames))]
    except (STAdapterError, OSError, ValueError) as error:
        return Filmstrip(prediction, (), 0, 0, f"can no longer be read: {error}")
    addresses = tuple("data:image/jpeg;base64," + base64.b64encode(_jpeg(picture)).decode() for picture in pictures)
    return Filmstrip(prediction, addresses, pictures[0].width, pictures[0].height, "")


def _by_turns(predictions: Sequence[ClipPrediction]) -> list[ClipPrediction]:
    """First the first of every class, then the second of every class, and so on; each turn in the given order."""
    turns: dict[str, int] = {}
    numbered = []
    for place, prediction in enumerate(predictions):
        turns[prediction.label] = turn = turns.get(prediction.label, 0) + 1
        numbered.append((turn, place))
    return [predictions[place] for _, place in sorted(numbered)]


def _spread(num_frames: int) -> list[int]:
    """Positions of the frames that are shown: from the first to the last, evenly."""
    if num_frames <= NUM_PICTURES:
        return list(range(num_frames))
    return [round(number * (num_frames - 1) / (NUM_PICTURES - 1)) for number in range(NUM_PICTURES)]


def _picture(frame: Tensor) -> Image.Image:
    """A uint8 frame (3, H, W), small."""
    height, width = frame.shape[-2:]
    scale = min(1.0, _SHORT_SIDE_PIXELS / min(height, width), _LONG_SIDE_PIXELS / max(height, width))
    small = resize_fast(frame[None], max(1, round(height * scale)), max(1, round(width * scale)))[0]
    return Image.fromarray(small.permute(1, 2, 0).contiguous().numpy())


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return file.getvalue()
