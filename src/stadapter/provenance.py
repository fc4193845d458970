"""Where a result came from: the command, the state of this package, and the machine."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path


def commit() -> str | None:
    """The git commit of this package, with "+ changes" if files differ from it; None if this is not a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    changes = git("status", "--porcelain", "--untracked-files=no", ".")
    return f"{git('rev-parse', 'HEAD')}{' + changes' if changes else ''}"


def command_line() -> str:
    """The command of this process as one would type it, without the path of the program."""
    program, *arguments = sys.argv or [""]
    if Path(program).stem == "stadapter" or Path(program) == Path(__file__).with_name("__main__.py"):
        return shlex.join([*launch_command("stadapter"), *arguments])
    return shlex.join([*_launcher(), program, *arguments])


def launch_command(program: str) -> list[str]:
    """How one would start this program with as many processes as it has now."""
    launcher = _launcher()
    return [*launcher, "-m", program] if launcher else [program]


def _launcher() -> list[str]:
    """torchrun with the numbers of processes and machines; empty for a single process."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return []
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    machines = ["--nnodes", str(world // here)] if world > here else []
    return ["torchrun", *machines, "--nproc-per-node", str(here)]


def versions() -> dict[str, str]:
    """The versions of this package, of Python, and of what computes."""
    import torch
    import transformers

    from stadapter import __version__

    return {
        "stadapter": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def processor() -> dict[str, str]:
    """The processor's name, if the system reports it, and the platform."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"processor": names[0] if names else platform.processor(), "platform": platform.platform()}
