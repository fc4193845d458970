"""How good a run is on its held-out clips, on the way and at its end."""

from collections.abc import Callable

from stadapter.compiled import uncompiled
from stadapter.evaluation import evaluate
from stadapter.evaluation.figures import Report
from stadapter.training.preparation import Prepared

TIME_CHECK_CLIPS = 1000
"""With more clips held out, whether time matters is left to the evaluate verb: asking may take four times as long."""


def is_due(run: Prepared, step: int) -> bool:
    """Whether the held-out clips are looked at after so many steps: after every so many epochs, but for the last."""
    epochs, steps_into = divmod(step, run.plan.steps_per_epoch)
    every = run.config.validate_every_epochs
    is_between = 0 < epochs < run.plan.epochs and steps_into == 0
    return every > 0 and is_between and epochs % every == 0


def validate(run: Prepared, *, progress: Callable[[int, int], None], time_check: bool = False) -> Report:
    """Evaluate the model of a run, as it stands, on the clips that are held out; all its processes share them.

    Args:
        run: one with held-out clips.
        progress: called with the number of clips done and to do by this process, after every batch.
        time_check: ask whether time matters too, if there are not too many clips.

    Raises:
        DataError: not one clip could be read.
        DivergedError: the scores are not finite.
        TrainingError: a process that reads clips ended by itself.
    """
    assert run.val_set is not None
    accelerator = run.accelerator
    with uncompiled(run.model):  # for other sizes compiling would begin anew
        return evaluate(
            accelerator.unwrap_model(run.model),
            run.val_set,
            run.clip_config,
            batch_size=run.config.batch_size,
            num_workers=run.num_workers,
            accelerator=accelerator if accelerator.num_processes > 1 else None,
            progress=progress,
            time_check=time_check and len(run.val_set.entries) <= TIME_CHECK_CLIPS,
        )
