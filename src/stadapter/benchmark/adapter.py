"""The adapter by itself, and its convolution by itself with the changes of layout it needs."""

# B batch, T frames, P patches, N tokens, D width, A bottleneck

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stadapter.adapters.space_time import SpaceTimeAdapter, convolve_time
from stadapter.benchmark.config import BenchmarkConfig, Precision
from stadapter.benchmark.floors import Sizes, adapter_products, flops, replay
from stadapter.benchmark.networks import DTYPES, autocast, disturb, sizes_of
from stadapter.benchmark.released import Released, released_adapter
from stadapter.benchmark.timing import Case, Check, relative_error
from stadapter.products import as_autocast
from stadapter.vit import TokenLayout

_LIMITS: dict[Precision, float] = {"fp32": 1e-5, "bf16": 2e-2}
_SHIFTED = "ours, as sums of shifted frames"
_COPY_NOTE = "the released adapter writes into its input, so it is timed with a copy of it; ours is with and without"
Side = Callable[[Tensor], Tensor]


def cases(config: BenchmarkConfig, released: Released | None, device: torch.device) -> Iterator[Case]:
    """The convolution and the adapter, forward only and with the backward pass, in every precision; and the adapter
    with a kernel over time and space."""
    sizes = sizes_of(config, "12x384", device)  # its adapter is the same in every preset
    adapter, in_space = _adapter(sizes, device), _adapter(sizes, device, kernel_size=(3, 3, 3))
    side = sizes.image_size // sizes.patch_size
    layout = TokenLayout(config.num_frames, 1, side, side)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(sizes.num_images, sizes.num_tokens, sizes.width, generator=generator).to(device)
    hidden = torch.randn(
        sizes.num_images // layout.num_frames,
        layout.num_frames,
        sizes.num_patches,
        sizes.bottleneck,
        generator=generator,
    ).to(device)
    for precision in config.precisions:
        for backward in (False, True):
            yield _convolution_case(adapter, hidden, layout, precision, device, backward=backward)
            yield _adapter_case(adapter, released, tokens, layout, sizes, precision, device, backward=backward)
        yield _adapter_case(in_space, released, tokens, layout, sizes, precision, device, backward=True)


def plain_convolution(conv: nn.Module, x: Tensor, layout: TokenLayout) -> Tensor:
    """The convolution as the released code has it: to (B, A, T, h, w), Conv3d, and back, each a copy."""
    grid = x.view(*x.shape[:2], layout.grid_height, layout.grid_width, -1)  # (B, T, h, w, A)
    y: Tensor = conv(grid.permute(0, 4, 1, 2, 3).contiguous())  # (B, A, T, h, w)
    return y.permute(0, 2, 3, 4, 1).contiguous().flatten(2, 3)  # (B, T, P, A)


def shifted_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution over time of (B, T, N, A) as sums of shifted frames, using nothing but torch's own arithmetic."""
    taps = as_autocast(weight).flatten(1)  # (A, t)
    padding = taps.shape[1] // 2
    padded = F.pad(x, (0, 0, 0, 0, padding, padding))
    y = as_autocast(bias).expand_as(x) if bias is not None else torch.zeros_like(x)
    for place in range(taps.shape[1]):
        y = torch.addcmul(y, padded[:, place : place + x.shape[1]], taps[:, place])
    return y


def _adapter(sizes: Sizes, device: torch.device, *, kernel_size: tuple[int, int, int] = (3, 1, 1)) -> SpaceTimeAdapter:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        adapter = SpaceTimeAdapter(width=sizes.width, bottleneck=sizes.bottleneck, kernel_size=kernel_size)
    disturb(adapter)
    return adapter.to(device)


def _convolution_case(
    adapter: SpaceTimeAdapter,
    hidden: Tensor,
    layout: TokenLayout,
    precision: Precision,
    device: torch.device,
    *,
    backward: bool,
) -> Case:
    hidden = hidden.to(DTYPES[precision])
    sides: dict[str, Side] = {
        "ours": lambda x: convolve_time(x, adapter.conv.weight, adapter.conv.bias),
        "as released": lambda x: plain_convolution(adapter.conv, x, layout),
    }
    if device.type == "cuda":  # to find out whether cuDNN has a fast kernel for such an odd shape
        sides[_SHIFTED] = lambda x: shifted_convolution(x, adapter.conv.weight, adapter.conv.bias)
    weights = list(adapter.conv.parameters())
    runs = {name: _run(side, hidden, weights, precision, backward=backward) for name, side in sides.items()}
    target = torch.empty_like(hidden)

    def checks() -> list[Check]:
        expected = runs["as released"]()
        return [
            check
            for name in runs
            if name != "as released"
            for check in _compare(
                expected, runs[name](), "as released", _LIMITS[precision], side=None if name == "ours" else name
            )
        ]

    return Case(
        "adapter",
        f"convolution with its changes of layout, {_extent(backward)}, {precision}",
        ours=runs["ours"],
        others={name: run for name, run in runs.items() if name != "ours"},
        floors={"one copy of its input": lambda: target.copy_(hidden)},
        checks=checks,
    )


def _adapter_case(
    adapter: SpaceTimeAdapter,
    released: Released | None,
    tokens: Tensor,
    layout: TokenLayout,
    sizes: Sizes,
    precision: Precision,
    device: torch.device,
    *,
    backward: bool,
) -> Case:
    tokens, limit = tokens.to(DTYPES[precision]), _LIMITS[precision]
    products = adapter_products(sizes, backward=backward)

    def textbook(x: Tensor) -> Tensor:
        hidden = adapter.down(x[:, 1:]).unflatten(0, (-1, layout.num_frames))
        update = adapter.up(plain_convolution(adapter.conv, hidden, layout)).flatten(0, 1)
        return torch.cat([x[:, :1], x[:, 1:] + update.to(x.dtype)], dim=1)

    weights = list(adapter.parameters())
    ours = _run(lambda x: adapter(x, layout), tokens, weights, precision, backward=backward)
    plain = _run(textbook, tokens, weights, precision, backward=backward)
    others = {}
    if released is not None:
        theirs = released_adapter(released, adapter, width=sizes.width, bottleneck=sizes.bottleneck)
        others["released"] = _run(
            lambda x: theirs(x.clone(), layout.num_frames), tokens, _in_our_order(theirs), precision, backward=backward
        )
        others["ours, with a copy too"] = _run(
            lambda x: adapter(x.clone(), layout), tokens, weights, precision, backward=backward
        )
    kernel = "" if adapter.conv.kernel_size == (3, 1, 1) else f", kernel {adapter.conv.kernel_size}"
    against = {"the equation": plain, **others}
    return Case(
        "adapter",
        f"adapter{kernel}, {_extent(backward)}, {precision}",
        ours=ours,
        others=others,
        floors={"matrix products": replay(products, DTYPES[precision], device)},
        checks=lambda: [check for name, side in against.items() for check in _compare(side(), ours(), name, limit)],
        flops=flops(products),
        notes=(_COPY_NOTE,) if released is not None else (),
    )


def _in_our_order(theirs: nn.Module) -> list[nn.Parameter]:
    parameters = dict(theirs.named_parameters())
    return [parameters[f"{piece}.{kind}"] for piece in ("fc1", "conv", "fc2") for kind in ("weight", "bias")]


def _run(
    side: Side, x: Tensor, weights: list[nn.Parameter], precision: Precision, *, backward: bool
) -> Callable[[], list[Tensor]]:
    """A call that returns the result, and with the backward pass the gradients of the input and of the weights."""
    if not backward:

        def forward() -> list[Tensor]:
            with torch.no_grad(), autocast(x.device, precision):
                return [side(x)]

        return forward
    leaf = x.detach().clone().requires_grad_(True)
    # Not constant, or shifts would not show; of one sign, so that no sum of it is pure rounding.
    gradient = torch.linspace(0.1, 1, x.numel(), device=x.device).view_as(x)

    def both() -> list[Tensor]:
        with autocast(x.device, precision):
            y = side(leaf)
        return [y.detach(), *torch.autograd.grad(y, [leaf, *weights], gradient.to(y.dtype))]

    return both


def _compare(
    expected: list[Tensor], found: list[Tensor], name: str, limit: float, *, side: str | None = None
) -> list[Check]:
    what = ["result", "gradient of the input"] + ["gradient of a weight"] * len(found)
    return [
        Check(f"{what[position]}, against {name}", relative_error(ours, theirs), limit, side=side)
        for position, (ours, theirs) in enumerate(zip(found, expected, strict=True))
    ]


def _extent(backward: bool) -> str:
    return "forward and backward" if backward else "forward"
