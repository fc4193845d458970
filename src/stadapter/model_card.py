"""The README of a run folder, as the Hub shows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stadapter.labels import ACTION, LabelSpace
from stadapter.wording import printable


def model_card(spec: Mapping[str, Any]) -> str:
    """A README for a run folder, with the front matter the Hub reads."""
    backbone, clip = spec["backbone"], spec["clip"]
    space = LabelSpace.from_json(spec["labels"])
    rows = _metric_rows(spec["receipt"].get("metrics", {}), space)
    table = "\n".join(["", "## On held-out clips", "", "| measure | value |", "|---|---|", *rows, ""]) if rows else ""
    labels = ", ".join(map(printable, space.labels))
    is_on_hub = backbone["revision"] is not None
    trunk = backbone["name"] if is_on_hub else Path(backbone["name"]).name  # a card tells nothing of this machine
    base_model = f"base_model: {trunk}\n" if is_on_hub else ""
    return f"""---
library_name: stadapter
pipeline_tag: video-classification
{base_model}---

# Video classifier on {trunk}

{spec["parameters"]["summary"]}, strategy `{spec["tuning"]["name"]}`; the trunk `{trunk}` (`{backbone["family"]}`,
sha256 `{backbone["sha256"][:16]}…`) is not in this folder and must be there to use it.

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
    """The lines of the card's table: shares as percentages, all else as numbers."""
    rows = []
    for name, value in metrics.items():
        head = next((head for head in space.heads if name.startswith(f"{head}_")), "")
        num_classes = len(space.heads[head]) if head else space.num_actions
        measure = name.removeprefix(f"{head}_")
        title = {
            "top1": "top-1",
            "top5": f"top-{min(5, num_classes)}",
            "mean_class_accuracy": "mean class accuracy",
        }.get(measure)
        words = " ".join(filter(None, [head or (ACTION if space.heads else ""), title or measure]))
        if isinstance(value, float):
            rows.append(f"| {words} | {value:.1%} |" if title else f"| {words} | {value:.4f} |")
    return rows
