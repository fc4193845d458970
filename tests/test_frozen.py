"""Training on tokens that are kept: the same weights as without, whatever happens to what is kept."""

import dataclasses
import errno
import io
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from stadapter import dataset as dataset_module
from stadapter.augmentation import Augmentation
from stadapter.errors import SettingsError
from stadapter.model import VideoClassifier, prepare_trunk
from stadapter.synthetic import write_clips
from stadapter.training.description import describe
from stadapter.training.loop import TrainConfig, train
from stadapter.training.preparation import prepare
from stadapter.training.progress import Meter
from stadapter.tuning import AttentivePooling, LinearProbe, STAdapter
from trainings import train_in_two_processes
from trunks import save_trunk

NUM_CLIPS, NUM_VIEWS = 8, 2
LAST_BLOCKS = STAdapter(width=8, last_blocks=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, classes=("left", "right"), clips_per_class=NUM_CLIPS // 2, size=32, num_frames=8)
    return folder


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trunk(tmp_path_factory.mktemp("trunk"), "dinov2")


@pytest.fixture
def config(data: Path, trunk: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=data,
        backbone=trunk,
        out=tmp_path / "run",
        tuning=LAST_BLOCKS,
        val_fraction=0,
        num_frames=4,
        size=16,
        epochs=5,
        batch_size=3,
        dropout=0.3,
        device="cpu",
        precision="fp32",
        num_workers=0,
        views_per_clip=NUM_VIEWS,
        token_cache_folder=tmp_path / "cache",
    )


@dataclasses.dataclass
class Outcome:
    """What a run gave and did."""

    weights: dict[str, torch.Tensor]
    said: str
    num_through_frozen_blocks: int
    """Clips that the frozen blocks have seen on their own."""
    num_decoded: int
    """Videos opened in this process."""

    def __eq__(self, other: object) -> bool:
        """The same weights, bit for bit."""
        assert isinstance(other, Outcome)
        return self.weights.keys() == other.weights.keys() and all(
            torch.equal(tensor, other.weights[name]) for name, tensor in self.weights.items()
        )


def run(config: TrainConfig, name: str, **changes: Any) -> Outcome:
    config = dataclasses.replace(config, out=f"{config.out}-{name}", **changes)
    output = io.StringIO()
    with counting() as counts:
        train(config, console=Console(file=output, width=300))
    return Outcome(load_file(Path(config.out) / "stadapter.safetensors"), output.getvalue(), *counts)


@contextmanager
def counting() -> Iterator[list[int]]:
    counts = [0, 0]
    frozen_tokens, open_video = VideoClassifier.frozen_tokens, dataset_module.load_random_views

    def count_clips(self: VideoClassifier, clips: torch.Tensor) -> torch.Tensor:
        counts[0] += len(clips)
        return frozen_tokens(self, clips)

    def count_videos(*args: Any, **kwargs: Any) -> torch.Tensor:
        counts[1] += 1
        return open_video(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoClassifier, "frozen_tokens", count_clips)
        patch.setattr(dataset_module, "load_random_views", count_videos)
        yield counts


def entries(config: TrainConfig) -> list[Path]:
    return sorted(Path(str(config.token_cache_folder)).rglob("*.safetensors"))


def test_tokens_that_are_kept_give_the_same_weights_and_each_view_is_computed_once(config: TrainConfig) -> None:
    plain = run(config, "plain", token_cache_gigabytes=0)
    assert not entries(config)
    assert plain.num_through_frozen_blocks == 0
    cold = run(config, "cold")
    assert cold == plain
    assert cold.num_through_frozen_blocks == len(entries(config)) == NUM_VIEWS * NUM_CLIPS
    assert "2 views per clip: the first 1 of 3 blocks run once per view" in cold.said
    # 8 clips x 2 views x 4 frames x 17 tokens x 32 wide x 4 bytes
    assert "their tokens, 0.00014 GB of at most 8 GB, are kept" in cold.said
    warm = run(config, "warm")
    assert warm == plain
    assert (warm.num_through_frozen_blocks, warm.num_decoded) == (0, 0)
    fresh = run(config, "fresh", views_per_clip=None)
    assert fresh != plain


def test_workers_find_tokens_and_give_the_same_weights(config: TrainConfig) -> None:
    plain = run(config, "plain", token_cache_gigabytes=0, num_workers=2)
    cold, warm = run(config, "cold", num_workers=2), run(config, "warm", num_workers=2)
    assert (cold, warm) == (plain, plain)
    assert (cold.num_through_frozen_blocks, warm.num_through_frozen_blocks) == (NUM_VIEWS * NUM_CLIPS, 0)


def test_other_batches_views_and_precision_give_the_same_weights(config: TrainConfig) -> None:
    for name, changes in {
        "added-up": {"accumulation_steps": 2, "batch_size": 2, "gradient_clip": 0.5},
        "no-views-ahead": {"view_store_megabytes": 0},
        "balanced": {"balance_classes": True},
        "bf16": {"precision": "bf16"},
        "floats": {"resize": "released"},
    }.items():
        plain = run(config, f"{name}-plain", token_cache_gigabytes=0, **changes)
        assert run(config, f"{name}-kept", **changes) == plain, name


@pytest.mark.parametrize("tuning", [LinearProbe(), AttentivePooling(num_frames=4, num_heads=2)])
def test_a_head_alone_trains_on_what_the_whole_trunk_gives(config: TrainConfig, tuning: Any) -> None:
    plain = run(config, "plain", tuning=tuning, token_cache_gigabytes=0)
    cold = run(config, "cold", tuning=tuning)
    assert cold == plain
    assert "the first 3 of 3 blocks run once per view" in cold.said
    tokens = load_file_of_entry(entries(config)[0])
    assert tokens.shape == (4, 1 if isinstance(tuning, LinearProbe) else 17, 32)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tuning", [LAST_BLOCKS, LinearProbe(), AttentivePooling(num_frames=4, num_heads=2)])
def test_the_room_that_is_told_is_that_of_the_views_that_there_will_be(
    config: TrainConfig, tuning: Any, precision: Any
) -> None:
    part = prepare(dataclasses.replace(config, tuning=tuning, precision=precision)).frozen_part
    prepare_trunk(part.model, part.device, part.autocast_dtype)
    tokens = part.compute(torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8))
    for num_epochs, num_held_out in ((1, 0), (NUM_VIEWS, 10**5), (NUM_VIEWS + 3, 10**6)):
        (told,) = part.describe(num_clips=10**6, num_epochs=num_epochs, num_held_out=num_held_out)
        num_views = 10**6 * min(num_epochs, NUM_VIEWS) + num_held_out * part.clip_config.num_views
        assert f"their tokens, {num_views * tokens.nbytes / 1e9:.2g} GB of at most" in told


def load_file_of_entry(path: Path) -> torch.Tensor:
    from safetensors.torch import load

    return load(path.read_bytes()[32:])[path.stem]


@pytest.mark.parametrize("gigabytes", [1.0, 0.0])
def test_a_run_stopped_in_the_middle_resumes_to_the_same_weights(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, gigabytes: float
) -> None:
    whole = run(config, "whole")
    original, calls = Meter.add, []

    def add(self: Meter, *args: Any) -> None:
        original(self, *args)
        calls.append(args)
        if len(calls) == 5:  # in the middle of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)

    folder = Path(f"{config.token_cache_folder}-2")
    with monkeypatch.context() as patch:
        patch.setattr(Meter, "add", add)
        with pytest.raises(KeyboardInterrupt):
            run(config, "halves", token_cache_folder=folder)
    assert len(list(folder.rglob("*.safetensors"))) == 14
    rest = run(config, "halves", token_cache_folder=folder, resume=True, token_cache_gigabytes=gigabytes)
    assert rest == whole
    assert rest.num_through_frozen_blocks == (2 if gigabytes else 0)


def test_damaged_files_are_made_anew_and_that_is_said_once(config: TrainConfig) -> None:
    plain = run(config, "cold")
    first, second, third, *_ = entries(config)
    first.write_bytes(first.read_bytes()[:-7])
    second.write_bytes(b"")
    third.write_bytes(bytes(byte ^ 1 for byte in third.read_bytes()))
    for name, num_workers, count in (("here", 0, 3), ("there", 1, 3)):
        again = run(config, name, num_workers=num_workers)
        assert again == plain
        assert again.num_through_frozen_blocks == count
        assert again.said.count("damaged files in") == 1
        assert len(entries(config)) == NUM_VIEWS * NUM_CLIPS
        for path in entries(config)[:3]:
            path.write_bytes(path.read_bytes()[:-7])


def test_a_changed_video_is_looked_at_again(config: TrainConfig, tmp_path: Path, data: Path) -> None:
    own = tmp_path / "own"
    write_clips(own, classes=("left", "right"), clips_per_class=NUM_CLIPS // 2, size=32, num_frames=8)
    run(config, "cold", data=own)
    changed, other = sorted((own / "left").iterdir())[0], sorted((own / "right").iterdir())[0]
    changed.write_bytes(other.read_bytes())
    plain = run(config, "plain", data=own, token_cache_gigabytes=0)
    again = run(config, "again", data=own)
    assert again == plain
    assert again.num_through_frozen_blocks == NUM_VIEWS


@pytest.mark.parametrize("full", ["disk", "limit", "folder"])
def test_without_room_a_run_goes_on_the_same_and_says_so_once(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, full: str
) -> None:
    plain = run(config, "plain", token_cache_gigabytes=0)
    changes: dict[str, Any] = {}
    if full == "disk":
        write, kept_files = Path.write_bytes, list[Path]()

        def fill(self: Path, content: Any) -> int:
            if self.is_relative_to(tmp_path / "cache"):
                if len(kept_files) == 5:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                kept_files.append(self)
            return write(self, content)

        monkeypatch.setattr(Path, "write_bytes", fill)
    elif full == "limit":
        changes["token_cache_gigabytes"] = 50e-6
    else:
        (tmp_path / "file").touch()
        changes["token_cache_folder"] = tmp_path / "file"
    outcome = run(config, "full", **changes)
    assert outcome == plain
    assert outcome.said.count("no more tokens are kept in") == 1
    kept = len(entries(config))
    assert kept == {"disk": 5, "limit": 5, "folder": 0}[full]
    assert outcome.num_through_frozen_blocks > NUM_VIEWS * NUM_CLIPS


def test_a_bad_video_is_replaced_by_the_same_ones(config: TrainConfig, tmp_path: Path) -> None:
    own = tmp_path / "some-bad"
    write_clips(own, classes=("left", "right"), clips_per_class=NUM_CLIPS // 2, size=32, num_frames=8)
    (own / "left" / "broken.mp4").write_bytes(b"not a video at all")
    plain = run(config, "plain", data=own, token_cache_gigabytes=0)
    for name in ("cold", "warm"):
        outcome = run(config, name, data=own)
        assert outcome == plain
        assert outcome.said.count("skipped left/broken.mp4") == 1


@pytest.mark.parametrize("package", ["stadapter", "torch", "transformers", "av", "numpy", "PIL"])
def test_another_version_of_what_draws_or_computes_views_finds_no_tokens(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    part = prepare(config).frozen_part
    before = part.scope()
    monkeypatch.setattr(f"{package}.__version__", "0.0.1")
    assert part.scope() != before


def test_everything_that_decides_tokens_is_in_their_scope(config: TrainConfig, tmp_path: Path) -> None:
    other_trunk = save_trunk(tmp_path / "other-trunk", "dinov2", seed=1)
    same_weights = tmp_path / "same-weights"
    shutil.copytree(config.backbone, same_weights)
    told = json.loads((same_weights / "config.json").read_text())
    (same_weights / "config.json").write_text(json.dumps(told | {"hidden_act": "relu"}))
    scopes = [
        prepare(dataclasses.replace(config, **changes)).frozen_part.scope()
        for changes in (
            {},
            {"backbone": other_trunk},
            {"backbone": same_weights},
            {"tuning": STAdapter(width=8, last_blocks=1)},
            {"tuning": LinearProbe()},
            {"tuning": AttentivePooling(num_frames=4, num_heads=2)},
            {"precision": "bf16"},
            {"compile": True},
            {"num_frames": 5},
            {"size": 20},
            {"stride_frames": 1},
            {"resize": "released"},
            {"fit": "stretch", "num_spatial_views": 1},
            {"short_clips": "error"},
            {"augmentation": Augmentation(colour_jitter=0.2)},
            {"augmentation": Augmentation(colour_jitter=0.4, crop="centre")},
        )
    ]
    told = [json.dumps(scope, sort_keys=True) for scope in scopes]
    assert len(set(told)) == len(told)
    assert {"device", "attention", "versions"} <= scopes[0].keys()
    part = prepare(config).frozen_part
    halves = [dataclasses.replace(part, autocast_dtype=dtype).scope() for dtype in (torch.float16, torch.bfloat16)]
    assert halves[0] != halves[1]  # on a GPU the precision is all that tells them apart
    # These decide what is drawn, which is in the key, or nothing at all.
    free: dict[str, Any] = {"lr": 0.1, "epochs": 7, "seed": 3, "num_temporal_views": 3, "num_workers": 2}
    free |= {"views_per_clip": 9, "tuning": STAdapter(width=4, kernel_size=(1, 1, 1), last_blocks=2)}
    assert prepare(dataclasses.replace(config, **free)).frozen_part.scope() == scopes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning": STAdapter(width=8)}, r"token_cache_gigabytes 2 would keep nothing.*--tuning\.last-blocks"),
        ({"views_per_clip": None}, "without --views-per-clip"),
        ({"tuning": STAdapter(width=8), "views_per_clip": None}, r"last-blocks; views of a clip are not reused"),
        ({"views_per_clip": 0}, "views_per_clip 0: expected at least 1"),
        ({"token_cache_gigabytes": -1}, "token_cache_gigabytes -1: expected at least 0"),
    ],
)
def test_a_cache_that_would_stay_empty_is_refused(config: TrainConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        prepare(dataclasses.replace(config, **{"token_cache_gigabytes": 2} | changes))


def test_views_may_come_again_where_every_block_learns(config: TrainConfig) -> None:
    described = "\n".join(describe(prepare(dataclasses.replace(config, tuning=STAdapter(width=8)))))
    assert "2 views per clip, and no tokens to keep: this strategy already changes the first block" in described
    fresh = dataclasses.replace(config, views_per_clip=None)
    unused = f"--token-cache-folder {config.token_cache_folder} is not used here: views are not reused"
    assert unused in "\n".join(describe(prepare(fresh)))
    assert "token" not in "\n".join(describe(prepare(dataclasses.replace(fresh, token_cache_folder=None))))


def test_two_processes_keep_tokens_for_each_other(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, batch_size=2, epochs=4)
    weights = []
    for gigabytes in (0, 1):
        out = tmp_path / f"two-{gigabytes}"
        train_in_two_processes(config, tmp_path, out=out, token_cache_gigabytes=gigabytes)
        weights.append(load_file(out / "stadapter.safetensors"))
        assert len(entries(config)) == NUM_VIEWS * NUM_CLIPS * gigabytes
    plain, kept = weights
    assert all(torch.equal(kept[name], tensor) for name, tensor in plain.items())
