"""Laws of the adapter itself: its arithmetic, its start, its settings, where it may stand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import prune

from stadapter.adapters import space_time
from stadapter.adapters.space_time import SpaceTimeAdapter
from stadapter.errors import SettingsError
from stadapter.model import build_model
from stadapter.tuning import STAdapter
from stadapter.vit import InsertionPoint, TokenLayout
from trunks import FAMILIES, NUM_BLOCKS, WIDTH, make_clips, make_trunk

KERNELS = [(3, 1, 1), (1, 1, 1), (5, 1, 1), (3, 3, 3), (1, 3, 3)]
LAYOUTS = [TokenLayout(4, 1, 3, 5), TokenLayout(1, 0, 2, 2), TokenLayout(7, 3, 1, 6)]


def make_adapter(kernel_size: tuple[int, int, int] = (3, 1, 1), activation: str | None = None) -> SpaceTimeAdapter:
    """An adapter with random weights, as if it had been trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapter = SpaceTimeAdapter(width=WIDTH, bottleneck=8, kernel_size=kernel_size, activation=activation)
        for parameter in adapter.parameters():
            nn.init.normal_(parameter, std=0.3)
    return adapter


def make_tokens(layout: TokenLayout, batch: int = 2) -> Tensor:
    num_tokens = layout.num_prefix + layout.grid_height * layout.grid_width
    return torch.randn(batch * layout.num_frames, num_tokens, WIDTH, generator=torch.Generator().manual_seed(1))


def reference(adapter: SpaceTimeAdapter, x: Tensor, layout: TokenLayout) -> Tensor:
    """The equation of the paper, written out on the whole grid with the general convolution."""
    patches = x[:, layout.num_prefix :]
    grid = adapter.down(patches).unflatten(1, (layout.grid_height, layout.grid_width))  # (B*T, h, w, A)
    grid = grid.unflatten(0, (-1, layout.num_frames)).permute(0, 4, 1, 2, 3)  # (B, A, T, h, w)
    grid = adapter.activation(adapter.conv(grid))
    update = adapter.up(grid.permute(0, 2, 3, 4, 1).flatten(0, 1).flatten(1, 2))  # (B*T, P, D)
    return torch.cat([x[:, : layout.num_prefix], patches + update], dim=1)


def relative_error(ours: Tensor, expected: Tensor) -> float:
    return ((ours.detach() - expected.detach()).norm() / expected.detach().norm()).item()


@pytest.mark.parametrize("activation", [None, "gelu", "silu", "tanh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
def test_output_and_gradients_are_those_of_the_equation(
    kernel_size: tuple[int, int, int], layout: TokenLayout, activation: str | None
) -> None:
    adapter = make_adapter(kernel_size, activation)
    weights = torch.randn(make_tokens(layout).shape, generator=torch.Generator().manual_seed(2))
    results = []
    for compute in (adapter, lambda x, layout: reference(adapter, x, layout)):
        adapter.zero_grad()
        x = make_tokens(layout).requires_grad_()
        output = compute(x, layout)
        (output * weights).sum().backward()
        results.append([output, x.grad, *(parameter.grad for parameter in adapter.parameters())])
    for ours, expected in zip(*results, strict=True):
        assert relative_error(ours, expected) < 1e-5


@pytest.mark.parametrize("kernel_size", [(3, 1, 1), (1, 1, 1), (5, 1, 1)], ids=str)
def test_the_path_over_time_alone_equals_the_general_path(
    kernel_size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = LAYOUTS[0]
    adapter = make_adapter(kernel_size)
    x = make_tokens(layout)
    fast = adapter(x, layout)
    monkeypatch.setattr(space_time, "is_traced", lambda: True)
    in_pieces = adapter(x, layout)
    assert relative_error(fast, in_pieces) < 1e-6
    assert relative_error(fast, reference(adapter, x, layout)) < 1e-6


@pytest.mark.parametrize("activation", [None, "gelu", "silu", "tanh"])
@pytest.mark.parametrize("kernel_size", [(3, 1, 1), (3, 3, 3)], ids=str)
def test_gradients_are_derivatives(kernel_size: tuple[int, int, int], activation: str | None) -> None:
    layout = TokenLayout(2, 1, 2, 3)
    adapter = make_adapter(kernel_size, activation).double()
    x = make_tokens(layout, batch=1).double().requires_grad_()
    names = [name for name, _ in adapter.named_parameters()]

    def compute(x: Tensor, *weights: Tensor) -> Tensor:
        result: Tensor = functional_call(adapter, dict(zip(names, weights, strict=True)), (x, layout))
        return result

    assert torch.autograd.gradcheck(compute, (x, *[p.detach().requires_grad_() for p in adapter.parameters()]))


@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
@pytest.mark.parametrize("trunk_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast_an_adapter_in_one_piece_is_as_close_as_its_pieces(
    trunk_dtype: torch.dtype, kernel_size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16, on tokens of either precision; all gradients of what learns are fp32."""
    layout, adapter = LAYOUTS[0], make_adapter(kernel_size, activation="gelu")
    weights = make_tokens(layout).to(trunk_dtype)

    def compute(is_traced: bool, autocast: bool) -> list[Tensor]:
        monkeypatch.setattr(space_time, "is_traced", lambda: is_traced)
        x = make_tokens(layout).to(trunk_dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = adapter(x, layout) if autocast else adapter(x.float(), layout)
        return [output, *torch.autograd.grad((output * weights).sum(), [x, *adapter.parameters()])]

    exact, in_pieces, at_once = compute(True, False), compute(True, True), compute(False, True)
    for right, expected, found in zip(exact, in_pieces, at_once, strict=True):
        assert found.dtype == expected.dtype
        assert relative_error(found.float(), right) < 1.3 * relative_error(expected.float(), right) + 1e-3


def changed_layers(adapter: SpaceTimeAdapter, change: str) -> None:
    if change == "another layer in its place":
        adapter.up = nn.Sequential(adapter.up, nn.Tanh())  # type: ignore[assignment]
    elif change == "a parametrised layer":
        torch.nn.utils.parametrizations.weight_norm(adapter.down)
    elif change == "an activation of one's own":
        adapter.activation = nn.PReLU()
    else:
        prune.random_unstructured(adapter.down, "weight", amount=0.5)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "change", ["another layer in its place", "a parametrised layer", "an activation of one's own", "pruned weights"]
)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_changed_layer_takes_effect_and_learns(change: str, layout: TokenLayout) -> None:
    adapter, x = make_adapter(), make_tokens(layout)
    changed_layers(adapter, change)
    output = adapter(x, layout)
    assert relative_error(output, reference(adapter, x, layout)) < 1e-6
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())


@pytest.mark.parametrize("activation", [None, "gelu", "silu", "tanh"])
def test_the_adapters_of_a_model_as_it_is_built_compute_in_one_piece(activation: Any) -> None:
    trunk = make_trunk("dinov2")
    model = build_model(backbone=trunk, labels=["a", "b"], tuning=STAdapter(activation=activation, before_mlp=True))
    adapters = [module for module in model.modules() if isinstance(module, SpaceTimeAdapter)]
    output = adapters[-1](make_tokens(LAYOUTS[0]), LAYOUTS[0])
    assert len(adapters) == 2 * NUM_BLOCKS - 1
    assert type(output.grad_fn).__name__ == "_InOnePieceBackward"


def test_a_hook_on_a_layer_is_called() -> None:
    adapter, seen = make_adapter(), []
    adapter.up.register_forward_hook(lambda *call: seen.append(call[2].shape[-1]))
    adapter(make_tokens(LAYOUTS[0]), LAYOUTS[0])
    assert seen == [WIDTH]


@pytest.mark.parametrize("kernel_size", [(3, 1, 1), (3, 3, 3)], ids=str)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_each_clip_come_from_torch_func(kernel_size: tuple[int, int, int]) -> None:
    layout, adapter = LAYOUTS[0], make_adapter(kernel_size, activation="gelu")
    weights = {name: parameter.detach() for name, parameter in adapter.named_parameters()}
    clips = make_tokens(layout).unflatten(0, (-1, layout.num_frames))  # (B, T, N, D)

    def loss(weights: dict[str, Tensor], clip: Tensor) -> Tensor:
        result: Tensor = functional_call(adapter, weights, (clip, layout)).square().sum()
        return result

    by_clip = vmap(grad(loss), in_dims=(None, 0))(weights, clips)
    for number, clip in enumerate(clips):
        expected = torch.autograd.grad(adapter(clip, layout).square().sum(), list(adapter.parameters()))
        for ours, right in zip(by_clip.values(), expected, strict=True):
            assert relative_error(ours[number], right) < 1e-5


def test_the_path_over_time_alone_reads_a_view_and_gives_a_view() -> None:
    adapter = make_adapter()
    hidden = torch.randn(2, 4, 15, 8)
    output = space_time.convolve_time(hidden, adapter.conv.weight, adapter.conv.bias)
    assert output.shape == hidden.shape
    assert output.is_contiguous()  # channels-last all the way: nothing was rearranged


@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_the_input_is_never_written_to(kernel_size: tuple[int, int, int], needs_grad: bool) -> None:
    layout = LAYOUTS[0]
    x = make_tokens(layout)
    before = x.clone()
    x.requires_grad_(needs_grad)  # a leaf: writing into it would raise
    version = x._version
    output = make_adapter(kernel_size)(x, layout)
    assert x._version == version
    assert torch.equal(x.detach(), before)
    assert output.data_ptr() != x.data_ptr()
    assert not torch.equal(output.detach(), before)


@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
def test_prefix_tokens_pass_by_untouched(kernel_size: tuple[int, int, int]) -> None:
    layout = TokenLayout(7, 3, 1, 6)
    x = make_tokens(layout)
    output = make_adapter(kernel_size)(x, layout)
    assert torch.equal(output[:, :3], x[:, :3])
    assert not torch.equal(output[:, 3:], x[:, 3:])


@pytest.mark.parametrize("activation", [None, "gelu", "silu", "tanh"])
@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
def test_a_fresh_adapter_is_the_identity_and_can_leave_it(
    kernel_size: tuple[int, int, int], activation: str | None
) -> None:
    layout = LAYOUTS[0]
    adapter = SpaceTimeAdapter(width=WIDTH, bottleneck=8, kernel_size=kernel_size, activation=activation)
    x = make_tokens(layout)
    output = adapter(x, layout)
    assert torch.equal(output, x)
    assert torch.count_nonzero(adapter.down.weight) > 0
    assert torch.count_nonzero(adapter.up.weight) > 0
    output.square().sum().backward()
    assert adapter.conv.weight.grad is not None
    assert torch.count_nonzero(adapter.conv.weight.grad) > 0


def test_only_a_kernel_over_time_sees_the_order_of_frames() -> None:
    layout = TokenLayout(6, 1, 2, 2)
    x = make_tokens(layout, batch=1)
    for kernel_size, sees in [((3, 1, 1), True), ((3, 3, 3), True), ((1, 1, 1), False), ((1, 3, 3), False)]:
        adapter = make_adapter(kernel_size)
        same = torch.allclose(adapter(x.flip(0), layout).flip(0), adapter(x, layout), atol=1e-5)
        assert same != sees, kernel_size


def test_clips_of_a_batch_do_not_touch_each_other() -> None:
    layout = TokenLayout(3, 1, 2, 2)
    adapter = make_adapter((3, 3, 3))
    x = make_tokens(layout, batch=2)
    together = adapter(x, layout)
    torch.testing.assert_close(together[3:], adapter(x[3:], layout))


def adapted_places(tuning: STAdapter, family: str = "dinov2") -> list[str]:
    vit = make_trunk(family)
    tuning.apply(vit)
    return [name for name, module in vit.named_modules() if isinstance(module, SpaceTimeAdapter)]


def test_by_default_one_adapter_of_half_the_width_stands_before_every_attention() -> None:
    vit = make_trunk("clip")
    STAdapter().apply(vit)
    for block in vit.blocks:
        assert isinstance(block.before_attention, SpaceTimeAdapter)
        assert block.before_attention.down.out_features == WIDTH // 2
        assert block.before_attention.conv.kernel_size == (3, 1, 1)
        assert isinstance(block.before_attention.activation, nn.GELU)
        assert isinstance(block.before_mlp, InsertionPoint)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_that_the_class_token_cannot_see_is_left_out_unless_asked_for(family: str) -> None:
    both = STAdapter(before_mlp=True)
    last = f"blocks.{NUM_BLOCKS - 1}.before_mlp"
    assert (last in adapted_places(both, family)) == (family == "siglip")
    assert last in adapted_places(replace(both, keep_unreachable=True), family)


def test_adapters_go_into_the_last_blocks() -> None:
    assert adapted_places(STAdapter(last_blocks=1)) == ["blocks.2.before_attention"]
    assert adapted_places(STAdapter(last_blocks=2, before_attention=False, before_mlp=True)) == ["blocks.1.before_mlp"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
def test_an_adapted_trunk_starts_as_the_trunk_and_every_adapter_can_learn(
    family: str, kernel_size: tuple[int, int, int]
) -> None:
    vit = make_trunk(family)
    clips = make_clips(num_frames=4, height=8, width=12)
    expected = vit(clips)
    STAdapter(width=8, kernel_size=kernel_size, before_mlp=True).apply(vit)
    tokens = vit(clips)
    assert torch.equal(tokens, expected)
    before = clips.clone()
    features = tokens[:, :, 0].mean(1) if vit.has_class_token else tokens.mean((1, 2))
    features.square().sum().backward()
    assert torch.equal(clips, before)
    for name, parameter in vit.named_parameters():
        assert parameter.requires_grad == ("before_" in name), name
        if name.endswith("conv.weight"):
            assert parameter.grad is not None, name
            assert torch.count_nonzero(parameter.grad) > 0, name
        if not parameter.requires_grad:
            assert parameter.grad is None, name


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"kernel_size": (2, 1, 1)}, r"kernel_size \(2, 1, 1\): expected three odd positive numbers"),
        ({"kernel_size": (3, 4, 4)}, "odd"),
        ({"kernel_size": (-1, 1, 1)}, "positive"),
        ({"kernel_size": (3, 1)}, r"kernel_size \(3, 1\): expected \(a whole number, a whole number, a whole number\)"),
        ({"kernel_size": 3}, r"kernel_size 3: expected \(a whole number, a whole number, a whole number\)"),
        ({"kernel_size": (3.0, 1, 1)}, r"kernel_size \(3\.0, 1, 1\): expected \(a whole number"),
        ({"activation": "relu"}, "slope 0 at 0.*would never learn"),
        ({"activation": "sine"}, "activation 'sine': expected 'gelu' or 'silu' or 'tanh' or None"),
        ({"width": 0}, "width 0: expected at least 1"),
        ({"width": -3}, "width -3"),
        ({"last_blocks": 0}, "last_blocks 0: expected at least 1"),
        ({"last_blocks": 4}, r"last_blocks=4: the trunk has 3 blocks"),
        ({"before_attention": False, "before_mlp": True, "last_blocks": 1}, "cannot reach the class token"),
    ],
)
def test_settings_with_which_nothing_works_are_refused_with_the_reason(settings: dict[str, Any], reason: str) -> None:
    vit = make_trunk("dinov2")
    with pytest.raises(SettingsError, match=reason):
        STAdapter(**settings).apply(vit)
    assert all(isinstance(point, InsertionPoint) for point in vit.insertion_points())


def test_adapters_go_into_the_first_blocks() -> None:
    assert adapted_places(STAdapter(first_blocks=2)) == ["blocks.0.before_attention", "blocks.1.before_attention"]
    with pytest.raises(SettingsError, match="first_blocks=4: the trunk has 3 blocks; choose 1 to 3"):
        adapted_places(STAdapter(first_blocks=4))
