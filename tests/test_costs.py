import pytest
import torch

from stadapter.costs import checkpointing_cost, gmacs_per_view, saved_bytes
from stadapter.memory import forget_peak_memory, peak_memory_bytes
from stadapter.model import VideoClassifier, build_model, prepare_trunk
from stadapter.products import count_products
from stadapter.tuning import LinearProbe, STAdapter
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
    with torch.no_grad(), count_products() as counter:
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


def test_what_a_step_keeps_is_counted() -> None:
    weight = torch.nn.Linear(4, 4, bias=False)
    x = torch.ones(8, 4)
    assert saved_bytes(lambda: weight(x), weight) == 8 * 4 * 4
    weight.requires_grad_(False)
    assert saved_bytes(lambda: weight(x), weight) == 0


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_price_of_gradient_checkpointing_is_counted_without_computing(
    family: str, dtype: torch.dtype | None
) -> None:
    model = build_model(backbone=make_trunk(family), labels=["a", "b"])
    cost = checkpointing_cost(
        model, num_clips=2, num_frames=3, size=24, device=torch.device("cpu"), autocast_dtype=dtype
    )
    assert (model.trunk.recomputed, cost.num_blocks) == (range(0), 2)
    assert all(parameter.grad is None and not parameter.is_meta for parameter in model.parameters())
    prepare_trunk(model, torch.device("cpu"), dtype)
    clips = torch.zeros(2, 3, 3, 24, 24)

    def forward() -> torch.Tensor:
        logits: torch.Tensor = model(clips)
        return logits

    for counted, recomputed in ((cost.plain, range(0)), (cost.checkpointed, range(2))):
        model.trunk.recomputed = recomputed
        assert counted.kept_bytes == saved_bytes(forward, model)
        model.trunk.use_attention("eager")
        with count_products() as counter:
            forward().sum().backward()
        assert counted.gmacs * 2e9 == pytest.approx(counter.get_total_flops())
        prepare_trunk(model, torch.device("cpu"), dtype)
    assert cost.checkpointed.kept_bytes + cost.block_bytes < cost.plain.kept_bytes
    assert "GMACs more per batch" in str(cost)
    on_gpu = checkpointing_cost(
        model, num_clips=2, num_frames=3, size=24, device=torch.device("cuda"), autocast_dtype=dtype
    )
    assert on_gpu.plain.gmacs == pytest.approx(cost.plain.gmacs)
    # A block's last product is computed again by neither: nothing of it is kept.
    assert on_gpu.checkpointed.gmacs == pytest.approx(cost.checkpointed.gmacs)


def test_where_only_the_last_block_keeps_anything_nothing_is_saved() -> None:
    model = build_model(backbone=make_trunk("clip"), labels=["a", "b"], tuning=STAdapter(width=8, last_blocks=1))
    cost = checkpointing_cost(
        model, num_clips=2, num_frames=3, size=24, device=torch.device("cpu"), autocast_dtype=None
    )
    assert cost.plain == cost.checkpointed
    assert str(cost).startswith("nothing to save")


def test_the_peak_of_memory_begins_anew() -> None:
    device = torch.device("cpu")
    block = torch.ones(64 * 2**20)  # 256 MiB
    high = peak_memory_bytes(device)
    del block
    forget_peak_memory(device)
    low = peak_memory_bytes(device)
    if high == low:
        pytest.skip("this system does not forget a process's peak")
    assert low < high - 128 * 2**20
