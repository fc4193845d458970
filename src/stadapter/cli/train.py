"""stadapter train: the flags, which depend on the chosen strategy, and the run."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from stadapter.cli.flags import flags_class
from stadapter.cli.output import next_step, output_console, say
from stadapter.errors import SettingsError
from stadapter.paths import expanded
from stadapter.provenance import launch_command
from stadapter.wording import listed

if TYPE_CHECKING:
    from stadapter.training.settings import TrainConfig


def run(arguments: Sequence[str]) -> int:
    """stadapter train"""
    from stadapter.training.settings import TrainConfig

    flags = parse_train_flags(arguments)
    config = TrainConfig(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(TrainConfig)})
    return _estimate(config) if flags.dry_run else _train(config, arguments)


def _train(config: "TrainConfig", arguments: Sequence[str]) -> int:
    """Train, and say how it ended or how to resume."""
    from stadapter.report import REPORT_NAME
    from stadapter.training.checkpoint import CHECKPOINT_NAME
    from stadapter.training.loop import train

    try:
        result = train(config)
    except KeyboardInterrupt:
        if (expanded(config.out) / CHECKPOINT_NAME).is_file():
            again = [argument for argument in arguments if argument != "--resume"]
            if os.environ.get("RANK", "0") == "0":
                say(f"\nstopped; resume with: {shlex.join([*launch_command('stadapter'), 'train', *again])} --resume")
        raise
    if os.environ.get("RANK", "0") != "0":
        return 0
    if result.report is not None:
        from stadapter.evaluation.tables import tables

        output_console(sys.stdout).print(tables(result.report))
    page = result.folder / REPORT_NAME
    look = f"; look at {page}" if page.is_file() else ""
    say([f"saved in {result.folder}{look}", next_step(result.folder)])
    return 0


def _estimate(config: "TrainConfig") -> int:
    """Say what would be trained and, after a short trial, how much memory and time it would take."""
    from stadapter.memory import readable_memory_errors
    from stadapter.training.description import describe
    from stadapter.training.estimate import SECONDS, estimate, tables
    from stadapter.training.preparation import prepare

    run = prepare(config)
    if not run.accelerator.is_main_process:
        return 0
    print("\n".join(describe(run)), flush=True)
    say(f"trying a few clips and steps, for about {SECONDS:.0f} seconds at most …")
    with readable_memory_errors():
        results = tables(estimate(run))
    output_console(sys.stdout).print(results)
    print("dry run: nothing was trained or written")
    return 0


def parse_train_flags(arguments: Sequence[str]) -> Any:
    """A `TrainConfig` with the flags of recipe and strategy, unchecked, plus what only the command line has."""
    from stadapter.training.recipes import RECIPES
    from stadapter.training.settings import TrainConfig
    from stadapter.tuning import STRATEGIES, tuning_name

    name = chosen_value("--recipe", arguments, RECIPES) or "small"
    recipe = RECIPES[name]("", "")
    strategy = chosen_value("--tuning", arguments, STRATEGIES) or tuning_name(recipe.tuning)
    check_strategy_flags(arguments, strategy, STRATEGIES)
    tuning_flags = flags_class(STRATEGIES[strategy])
    kind = flags_class(
        TrainConfig,
        purpose="Train a video classifier on labelled clips.",
        more=[
            ("strategy", _choice("tuning", STRATEGIES, "What is trained. Name one before --help to see its flags.")),
            ("recipe", _choice("recipe", RECIPES, "Named settings that other flags override; small suits few clips.")),
            (
                "dry_run",
                Annotated[
                    bool,
                    tyro.conf.arg(
                        help="Say what would be trained and, after a short trial, how much memory and time it would "
                        "take; then stop."
                    ),
                ],
            ),
            ("tuning", tuning_flags),
        ],
    )
    tuning = recipe.tuning if strategy == tuning_name(recipe.tuning) else STRATEGIES[strategy]()
    values = {**vars(recipe), "data": tyro.MISSING, "out": tyro.MISSING, "tuning": tuning_flags(**vars(tuning))}
    values |= {"strategy": strategy, "recipe": name, "dry_run": False}
    flags = tyro.cli(kind, prog="stadapter train", args=arguments, default=kind(**values))
    return dataclasses.replace(flags, tuning=STRATEGIES[strategy](**vars(flags.tuning)))


def _choice(name: str, choices: Mapping[str, Any], purpose: str) -> Any:
    """The type of a flag that takes one of several names."""
    names: Any = tyro.extras.literal_type_from_choices(list(choices))
    return Annotated[names, tyro.conf.arg(name=name, help=purpose)]


def chosen_value(flag: str, arguments: Sequence[str], names: Container[str | None]) -> str | None:
    """The last value of a flag; None if there is none, or none that is known (tyro refuses that)."""
    chosen = None
    for position, argument in enumerate(arguments):
        value = "".join(arguments[position + 1 : position + 2]) if argument == flag else argument
        if argument == flag or argument.startswith(f"{flag}="):
            chosen = value.removeprefix(f"{flag}=")
    return chosen if chosen in names else None


def check_strategy_flags(arguments: Sequence[str], strategy: str, strategies: Mapping[str, type[Any]]) -> None:
    """Refuse a flag that only another strategy has, naming that strategy.

    Raises:
        SettingsError: there is one. Flags of no strategy are left to tyro.
    """
    fields = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in strategies.items()}
    for argument in arguments:
        flag, dot, setting = argument.partition("=")[0].partition(".")
        setting = setting.removeprefix("no-").replace("-", "_")
        if flag != "--tuning" or not dot or setting in fields[strategy]:
            continue
        if owners := [name for name in fields if setting in fields[name]]:
            raise SettingsError(f"{argument} is a flag of {listed(owners)}; add --tuning {owners[0]}, or drop it")
