"""Files of tensors: safetensors with a sha256 of their content, written whole or not at all."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stadapter.durable import write_whole
from stadapter.errors import ArtefactError
from stadapter.wording import first_line

DIGEST_KEY = "sha256"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all, with a sha256 of everything in it.

    Raises:
        ArtefactError: it cannot be written.
    """
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(plain, metadata={**metadata, DIGEST_KEY: digest(plain, metadata)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata. Older files without a sha256 are read too.

    Raises:
        ArtefactError: absent, truncated, damaged, not a safetensors file, or with numbers that are not finite.
    """
    if not path.is_file():
        raise ArtefactError(f"{path.parent} has no {path.name}; copy the whole run folder")
    try:
        with open(path, "rb"), safe_open(path, "pt") as file:  # safe_open says of every file it may not read: absent
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {error.strerror or first_line(error)}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = first_line(error)
        raise ArtefactError(f"{path} is truncated or not a safetensors file: {reason}; copy the file again") from error
    if DIGEST_KEY in metadata and metadata[DIGEST_KEY] != digest(tensors, metadata):
        raise ArtefactError(f"{path} is damaged: its content does not match the sha256 in it; copy the file again")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ArtefactError(f"{path} holds numbers that are not finite in {name}; it cannot be used")
    return tensors, metadata


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """sha256 hex over the other metadata and, sorted by name, each tensor's name, dtype, shape and bytes."""
    rest = sorted((key, value) for key, value in metadata.items() if key != DIGEST_KEY)
    total = hashlib.sha256(json.dumps(rest).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
