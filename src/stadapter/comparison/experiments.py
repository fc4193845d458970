"""What is compared: experiments/<strategy>/<name>.json, each the settings that differ from the defaults.

{"about": "a sentence", "tuning": {"width": "D/4"}, "lr": 1e-3, "lr_search": [1e-4, 5e-4, 2e-3]}, all of it optional.
A width may be a share of the trunk's width D, a number of blocks a share of its blocks L, so one file fits any trunk.
"""

# D width of the trunk, L blocks of the trunk

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stadapter.errors import SettingsError
from stadapter.paths import expanded
from stadapter.training.settings import TrainConfig
from stadapter.tuning import STRATEGIES, Tuning, tuning_from_json
from stadapter.wording import listed

NUMBER_SETTINGS = (
    "num_frames",
    "lr",
    "weight_decay",
    "warmup_fraction",
    "label_smoothing",
    "dropout",
    "gradient_clip",
)
"""Settings of `TrainConfig` that an experiment may choose; all others are given once for all experiments."""
_KEYS = ("about", "tuning", "lr_search", *NUMBER_SETTINGS)
_RELATIVE = re.compile(r"([DL])(?:/([1-9]\d*))?")
_SHARES_OF = {"width": "D", "last_blocks": "L", "first_blocks": "L"}
_LARGE = 1 << 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._]*(-[A-Za-z0-9._]+)*")


@dataclass(frozen=True)
class Experiment:
    """A strategy with the settings that differ from the defaults."""

    strategy: str
    """Its name in `STRATEGIES`."""
    name: str = "default"
    about: str = ""
    """Its purpose, in a sentence."""
    tuning: dict[str, Any] = field(default_factory=dict)
    """Settings of the strategy, as JSON values; shares such as "D/4" are not yet numbers."""
    settings: dict[str, float] = field(default_factory=dict)
    """Some of `NUMBER_SETTINGS`."""
    lr_search: tuple[float, ...] = ()
    """Its own learning rates to search, if they differ from those given for all; equally many."""

    @property
    def title(self) -> str:
        """Strategy and name, as people read them."""
        return f"{self.strategy}/{self.name}"

    @property
    def stem(self) -> str:
        """The prefix of its files' names."""
        return f"{self.strategy}--{self.name}"

    def make_tuning(self, *, width: int, num_blocks: int) -> Tuning:
        """The strategy on a trunk of this width and number of blocks.

        Raises:
            SettingsError: the strategy has no such settings, or a share leaves nothing.
        """
        sizes = {"D": width, "L": num_blocks}
        values = {key: self._resolved(key, value, sizes) for key, value in self.tuning.items()}
        return tuning_from_json({"name": self.strategy, **values})

    def _resolved(self, key: str, value: Any, sizes: dict[str, int]) -> Any:
        if not isinstance(value, str) or key not in _SHARES_OF:
            return value
        found = _RELATIVE.fullmatch(value)
        if found is None or found[1] != _SHARES_OF[key]:
            raise SettingsError(
                f"{self.title}: {key} {value!r}; expected a number, or a share such as {_SHARES_OF[key]}/4"
            )
        number = sizes[found[1]] // int(found[2] or 1)
        if number < 1:
            raise SettingsError(f"{self.title}: {key} {value!r} leaves nothing of {sizes[found[1]]}")
        return number


def read_experiments(paths: Sequence[str | Path]) -> list[Experiment]:
    """All experiments in folders <strategy>/<name>.json, or in single such files, in the order of the strategies.

    Raises:
        SettingsError: there is nothing, a file cannot be understood, or two experiments have one name.
    """
    found: dict[str, Experiment] = {}
    for path in map(Path, paths):
        for file in _files(expanded(path)):
            experiment = read_experiment(file)
            if experiment.stem in found:
                raise SettingsError(f"{file}: {experiment.title} exists twice; rename one of the files")
            found[experiment.stem] = experiment
    order = list(STRATEGIES)
    return sorted(found.values(), key=lambda item: (order.index(item.strategy), item.name != "default", item.name))


def read_experiment(file: Path) -> Experiment:
    """One experiment; its strategy is the name of its folder.

    Raises:
        SettingsError: an unknown strategy, or settings that an experiment may not choose.
    """
    strategy, name = file.resolve().parent.name, file.stem
    if strategy not in STRATEGIES:
        raise SettingsError(f"{file}: unknown strategy {strategy!r}; expected a folder named {' or '.join(STRATEGIES)}")
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{file}: expected a name of letters, digits, dots and single dashes")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f'{file}: expected an object such as {{"tuning": {{"width": 96}}}}')
    if unknown := sorted(set(values) - set(_KEYS)):
        raise SettingsError(
            f"{file}: an experiment may not choose {listed(unknown)}; expected some of {', '.join(_KEYS)}; all other "
            "settings are given once, on the command line, and are the same for all"
        )
    experiment = Experiment(
        strategy=strategy,
        name=name,
        about=_checked(file, values, "about", str, ""),
        tuning=_checked(file, values, "tuning", dict, {}),
        settings={key: _number(file, key, values[key]) for key in NUMBER_SETTINGS if key in values},
        lr_search=tuple(_number(file, "lr_search", rate) for rate in _checked(file, values, "lr_search", list, [])),
    )
    _refuse_impossible(file, experiment)
    return experiment


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(path.glob("*/*.json"))
    if not files:
        what = "no experiments" if path.exists() else "no such file or folder"
        raise SettingsError(f"{path}: {what}; expected files <strategy>/<name>.json in it")
    return files


def _checked(file: Path, values: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = values.get(key, default)
    if not isinstance(value, kind):
        wanted = {"str": "a string", "dict": "an object", "list": "a list"}[kind.__name__]
        raise SettingsError(f"{file}: {key} is {value!r}; expected {wanted}")
    return value


def _refuse_impossible(file: Path, experiment: Experiment) -> None:
    """Refuse settings that no run could have, naming the file."""
    try:
        for settings in (experiment.settings, *({"lr": rate} for rate in experiment.lr_search)):
            TrainConfig(data="-", out="-", **settings)  # type: ignore[arg-type]  # of which num_frames is a whole number
        experiment.make_tuning(width=_LARGE, num_blocks=_LARGE)  # shares leave something there
    except SettingsError as error:
        raise SettingsError(f"{file}: {error}") from error


def _number(file: Path, key: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (key == "num_frames" and (not isinstance(value, int) or value < 1)):
        wanted = "a whole number, at least 1" if key == "num_frames" else "a number"
        raise SettingsError(f"{file}: {key} is {value!r}; expected {wanted}")
    return value  # type: ignore[no-any-return]
