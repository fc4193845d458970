"""A trained classifier as one file that runs without this program: ONNX, or a torch.export program."""

# V views, T frames, S side of a clip in pixels, C classes

import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from stadapter.artefact import Artefact, load_artefact
from stadapter.clips import ClipConfig
from stadapter.durable import move_whole
from stadapter.errors import ArtefactError, SettingsError, STAdapterError
from stadapter.model import VideoClassifier
from stadapter.paths import expanded
from stadapter.tuning import Tuning, tuning_to_json
from stadapter.vit import ImageViT
from stadapter.wording import first_line

INPUT, OUTPUT = "clips", "scores"
METADATA = "stadapter"
"""The description is stored in an ONNX model's metadata under this name, in a torch program under this plus .json."""
_LARGEST_DIFFERENCE = 1e-4
_ONNX_PACKAGES = ("onnxscript", "onnxruntime")
"""The first is what torch writes ONNX with; the second runs what was written."""
Run = Callable[[Tensor], Tensor]
Writer = Callable[[ExportedProgram, Path, str], Run]
"""Writes a program and its description to a path; what it returns runs what was written."""


@dataclass(frozen=True)
class Exported:
    """A classifier that has been written, and how it was checked."""

    path: Path
    """The file; beyond 2 GB an ONNX model has its weights next to it, in a file with .data added to its name."""
    num_bytes: int
    """Of both files together."""
    any_frames: bool
    """Whether it takes clips of any number of frames, or only of the run's."""
    largest_difference: float
    """The largest difference of a score from the run's own on the same random clips."""
    description: dict[str, Any]
    """What the file says about itself."""


class _Scores(nn.Module):
    """What is exported: views as they are read, in; probabilities, out."""

    def __init__(self, model: VideoClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor) -> Tensor:
        return self.model.label_space.softmax(self.model(self.model.normalise(clips)))


def export_model(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    backbone: ImageViT | str | os.PathLike[str] | None = None,
    tuning: Tuning | None = None,
) -> Exported:
    """Write a trained classifier, trunk and all, as one file that needs neither this program nor the model's code.

        clips (V, T, 3, S, S) ─► normalise ─► trunk, adapters, head ─► softmax ─► scores (V, C)

    `clips` are the test views of one video, or of several, as `load_clip` gives them: bytes, RGB, or normalised floats
    if the run resizes as released. V is free, and so is T except for a few strategies under torch before 2.13. The
    scores of a video's views must be averaged; those of several heads stand side by side, and add up to 1 each. The
    file is run on random clips and compared with the run before it gets its name.

    Args:
        run: a run folder, or the Hub id of one.
        out: the file; a name ending in .onnx is for ONNX Runtime and whatever else reads ONNX, .pt2 for
            `torch.export.load`. An existing one is replaced.
        backbone: where the trunk is now, if not where it was in training; or a loaded trunk.
        tuning: the strategy, with the settings that it had, if it is not one of this package's.

    Raises:
        SettingsError: the name ends otherwise, or a package that writes ONNX is not installed.
        ArtefactError: the run cannot be loaded, or the file cannot be written.
        BackboneError: the trunk cannot be found or loaded.
        STAdapterError: torch cannot make a graph of the network, or the file gives other scores.
    """
    path = Path(os.path.realpath(expanded(out)))  # a link stays a link
    write = _writer(path)
    artefact = load_artefact(run, backbone=backbone, tuning=tuning)
    network, clip = _Scores(artefact.model).eval(), artefact.clip_config
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            with _quietly():
                program, any_frames = _traced(network, clip)
                description = _describe(artefact, any_frames=any_frames)
                exported = write(program, Path(folder) / path.name, json.dumps(description))
            difference = _largest_difference(network, exported, clip, any_frames=any_frames)
            files = sorted(Path(folder).iterdir(), reverse=True)  # the weights next to a model come before it
            num_bytes = sum(file.stat().st_size for file in files)
            for file in files:
                move_whole(file, path.parent / file.name)
    except OSError as error:
        raise ArtefactError(f"cannot write {path}: {error.strerror}; make room, or choose another folder") from error
    return Exported(path, num_bytes, any_frames, difference, description)


def _writer(path: Path) -> Writer:
    """What writes a file of this name; obstacles to writing it are found before there is anything to lose."""
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise SettingsError(f"out {path.name}: expected a name that ends in {' or '.join(_WRITERS)}")
    if path.is_dir():
        raise SettingsError(f"out {path} is a folder; expected the name of a file")
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None] if write is _write_onnx else []
    if missing:
        raise SettingsError(
            f"{path.name}: the packages that write and check ONNX are not installed: pip install " + " ".join(missing)
        )
    return write


def _traced(network: _Scores, clip: ClipConfig) -> tuple[ExportedProgram, bool]:
    """The network as a graph, and whether that holds for any number of frames."""
    views, frames = Dim("views", min=1), Dim("frames", min=1)
    try:
        # A length of 1 would be taken for a constant.
        example = _random_clips(clip, num_views=2, num_frames=max(2, clip.num_frames))
        return torch.export.export(network, (example,), dynamic_shapes=({0: views, 1: frames},)), True
    except Exception:  # of many types: torch could not prove that one graph is right for all lengths
        example = _random_clips(clip, num_views=2, num_frames=clip.num_frames)
    try:
        return torch.export.export(network, (example,), dynamic_shapes=({0: views},)), False
    except Exception as error:  # of as many types, for example from a strategy's own code that looks at values
        raise STAdapterError(f"torch.export cannot take this network as a graph: {first_line(error)}") from error


def _random_clips(clip: ClipConfig, *, num_views: int, num_frames: int) -> Tensor:
    """Views (V, T, 3, S, S) as `load_clip` gives them, of noise, the same every time."""
    random = torch.Generator().manual_seed(num_views)
    shape = (num_views, num_frames, 3, clip.size, clip.size)
    if clip.resize == "fast":
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    return torch.randn(shape, generator=random)


def _describe(artefact: Artefact, *, any_frames: bool) -> dict[str, Any]:
    """What the file says about itself: everything needed to make its clips and read its scores."""
    from stadapter import __version__

    clip, info = artefact.clip_config, artefact.model.trunk.info
    frames = "frames" if any_frames else clip.num_frames
    dtype = "uint8" if clip.resize == "fast" else "float32"
    description = {
        "format": "stadapter-export",
        "format_version": 1,
        "stadapter": __version__,
        "input": {"name": INPUT, "dtype": dtype, "shape": ["views", frames, 3, clip.size, clip.size]},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["views", len(artefact.model.labels)]},
        "labels": artefact.model.label_space.to_json(),
        "clip": asdict(clip),
        "backbone": {"name": info.name, "revision": info.revision, "sha256": info.sha256},
        "tuning": tuning_to_json(artefact.model.tuning),
    }
    plain: dict[str, Any] = json.loads(json.dumps(description))
    return plain


def _write_onnx(program: ExportedProgram, path: Path, description: str) -> Run:
    """Write an ONNX model; returns what runs it."""
    import onnxruntime

    try:
        written = torch.onnx.export(program, (), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        raise STAdapterError(f"torch cannot write this network as ONNX: {first_line(error)}") from error
    assert written is not None
    written.model.metadata_props[METADATA] = description
    written.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(clips: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: clips.numpy()})[0])

    return run


def _write_program(program: ExportedProgram, path: Path, description: str) -> Run:
    """Write a torch.export program; returns what runs it."""
    content = io.BytesIO()  # torch's own writing to a file aborts the process where the disk is full
    torch.export.save(program, content, extra_files={f"{METADATA}.json": description})
    path.write_bytes(content.getbuffer())
    network: Run = torch.export.load(path).module()
    return network


_WRITERS: Mapping[str, Writer] = {".onnx": _write_onnx, ".pt2": _write_program}


def _largest_difference(network: _Scores, exported: Run, clip: ClipConfig, *, any_frames: bool) -> float:
    """The largest difference between the scores of both for random clips, of several sizes."""
    largest = 0.0
    for num_views, more in ((2, 0), (1, 0), (1, 1)) if any_frames else ((2, 0), (1, 0)):
        clips = _random_clips(clip, num_views=num_views, num_frames=clip.num_frames + more)
        with torch.no_grad():
            difference = float((exported(clips) - network(clips)).abs().max())
        if not difference <= _LARGEST_DIFFERENCE:
            raise STAdapterError(
                f"the exported file gives other scores than the run, off by {difference:.2g} for {num_views} views of "
                f"{clip.num_frames + more} frames; nothing was kept"
            )
        largest = max(largest, difference)
    return largest


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the messages of torch and transformers to authors of such exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
