"""Damaged videos are read, or refused by name: a small campaign here, and the whole one as a slow test."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import damage
import mutations
from stadapter.video import limits

ROOT = Path(__file__).resolve().parents[1]
ONE_OF_EACH = len(damage.MUTATIONS) + 1
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each video is read in a forked process")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return mutations.write_sources(tmp_path_factory.mktemp("sources") / "good")


def test_good_videos_are_read_exactly_in_a_process_of_their_own(sources: list[Path]) -> None:
    assert len(sources) >= 5
    rows = [mutations.read_apart(path) for path in sources]
    assert {row["outcome"] for row in rows} == {"read"}


def test_a_small_campaign_ends_with_every_video_read_or_refused_by_name(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.5)  # for those that would take all the time they are given
    monkeypatch.setattr(mutations, "CLOCK_SECONDS", 120.0)
    variants = mutations.write_variants(tmp_path / "variants", sources, [], count=ONE_OF_EACH, seed=1)
    rows = mutations.read_all(variants)
    assert len(rows) == ONE_OF_EACH
    assert [row for row in rows if row["outcome"] not in ("exact", "changed", "refused")] == []
    assert {row["outcome"] for row in rows} == {"exact", "changed", "refused"}
    assert max(row["peak_mebibytes"] for row in rows) < 1024


def test_a_seed_gives_the_same_damage_again(sources: list[Path], tmp_path: Path) -> None:
    first, again, other = (
        mutations.write_variants(tmp_path / name, sources, [], count=ONE_OF_EACH, seed=seed)
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    contents = [[path.read_bytes() for path, _, _ in variants if path.is_file()] for variants in (first, again, other)]
    assert contents[0] == contents[1] != contents[2]


def end_by_signal(path: Path) -> str:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(9)
    return ""


def raise_odd(path: Path) -> str:
    raise KeyError(path.name)


def sleep(path: Path) -> str:
    time.sleep(60)
    return ""


@pytest.mark.parametrize(("read", "outcome"), [(end_by_signal, "crash"), (raise_odd, "other error"), (sleep, "hang")])
def test_the_campaign_sees_what_must_not_be(
    read: Any, outcome: str, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutations, "read", read)
    monkeypatch.setattr(mutations, "CLOCK_SECONDS", 1.0)
    assert mutations.read_apart(sources[0])["outcome"] == outcome


def test_the_page_holds_the_figures_of_the_result_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(mutations, "ROOT", tmp_path)
    mutations.write_page()
    assert (tmp_path / "docs/robustness.md").read_text() == (ROOT / "docs/robustness.md").read_text()


def test_the_published_campaign_is_as_large_as_promised_and_without_a_crash() -> None:
    result = json.loads((ROOT / "results/mutations/campaign.json").read_text())
    assert len(result["variants"]) >= 500
    assert {row["outcome"] for row in result["variants"]} == {"exact", "changed", "refused"}
    assert result["num_of_given"] >= 500
    refused = {row["name"]: row["mutation"] for row in result["variants"] if row["outcome"] == "refused"}
    lost, named = set(result["train"]["unreadable"]), set(result["check_deep"]["named"])
    assert refused.keys() <= named
    # Of a folder of images a training view may leave out the bad one.
    assert {mutation for name, mutation in refused.items() if name not in lost} <= {damage.IMAGES}
    assert result["train"]["exit_code"] == 0
    assert result["train_default"]["exit_code"] == 1
    assert "could not be read" in result["train_default"]["last_words"]
    assert result["limits"]["frame_pixels"] == limits.MAX_FRAME_PIXELS


@pytest.mark.slow
def test_the_whole_campaign(tmp_path: Path, shared: Path) -> None:
    real = [str(shared / "videos" / name) for name in ("gestures-small", "odd")]
    arguments = ["run", "--work", str(tmp_path / "work"), "--result", str(tmp_path / "result.json"), "--seed", "1"]
    subprocess.run([sys.executable, str(ROOT / "experiments/mutations.py"), *arguments, "--sources", *real], check=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert {row["outcome"] for row in result["variants"]} == {"exact", "changed", "refused"}
    assert result["train"]["exit_code"] == 0
