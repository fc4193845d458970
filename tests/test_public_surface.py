"""What `import stadapter` offers, and what it costs."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import stadapter

REPOSITORY = Path(__file__).resolve().parents[1]


def names_for_type_checkers() -> set[str]:
    """What __init__.py imports under `if TYPE_CHECKING`."""
    tree = ast.parse((REPOSITORY / "src" / "stadapter" / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    return {alias.asname or alias.name for node in guarded.body for alias in getattr(node, "names", [])}


def test_the_listed_names_are_the_visible_ones() -> None:
    assert len(stadapter.__all__) == len(set(stadapter.__all__))
    assert sorted(stadapter.__all__) == dir(stadapter)
    assert {*names_for_type_checkers(), "__version__"} == set(stadapter.__all__)


@pytest.mark.parametrize("name", stadapter.__all__)
def test_every_listed_name_is_there_and_documented(name: str) -> None:
    value = getattr(stadapter, name)
    assert not isinstance(value, ModuleType)
    assert name == "__version__" or value.__doc__


def test_every_promised_name_is_listed() -> None:
    promised = (
        "load_backbone ImageViT STAdapter LinearProbe LoRA build_model VideoClassifier read_frames uniform_indices "
        "dense_indices random_uniform_indices random_dense_indices ClipConfig load_clip Augmentation TrainConfig train "
        "TrainResult Classifier Prediction convert_released evaluate Report read_manifest read_splits "
        "STAdapterError VideoError DataError BackboneError ArtefactError TrainingError DivergedError SettingsError"
    )
    assert set(promised.split()) <= set(stadapter.__all__)


def test_no_public_name_is_that_of_a_room() -> None:
    # Importing a room sets it as an attribute of the package, which would hide the name.
    rooms = {path.stem for path in (REPOSITORY / "src" / "stadapter").iterdir()}
    assert not rooms & set(stadapter.__all__)


def test_rooms_can_be_imported_from_the_package() -> None:
    from stadapter import sampling

    assert sampling.uniform_indices is stadapter.uniform_indices


def test_a_name_that_is_not_there_says_so() -> None:
    with pytest.raises(AttributeError, match="module 'stadapter' has no attribute 'trian'"):
        stadapter.trian  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, stadapter; print([m for m in ('torch', 'numpy', 'av', 'rich', 'tyro') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_version_is_that_of_the_package_metadata() -> None:
    metadata = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert stadapter.__version__ == metadata["project"]["version"]
