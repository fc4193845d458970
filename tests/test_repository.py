"""What the repository says of itself is true: README, CHANGELOG, versions, pins."""

import ast
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest

import stadapter
from stadapter.__main__ import VERBS, main
from stadapter.synthetic import write_clips
from trunks import save_trunk

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "stadapter"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def python_examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def command_examples() -> list[list[str]]:
    """The arguments of every command that the README shows."""
    return [shlex.split(line)[1:] for line in re.findall(r"^stadapter .*$", README, re.MULTILINE)]


def modules() -> set[str]:
    return {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}


def modules_in_tree() -> set[str]:
    tree = README.split("src/stadapter/\n", 1)[1].split("```", 1)[0]
    return set(re.findall(r"^  (\S+\.py) ", tree, re.MULTILINE))


def canonical(name: str) -> str:
    """A package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): version for name, version in pairs}


def test_the_python_in_the_readme_uses_public_names_only() -> None:
    examples = python_examples()
    assert examples
    for example in examples:
        used = {
            node.attr
            for node in ast.walk(ast.parse(example))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "st"
        }
        assert used
        assert used <= set(stadapter.__all__)


def test_the_python_in_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tiny trunk where the real one would be, and a run of seconds instead of minutes."""
    monkeypatch.chdir(tmp_path)
    save_trunk(tmp_path / "facebook" / "dinov2-small", "dinov2")
    clips = write_clips("videos", classes=("left", "right"), clips_per_class=5)
    shutil.copy(clips[0], "clip.mp4")
    write_clips("other-videos", classes=("left", "right"), clips_per_class=2, seed=1)
    short = 'out="runs/gestures", epochs=1, size=16, num_workers=0, device="cpu"'
    assert README.count('TrainConfig(data="videos/", out="runs/gestures", ') == 1
    for example in python_examples():
        exec(compile(example.replace('out="runs/gestures"', short, 1), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "top1" in printed
    assert re.search(r"^(left|right) 0\.\d+$", printed, re.MULTILINE)
    assert "trained " in printed


def test_the_readme_shows_every_verb() -> None:
    assert list(dict.fromkeys(arguments[0] for arguments in command_examples())) == list(VERBS)


ELSEWHERE_IN_THE_README = [
    ["train", "--resume", "--dry-run", "--tuning", "lora", "--tuning.rank", "8", "--fit", "stretch"],
    ["convert", "--recipe", "ssv2-b16", "--backbone", "clip", "--stride-frames", "16", "--num-temporal-views", "3"],
]


@pytest.mark.parametrize("arguments", [*command_examples(), *ELSEWHERE_IN_THE_README])
def test_every_flag_in_the_readme_is_one_of_its_verb(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--help"])
    help_text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert not [flag for flag in arguments if flag.startswith("--") and flag not in help_text]


def test_the_first_python_example_is_short() -> None:
    assert len([line for line in python_examples()[0].splitlines() if line]) <= 10


def test_every_module_has_a_line_in_the_readme_and_every_line_a_module() -> None:
    assert modules_in_tree() == modules()


def test_every_file_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert "docs/block.svg" in links
    assert not [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()]


def test_package_metadata_and_changelog_tell_one_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == stadapter.__version__ == PROJECT["version"]


def test_versions_in_the_readme_are_the_pinned_ones() -> None:
    heading, _, row = re.findall(r"^\|.*\|$", README.split("## Tested with", 1)[1], re.MULTILINE)[:3]
    cells = dict(zip(*([cell.strip() for cell in line.strip("|").split("|")] for line in (heading, row)), strict=True))
    names = {"torch": "torch", "transformers": "transformers", "accelerate": "accelerate", "peft": "peft", "PyAV": "av"}
    told = {package: cells[column].split(",")[0] for column, package in names.items()}
    assert told == {package: pinned()[package] for package in names.values()}


@pytest.mark.parametrize("extra", [None, "dev", "tensorboard"])
def test_every_direct_dependency_is_pinned(extra: str | None) -> None:
    wanted = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    names = {canonical(re.split(r"[<>=!~ \[;]", requirement, maxsplit=1)[0]) for requirement in wanted}
    assert names <= pinned().keys()
