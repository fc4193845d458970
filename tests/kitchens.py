"""Small EPIC-Kitchens: annotations and videos."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stadapter.synthetic import draw_clip, write_video

EPIC = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)
VERBS = ("take", "put")
NOUNS = ("plate", "door", "pan")
MOTIONS = {"take": "left", "put": "right"}
TINTS = {"plate": (1.0, 0.2, 0.2), "door": (0.2, 1.0, 0.2), "pan": (0.2, 0.2, 1.0)}
FRAMES = 9
"""Of a segment, at 10 a second."""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def epic_row(video: str, start: str, stop: str, verb: int, noun: int) -> str:
    times = f"00:00:00.000,00:00:0{start},00:00:0{stop},0,0"
    return f'{video}_0,{video[:3]},{video},{times},"do, it",did,{verb},things,{noun},"[\'a\', \'b\']","[{noun}, 1]"\n'


def write_kitchen(path: Path, actions: Sequence[tuple[str, str]]) -> str:
    """A video of segments one after the other, and their rows: the verb is in the motion, the noun in the colour."""
    frames, rows = [], ""
    for number, (verb, noun) in enumerate(actions):
        clip = draw_clip(MOTIONS[verb], number, size=32, num_frames=FRAMES)
        frames.append((clip * np.array(TINTS[noun])).astype(np.uint8))
        start, stop = (f"{number * FRAMES / 10:.2f}", f"{(number + 1) * FRAMES / 10:.2f}")
        rows += epic_row(path.stem, start, stop, 10 * VERBS.index(verb), 2 + NOUNS.index(noun))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.concatenate(frames))
    return rows
