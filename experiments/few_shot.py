"""Few clips on a laptop: the same training with and without the token cache, in turns, and how well it learns.

    python experiments/few_shot.py --clips GESTURES --backbone TRUNK --work FOLDER

Links the first few training clips of each class (those of experiments/gestures.py), and goes through the command line
as a user would: `stadapter train` with a fresh view in every epoch; with few views, without the cache, with an empty
one, and with what that left; then `stadapter evaluate` on the test clips. The last three trainings must leave the same
weights. Writes results/few-shot.json: wall and processor seconds of each, and the accuracy.
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

from gestures import ROOT, public, split
from stadapter.artefact import WEIGHTS_NAME
from stadapter.provenance import processor
from stadapter.wording import percent

RESULT = ROOT / "results" / "few-shot.json"
WAYS = ("fresh", "without", "empty", "filled")
"""A fresh view in every epoch; few views without the cache, with an empty one, and with one that a training filled."""


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
    if "filled" in flags.ways and "empty" not in flags.ways:
        parser.error("--ways filled: the cache is filled by empty; expected both")
    split(flags.clips, flags.work / "clips")
    choose(flags.work / "clips" / "train", flags.work / "clips" / "few", flags.shots)
    runs = [run(flags, count) for count in flags.last_blocks]
    result = {
        "command": "python experiments/few_shot.py " + shlex.join(plain_flags(flags)),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": {"cores": os.cpu_count(), "processor": processor()["processor"]},
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
    times, weights, said, top1 = {}, {}, {}, {}
    for way in [way for way in WAYS if way in flags.ways]:
        out = flags.work / f"last-{last_blocks}-{way}"
        shutil.rmtree(out, ignore_errors=True)
        command = ["stadapter", "train", "--data", str(flags.work / "clips" / "few"), "--backbone", flags.backbone]
        command += ["--out", str(out), "--val-fraction", "0", "--size", "112", "--seed", str(flags.seed)]
        command += ["--tuning.last-blocks", str(last_blocks)]
        command += ["--views-per-clip", str(flags.views)] if way != "fresh" else []
        command += ["--epochs", str(flags.epochs)] if flags.epochs is not None else []
        command += ["--token-cache-gigabytes", "0"] if way == "without" else []
        command += ["--token-cache-folder", str(cache)] if way in ("empty", "filled") else []
        times[way] = call(command)
        said[way] = public(shlex.join(command), flags.backbone, flags.work)
        if way != "fresh":
            weights[way] = (out / WEIGHTS_NAME).read_bytes()
        if way == "fresh" or len(weights) == 1:
            top1["fresh views" if way == "fresh" else "few views"] = evaluate(out, flags.work)
    if len(set(weights.values())) > 1:
        raise SystemExit(f"last {last_blocks} blocks: the weights differ between {', '.join(weights)}")
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
        "top1": top1,
    }


def evaluate(run_folder: Path, work: Path) -> float:
    """The share of the test clips that a run names right."""
    report = run_folder.with_suffix(".json")
    command = ["stadapter", "evaluate", str(run_folder), "--data", str(work / "clips" / "test"), "--json", str(report)]
    call([*command, "--no-time-check"])
    return float(json.loads(report.read_text())["top1"])


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
    ways = ["--ways", *flags.ways] if flags.ways != list(WAYS) else []
    return [*typed, "--last-blocks", *(str(count) for count in flags.last_blocks), *ways]


def table(runs: list[dict[str, Any]]) -> str:
    """One line a number of blocks: accuracy, steps, and the seconds of each way."""
    ways = [way for way in WAYS if way in runs[0]["seconds"]]
    kinds = list(runs[0]["top1"])
    head = [
        "last blocks",
        *(f"top-1, {kind}" for kind in kinds),
        "steps",
        *(f"{way}, wall / processor" for way in ways),
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---:|" * len(head)]
    for each in runs:
        times = [f"{each['seconds'][way]['wall']:.0f} / {each['seconds'][way]['processor']:.0f} s" for way in ways]
        shares = [percent(each["top1"][kind]) for kind in kinds]
        cells = [str(each["last_blocks"]), *shares, str(each["steps"]), *times]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
