"""What a quickstart found, to be printed."""

from typing import Any

from rich.console import Group
from rich.table import Table

from stadapter.evaluation.tables import interval_text
from stadapter.hands import CLASSES
from stadapter.uncertainty import Interval
from stadapter.wording import listed, percent

TITLES = {"linear-probe": "linear probe", "st-adapter": "ST-Adapter"}


def tables(result: dict[str, Any]) -> Group:
    """The comparison, the prediction, and where to look next, to be printed with rich."""
    table = Table(
        title=f"Quickstart: {result['num_test_clips']} test clips of {len(CLASSES)} classes", title_justify="left"
    )
    table.add_column("")
    for header in ("trained parameters", "top-1", "95 % interval", "played backwards", "training"):
        table.add_column(header, justify="right")
    for name, run in result["runs"].items():
        table.add_row(
            TITLES[name],
            f"{run['trained_parameters']:,}",
            percent(run["top1"]),
            interval_text(Interval(**run["top1_interval"])),
            percent(run["reversed"]),
            f"{run['seconds']:.0f} s",
        )
    wrong = [each for each in result["unseen"] if each["predicted"] != each["label"]]
    taken = listed([f"{each['label']} for {each['predicted']} ({percent(each['score'])})" for each in wrong])
    return Group(
        table,
        "The classes are pairs, each the other played backwards: a model that does not see the order of frames cannot "
        "exceed 50 %.",
        f"Of {len(result['unseen'])} more clips, one per class, ST-Adapter classifies "
        f"{len(result['unseen']) - len(wrong)} correctly" + (f"; it mistakes {taken}." if wrong else "."),
    )
