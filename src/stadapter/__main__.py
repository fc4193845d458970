"""The command `stadapter`: finds the verb and turns every error into one line and an exit code.

Nothing heavy is imported before the verb is known. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

import difflib
import io
import os
import sys
from collections.abc import Sequence

from stadapter import __version__
from stadapter.errors import SettingsError, STAdapterError

VERBS = {
    "quickstart": "make clips, train on them and look at the result: takes minutes, downloads nothing",
    "train": "train a video classifier on a folder of labelled clips",
    "evaluate": "measure a trained classifier on labelled clips",
    "predict": "classify videos",
    "export": "write a trained classifier as one file that runs without this program",
    "compare": "train and test several strategies on the same budget and say which is better",
    "check": "find problems in a data set before training on it",
    "convert": "turn a checkpoint of the released ST-Adapter code into a run folder",
    "benchmark": "measure speed against the released code and against the hardware's limit",
}
"""The verbs, with the purpose of each in one line."""
INTERRUPTED, BROKEN_PIPE = 130, 141  # what a shell reports for these signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default this process's own, and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None:  # closed by the parent process: nobody listens
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for as long as the process lasts
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold bytes that are not text
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except SettingsError as error:
        return _fail(error, 2)
    except STAdapterError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; what is still buffered must not raise at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        return _fail(STAdapterError(f"{error.filename or 'input or output'}: {error.strerror or error}"), 1)


def usage() -> str:
    """What `stadapter --help` prints."""
    verbs = "\n".join(f"  {verb:<12}{purpose}" for verb, purpose in VERBS.items())
    return f"""usage: stadapter COMMAND [flags]

Turn a pre-trained image model into a video classifier by training a few million parameters.

{verbs}

stadapter COMMAND --help lists a command's flags; stadapter --version prints the version.
First steps:
  stadapter quickstart                                 makes its own clips
  stadapter train --data videos/ --out runs/first      one sub-folder of videos per class
  stadapter predict runs/first clip.mp4"""


def _dispatch(arguments: list[str]) -> int:
    verb, flags = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb == "help" and flags and flags[0] in VERBS:
        verb, flags = flags[0], ["--help"]
    if verb in ("-h", "--help", "help"):
        print(usage())
        return 0
    if verb in ("-V", "--version", "version"):
        print(f"stadapter {__version__}")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(VERBS)}"
        raise SettingsError(f"unknown command {verb!r}; {advice}")
    from stadapter.cli import run

    return run(verb, flags)


def _fail(error: STAdapterError, code: int) -> int:
    from rich.console import Console
    from rich.text import Text

    from stadapter.wording import printable_lines

    line = Text.assemble(("error: ", "bold red"), printable_lines(str(error)))
    Console(stderr=True).print(line, soft_wrap=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
