"""The clips of a run that could not be read: each is named once, and too many stop the run."""

from collections.abc import Sequence

from stadapter.errors import TrainingError
from stadapter.paths import expanded
from stadapter.records import METRICS_NAME
from stadapter.samples import Batch, Failure
from stadapter.training.preparation import Prepared
from stadapter.training.progress import RunDisplay
from stadapter.wording import counted, listed, named_once, percent


class UnreadableClips:
    """What could not be read so far, and why; for other processes, as of the last `gather`."""

    def __init__(self, run: Prepared) -> None:
        self._run = run
        self.reasons: dict[str, str] = {}
        """The reason, by the name of the clip."""
        self._num_gathered = 0

    def note(self, batch: Batch, display: RunDisplay) -> None:
        """Name the clips of a batch that could not be read.

        Raises:
            TrainingError: no clip of the batch could be read, or too many so far; with several processes only `gather`
                counts.
        """
        self._name(batch["failures"], display)
        if self._run.accelerator.num_processes == 1:
            self._refuse_too_many()
        if not len(batch["labels"]):
            raise self._error("a batch in which no clip could be read")

    def gather(self, display: RunDisplay) -> None:
        """Learn what the other processes could not read, so that all stop at the same step, or none.

        Raises:
            TrainingError: there are too many.
        """
        if self._run.accelerator.num_processes > 1:
            from accelerate.utils.operations import gather_object

            # Only what is new: all know the rest, which may be thousands of clips, and this happens every few steps.
            self._name(gather_object(list(self.reasons.items())[self._num_gathered :]), display)
            self._num_gathered = len(self.reasons)
            self._refuse_too_many()

    def _name(self, failures: Sequence[Failure], display: RunDisplay) -> None:
        for name, reason in failures:
            if name not in self.reasons:
                self.reasons[name] = reason
                display.say(f"skipped {named_once(name, reason)}")
                display.record("unreadable", name=name, reason=reason)

    def _refuse_too_many(self) -> None:
        """A single clip never stops a run."""
        total, bad, share = len(self._run.train_set.entries), len(self.reasons), self._run.config.max_bad_fraction
        if bad > 1 and bad > share * total:
            raise self._error(
                f"{bad} of {total} clips could not be read, more than the allowed share of {percent(share, 0)}",
                ", or raise --max-bad-fraction",
            )

    def _error(self, what: str, or_else: str = "") -> TrainingError:
        data = expanded(self._run.config.data)
        if not data.exists():
            return TrainingError(f"{data} no longer exists; restore the data, then resume")
        them = "it" if len(self.reasons) == 1 else "them"
        return TrainingError(
            f"{what}: {listed(sorted(self.reasons))}; {counted(len(self.reasons), 'clip')} in total, named in "
            f"{self._run.folder / METRICS_NAME}. Remove or repair {them}{or_else}"
        )
