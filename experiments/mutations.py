"""The campaign of damaged videos: every way in damage.py, read alone, checked together, trained on.

    python experiments/mutations.py run --work FOLDER [--sources VIDEOS ...]
    python experiments/mutations.py table

`run` writes damaged variants of good videos (its own in many formats, and those below --sources), reads each in its own
process under a limit on time and memory, then gives them all to `stadapter check`, `stadapter check --deep` and
`stadapter train`. The results go to results/mutations. `table` writes docs/robustness.md from them.
"""

import argparse
import datetime
import hashlib
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

import damage
from stadapter import VideoError, __version__, sampling, synthetic
from stadapter.augmentation import Augmentation
from stadapter.clips import ClipConfig, load_clip
from stadapter.video import VideoReader, boxes, is_video, limits, probe, read_frames

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "mutations" / "campaign.json"
CLASSES = ("left", "right")
CLOCK_SECONDS = 600.0
"""Time on the clock after which a reading process is ended and counts as hanging."""
ADDRESS_BYTES = 4 * 2**30
"""Addresses that a reading process may take beside those it starts with: the end of what this machine is put to."""
MEMORY_MEBIBYTES = 2048.0
"""Memory beside what it starts with above which a reading process counts as having taken too much."""
OUTCOMES = ("exact", "changed", "refused", "unnamed", "other error", "crash", "hang", "memory")
"""Read, as in the good video; read, with fewer or other frames; a VideoError that names the file; what must not be."""
# fmt: off
FORMATS = {
    "h264.mp4": ("libx264", {"g": "12", "bf": "2"}), "hevc.mp4": ("libx265", {"x265-params": "keyint=12:log-level=0"}),
    "mpeg4.mp4": ("mpeg4", {}), "h264.mkv": ("libx264", {"g": "12", "bf": "2"}), "vp8.webm": ("libvpx", {}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime"}), "h264.ts": ("libx264", {"g": "12", "bf": "2"}),
    "mpeg2.mpg": ("mpeg2video", {}), "mpeg4.avi": ("mpeg4", {"bf": "2"}), "mjpeg.avi": ("mjpeg", {}),
}
# fmt: on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run")
    run.add_argument("--work", type=Path, required=True, help="new folder for the variants and the training runs")
    run.add_argument("--sources", type=Path, nargs="*", default=[], help="folders of good videos, beside the made ones")
    run.add_argument("--count", type=int, default=624, help="number of variants")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--result", type=Path, default=RESULT, help="file to write, as JSON")
    verbs.add_parser("table")
    flags = parser.parse_args()
    if flags.verb == "table":
        write_page()
        return
    flags.work.mkdir(parents=True)
    given = [path for folder in flags.sources for path in sorted(folder.rglob("*")) if is_video(path)]
    made = write_sources(flags.work / "sources")
    variants = write_variants(flags.work / "variants", made, given, count=flags.count, seed=flags.seed)
    result = {"command": command(flags), "num_given": len(given), "num_made": len(made), **setting()}
    result["num_of_given"] = sum(source in given for _, _, source in variants)
    result["variants"] = read_all(variants)
    result |= {"check": check(flags.work, deep=False), "check_deep": check(flags.work, deep=True)}
    result |= {"train": train(flags.work, max_bad_fraction=1.0), "train_default": train(flags.work)}
    flags.result.parent.mkdir(parents=True, exist_ok=True)
    flags.result.write_text(json.dumps(result, indent=1).replace(str(flags.work), "WORK") + "\n")


def command(flags: argparse.Namespace) -> str:
    """The command as a reader would type it, without this machine's paths."""
    sources = f" --sources {' '.join(path.name for path in flags.sources)}" if flags.sources else ""
    return f"python experiments/mutations.py run --work WORK{sources} --count {flags.count} --seed {flags.seed}"


def setting() -> dict[str, Any]:
    """When, with which versions, under which limits."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"stadapter": __version__, "PyAV": av.__version__, "torch": torch.__version__},
        "cores": os.cpu_count(),
        "limits": {
            "frame_pixels": limits.MAX_FRAME_PIXELS,
            "frames": limits.MAX_FRAMES,
            "samples": boxes.MAX_SAMPLES,
            "edited_samples": boxes.MAX_EDITED_SAMPLES,
            "seconds": limits.MAX_SECONDS,
            "seconds_per_mebibyte": limits.MAX_SECONDS_PER_MEBIBYTE,
        },
    }


def write_sources(folder: Path) -> list[Path]:
    """Good videos in many formats, of those whose encoder is there: 40 frames of 160 x 120 pixels."""
    folder.mkdir(parents=True)
    frames = synthetic.draw_clip("left", 0, size=160, num_frames=40)[:, :120]
    written = []
    for name, (codec, options) in FORMATS.items():
        if codec not in av.codecs_available:
            continue
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options)
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for pixels in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
            container.mux(stream.encode(None))
        written.append(folder / name)
    return written


def write_variants(
    folder: Path, made: list[Path], given: list[Path], *, count: int, seed: int
) -> list[tuple[Path, str, Path | None]]:
    """`count` damaged videos in class folders: path, mutation, the good video. Each mutation comes equally often."""
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
    kinds = {path: damage.container_of(path.read_bytes()[:16]) for path in made + given}
    names = [*damage.MUTATIONS, damage.IMAGES]
    variants: list[tuple[Path, str, Path | None]] = []
    for number in range(count):
        random = np.random.default_rng((seed, number))
        name = names[number % len(names)]
        stem = folder / CLASSES[number % 2] / f"{number:04d}-{re.sub('[^a-z0-9]+', '-', name.lower())}"
        if name == damage.IMAGES:
            damage.write_bad_images(stem, random)
            variants.append((stem, name, None))
            continue
        mutation = damage.MUTATIONS[name]
        fitting = [[path for path in paths if kinds[path] in mutation.containers] for paths in (given, made)]
        # Nine of ten from the given ones, where there are any that it can be done to.
        choice = fitting[0] if fitting[0] and random.integers(10) else fitting[1]
        source = choice[random.integers(len(choice))]
        path = stem.with_name(stem.name + source.suffix)
        path.write_bytes(mutation.damage(source.read_bytes(), random))
        variants.append((path, name, source))
    return variants


def read_all(variants: list[tuple[Path, str, Path | None]]) -> list[dict[str, Any]]:
    """Read every variant and say how that went, one dict each."""
    torch.set_num_threads(1)
    good: dict[Path, dict[str, Any]] = {}
    rows = []
    for path, mutation, source in variants:
        if source is not None and source not in good:
            good[source] = read_apart(source)
        row = read_apart(path)
        content = row.pop("content")
        if row["outcome"] == "read":
            same = source is not None and content == good[source]["content"]
            row["outcome"] = "exact" if same else "changed"
        size = path.stat().st_size if path.is_file() else None
        rows.append({"name": path.name, "mutation": mutation, "size_bytes": size, **row})
        print(f"{len(rows)} of {len(variants)}: {path.name}: {row['outcome']} {row['error'] or ''}", flush=True)
    return rows


def read_apart(path: Path) -> dict[str, Any]:
    """Read a video in a child process: outcome, error, content, time on the clock and of the processor, memory."""
    receiver, sender = os.pipe()
    started = time.monotonic()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # Python 3.12 warns where threads run
        child = os.fork()
    if child == 0:
        report = read_under_limits(path)
        os.write(sender, json.dumps(report).encode())
        os._exit(0)
    os.close(sender)
    status, usage = wait(child, started + CLOCK_SECONDS)
    answer = os.read(receiver, 2**16)
    os.close(receiver)
    row: dict[str, Any] = {"outcome": "crash", "error": None, "content": None, "peak_mebibytes": None}
    if answer:
        row |= json.loads(answer)
    elif os.WIFSIGNALED(status):
        row |= {"error": signal.Signals(os.WTERMSIG(status)).name}
        row["outcome"] = "hang" if row["error"] == "SIGKILL" else "crash"
    row["clock_seconds"] = round(time.monotonic() - started, 3)
    row["processor_seconds"] = round(usage.ru_utime + usage.ru_stime, 3)
    return row


def wait(child: int, end: float) -> tuple[int, resource.struct_rusage]:
    """Wait for a child to end; end it when the time is over."""
    while time.monotonic() < end:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return status, usage
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return status, usage


def read_under_limits(path: Path) -> dict[str, Any]:
    """In the child: bound its memory, read, and say what happened."""
    size_pages, resident_pages = (int(number) for number in Path("/proc/self/statm").read_text().split()[:2])
    limit = size_pages * resource.getpagesize() + ADDRESS_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    report: dict[str, Any] = {}
    try:
        report |= {"outcome": "read", "content": read(path)}
    except VideoError as error:
        named = path.name in str(error) and "\n" not in str(error)
        report |= {"outcome": "refused" if named else "unnamed", "error": str(error)}
    except BaseException as error:
        report |= {"outcome": "other error", "error": f"{type(error).__name__}: {error}"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - resident_pages * resource.getpagesize() / 2**20
    report["peak_mebibytes"] = round(max(peak, 0.0), 1)
    # FFmpeg refuses to take 2 GiB or more in one piece: that it says so is no lack of memory.
    if report["peak_mebibytes"] > MEMORY_MEBIBYTES:
        report["outcome"] = "memory"
    return report


def read(path: Path) -> str:
    """Everything that the package does with a video; a hash of the number of frames and of 16 of them."""
    with VideoReader(path) as reader:
        num_frames, frames = read_evenly(reader, 16)
    probe(path)
    config = ClipConfig(num_frames=8, size=64)
    load_clip(path, config)
    load_clip(path, config, augmentation=Augmentation(), generator=np.random.default_rng(0))
    with suppress(VideoError):  # there may be nothing in this part
        read_frames(path, [0], start_seconds=0.4, end_seconds=1.0)
    content = hashlib.sha256(f"{num_frames} {frames.shape}".encode())
    content.update(frames.permute(0, 2, 3, 1).numpy().data)  # as it lies in memory: without a copy
    return content.hexdigest()


def read_evenly(reader: VideoReader, count: int) -> tuple[int, torch.Tensor]:
    """How many frames there are, and `count` of them; chosen again, as for a clip, where fewer came than announced."""
    num_frames = reader.num_frames
    try:
        return num_frames, reader.read(sampling.uniform_indices(num_frames, count, 1)[0])
    except VideoError:
        if not 0 < reader.num_frames < num_frames:
            raise
        return read_evenly(reader, count)


def call(arguments: list[str]) -> tuple[int, str, float, float]:
    """Run the command line: exit code, what it said on standard error, seconds, peak memory in MiB."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "stadapter", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, said, round(time.monotonic() - started, 1), round(usage.ru_maxrss / 1024, 1)


def check(work: Path, *, deep: bool) -> dict[str, Any]:
    """What the data doctor says of all variants together."""
    target = work / f"check{'-deep' * deep}.json"
    arguments = ["check", str(work / "variants"), "--json", str(target), *["--deep"] * deep]
    code, said, seconds, peak = call(arguments)
    outcome = {"exit_code": code, "seconds": seconds, "peak_mebibytes": peak}
    if not target.is_file():
        return outcome | {"said": said[-2000:]}
    report = json.loads(target.read_text())
    return outcome | {
        "num_clips": len(report["clips"]),
        "unreadable": sorted(Path(clip["name"]).name for clip in report["clips"] if clip["error"] is not None),
        "named": sorted(
            Path(clip["name"]).name
            for clip in report["clips"]
            if any(clip["name"] in name for item in report["findings"] for name in item["items"])
        ),
        "findings": {item["kind"]: [item["level"], len(item["items"]), item["found"]] for item in report["findings"]},
    }


def train(work: Path, *, max_bad_fraction: float | None = None) -> dict[str, Any]:
    """Train for one epoch on good clips and all variants together, with a tiny random trunk."""
    trunk, good, listing = work / "trunk", work / "good", work / "mixed.csv"
    if not listing.exists():
        write_trunk(trunk)
        clips = synthetic.write_clips(good, classes=CLASSES, clips_per_class=100)
        bad = [path for label in CLASSES for path in sorted((work / "variants" / label).iterdir())]
        rows = [f"{path.relative_to(work)},{path.parent.name}" for path in [*clips, *bad]]
        listing.write_text("\n".join(["path,label", *rows]) + "\n")
    folder = work / ("run-default" if max_bad_fraction is None else "run")
    arguments = ["train", "--data", str(listing), "--backbone", str(trunk), "--out", str(folder), "--size", "16"]
    arguments += ["--val-fraction", "0", "--epochs", "1", "--num-workers", "2", "--device", "cpu"]
    if max_bad_fraction is not None:
        arguments += ["--max-bad-fraction", str(max_bad_fraction)]
    code, said, seconds, peak = call(arguments)
    outcome: dict[str, Any] = {"exit_code": code, "seconds": seconds, "peak_mebibytes": peak}
    outcome["last_words"] = said.strip().splitlines()[-1] if said.strip() else ""
    if (folder / "stadapter.json").is_file():
        receipt = json.loads((folder / "stadapter.json").read_text())["receipt"]
        outcome |= {"steps": receipt["steps"], "num_clips": receipt["num_train_clips"]}
        outcome["unreadable"] = sorted(Path(name).name for name in receipt["unreadable"])
    return outcome


def write_trunk(folder: Path) -> None:
    """A tiny trunk of random weights: here it matters what is read, not what is learned."""
    import transformers

    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    transformers.Dinov2Model(config).save_pretrained(folder)


def write_page() -> None:
    """Write docs/robustness.md from the result file."""
    if not RESULT.is_file():
        raise SystemExit(f"no {RESULT}; run `python experiments/mutations.py run` first")
    result = json.loads(RESULT.read_text())
    rows = result["variants"]
    refused = {row["name"] for row in rows if row["outcome"] == "refused"}
    facts = {
        **result,
        **{name.replace(" ", "_"): sum(row["outcome"] == name for row in rows) for name in OUTCOMES},
        **{f"limit_{name}": value for name, value in result["limits"].items()},
        "seconds": "{seconds:.0f} s plus {seconds_per_mebibyte:.0f} s for every MiB".format(**result["limits"]),
        "total": len(rows),
        "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        "longest": max(row["processor_seconds"] for row in rows),
        "median": statistics.median(row["processor_seconds"] for row in rows),
        "clock": max(row["clock_seconds"] for row in rows),
        "peak": max(row["peak_mebibytes"] or 0 for row in rows),
        "check_words": check_words(result["check"], refused),
        "deep_words": check_words(result["check_deep"], refused),
        "train_words": train_words(result["train"], refused, rows),
        "stop_words": result["train_default"]["last_words"],
        "table": table(rows),
        "reasons": reasons(rows),
    }
    (ROOT / "docs" / "robustness.md").write_text(PAGE.format(**facts))


def table(rows: list[dict[str, Any]]) -> str:
    """One line a mutation."""
    lines = [
        "| mutation | variants | read exactly | changed | refused by name | anything else | longest | most memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for mutation in dict.fromkeys(row["mutation"] for row in rows):
        mine = [row for row in rows if row["mutation"] == mutation]
        counts = Counter(row["outcome"] for row in mine)
        other = len(mine) - counts["exact"] - counts["changed"] - counts["refused"]
        lines.append(
            f"| {mutation} | {len(mine)} | {counts['exact']} | {counts['changed']} | {counts['refused']} | {other} | "
            f"{max(row['processor_seconds'] for row in mine):.1f} s | "
            f"{max(row['peak_mebibytes'] or 0 for row in mine):.0f} MiB |"
        )
    return "\n".join(lines)


def reasons(rows: list[dict[str, Any]]) -> str:
    """The sentences that came most often, without the names and numbers in them."""
    sentences = (row["error"].partition(": ")[2] for row in rows if row["outcome"] == "refused")
    counts = Counter(re.sub(r"(?<![\w.])\d+", "N", sentence) for sentence in sentences)
    return "\n".join(f"- {count} times: {sentence}" for sentence, count in counts.most_common(12))


def check_words(outcome: dict[str, Any], refused: set[str]) -> str:
    """What check did, in a few sentences."""
    unreadable, named = (refused & set(outcome[key]) for key in ("unreadable", "named"))
    found = "\n".join(f"- {level}: {words}" for level, _, words in outcome["findings"].values())
    return (
        f"exit code {outcome['exit_code']} after {outcome['seconds']:.0f} s, "
        f"with at most {outcome['peak_mebibytes']:.0f} MiB of memory. Of the {len(refused)} refused above, "
        f"{len(unreadable)} are reported as unreadable and {len(named)} are named in a finding. "
        f"The findings:\n\n{found}"
    )


def train_words(outcome: dict[str, Any], refused: set[str], rows: list[dict[str, Any]]) -> str:
    """What the training run did, in a few sentences."""
    lost = set(outcome["unreadable"])
    read = {row["mutation"] for row in rows if row["name"] in refused - lost}
    others = f" The others ({', '.join(read)}) were read: the bad image was not among the frames drawn." if read else ""
    return (
        f"exit code {outcome['exit_code']} after {outcome['seconds']:.0f} s, {outcome['steps']} steps over "
        f"{outcome['num_clips']} clips. The run's receipt names {len(lost)} lost clips, including "
        f"{len(refused & lost)} of the {len(refused)} refused above.{others}"
    )


PAGE = """# Damaged videos

Written by `python experiments/mutations.py table` from `results/mutations/campaign.json`; not edited by hand.

The campaign has {total} damaged videos, {num_of_given} of them made from {num_given} real ones and the others from
{num_made} that the script makes in many formats, by the seeded mutations of `experiments/damage.py`. Each was read in
its own process: frames by number, `probe`, test views, a random training view, a segment.

    {command}

Versions: {versions}. {cores} cores, shared with other work. Date: {date}.

- {exact} were read exactly: the same number of frames as the good video, and the same pixels in 16 of those frames.
- {changed} were read with fewer or other frames: damage inside the video decodes to something, or ends it early.
- {refused} were refused with a one-line `VideoError` that names the file.
- Refused without naming the file: {unnamed}. An error of another type: {other_error}. A crash: {crash}. Still running
  after ten minutes on the clock: {hang}. More than 2 GiB of memory: {memory}.

All these readings of a video together took a median of {median:.2f} s of processor time and at most {longest:.1f} s
({clock:.0f} s on the clock), and at most {peak:.0f} MiB of memory on top of what a process of this package starts with.

{table}

"Longest" is processor time. The most frequent reasons for refusing, with N for each number:

{reasons}

## The limits

The limits for one video, as stated in `limits` and `boxes` of `stadapter.video`:

| what | limit |
|---|---|
| pixels of a frame, checked before it is decoded; also of an image in a folder | {limit_frame_pixels:,} (8192 x 4352) |
| frames of a video, or of a segment of one | {limit_frames:,} |
| samples of all tracks of an MP4, as its tables declare them, before FFmpeg builds them | {limit_samples:,} |
| rows of an MP4's edit list | 100, or the number of samples if that is more |
| rows of an edit list times samples, for two rows or more | {limit_edited_samples:,} |
| processor time for opening a file, and for each read from it | {seconds} |

Loading a clip opens a file once and reads from it once, or twice if it holds fewer frames than it announced. Time is
processor time, so a busy machine or a slow disk makes no clip unreadable. A clip takes the memory of its frames as they
are decoded, width x height x 3 bytes each, plus what the decoder needs.

A file that crashed FFmpeg itself would end a decoding process; none did. A training run would then end with a message
that says so, and `--num-workers 0` would show which file it was.

## All of them in `stadapter check`

`stadapter check` decodes the first frame of each: {check_words}

With `--deep` it decodes all frames: {deep_words}

## All of them in `stadapter train`

With 200 good clips among them, one epoch, two decoding processes and `--max-bad-fraction 1`: {train_words}

With the default `--max-bad-fraction`, the same run stops, as it should, with this message:

> {stop_words}
"""


if __name__ == "__main__":
    main()
