"""Settings hold what their annotations say."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pytest

import stadapter as st
from stadapter.errors import SettingsError
from stadapter.field_types import check_types, from_json
from stadapter.training.settings import settings_from_json, settings_to_json


class Speaks(Protocol):
    def speak(self) -> None: ...


@dataclass(frozen=True)
class Settings:
    count: int = 1
    share: float | None = 0.5
    kind: Literal["a", "b"] = "a"
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[int, ...] = ()
    names: list[str] | None = None
    on: bool = False
    speaker: Speaks | None = None


GOOD = [{}, {"share": 1}, {"share": None}, {"pair": (1, 2)}, {"many": (1, 2, 3)}, {"names": ["x"]}, {"kind": "b"}]


@pytest.mark.parametrize("values", GOOD)
def test_what_fits_passes(values: dict[str, Any]) -> None:
    check_types(Settings(**values))
    check_types(from_json(Settings, values | {"pair": [1, 2.0]}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1.5}, r"count 1\.5: expected a whole number"),
        ({"count": True}, "count True: expected a whole number"),
        ({"share": "x"}, "share 'x': expected a number or None"),
        ({"kind": "c"}, "kind 'c': expected 'a' or 'b'"),
        ({"pair": (1,)}, r"pair \(1,\): expected \(a whole number, a number\)"),
        ({"pair": [1.5, 2.0]}, r"pair \(1\.5, 2\.0\): expected"),
        ({"count": np.float32(1.5)}, r"count 1\.5: expected a whole number"),
        ({"on": 1}, "on 1: expected True or False"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_types(Settings(**values))


def test_numbers_of_numpy_and_lists_become_plain_ones() -> None:
    names = ["x"]
    settings = Settings(count=np.int64(3), share=np.float32(0.5), pair=[1, np.float64(2)], names=names)  # type: ignore[arg-type]
    check_types(settings)
    assert settings == Settings(count=3, share=0.5, pair=(1, 2.0), names=names)
    assert [type(settings.count), type(settings.share), type(settings.pair)] == [int, float, tuple]
    assert settings.names is names


def test_a_strategy_takes_numbers_of_numpy_and_lists() -> None:
    given = st.STAdapter(width=np.int64(8), kernel_size=[3, 1, 1])  # type: ignore[arg-type]
    config = st.TrainConfig(data="-", out="-", tuning=given, epochs=np.int64(3))  # type: ignore[arg-type]
    assert config.tuning == st.STAdapter(width=8, kernel_size=(3, 1, 1))
    assert settings_from_json(settings_to_json(config)) == config


@dataclass(frozen=True)
class Own:
    """A strategy that does not look at its settings itself."""

    width: int = 1

    def apply(self, vit: st.ImageViT) -> None:
        """Change nothing."""


def test_the_strategy_that_is_given_is_not_written_to() -> None:
    given = Own(width=np.int64(8))  # type: ignore[arg-type]
    config = st.TrainConfig(data="-", out="-", tuning=given)
    assert type(config.tuning.width) is int  # type: ignore[attr-defined]
    assert type(given.width) is np.int64


@pytest.mark.parametrize(
    "changes",
    [
        *({"tuning": tuning} for tuning in (None, "lora", st.STAdapter, Own(width=1.5))),
        *({"epochs": 1.5}, {"lr": "x"}, {"data": None}, {"batch_size": True}, {"augmentation": None}),
    ],
)
def test_a_training_refuses_them_before_it_starts(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="expected"):
        st.TrainConfig(**{"data": "a", "out": "b", **changes})


def test_paths_are_taken_where_a_text_is_wanted(tmp_path: Path) -> None:
    config = st.CompareConfig(
        data=tmp_path / "data",  # type: ignore[arg-type]
        test=tmp_path / "test",  # type: ignore[arg-type]
        backbone=Path("tiny"),  # type: ignore[arg-type]
        experiments=(tmp_path / "e",),  # type: ignore[arg-type]
    )
    assert (config.data, config.test) == (str(tmp_path / "data"), str(tmp_path / "test"))
    assert config.experiments == (str(tmp_path / "e"),)
    assert config.backbone == os.path.abspath("tiny")  # a folder, and not the trunk that comes with the package
    with pytest.raises(SettingsError, match="steps '600': expected a whole number"):
        st.CompareConfig(data="a", test="b", steps="600")  # type: ignore[arg-type]
