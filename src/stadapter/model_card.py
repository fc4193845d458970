"""The README of a run folder, as the Hub shows it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stadapter.labels import ACTION, LabelSpace
from stadapter.wording import counted, printable


def model_card(spec: Mapping[str, Any]) -> str:
    """A README for a run folder, with the front matter the Hub reads."""
    backbone, clip = spec["backbone"], spec["clip"]
    space = LabelSpace.from_json(spec["labels"])
    rows = _metric_rows(spec["receipt"].get("metrics", {}), space)
    count = spec["receipt"].get("num_held_out_clips")
    title = f"## On {counted(count, 'held-out clip')}" if count is not None else "## On held-out clips"
    table = "\n".join(["", title, "", "| measure | value |", "|---|---|", *rows, ""]) if rows else ""
    labels = ", ".join(_code(printable(label)) for label in space.labels)
    is_on_hub = backbone["revision"] is not None
    trunk = backbone["name"] if is_on_hub else Path(backbone["name"]).name  # a card reveals nothing of this machine
    base_model = f"base_model: {trunk}\n" if is_on_hub else ""
    return f"""---
library_name: stadapter
pipeline_tag: video-classification
{base_model}---

# Video classifier on {trunk}

Strategy `{spec["tuning"]["name"]}`, {spec["parameters"]["summary"]}; the trunk `{trunk}` (`{backbone["family"]}`,
sha256 `{backbone["sha256"][:16]}…`) is not in this folder and is needed to use it.

Input: {clip["num_frames"]} frames of {clip["size"]} x {clip["size"]} pixels. Classes: {labels}.
{table}
## Use

```python
import stadapter

classifier = stadapter.Classifier.load("path/to/this/folder")
print(classifier.predict("clip.mp4"))
```
"""


def _metric_rows(metrics: Mapping[str, Any], space: LabelSpace) -> list[str]:
    """The lines of the card's table: shares as percentages, everything else as numbers."""
    rows = []
    for name, value in metrics.items():
        head = next((head for head in space.heads if name.startswith(f"{head}_")), "")
        num_classes = len(space.heads[head]) if head else space.num_actions
        measure = name.removeprefix(f"{head}_")
        if measure == "top5" and num_classes <= 5:
            continue
        title = {
            "top1": "top-1",
            "top5": "top-5",
            "mean_class_accuracy": "mean class accuracy",
        }.get(measure)
        words = " ".join(filter(None, [head or (ACTION if space.heads else ""), title or measure]))
        if isinstance(value, float):
            rows.append(f"| {words} | {100 * value:.1f} % |" if title else f"| {words} | {value:.4f} |")
    return rows


def _code(text: str) -> str:
    """A text as code in Markdown: nothing in it acts as a tag or as markup."""
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"
