"""A training of a comparison in its own process, from its current state to its result on disk."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from stadapter.comparison.jobs import Job
from stadapter.comparison.results import (
    FailedRun,
    FinishedRun,
    changes,
    identity_of,
    read_job,
    read_result,
    write_json,
    write_result,
)
from stadapter.training.checkpoint import CHECKPOINT_NAME
from stadapter.training.settings import settings_to_json


def run(job: Job, console: Console) -> None:
    """Train in a separate process; its result, or its error, is on disk afterwards.

    Raises:
        KeyboardInterrupt: asked to stop; the training has stopped and left a checkpoint.
    """
    job_file, identity = _job_file(job), job.known.identity
    job_file.parent.mkdir(parents=True, exist_ok=True)
    job.result.parent.mkdir(parents=True, exist_ok=True)
    before = read_job(job_file)
    if before is None or changes(before[0], identity) or before[1] != job.config.lr:
        shutil.rmtree(job.config.out, ignore_errors=True)  # run again with other settings
    job.result.unlink(missing_ok=True)
    known = dataclasses.asdict(job.known)
    write_json(
        job_file, {"settings": settings_to_json(job.config), "known": known, "result": str(job.result.resolve())}
    )
    code = _wait_for([sys.executable, "-m", "stadapter.comparison.child", str(job_file)])
    result = read_result(job.result) or fail(job, _ending(code))
    if isinstance(result, FailedRun):
        console.print(f"{job.title} failed: {result.error}", style="red", highlight=False, markup=False)


def is_done(job: Job) -> bool:
    """Whether its result exists, made with the same settings."""
    result = read_result(job.result)
    return isinstance(result, FinishedRun) and not changes(identity_of(result), job.known.identity)


def identity_there(job: Job) -> dict[str, Any] | None:
    """The identity of the existing result or of an unfinished run; None if nothing would be lost."""
    result = read_result(job.result)
    if isinstance(result, FinishedRun):
        return identity_of(result)
    if (Path(job.config.out) / CHECKPOINT_NAME).is_file() and (unfinished := read_job(_job_file(job))):
        return unfinished[0]
    return None


def fail(job: Job, error: str) -> FailedRun:
    """Write a result that says why the run failed."""
    result = FailedRun(**vars(job.known), error=error)
    write_result(job.result, result)
    return result


def _job_file(job: Job) -> Path:
    return Path(job.config.out).with_name(f"{Path(job.config.out).name}.job.json")


def _wait_for(command: Sequence[str]) -> int:
    """Run a command in its own session, so that Ctrl-C reaches it only once, through us; returns its exit code.

    It holds the other end of a pipe, by which it notices if we are killed.
    """
    child: subprocess.Popen[bytes] | None = None
    stopped = False
    theirs, ours = os.pipe()
    try:
        while True:
            try:
                child = child or subprocess.Popen(command, start_new_session=True, stdin=theirs)
                code = child.wait()
                break
            except KeyboardInterrupt:
                if child is None:
                    raise
                stopped = True
                child.send_signal(signal.SIGTERM)
            except BaseException:
                if child is not None:
                    child.kill()
                raise
    finally:
        os.close(theirs)
        os.close(ours)
    if stopped:
        raise KeyboardInterrupt
    return code


def _ending(code: int) -> str:
    if code >= 0:
        return f"the training process ended with exit code {code} and no result"
    advice = "; most likely it ran out of memory: lower --batch-size or --size" if code == -signal.SIGKILL else ""
    return f"the training process was killed by a signal ({signal.strsignal(-code)}){advice}"
