"""How messages word lists, numbers, times and foreign text."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def listed(names: Sequence[str], limit: int = 5, *, separator: str = ", ") -> str:
    """What a message shows of possibly many names: the first few, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more if names else "nothing"


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "class"), counted(2, "class"), counted(0, "clip")
    ('1 class', '2 classes', '0 clips')
    """
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def tallied(values: Iterable[str], limit: int = 4) -> str:
    """How often each value occurs, the most frequent first.

    >>> tallied(["h264", "vp9", "h264"]), tallied("aabcd", 2)
    ('h264 (2), vp9 (1)', 'a (2), b (1), others (2)')
    """
    counts = Counter(values).most_common()
    shown = ", ".join(f"{value} ({count})" for value, count in counts[:limit])
    more = sum(count for _, count in counts[limit:])
    return f"{shown}, others ({more})" if more else shown


def changed(name: str, then: Any, now: Any) -> list[str]:
    """How a setting, or something inside it, has changed; empty if it has not.

    >>> changed("lr", 0.002, 0.1), changed("tuning", {"name": "lora", "rank": 4}, {"name": "lora", "rank": 8})
    (['lr was 0.002, is 0.1'], ['tuning.rank was 4, is 8'])
    >>> changed("tuning", {"name": "lora", "rank": 4}, {"name": "full"}), changed("labels", ["a", "b"], ["a", "c"])
    (["tuning was 'lora', is 'full'"], ["labels no longer 'b', but 'c'"])
    """
    if then == now:
        return []
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        if then.get("name") != now.get("name"):
            return changed(name, then.get("name"), now.get("name"))
        return [line for key in {**then, **now} for line in changed(f"{name}.{key}", then.get(key), now.get(key))]
    if _are_names(then) and _are_names(now):
        gone, new = (
            [_briefly(each) for each in ours if each not in theirs] for ours, theirs in ((then, now), (now, then))
        )
        return [f"{name} no longer {listed(gone)}, but {listed(new)}" if gone or new else f"{name} in another order"]
    return [f"{name} was {_briefly(then)}, is {_briefly(now)}"]


def _briefly(value: Any) -> str:
    """A setting's value; for a sha256, only its start."""
    is_hash = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return f"{value[:12]}…" if is_hash else repr(value)


def _are_names(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) for value in values)


def duration(seconds: float) -> str:
    """A time in the unit that people would use, no more exact than an estimate.

    >>> duration(0.0123), duration(4.56), duration(75), duration(3000), duration(40000), duration(1e6)
    ('0.012 s', '4.6 s', '75 s', '50 min', '11 h', '12 days')
    """
    for factor, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.{1 if seconds < 10 * factor else 0}f} {unit}".replace(".0 ", " ")
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def bytes_text(size: float) -> str:
    """A size in bytes, to three digits.

    >>> bytes_text(12_345), bytes_text(1_234_567), bytes_text(12_345_678_901)
    ('12.3 kB', '1.23 MB', '12.3 GB')
    """
    factor, unit = next((each for each in ((1e9, "GB"), (1e6, "MB")) if size >= each[0]), (1e3, "kB"))
    return f"{size / factor:.3g} {unit}"


def named_once(name: str, reason: str) -> str:
    """A clip and what is wrong with it, without repeating a file name or path at the start of the reason.

    >>> named_once("up/a.mp4", "a.mp4: no frame"), named_once("up/a.mp4 [0 to 1 s]", "/data/up/a.mp4: no such file")
    ('up/a.mp4: no frame', 'up/a.mp4 [0 to 1 s]: no such file')
    """
    file, separator, rest = reason.partition(": ")
    is_its_own = bool(separator) and f"/{os.path.basename(file)} [" in f"/{name} ["  # a segment follows the name
    return f"{name}: {rest if is_its_own else reason}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 as a percentage; empty for None.

    >>> percent(0.925), percent(0.1, 0)
    ('92.5 %', '10 %')
    """
    return "" if share is None else f"{100 * share:.{digits}f} %"


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, or the type of the error if it has none."""
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]


def printable(text: str) -> str:
    """Text with everything that a terminal cannot show (line ends, control codes, bytes that are not text) escaped.

    >>> printable("a\\nb.mp4")
    'a\\\\nb.mp4'
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def printable_lines(text: str) -> str:
    """Like `printable`, but line ends stay: for a message that may contain names."""
    return "\n".join(map(printable, text.split("\n")))
