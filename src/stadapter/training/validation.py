"""How good a run is on its held-out clips, along the way and at its end."""

from collections.abc import Callable

from stadapter.compiled import uncompiled
from stadapter.evaluation import evaluate
from stadapter.evaluation.figures import Report
from stadapter.token_cache import TokenCache
from stadapter.training.preparation import Prepared

TIME_CHECK_CLIPS = 1000
"""With more held-out clips, the check whether time matters is left to evaluate: it may take four times as long."""


def is_due(run: Prepared, step: int) -> bool:
    """Whether to evaluate on the held-out clips after this step: every so many epochs, except after the last."""
    epochs, steps_into = divmod(step, run.plan.steps_per_epoch)
    every = run.config.validate_every_epochs
    is_between = 0 < epochs < run.plan.epochs and steps_into == 0
    return every > 0 and is_between and epochs % every == 0


def validate(
    run: Prepared,
    *,
    progress: Callable[[int, int], None],
    time_check: bool = False,
    tokens: TokenCache | None = None,
) -> Report:
    """Evaluate a run's model, in its current state, on the held-out clips; all its processes share them.

    Args:
        run: one with held-out clips.
        progress: called after every batch with this process's number of clips done and its total.
        time_check: also check whether time matters, if there are not too many clips.
        tokens: where the run keeps what its frozen blocks make of clips; not used if the run validates only once.

    Raises:
        DataError: not one clip could be read.
        DivergedError: the scores are not finite.
        TrainingError: a process that reads clips died.
    """
    assert run.val_set is not None
    accelerator = run.accelerator
    with uncompiled(run.model):  # other sizes would trigger another compilation
        return evaluate(
            accelerator.unwrap_model(run.model),
            run.val_set,
            run.clip_config,
            batch_size=run.config.batch_size,
            num_workers=run.num_workers,
            accelerator=accelerator if accelerator.num_processes > 1 else None,
            progress=progress,
            time_check=time_check and len(run.val_set.entries) <= TIME_CHECK_CLIPS,
            tokens=tokens if run.config.validate_every_epochs else None,
        )
