"""stadapter train: the flags, which follow the chosen strategy, and the run."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from stadapter.cli.output import next_step, output_console, say
from stadapter.errors import SettingsError


def run(arguments: Sequence[str]) -> int:
    """stadapter train"""
    from stadapter.checkpoint import CHECKPOINT_NAME
    from stadapter.settings import TrainConfig
    from stadapter.train import prepare, train

    flags = parse_train_flags(arguments)
    config = TrainConfig(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(TrainConfig)})
    if flags.dry_run:
        print("\n".join([*prepare(config).describe(), "dry run: nothing was trained or written"]))
        return 0
    try:
        result = train(config)
    except KeyboardInterrupt:
        if (Path(config.out).expanduser() / CHECKPOINT_NAME).is_file():
            again = [argument for argument in arguments if argument != "--resume"]
            say(f"\nstopped; go on with: stadapter train {shlex.join(again)} --resume")
        raise
    if os.environ.get("RANK", "0") != "0":
        return 0
    if result.report is not None:
        from stadapter.evaluate import tables

        output_console(sys.stdout).print(tables(result.report))
    say([f"saved in {result.folder}", next_step(result.folder)])
    return 0


def parse_train_flags(arguments: Sequence[str]) -> Any:
    """A `TrainConfig` with the flags of the chosen strategy, unchecked, and what only the command line has."""
    from stadapter.settings import TrainConfig
    from stadapter.tuning import STRATEGIES

    strategy = chosen_strategy(arguments, tuple(STRATEGIES))
    check_strategy_flags(arguments, strategy, STRATEGIES)
    choices: Any = tyro.extras.literal_type_from_choices(STRATEGIES)
    named = tyro.conf.arg(name="tuning", help="What learns. Name one before --help to see its flags.")
    recipe = tyro.conf.arg(help="Named settings; small is for few clips and little compute.")
    dry_run = tyro.conf.arg(help="Say what would be trained, for how many steps, and stop.")
    kind = dataclasses.make_dataclass(
        "TrainFlags",
        [
            ("strategy", Annotated[choices, named], strategy),
            ("recipe", Annotated[Literal["small"], recipe], "small"),
            ("dry_run", Annotated[bool, dry_run], False),
            ("tuning", STRATEGIES[strategy], dataclasses.field(default_factory=STRATEGIES[strategy])),
        ],
        bases=(TrainConfig,),
        # The settings are checked when the TrainConfig proper is made, where errors are ours to report.
        namespace={"__post_init__": lambda flags: None, "__doc__": "Train a video classifier on labelled clips."},
        frozen=True,
        kw_only=True,
    )
    return tyro.cli(kind, prog="stadapter train", args=arguments)


def chosen_strategy(arguments: Sequence[str], names: Sequence[str]) -> str:
    """The last value of --tuning; the first name where there is none, or none that is known (tyro refuses that)."""
    chosen = names[0]
    for position, argument in enumerate(arguments):
        value = "".join(arguments[position + 1 : position + 2]) if argument == "--tuning" else argument
        if argument == "--tuning" or argument.startswith("--tuning="):
            chosen = value.removeprefix("--tuning=")
    return chosen if chosen in names else names[0]


def check_strategy_flags(arguments: Sequence[str], strategy: str, strategies: Mapping[str, type[Any]]) -> None:
    """Refuse a flag that only another strategy has, by the name of that strategy.

    Raises:
        SettingsError: there is one. Flags that no strategy has are left to tyro.
    """
    fields = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in strategies.items()}
    for argument in arguments:
        flag, dot, setting = argument.partition("=")[0].partition(".")
        setting = setting.removeprefix("no-").replace("-", "_")
        if flag != "--tuning" or not dot or setting in fields[strategy]:
            continue
        if owners := [name for name in fields if setting in fields[name]]:
            raise SettingsError(f"{argument} is a flag of {' and '.join(owners)}; add --tuning {owners[0]}, or drop it")
