"""Matrix products by the faster of the available kernels.

On a CPU torch leaves fp32 products to MKL, which uses AVX-512 only on Intel processors; oneDNN, which torch also
includes, uses it on AMD's too and is faster there, on some twice as fast. On Intel's, MKL is faster (docs/log.md). In
bf16, on both, oneDNN adds the bias in the same pass.
"""

# R rows, I inner, O outer width

import math
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import FlopCounterMode

_WITHOUT_FAST: ContextVar[bool] = ContextVar("without_fast_kernels", default=False)


class Linear(nn.Linear):
    """A linear layer that computes with `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def replace_linear(module: nn.Module) -> None:
    """Replace every plain linear layer inside by a `Linear` with the same parameters."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if type(child) is nn.Linear:
                replaced = Linear(child.in_features, child.out_features, child.bias is not None, device="meta")
                replaced.weight, replaced.bias = child.weight, child.bias
                setattr(part, name, replaced.train(child.training))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., I) times a weight (O, I) plus a bias (O): `F.linear` up to rounding, also under autocast."""
    if not has_fast_kernel(x):
        return F.linear(x, weight, bias)
    x, weight = as_autocast(x), as_autocast(weight)
    if x.dtype != weight.dtype:
        return F.linear(x, weight, bias)  # which refuses them with a message
    bias = as_autocast(bias) if bias is not None else None
    result: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return result.view(*x.shape[:-1], -1)


def as_autocast(x: Tensor) -> Tensor:
    """A tensor in the precision in which products with it are computed: autocast's, if that is on.

    Doubles stay as they are, as in torch's autocast.
    """
    return x.to(_product_dtype(x))


def _product_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    # Autocast does not know "meta". torch.amp.is_autocast_available cannot be traced in torch 2.11.
    is_on = x.dtype != torch.float64 and kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_on else x.dtype


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` of x (R, I) without a gradient, in the precision of x; all arguments may be views."""
    if not has_fast_kernel(x) or x.dtype != weight.dtype:
        return F.linear(x, weight, bias)  # which refuses mixed precisions with a message
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def added_product(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y (R, O) plus `product` of x (R, I), as a new tensor in the precision of y, without a gradient.

    In bf16 on Intel processors oneDNN adds y in the same pass, which saves a pass over the result and a rounding; on
    others a separate addition is faster (docs/log.md).
    """
    is_alike = type(x) is Tensor and x.dtype == weight.dtype == y.dtype == torch.bfloat16
    if is_alike and has_fast_kernel(x) and _is_of_intel():  # torch's fake tensors (a subclass) do not support it
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, y, weight, bias, "add")
        return result
    update = product(x, weight, bias)
    return update.add_(y) if update.dtype == y.dtype else y + update.to(y.dtype)


def scaled_product(x: Tensor, weight: Tensor, bias: Tensor, *, scale: float, bias_scale: float) -> Tensor:
    """scale · x (R, I) times a weight (O, I), plus bias_scale · bias (O), without a gradient.

    The factors cost little or nothing, and are not rounded separately.
    """
    if x.dtype != torch.float32 or not has_fast_kernel(x):
        return torch.addmm(bias, x, weight.mT, alpha=scale, beta=bias_scale)
    if weight.shape[0] > weight.shape[1]:  # oneDNN's product has no factors: the narrower side takes them
        return product(x * scale, weight, bias * bias_scale)
    return product(x, weight, bias * (bias_scale / scale)).mul_(scale)


def has_fast_kernel(x: Tensor) -> bool:
    """Whether products with x are computed by oneDNN: on a CPU with AVX-512 and outside tracing, always in bf16, and in
    fp32 where MKL is slower.
    """
    if x.device.type != "cpu" or is_traced():
        return False
    dtype = _product_dtype(x)
    is_faster = dtype == torch.bfloat16 or (dtype == torch.float32 and not _is_of_intel())
    return x.dtype.is_floating_point and is_faster and _is_at_hand() and x.numel() > 0 and not _WITHOUT_FAST.get()


def is_traced() -> bool:
    """Whether what is computed is being compiled, exported, traced or transformed: then torch's own operators are
    needed.
    """
    is_recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return is_recorded or is_transformed()


def is_transformed() -> bool:
    """Whether torch.func is transforming what is computed, as for the gradient of each clip of a batch."""
    return torch._C._are_functorch_transforms_active()  # what torch.autograd.Function.apply asks


@contextmanager
def without_fast_kernels() -> Iterator[None]:
    """Let torch choose the kernel, as on other devices, so that a CPU can count what a GPU will do."""
    token = _WITHOUT_FAST.set(True)
    try:
        yield
    finally:
        _WITHOUT_FAST.reset(token)


def count_products() -> FlopCounterMode:
    """Count the floating-point operations of products inside it, including oneDNN's, which torch does not know."""

    def of_a_product(x: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
        return 2 * math.prod(out_shape) * x[-1]

    kernels = {torch.ops.mkldnn._linear_pointwise: of_a_product} if _is_at_hand() else {}
    return FlopCounterMode(display=False, custom_mapping=kernels)


@cache
def _is_at_hand() -> bool:
    """Whether this build and processor have the kernel; checked once, so that a process computes in one way."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and "AVX512" in torch.backends.cpu.get_cpu_capability()


@cache
def _is_of_intel() -> bool:
    """Whether the processor is one on which MKL uses AVX-512."""
    cpuinfo = Path("/proc/cpuinfo")
    return "GenuineIntel" in (cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else platform.processor())


class _Linear(torch.autograd.Function):
    """A linear product that keeps its input only if the weight learns.

    A frozen weight is not a saved tensor: for one, gradient checkpointing would recompute the last product of a block.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return product(x, weight, bias)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, weight, _ = inputs
        if context.needs_input_grad[1]:
            context.save_for_backward(x, weight)
        else:
            context.frozen = weight

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        needs_x, needs_weight, needs_bias = context.needs_input_grad
        x, weight = context.saved_tensors if needs_weight else (None, context.frozen)
        grad_x = product(grad_output, weight.mT) if needs_x else None
        grad_weight = weight_gradient(grad_output, x) if x is not None else None
        return grad_x, grad_weight, grad_output.sum(0) if needs_bias else None


def weight_gradient(grad_output: Tensor, x: Tensor) -> Tensor:
    """The gradient (O, I) of a weight, from the gradient of the results (R, O) and the inputs (R, I)."""
    if x.dtype == torch.float32 and has_fast_kernel(x):
        if grad_output.shape[1] > x.shape[1]:  # the narrower one costs less to transpose
            return product(_transposed(x), grad_output.contiguous().mT).mT
        return product(_transposed(grad_output), x.mT)
    return grad_output.mT @ x  # torch itself uses the faster library, in bf16 oneDNN


def _transposed(x: Tensor) -> Tensor:
    """The transpose, copied: torch transposes a matrix on one thread, but a stack of one matrix on all threads."""
    return x.mT[None].contiguous()[0]
