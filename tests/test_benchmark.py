"""The benchmark: that it verifies before it times, that its floors are what has to be done, and that it runs."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from torch import Tensor

from stadapter.__main__ import main
from stadapter.adapters import space_time
from stadapter.benchmark import adapter, clips, floors, start, timing
from stadapter.benchmark import runner as module
from stadapter.benchmark.config import BenchmarkConfig
from stadapter.benchmark.floors import (
    Product,
    Sizes,
    adapter_products,
    backward_products,
    flops,
    forward_products,
    replay,
)
from stadapter.benchmark.networks import NUM_CLASSES, make_networks, ready, sizes_of, training_step
from stadapter.benchmark.released import import_released
from stadapter.benchmark.runner import all_equal, benchmark
from stadapter.benchmark.timing import Case, Check, measure, relative_error, take_turns
from stadapter.errors import SettingsError
from stadapter.products import count_products

CPU = torch.device("cpu")
SMALL = {"trunk": "tiny", "batch_size": 2, "num_frames": 2, "repeats": 1, "device": "cpu"}


def small(**settings: Any) -> BenchmarkConfig:
    return BenchmarkConfig(**{**SMALL, **settings})


def no_wait() -> None:
    pass


@pytest.fixture(scope="session")
def reference() -> str:
    """A checkout of github.com/linziyi96/st-adapter, which is no part of this repository."""
    folder = os.environ.get("RELEASED_ST_ADAPTER")
    if not folder:
        pytest.skip("RELEASED_ST_ADAPTER names no checkout of github.com/linziyi96/st-adapter")
    return folder


def write_stand_in(folder: Path, models: str = "import configs\n", clips: str = "import torchvision\n") -> Path:
    """A folder laid out as a checkout of the released code."""
    (folder / "video_dataset").mkdir(parents=True)
    (folder / "models_adapter.py").write_text(models)
    (folder / "video_dataset" / "__init__.py").write_text("from . import dataset, transform\n")
    (folder / "video_dataset" / "dataset.py").write_text(clips)
    (folder / "video_dataset" / "transform.py").write_text("import torchvision.transforms.functional as F\n")
    return folder


def test_the_sides_take_turns_in_an_order_that_changes() -> None:
    called: list[str] = []

    def side(name: str) -> Callable[[], None]:
        def call() -> None:
            called.append(name)
            time.sleep(0.03)

        return call

    samples = take_turns({"a": side("a"), "b": side("b")}, repeats=8, synchronise=no_wait)
    rounds = [tuple(called[start : start + 2]) for start in range(2, len(called), 2)]
    assert called[:2] == ["a", "b"]
    assert len(rounds) == 8
    assert set(rounds) == {("a", "b"), ("b", "a")}
    assert {name: len(values) for name, values in samples.items()} == {"a": 8, "b": 8}
    assert all(0.03 <= seconds < 1 for values in samples.values() for seconds in values)


def test_a_short_call_is_repeated_within_a_sample() -> None:
    called: list[int] = []
    samples = take_turns({"short": lambda: called.append(1)}, repeats=2, synchronise=no_wait)
    assert len(called) > 100
    assert all(seconds < 1e-3 for seconds in samples["short"])


def test_what_is_not_equal_is_not_timed() -> None:
    called: list[int] = []
    for error in (0.2, float("nan")):
        case = Case("part", "case", ours=lambda: called.append(1), checks=lambda: [Check("sum", error, 0.1)])  # noqa: B023
        result = measure(case, repeats=1, synchronise=no_wait)
        assert result["equal"] is False
        assert "seconds" not in result
    assert not called
    assert measure(Case("part", "case", ours=no_wait), repeats=1, synchronise=no_wait)["seconds"]["ours"]["median"] > 0


def test_a_side_that_is_not_equal_is_left_out_and_the_others_are_timed() -> None:
    case = Case(
        "part",
        "case",
        ours=no_wait,
        others={"right": no_wait, "wrong": lambda: pytest.fail("timed")},
        floors={"floor": no_wait},
        checks=lambda: [Check("sum", 0.0, 0.1, side="right"), Check("sum", 0.2, 0.1, side="wrong")],
    )
    result = measure(case, repeats=1, synchronise=no_wait)
    assert not result["equal"]
    assert list(result["seconds"]) == ["ours", "right", "floor"]
    assert list(result["times_as_fast_as"]) == ["right"]


def test_what_cannot_be_computed_is_told_and_the_rest_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def out_of_memory() -> None:
        raise torch.OutOfMemoryError("no room\nfor this")

    def cases(*_: Any) -> Iterator[Case]:
        yield Case("adapter", "too large", ours=out_of_memory)
        yield Case("adapter", "small", ours=no_wait)
        raise RuntimeError("no more")

    monkeypatch.setattr(module.adapter, "cases", cases)
    monkeypatch.setattr(module.scale, "cases", lambda *_: iter([Case("scale", "another", ours=no_wait)]))
    target = tmp_path / "result.json"
    assert main(["benchmark", "--parts", "adapter", "scale", "--device", "cpu", "--json", str(target)]) == 1
    result = json.loads(target.read_text())
    assert [case["name"] for case in result["cases"]] == ["small", "another"]
    assert [(each["where"], each["error"]) for each in result["failures"]] == [
        ("too large", "OutOfMemoryError: no room"),
        ("between its cases", "RuntimeError: no more"),
    ]
    shown = capsys.readouterr()
    assert "adapter: FAILED too large: OutOfMemoryError: no room" in " ".join(shown.out.split())
    assert "out_of_memory" in shown.err  # where it came from


def test_sums_of_shifted_frames_are_the_convolution() -> None:
    adapted = space_time.SpaceTimeAdapter(width=4, bottleneck=3, kernel_size=(5, 1, 1)).requires_grad_(False)
    adapted.conv.weight.normal_()
    adapted.conv.bias.normal_()
    x, conv = torch.randn(2, 4, 6, 3), adapted.conv
    expected = space_time.convolve_time(x, conv.weight, conv.bias)
    torch.testing.assert_close(adapter.shifted_convolution(x, conv.weight, conv.bias), expected)


@pytest.mark.parametrize("backward", [False, True])
def test_on_a_gpu_shifted_frames_are_a_side_of_the_convolution(backward: bool) -> None:
    adapted = space_time.SpaceTimeAdapter(width=4, bottleneck=3)
    adapted.conv.weight.data.normal_()
    layout, hidden = adapter.TokenLayout(4, 1, 2, 3), torch.randn(2, 4, 6, 3)
    # Of the device only the kind is looked at: the tensors may be anywhere.
    gpu = torch.device("cuda")
    case = adapter._convolution_case(adapted, hidden, layout, "fp32", gpu, backward=backward)
    result = measure(case, repeats=1, synchronise=no_wait)
    assert result["equal"]
    assert list(result["times_as_fast_as"]) == ["as released", "ours, as sums of shifted frames"]


def test_a_sample_is_the_time_of_one_call_until_the_device_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waiting = 0.0, 0.0
    monkeypatch.setitem(timing._CLOCKS, "wall", lambda: now)

    def call() -> None:
        nonlocal waiting
        waiting += 0.003

    def synchronise() -> None:
        nonlocal now, waiting
        now, waiting = now + waiting, 0.0

    assert take_turns({"asynchronous": call}, repeats=2, synchronise=synchronise) == {
        "asynchronous": [pytest.approx(0.003), pytest.approx(0.003)]
    }


def test_what_the_machine_can_do_is_the_best_of_several_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(module, "product_rate", lambda *_, **__: next(found))
    monkeypatch.setattr(module, "copy_rate", lambda *_, **__: 5.0)
    monkeypatch.setattr(module, "_cases", lambda *_: iter(()))
    result = benchmark(small(parts=("adapter", "clips"), precisions=("fp32",)))
    assert result["machine"]["product_flops_per_second"] == {"fp32": 3.0}
    assert result["machine"]["copy_bytes_per_second"] == 5.0


def test_an_error_is_relative_to_the_other_side_unless_that_is_zero() -> None:
    ones = torch.ones(4)
    assert relative_error(1.5 * ones, ones) == 0.5
    assert relative_error(ones, 0 * ones) == 2.0


def test_a_copy_reads_and_writes_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "take_turns", lambda *_, **__: {"copy": [0.5, 0.25]})
    assert floors.copy_rate(CPU, no_wait, repeats=2) == 2 * 64 * 2**20 / 0.25


def test_the_gradient_of_a_weight_sums_over_the_rows() -> None:
    down = Product(5, 3, 2, is_transposed=True)  # (5, 3) times the transpose of (2, 3)
    assert floors._of_weight(down) == Product(2, 5, 3)


def test_ratios_are_taken_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setitem(timing._CLOCKS, "wall", lambda: now)

    def side(*seconds: float) -> Callable[[], None]:
        left = iter(seconds)

        def call() -> None:
            nonlocal now
            now += next(left)

        return call

    # Rounds of 2, 0.5 and 3 times as fast; the ratio of the medians is 1.6.
    ours, other = side(0.03, 0.04, 0.10, 0.05), side(0.03, 0.08, 0.05, 0.15)
    result = measure(Case("part", "case", ours=ours, others={"other": other}), repeats=3, synchronise=no_wait)
    assert result["times_as_fast_as"]["other"] == pytest.approx(2)
    assert len(result["seconds"]["ours"]["samples"]) == 3


def test_the_floor_does_the_products_it_counts() -> None:
    sizes = sizes_of(small(), "24x384", CPU)
    for products in (forward_products(sizes), backward_products(sizes), adapter_products(sizes, backward=True)):
        with count_products() as counter:
            replay(products, torch.float32, CPU)()
        assert counter.get_total_flops() == flops(products) > 0


def test_adapters_of_the_released_kinetics_model_are_8_percent_of_the_work() -> None:
    sizes = sizes_of(BenchmarkConfig(batch_size=1), "12x384", CPU)
    patches = sizes.num_images * sizes.num_patches
    down = Product(patches, 768, 384, is_transposed=True)
    adapters = [product for product in forward_products(sizes) if product == down]
    assert len(adapters) == 11  # the last block's cannot reach the class token
    whole = flops(forward_products(sizes))
    assert 2 * flops(adapters) / (whole - 2 * flops(adapters)) == pytest.approx(0.077, abs=0.003)


@pytest.mark.parametrize("preset", ["12x384", "24x384"])
def test_the_model_computes_the_products_it_cannot_do_without_and_no_other(preset: Any) -> None:
    sizes = sizes_of(small(), preset, CPU)
    networks = make_networks(sizes, CPU)
    model, clips, targets = ready(networks.ours(), "fp32", training=True), networks.clips(2), networks.targets(2)
    model.trunk.use_attention("eager")  # whose products torch counts
    patches = forward_products(sizes)[0]  # a convolution, which is left out of the count
    head = 2 * len(clips) * sizes.width * NUM_CLASSES
    adapters = sum(sizes.adapters(block) for block in range(sizes.num_blocks))
    prefix = 2 * adapters * sizes.num_images * sizes.width * sizes.bottleneck  # class tokens go along: fewer copies
    with torch.no_grad():
        assert products_of(lambda: model(clips)) == flops(forward_products(sizes)) - patches.flops + head + 2 * prefix
    both = flops(forward_products(sizes)) + flops(backward_products(sizes)) - patches.flops
    first = prefix // adapters  # the input of the first adapter needs no gradient
    assert products_of(training_step(model, clips, targets)) == both + 3 * head + 6 * prefix - first


def products_of(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products of a call, as torch counts them."""
    with count_products() as counter:
        call()
    return sum(count for op, count in counter.get_flop_counts()["Global"].items() if "convolution" not in str(op))


def test_all_of_the_network_is_verified_and_measured(tmp_path: Path) -> None:
    names: list[str] = []
    result = benchmark(small(parts=("adapter", "model")), progress=names.append)
    assert [case["name"] for case in result["cases"]] == names
    assert len(names) == 2 * (2 * 2 + 1) + 2 * 2 * 2
    assert all_equal(result)
    assert all(case["checks"] for case in result["cases"])
    for case in result["cases"]:
        assert all(side["median"] > 0 for side in case["seconds"].values())
        assert case["times_the_floor"].keys() & {"matrix products", "one copy of its input"}
    json.dumps(result, allow_nan=False)
    broken = {**result, "cases": [*result["cases"], {"equal": False}]}
    assert not all_equal(broken)


def test_a_wrong_adapter_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = space_time._convolve

    def wrong(x: Tensor, *rest: Any) -> Tensor:
        return right(x.flip(1), *rest)

    monkeypatch.setattr(space_time, "_convolve", wrong)
    monkeypatch.setattr(adapter, "convolve_time", lambda x, *weights: space_time.convolve_time(x.flip(1), *weights))
    result = benchmark(small(parts=("adapter",), precisions=("fp32",)))
    assert not all_equal(result)
    assert all("seconds" not in case for case in result["cases"])


def test_loading_clips_is_verified_and_measured() -> None:
    config = small(parts=("clips",), clip_heights=(72,), clip_frames=(10,), clip_gops=(4, 12))
    result = benchmark(config)
    assert [case["name"] for case in result["cases"]] == [
        f"{what}, 72p-10-frames-gop-{gop}"
        for gop in (4, 12)
        for what in ("evaluation", "training", "training, one view of 8 at once")
    ]
    assert all_equal(result)
    assert {case["clock"] for case in result["cases"]} == {"processor"}
    alone = [case for case in result["cases"] if "at once" not in case["name"]]
    assert all({"decoding what must be", "with a new decoder"} == case["times_the_floor"].keys() for case in alone)


def test_frames_that_are_not_those_of_a_full_decode_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = clips.read_frames
    monkeypatch.setattr(
        clips, "read_frames", lambda path, indices: right(path, [max(0, index - 1) for index in indices])
    )
    result = benchmark(small(parts=("clips",), clip_heights=(72,), clip_frames=(10,), clip_gops=(4,)))
    assert [case["equal"] for case in result["cases"]] == [False, False, True]


def test_processor_time_leaves_out_waiting_and_is_told_for_one_of_several() -> None:
    def call() -> None:
        time.sleep(0.03)
        sum(range(100_000))

    case = Case("part", "case", ours=call, others={"one": call}, clock="processor", counts={"ours": 4})
    result = measure(case, repeats=1, synchronise=no_wait)
    assert result["clock"] == "processor"
    assert 0 < result["seconds"]["one"]["median"] < 0.03
    assert result["seconds"]["ours"]["median"] < result["seconds"]["one"]["median"]


def test_videos_are_as_long_and_have_the_keyframes_that_were_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    clips.write_textured_video(path, height=64, num_frames=11, gop=5)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert container.streams.video[0].height == 64
    assert len(packets) == 11
    assert [number for number, packet in enumerate(packets) if packet.is_keyframe] == [0, 5, 10]


def test_the_training_loop_is_measured_beside_its_steps() -> None:
    (case,) = benchmark(small(parts=("loop",), precisions=("fp32",), loop_clips=4))["cases"]
    assert case["facts"]["steps"] == 4
    assert case["times_the_floor"]["its steps alone, clips in memory"] > 1


def test_a_cold_start_is_measured_beside_that_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_COMMANDS", {"stadapter --version": ("-m", "stadapter", "--version")})
    (case,) = benchmark(small(parts=("cold-start",)))["cases"]
    assert case["times_the_floor"]["python"] > 0.5


def test_the_command_prints_tables_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "result.json"
    flags = "--parts adapter --trunk tiny --batch-size 1 --num-frames 2 --repeats 1 --precisions fp32 --device cpu"
    assert main(["benchmark", *flags.split(), "--json", str(target)]) == 0
    shown = capsys.readouterr()
    assert "times its floor" in shown.out
    assert "GFLOP/s in fp32" in shown.out
    assert "adapter, forward, fp32" in shown.err
    result = json.loads(target.read_text())
    assert result["versions"]["torch"] == torch.__version__
    assert result["settings"]["trunk"] == "tiny"
    assert result["reference"] is None


def test_a_benchmark_that_is_stopped_keeps_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([module.measure, None])

    def interrupted(*arguments: Any, **settings: Any) -> dict[str, Any]:
        if (measure := next(measured)) is None:
            raise KeyboardInterrupt
        return measure(*arguments, **settings)

    monkeypatch.setattr(module, "measure", interrupted)
    target = tmp_path / "result.json"
    flags = "--parts adapter --trunk tiny --batch-size 1 --num-frames 2 --repeats 1 --precisions fp32 --device cpu"
    assert main(["benchmark", *flags.split(), "--json", str(target)]) == 130
    assert len(json.loads(target.read_text())["cases"]) == 1
    assert "times its floor" in capsys.readouterr().out


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--reference", str(tmp_path)]) == 2
    assert "expected a checkout of github.com/linziyi96/st-adapter" in capsys.readouterr().err
    write_stand_in(tmp_path, models="raise RuntimeError('another torch')\n")
    with pytest.raises(SettingsError, match=r"models_adapter.py cannot be imported: another torch"):
        import_released(tmp_path)


def test_importing_a_checkout_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    before = {name: sys.modules.get(name) for name in ("configs", "models_adapter", "video_dataset", "torchvision")}
    released = import_released(write_stand_in(tmp_path / "checkout", models="from configs import CLIP_VIT_B16_PATH\n"))
    assert released.models.CLIP_VIT_B16_PATH == ""
    assert {name: sys.modules.get(name) for name in before} == before
    assert "torchvision" in " ".join(released.notes)
    with pytest.raises(AttributeError, match="torchvision is not installed"):
        released.clips.torchvision.io  # noqa: B018


def test_a_data_set_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    released = import_released(write_stand_in(tmp_path / "checkout", clips="import no_such_module\n"))
    assert released.clips is None
    assert any("no_such_module" in note for note in released.notes)


def test_this_program_equals_the_released_code(reference: str) -> None:
    config = small(
        reference=reference,
        parts=("adapter", "model", "clips", "loop"),
        clip_heights=(240,),
        clip_frames=(20,),
        clip_gops=(12,),
        loop_clips=2,
    )
    result = benchmark(config)
    assert all_equal(result), [case for case in result["cases"] if not case["equal"]]
    for case in result["cases"]:
        assert any(name.startswith("released") for name in case["times_as_fast_as"]) or "convolution" in case["name"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"repeats": 0}, "repeats 0: expected"),
        ({"batch_size": 0}, "batch_size 0: expected"),
        ({"threads": 0}, "threads 0: expected"),
        ({"clip_heights": (31,)}, "even numbers of pixels"),
        ({"clip_gops": (0,)}, "numbers of frames"),
        ({"device": "cuda:77"}, "device cuda:77"),
        ({"parts": ()}, "no parts given"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        benchmark(small(**{"parts": ("cold-start",), **settings}))


def test_sizes_know_their_tokens() -> None:
    sizes: Sizes = sizes_of(BenchmarkConfig(), "12x384", CPU)
    assert (sizes.num_patches, sizes.num_tokens, sizes.num_images) == (196, 197, 8)
