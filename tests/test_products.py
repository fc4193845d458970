"""Products by oneDNN give what torch's own give, forward and back, and keep no more."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stadapter import products
from stadapter.products import (
    Linear,
    added_product,
    count_products,
    has_fast_kernel,
    linear,
    replace_linear,
    scaled_product,
)

needs_the_kernel = pytest.mark.skipif(
    not has_fast_kernel(torch.ones(1, dtype=torch.bfloat16)),
    reason="this processor or build of torch has no product by oneDNN",
)
LIMITS = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
both_dtypes = pytest.mark.parametrize("dtype", LIMITS)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def results(compute: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The result of a linear layer, and the gradients of all that go in."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    result = compute(*leaves)
    return [result.detach(), *torch.autograd.grad(result.square().sum(), leaves)]


@pytest.fixture(autouse=True, params=["fp32 by oneDNN", "fp32 by MKL"])
def whose_processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_is_of_intel", lambda: request.param == "fp32 by MKL")


@both_dtypes
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("outer", [16, 48])
@pytest.mark.parametrize("shape", [(5, 24), (3, 1, 24), (2, 3, 7, 24)], ids=str)
def test_results_and_gradients_are_those_of_torch(
    shape: tuple[int, ...], outer: int, has_bias: bool, dtype: torch.dtype
) -> None:
    inputs = [random(*shape, dtype=dtype), random(outer, 24, dtype=dtype, seed=1)]
    inputs += [random(outer, dtype=dtype, seed=2)] if has_bias else []
    for ours, theirs in zip(results(linear, *inputs), results(F.linear, *inputs), strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).float().norm() <= LIMITS[dtype] * theirs.float().norm()


@both_dtypes
@pytest.mark.parametrize("outer", [16, 48])
def test_a_scaled_product_is_that_of_scaled_operands(outer: int, dtype: torch.dtype) -> None:
    x, weight, bias = random(5, 24, dtype=dtype), random(outer, 24, dtype=dtype, seed=1), random(outer, dtype=dtype)
    found = scaled_product(x, weight, bias, scale=1.7, bias_scale=0.3)
    expected = 1.7 * F.linear(x.double(), weight.double()) + 0.3 * bias.double()
    assert found.dtype == dtype
    assert (found - expected).norm() <= LIMITS[dtype] * expected.norm()


@both_dtypes
@pytest.mark.parametrize("has_bias", [True, False])
def test_an_added_product_is_the_sum_and_what_it_is_added_to_stays(has_bias: bool, dtype: torch.dtype) -> None:
    y, x, weight = random(5, 16, dtype=dtype, seed=3), random(5, 24, dtype=dtype), random(24, 16, dtype=dtype).mT
    bias, before = random(16, dtype=dtype, seed=2) if has_bias else None, y.clone()
    with count_products() as counter:
        found = added_product(y, x, weight, bias)
    assert counter.get_total_flops() == 2 * 5 * 24 * 16
    expected = y.double() + F.linear(x.double(), weight.double(), bias.double() if bias is not None else None)
    assert found.dtype == dtype
    assert (found - expected).norm() <= LIMITS[dtype] * expected.norm()
    assert torch.equal(y, before)


def test_a_product_in_bf16_is_added_to_fp32_in_fp32() -> None:
    y, x, weight = random(5, 16), random(5, 24, dtype=torch.bfloat16), random(16, 24, dtype=torch.bfloat16)
    assert torch.equal(added_product(y, x, weight), y + F.linear(x, weight).float())


@both_dtypes
def test_views_are_multiplied_as_what_they_show(dtype: torch.dtype) -> None:
    x, weight = random(4, 6, 24, dtype=dtype)[:, 1:], random(24, 48, dtype=dtype, seed=1)[:, ::2].mT
    assert not x.is_contiguous()
    found, expected = linear(x, weight), F.linear(x, weight)
    assert (found - expected).float().norm() <= LIMITS[dtype] * expected.float().norm()


def test_what_learns_keeps_fp32_gradients_under_autocast() -> None:
    inputs = [random(5, 24), random(16, 24, seed=1), random(16, seed=2)]
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = results(linear, *inputs), results(F.linear, *inputs)
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16] + [torch.float32] * 3
    for found, expected in zip(ours, theirs, strict=True):
        assert (found - expected).float().norm() <= 1e-2 * expected.float().norm()


@pytest.mark.parametrize("outer", [16, 48])
def test_a_gradient_that_is_one_number_repeated_is_one_too(outer: int) -> None:
    x, weight = random(5, 24), random(outer, 24, seed=1).requires_grad_()
    linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(outer, -1))


def test_doubles_stay_doubles_under_autocast_as_torch_has_it() -> None:
    x, weight = random(5, 24, dtype=torch.float64), random(16, 24, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(x, weight), F.linear(x, weight))
        assert products.product(x, weight).dtype == torch.float64


def test_the_input_of_a_frozen_weight_is_not_kept() -> None:
    x = random(5, 24).requires_grad_()
    for learns in (False, True):
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: x):
            linear(x, random(16, 24).requires_grad_(learns))
        assert (x.data_ptr() in [tensor.data_ptr() for tensor in saved]) == learns


@needs_the_kernel
@pytest.mark.parametrize("is_of_intel", [True, False], ids=["intel", "another"])
def test_fp32_products_are_by_onednn_where_mkl_is_slow_and_those_of_other_kinds_by_torch(
    is_of_intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_is_of_intel", lambda: is_of_intel)
    called: list[torch.dtype] = []
    right = products.product
    monkeypatch.setattr(products, "product", lambda x, *rest: (called.append(x.dtype), right(x, *rest))[1])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        linear(random(5, 24, dtype=dtype), random(16, 24, dtype=dtype))
    assert called == ([] if is_of_intel else [torch.float32]) + [torch.bfloat16]
    assert linear(torch.ones(5, 24, device="meta"), torch.ones(16, 24, device="meta")).shape == (5, 16)
    assert linear(torch.ones(0, 24), torch.ones(16, 24)).shape == (0, 16)


def test_a_traced_layer_holds_torchs_own_product() -> None:
    layer = nn.Sequential(nn.Linear(24, 16))
    replace_linear(layer)
    program = torch.export.export(layer, (random(5, 24),))
    assert "mkldnn" not in program.graph_module.code
    assert "linear" in program.graph_module.code


def test_replaced_layers_hold_the_same_parameters() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 2, bias=False), nn.LayerNorm(2)))
    module[1].requires_grad_(False)
    before, x = dict(module.named_parameters()), random(5, 4)
    expected = module(x)
    replace_linear(module)
    assert [type(each) for each in (module[0], module[1][0], module[1][1])] == [Linear, Linear, nn.LayerNorm]
    assert {name: id(parameter) for name, parameter in module.named_parameters()} == {
        name: id(parameter) for name, parameter in before.items()
    }
    torch.testing.assert_close(module(x), expected)


def test_other_precisions_are_left_to_torch() -> None:
    x, weight = random(5, 24), random(16, 24, seed=1)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(linear(x, weight), F.linear(x, weight))
    with pytest.raises(RuntimeError, match="same dtype"):
        linear(x, weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight.bfloat16()).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_a_layer_can_be_traced_and_transformed_in_the_other_ways_too() -> None:
    layer, x = Linear(24, 16), random(5, 24)
    torch.testing.assert_close(torch.jit.trace(layer, (x,))(x), layer(x))  # type: ignore[no-untyped-call]
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(layer, parameters, (x,)).square().sum()
        return result

    found = torch.func.grad(loss)(parameters)
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
