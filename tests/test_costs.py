import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stadapter.costs import forget_peak_memory, gmacs_per_view, peak_memory_bytes
from stadapter.model import VideoClassifier, build_model
from stadapter.tuning import LinearProbe
from strategies import CASES, build
from trunks import FAMILIES, make_trunk


def test_gmacs_are_those_counted_by_hand() -> None:
    model = build_model(backbone=make_trunk("vit"), labels=["a", "b"], tuning=LinearProbe())
    frames, patches, tokens, width, blocks, hidden = 2, 16, 17, 32, 3, 48
    block = tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens * tokens * width
    # In the last block all but keys and values is for the class token alone: it is all the head reads.
    unread = patches * (2 * width * width + 2 * width * hidden) + 2 * patches * tokens * width
    by_hand = frames * (patches * 3 * 4 * 4 * width + blocks * block - unread) + 2 * width
    assert gmacs_per_view(model, num_frames=frames, size=16) * 1e9 == pytest.approx(by_hand)


def counted_by_computing(model: VideoClassifier, *, num_frames: int, size: int) -> float:
    model.trunk.use_attention("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, num_frames, 3, size, size))
    return counter.get_total_flops() / 2 / 1e9


@pytest.mark.parametrize(
    ("family", "strategy"), [*((family, "st-adapter") for family in FAMILIES), *(("dinov2", name) for name in CASES)]
)
def test_gmacs_are_counted_without_computing(family: str, strategy: str) -> None:
    model = build(family, strategy)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    counted = gmacs_per_view(model, num_frames=3, size=24)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert counted == pytest.approx(counted_by_computing(model, num_frames=3, size=24))


def test_the_peak_of_memory_begins_anew() -> None:
    device = torch.device("cpu")
    block = torch.ones(64 * 2**20)  # 256 MiB
    high, _ = peak_memory_bytes(device)
    del block
    forget_peak_memory(device)
    low, kind = peak_memory_bytes(device)
    assert kind == "process"
    if high == low:
        pytest.skip("this system does not forget a process's peak")
    assert low < high - 128 * 2**20
