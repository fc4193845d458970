"""Packed pieces give what the layer's own give, in every family and strategy, and hold nothing twice."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from stadapter.backbones import hash_weights
from stadapter.model import VideoClassifier, build_model
from stadapter.packing import (
    PackedAttention,
    PackedMLP,
    QuickGELU,
    is_packable,
    is_packable_mlp,
    lay_side_by_side,
)
from stadapter.tuning import STAdapter, Tuning
from stadapter.vit import ImageViT
from strategies import CASES, LABELS, disturb, relative_error
from trunks import FAMILIES, NUM_BLOCKS, PATCH_SIZE, WIDTH, make_clips, make_trunk

PACKED_FAMILIES = [family for family in FAMILIES if family != "dinov3_vit"]  # that one turns queries and keys
PACKS_NOTHING = {"bitfit", "prompt", "lora", "aim", "aim-twice", "full", "full-temporal"}
every_packed_family = pytest.mark.parametrize("family", PACKED_FAMILIES)
TARGETS = torch.tensor([0, 2])


def build_both(family: str, tuning: Tuning, monkeypatch: pytest.MonkeyPatch) -> tuple[VideoClassifier, VideoClassifier]:
    """A model as it is built, and the same without the repacking."""
    trunk = make_trunk(family)
    ours = build_model(backbone=trunk, tuning=tuning, labels=LABELS).eval()
    with monkeypatch.context() as patched:
        patched.setattr(ImageViT, "pack", lambda vit: None)
        plain = build_model(backbone=trunk, tuning=tuning, labels=LABELS).eval()
    for model in (ours, plain):
        disturb(model)
    return ours, plain


def packed(model: VideoClassifier) -> int:
    return sum(isinstance(block.attention, PackedAttention) for block in model.trunk.block_list())


def gradients(model: VideoClassifier, clips: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    F.cross_entropy(model(clips), TARGETS).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("strategy", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_every_gradient_are_those_of_the_layers_own_pieces(
    family: str, strategy: str, kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, plain = build_both(family, CASES[strategy], monkeypatch)
    for model in (ours, plain):
        model.trunk.use_attention(kernel)
    for num_frames, height, width in [(1, 16, 16), (4, 8, 20)]:
        clips = make_clips(num_frames=num_frames, height=height, width=width)
        assert relative_error(ours(clips).detach(), plain(clips).detach()) < 1e-6
        expected = gradients(plain, clips)
        for name, gradient in gradients(ours, clips).items():
            theirs = expected[name]
            assert (gradient is None) == (theirs is None), name
            if gradient is not None and theirs is not None:  # a key's bias has no gradient but rounding
                torch.testing.assert_close(gradient, theirs, rtol=1e-5, atol=1e-6 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("strategy", CASES)
@every_packed_family
def test_what_is_packed_is_frozen_and_as_it_was_loaded(family: str, strategy: str) -> None:
    model = build_model(backbone=make_trunk(family), tuning=CASES[strategy], labels=LABELS)
    expected = {"partial": 1, "lora-last-block": NUM_BLOCKS - 1}
    assert packed(model) == (0 if strategy in PACKS_NOTHING else expected.get(strategy, NUM_BLOCKS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_gelu_is_that_of_transformers_and_keeps_half(dtype: torch.dtype) -> None:
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).mul(4).to(dtype).requires_grad_()
    ours, theirs = QuickGELU(), QuickGELUActivation()
    assert torch.equal(ours(x), theirs(x))
    gradients = [torch.autograd.grad(activation(x).square().sum(), x)[0] for activation in (ours, theirs)]
    assert relative_error(*(gradient.float() for gradient in gradients)) < (1e-6 if dtype == torch.float32 else 1e-2)
    kept = [len({tensor.data_ptr() for tensor in saved_by(activation, x)}) for activation in (ours, theirs)]
    assert kept == [1, 2]


def test_the_gradient_of_quick_gelu_is_its_derivative() -> None:
    x = torch.linspace(-5, 5, 21, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(QuickGELU(), x)


@pytest.mark.parametrize("strategy", CASES)
def test_quick_gelu_is_replaced_under_every_strategy(strategy: str) -> None:
    trunk = make_trunk("clip")
    model = build_model(backbone=trunk, tuning=CASES[strategy], labels=LABELS)
    names = [type(module).__name__ for module in model.trunk.modules()]
    learning = {"bitfit": NUM_BLOCKS, "full": NUM_BLOCKS, "full-temporal": NUM_BLOCKS, "partial": NUM_BLOCKS - 1}
    assert names.count("QuickGELU") == learning.get(strategy, 0)
    assert names.count("PackedMLP") == NUM_BLOCKS - learning.get(strategy, 0)
    assert "QuickGELUActivation" not in names
    assert not {"QuickGELU", "PackedMLP"} & {type(module).__name__ for module in trunk.modules()}


def mlp_and_packed(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, PackedMLP]:
    mlp = make_trunk("clip").blocks[0].mlp.to(dtype)
    return mlp, PackedMLP(mlp)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, WIDTH), (1, 1, WIDTH), (3, WIDTH)], ids=str)
def test_a_packed_mlp_is_no_further_from_the_exact_values_than_the_layers_own(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    mlp, packed_mlp = mlp_and_packed(dtype)
    exact = copy.deepcopy(mlp).double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    y = x.detach().double().requires_grad_()
    expected = [(result := exact(y)).detach(), *torch.autograd.grad(result.square().sum(), y)]
    for found, theirs, right in zip(*(forward_and_back(each, x) for each in (packed_mlp, mlp)), expected, strict=True):
        assert (found.dtype, found.shape) == (dtype, x.shape)
        assert relative_error(found.double(), right) < 1.3 * relative_error(theirs.double(), right) + 1e-7
    kept = packed_mlp(x).detach()
    assert torch.equal(packed_mlp(x.detach()), kept)  # where nothing is kept, in place


def test_a_packed_mlp_that_is_unfrozen_learns() -> None:
    mlp, packed_mlp = mlp_and_packed()
    packed_mlp.requires_grad_(True)  # the very parameters of the other
    x = torch.randn(2, 5, WIDTH)
    found, expected = (
        torch.autograd.grad(each(x).square().sum(), list(mlp.parameters())) for each in (packed_mlp, mlp)
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_packed_mlp_asks_a_layer_that_somebody_put_into_it() -> None:
    mlp, packed_mlp = mlp_and_packed()
    packed_mlp.down = nn.Sequential(packed_mlp.down, nn.Tanh()).requires_grad_(False)  # as LoRA wraps a layer
    x = torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(packed_mlp(x), mlp(x).tanh())


def forward_and_back(module: nn.Module, x: Tensor) -> list[Tensor]:
    result = module(x)
    return [result.detach(), *torch.autograd.grad(result.square().sum(), x)]


def test_a_packed_mlp_keeps_its_widest_tensor_alone_and_without_gradients_nothing() -> None:
    _, packed_mlp = mlp_and_packed()
    x = torch.randn(2, 5, WIDTH, requires_grad=True)
    weights = {parameter.data_ptr() for parameter in packed_mlp.parameters()}
    assert [t.shape for t in saved_by(packed_mlp, x) if t.data_ptr() not in weights] == [(10, 48)]
    assert saved_by(packed_mlp, x.detach()) == []


def test_an_mlp_that_does_more_or_learns_is_left_alone() -> None:
    assert is_packable_mlp(make_trunk("clip").blocks[0].mlp)
    assert not is_packable_mlp(make_trunk("siglip").blocks[0].mlp)  # another activation
    assert not is_packable_mlp(make_trunk("dinov2").blocks[0].mlp)
    learning, wrapped = make_trunk("clip").blocks[0].mlp, make_trunk("clip").blocks[0].mlp
    learning.fc2.bias.requires_grad_(True)
    wrapped.fc1 = nn.Sequential(wrapped.fc1)
    assert not is_packable_mlp(learning)
    assert not is_packable_mlp(wrapped)


def test_gradients_of_packed_pieces_are_derivatives() -> None:
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    _, packed_mlp = mlp_and_packed(torch.float64)
    attention = PackedAttention(make_trunk("clip").blocks[0].attention.double())
    attention.config._attn_implementation = "eager"
    for module in (packed_mlp, attention):
        assert torch.autograd.gradcheck(module, x)


def test_weights_that_lie_in_one_memory_in_another_order_are_not_taken_for_joint() -> None:
    attention, x = make_trunk("clip").blocks[0].attention, torch.randn(2, 5, WIDTH)
    expected = attention(x)[0]
    parts = [attention.v_proj, attention.k_proj, attention.q_proj]
    joint = torch.cat([part.weight.detach() for part in parts])
    for part, piece in zip(parts, joint.chunk(3), strict=True):
        part.weight.data = piece
    assert relative_error(PackedAttention(attention)(x)[0], expected) < 1e-6


@every_packed_family
def test_a_trunk_is_held_once_and_stays_as_it_was(family: str) -> None:
    trunk, clips = make_trunk(family), make_clips()
    tokens, sha256 = trunk(clips), hash_weights(trunk)
    first, second = (build_model(backbone=trunk, labels=LABELS) for _ in range(2))
    storages = {parameter.untyped_storage().data_ptr() for parameter in trunk.parameters()}
    for model in (first, second):
        frozen = [parameter for parameter in model.trunk.parameters() if not parameter.requires_grad]
        assert {parameter.untyped_storage().data_ptr() for parameter in frozen} <= storages
        assert sum(p.numel() for p in frozen) == sum(p.numel() for p in trunk.parameters())
    first.cast_trunk(torch.bfloat16)
    first.trunk.blocks[0].attention.weight.data.zero_()
    assert hash_weights(trunk) == sha256
    assert torch.equal(trunk(clips), tokens)
    assert trunk.blocks[0].attention.q_proj.weight.dtype == torch.float32


def test_weights_that_lie_apart_are_joined_by_a_copy() -> None:
    attention = make_trunk("clip").blocks[0].attention
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    assert attention.q_proj.weight.untyped_storage().nbytes() == 4 * WIDTH**2
    apart = PackedAttention(attention)
    lay_side_by_side(attention)
    assert attention.q_proj.weight.untyped_storage().nbytes() == 3 * 4 * WIDTH**2
    together = PackedAttention(attention)
    assert together.weight.data_ptr() == attention.q_proj.weight.data_ptr()
    assert apart.weight.data_ptr() != attention.q_proj.weight.data_ptr()
    before = attention.k_proj.weight.data_ptr()
    lay_side_by_side(attention)
    assert attention.k_proj.weight.data_ptr() == before
    for module in (apart, together):
        assert torch.equal(module(x)[0], attention(x)[0])


def test_an_attention_that_does_more_is_left_alone() -> None:
    assert not is_packable(make_trunk("dinov3_vit").blocks[0].attention)
    attention = make_trunk("vit").blocks[0].attention
    assert is_packable(attention)
    attention.k_proj = nn.Sequential(attention.k_proj)
    assert not is_packable(attention)


@every_packed_family
def test_only_the_queries_that_are_read_are_computed(family: str) -> None:
    attention = make_trunk(family).blocks[0].attention
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(PackedAttention(attention)(x, num_queries=2)[0], attention(x)[0][:, :2])


def rows_of_the_last_mlp(model: VideoClassifier, clips: Tensor) -> int:
    """How many tokens of a frame go through the last block's MLP."""
    seen: list[int] = []
    hook = model.trunk.block_list()[-1].norm2.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape[1])
    )
    model(clips)
    hook.remove()
    return seen[0]


def test_the_last_block_computes_what_the_head_reads() -> None:
    clips, patches = make_clips(), (16 // PATCH_SIZE) ** 2
    reads_prefix = build_model(backbone=make_trunk("dinov2_with_registers"), labels=LABELS)
    assert rows_of_the_last_mlp(reads_prefix, clips) == 3
    reads_all = build_model(backbone=make_trunk("clip"), tuning=CASES["attentive-pooling"], labels=LABELS)
    assert rows_of_the_last_mlp(reads_all, clips) == 1 + patches
    no_class_token = build_model(backbone=make_trunk("siglip"), labels=LABELS)
    assert rows_of_the_last_mlp(no_class_token, clips) == patches


class Mixer(nn.Module):
    """Lets patches reach the class token before the last MLP, as nothing in the package does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, layout: Any) -> Tensor:
        return x + self.weight * x.mean(1, keepdim=True)


def test_what_mixes_tokens_before_the_last_mlp_is_not_left_out() -> None:
    model = build_model(backbone=make_trunk("clip"), labels=LABELS).eval()
    clips = make_clips()
    before = model(clips).detach()
    model.trunk.block_list()[-1].before_mlp = Mixer()
    with torch.no_grad():
        assert relative_error(model(clips), before) > 1e-3


def test_an_adapter_that_cannot_be_reached_costs_nothing_when_nothing_learns() -> None:
    tuning = STAdapter(width=8, before_attention=False, before_mlp=True, keep_unreachable=True)
    model = build_model(backbone=make_trunk("clip"), tuning=tuning, labels=LABELS).eval()
    disturb(model)
    clips, called = make_clips(), []
    last = model.trunk.block_list()[-1].before_mlp
    last.register_forward_hook(lambda *_: called.append(1))
    expected = model(clips).detach()
    assert called
    called.clear()
    with torch.no_grad():
        torch.testing.assert_close(model(clips), expected, rtol=1e-5, atol=1e-6)
    assert not called
    F.cross_entropy(model(clips), TARGETS).backward()
    assert all(p.grad is not None for p in last.parameters())  # several processes wait for all of them
    assert not any(torch.count_nonzero(p.grad) for p in last.parameters() if p.grad is not None)


def test_an_artefact_of_unpacked_weights_serves_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained has the names it had before attention was packed."""
    ours, plain = build_both("clip", STAdapter(width=8), monkeypatch)
    assert list(ours.trained_tensors()) == list(plain.trained_tensors())
    ours.load_trained({name: tensor.detach().clone() for name, tensor in plain.trained_tensors().items()})
    clips = make_clips()
    assert relative_error(ours(clips).detach(), plain(clips).detach()) < 1e-6


def saved_by(module: nn.Module, x: Tensor) -> list[Tensor]:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x)
    return saved


def test_nothing_is_kept_below_the_first_adapter() -> None:
    clips = make_clips()
    sizes = [
        len(saved_by(build_model(backbone=make_trunk("clip"), tuning=tuning, labels=LABELS), clips))
        for tuning in (STAdapter(width=8, last_blocks=count) for count in (1, 2, 3))
    ]
    assert sizes[0] < sizes[1] < sizes[2]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0]


@every_packed_family
def test_inputs_of_frozen_products_are_not_kept(family: str) -> None:
    """The gradient of a frozen weight is not wanted, so what it was multiplied with is not either."""
    model = build_model(backbone=make_trunk(family), labels=LABELS)
    model.trunk.use_attention("eager")  # the fused kernel keeps its own result
    inputs: list[Tensor] = []
    for block in model.trunk.block_list():
        for module in (block.attention, block.attention.output, block.mlp):
            module.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    saved = {tensor.untyped_storage().data_ptr() for tensor in saved_by(model, make_clips())}
    assert len(inputs) == 3 * NUM_BLOCKS
    assert not [x.shape for x in inputs if x.untyped_storage().data_ptr() in saved]


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_of_a_bf16_trunk_are_computed_outside_autocast(family: str) -> None:
    """A GPU's autocast would compute them in fp32, with a copy on each side."""
    model = build_model(backbone=make_trunk(family), labels=LABELS).eval()
    under_autocast: list[bool] = []
    norms = [m for m in model.trunk.modules() if isinstance(m, nn.LayerNorm) and m is not model.trunk.norm]
    for norm in norms:
        norm.register_forward_hook(lambda *_: under_autocast.append(torch.is_autocast_enabled("cpu")))
    model.cast_trunk(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        model(make_clips())
    assert len(under_autocast) == len(norms)
    assert not any(under_autocast)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bf16_trunk_is_not_cast_in_a_step(family: str) -> None:
    """Under autocast nothing as large as a frozen weight is converted: those are in bf16 for good."""
    model = build_model(backbone=make_trunk(family), tuning=CASES["linear-probe"], labels=LABELS)
    model.cast_trunk(torch.bfloat16)
    model.trunk.use_attention("eager")
    with torch.profiler.profile(record_shapes=True, acc_events=True) as profile, torch.autocast("cpu", torch.bfloat16):
        model.trunk(make_clips())
    weights = {tuple(p.shape) for p in model.trunk.parameters() if p.ndim == 2}
    cast = [tuple(event.input_shapes[0]) for event in profile.events() if event.name == "aten::_to_copy"]
    assert not [shape for shape in cast if shape in weights]
