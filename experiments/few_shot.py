"""Few clips on a laptop: the same training with and without the token cache, in turns, and how well it learns.

    python experiments/few_shot.py --clips GESTURES --backbone TRUNK --work FOLDER

Links the first few training clips of each class (those of experiments/gestures.py), and goes through the command line
as a user would: `stadapter train` without the cache, with an empty one, and with what that left; then `stadapter
evaluate` on the test clips. The three trainings must leave the same weights. Writes results/few-shot.json: wall and
processor seconds of each.
"""

import argparse
import datetime
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gestures import ROOT, processor, public, split
from stadapter.artefact import WEIGHTS_NAME

RESULT = ROOT / "results" / "few-shot.json"
WAYS = ("without", "empty", "filled")
"""Without the cache; with one that is empty at the start; with one that another training has filled."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of class folders of <class>_<number>.mp4")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the split and the run folders")
    parser.add_argument("--shots", type=int, default=5, help="training clips of each class")
    parser.add_argument("--views", type=int, default=4, help="views of each clip")
    parser.add_argument("--last-blocks", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--epochs", type=int, help="default as stadapter train chooses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--note", default="", help="what else kept the machine busy")
    flags = parser.parse_args()
    split(flags.clips, flags.work / "clips")
    choose(flags.work / "clips" / "train", flags.work / "clips" / "few", flags.shots)
    runs = [run(flags, count) for count in flags.last_blocks]
    result = {
        "command": "python experiments/few_shot.py " + shlex.join(plain_flags(flags)),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": {"cores": os.cpu_count(), "processor": processor()},
        "note": flags.note,
        "shots": flags.shots,
        "views": flags.views,
        "seed": flags.seed,
        "runs": runs,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(runs))


def choose(source: Path, out: Path, shots: int) -> None:
    """Link the first clips of every class, by name, into a folder of their own."""
    shutil.rmtree(out, ignore_errors=True)
    for folder in sorted(source.iterdir()):
        for path in sorted(folder.iterdir())[:shots]:
            link = out / folder.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())


def run(flags: argparse.Namespace, last_blocks: int) -> dict[str, Any]:
    """Train in every way on the last so many blocks, and evaluate once."""
    cache = flags.work / f"cache-{last_blocks}"
    shutil.rmtree(cache, ignore_errors=True)
    times, weights, said = {}, {}, {}
    for way in flags.ways:
        out = flags.work / f"last-{last_blocks}-{way}"
        shutil.rmtree(out, ignore_errors=True)
        command = ["stadapter", "train", "--data", str(flags.work / "clips" / "few"), "--backbone", flags.backbone]
        command += ["--out", str(out), "--val-fraction", "0", "--size", "112", "--seed", str(flags.seed)]
        command += ["--tuning.last-blocks", str(last_blocks), "--views-per-clip", str(flags.views)]
        command += ["--epochs", str(flags.epochs)] if flags.epochs is not None else []
        command += ["--token-cache-gigabytes", "0"] if way == "without" else ["--token-cache-folder", str(cache)]
        times[way] = call(command)
        weights[way] = (out / WEIGHTS_NAME).read_bytes()
        said[way] = public(command, flags.backbone, flags.work)
    if len(set(weights.values())) != 1:
        raise SystemExit(f"last {last_blocks} blocks: the weights differ between {', '.join(flags.ways)}")
    report = flags.work / f"last-{last_blocks}.json"
    evaluate = ["stadapter", "evaluate", str(out), "--data", str(flags.work / "clips" / "test"), "--json", str(report)]
    call([*evaluate, "--no-time-check"])
    receipt = json.loads((out / "stadapter.json").read_text())
    return {
        "last_blocks": last_blocks,
        "commands": said,
        "seconds": times,
        "cache_bytes": sum(path.stat().st_size for path in cache.rglob("*.safetensors")),
        "steps": receipt["receipt"]["steps"],
        "precision": receipt["receipt"]["precision"],
        "parameters": receipt["parameters"],
        "versions": receipt["receipt"]["versions"],
        "num_train_clips": receipt["receipt"]["num_train_clips"],
        "num_test_clips": json.loads(report.read_text())["num_clips"],
        "top1": json.loads(report.read_text())["top1"],
    }


def call(command: list[str]) -> dict[str, float]:
    """Run a command, show what it prints, and return its wall and processor seconds, its processes' included."""
    print("$", shlex.join(command), flush=True)
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", *command], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": round(time.monotonic() - started, 1), "processor": round(used, 1)}


def plain_flags(flags: argparse.Namespace) -> list[str]:
    """The flags as a reader would type them, without this machine's paths."""
    values = {"clips": Path(flags.clips).name, "backbone": Path(flags.backbone).name, "work": "runs"}
    values |= {"shots": flags.shots, "views": flags.views, "seed": flags.seed}
    values |= {"epochs": flags.epochs} if flags.epochs is not None else {}
    typed = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    return [*typed, "--last-blocks", *(str(count) for count in flags.last_blocks)]


def table(runs: list[dict[str, Any]]) -> str:
    """One line a number of blocks: accuracy, steps, and the seconds of each way."""
    ways = [way for way in WAYS if way in runs[0]["seconds"]]
    lines = ["| last blocks | top-1 | steps | " + " | ".join(f"{way}, wall / processor" for way in ways) + " |"]
    lines.append("|---:|---:|---:|" + "---:|" * len(ways))
    for each in runs:
        times = [f"{each['seconds'][way]['wall']:.0f} / {each['seconds'][way]['processor']:.0f} s" for way in ways]
        cells = [str(each["last_blocks"]), f"{each['top1']:.1%}", str(each["steps"]), *times]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
