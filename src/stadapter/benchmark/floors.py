"""The least that has to be done: only the matrix products of a step, and the copy of a tensor."""

# B batch, T frames, N tokens, P patches, D width, A bottleneck, H heads of the attention

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stadapter.benchmark.timing import take_turns
from stadapter.products import has_fast_kernel
from stadapter.products import product as multiply

_RATE_SIDE, _GPU_RATE_SIDE = 1024, 8192
_COPY_BYTES, _GPU_COPY_BYTES = 64 * 2**20, 2**30


@dataclass(frozen=True)
class Product:
    """(batch, rows, inner) times (batch, inner, columns)."""

    rows: int
    inner: int
    columns: int
    batch: int = 1
    is_transposed: bool = False
    """Whether the right side is stored as (columns, inner), like the weight of a linear layer in a forward pass."""

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each term."""
        return 2 * self.batch * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Sizes:
    """A trunk with adapters, and the clips it sees."""

    width: int
    mlp_width: int
    num_heads: int
    num_blocks: int
    patch_size: int
    image_size: int
    bottleneck: int
    before_attention: bool
    before_mlp: bool
    num_images: int
    """B * T"""

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """Tokens of an image, with the class token."""
        return self.num_patches + 1

    def adapters(self, block: int) -> int:
        """How many adapters of a block reach the class token after the last one."""
        return int(self.before_attention) + int(self.before_mlp and block < self.num_blocks - 1)


def forward_products(sizes: Sizes) -> list[Product]:
    """The matrix products that a forward pass cannot do without.

    In the last block everything but keys and values is computed only for the class token, as nothing else is read after
    it.
    """
    patches = sizes.num_images * sizes.num_patches
    products = [_linear(patches, 3 * sizes.patch_size**2, sizes.width)]
    for block in range(sizes.num_blocks):
        products += sizes.adapters(block) * _adapter_forward(sizes)
        products += _block_forward(sizes, is_last=block == sizes.num_blocks - 1)
    return products


def backward_products(sizes: Sizes) -> list[Product]:
    """The backward pass's products: gradients of activations down to the first adapter, and of adapters' weights."""
    products: list[Product] = []
    for block in range(sizes.num_blocks):
        is_last = block == sizes.num_blocks - 1
        forward = _block_forward(sizes, is_last=is_last)
        if block == 0 and not sizes.before_attention:
            forward = forward[-2:]  # below the first adapter, before the MLP, nothing needs a gradient
        for product in forward:
            products += _activation_gradients(product)
        products += sizes.adapters(block) * _adapter_backward(sizes)
    if sizes.adapters(0):
        first = _adapter_forward(sizes)[0]
        products.remove(_of_input(first))  # the input of the first adapter needs no gradient
    return products


def bare(sizes: Sizes) -> Sizes:
    """The trunk without adapters."""
    return replace(sizes, before_attention=False, before_mlp=False)


def flops(products: Sequence[Product]) -> int:
    """Floating-point operations of all of them."""
    return sum(product.flops for product in products)


def adapter_products(sizes: Sizes, *, backward: bool) -> list[Product]:
    """The products of one adapter inside the trunk, where the input has a gradient too."""
    return _adapter_forward(sizes) + (_adapter_backward(sizes) if backward else [])


def replay(products: Sequence[Product], dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """A call that does only the products, with the faster kernel, on prepared operands."""
    operands: dict[Product, tuple[Tensor, Tensor, Tensor]] = {}
    for product in products:
        if product not in operands:
            operands[product] = _operands(product, dtype, device)
    todo = [operands[product] for product in products]

    def run() -> None:
        for left, right, out in todo:
            if left.ndim == 2 and left.dtype == torch.float32 and has_fast_kernel(left):
                multiply(left, right.mT)
            else:
                torch.matmul(left, right, out=out)

    return torch.no_grad()(run)


def product_rate(dtype: torch.dtype, device: torch.device, synchronise: Callable[[], None], *, repeats: int) -> float:
    """Floating-point operations per second of one large square product: what the device can do."""
    side = _RATE_SIDE if device.type == "cpu" else _GPU_RATE_SIDE
    square = Product(side, side, side)
    call = replay([square], dtype, device)
    samples = take_turns({"product": call}, repeats=repeats, synchronise=synchronise)["product"]
    return square.flops / min(samples)


def copy_rate(device: torch.device, synchronise: Callable[[], None], *, repeats: int) -> float:
    """Bytes per second, read and written, of a large copy."""
    num_bytes = _COPY_BYTES if device.type == "cpu" else _GPU_COPY_BYTES
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    call = {"copy": lambda: target.copy_(source)}
    return 2 * num_bytes / min(take_turns(call, repeats=repeats, synchronise=synchronise)["copy"])


def _linear(rows: int, inner: int, columns: int) -> Product:
    return Product(rows, inner, columns, is_transposed=True)


def _block_forward(sizes: Sizes, *, is_last: bool) -> list[Product]:
    tokens, width = sizes.num_images * sizes.num_tokens, sizes.width
    head_width, heads = width // sizes.num_heads, sizes.num_images * sizes.num_heads
    queries = 1 if is_last else sizes.num_tokens
    rows = sizes.num_images * queries
    joint = [_linear(tokens, width, 3 * width)]
    return [
        *([_linear(rows, width, width), _linear(tokens, width, 2 * width)] if is_last else joint),
        Product(queries, head_width, sizes.num_tokens, batch=heads, is_transposed=True),
        Product(queries, sizes.num_tokens, head_width, batch=heads),
        _linear(rows, width, width),
        _linear(rows, width, sizes.mlp_width),
        _linear(rows, sizes.mlp_width, width),
    ]


def _adapter_forward(sizes: Sizes) -> list[Product]:
    patches = sizes.num_images * sizes.num_patches
    return [_linear(patches, sizes.width, sizes.bottleneck), _linear(patches, sizes.bottleneck, sizes.width)]


def _adapter_backward(sizes: Sizes) -> list[Product]:
    return [gradient for each in _adapter_forward(sizes) for gradient in (_of_input(each), _of_weight(each))]


def _activation_gradients(product: Product) -> list[Product]:
    """For a frozen layer, the product for its input; for one of attention's two products, those for both sides."""
    if product.batch == 1:
        return [_of_input(product)]
    return [_of_input(product), Product(product.inner, product.rows, product.columns, batch=product.batch)]


def _of_input(product: Product) -> Product:
    return Product(product.rows, product.columns, product.inner, batch=product.batch)


def _of_weight(product: Product) -> Product:
    return Product(product.columns, product.rows, product.inner)


def _operands(product: Product, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    def make(rows: int, columns: int) -> Tensor:
        shape = (rows, columns) if product.batch == 1 else (product.batch, rows, columns)
        return torch.rand(shape, device=device).sub_(0.5).to(dtype)

    right = make(product.columns, product.inner).mT if product.is_transposed else make(product.inner, product.columns)
    return make(product.rows, product.inner), right, make(product.rows, product.columns)
