"""The blocks of a trunk compiled by torch.compile, or the reason why they are not."""

# B batch, T frames, S side of a clip in pixels

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from stadapter.model import VideoClassifier


def compile_blocks(model: VideoClassifier, *, backend: str = "inductor") -> None:
    """Have every block compiled on its first call; the names and values of its weights stay as they are.

    Blocks are compiled one by one, not the model as a whole: blocks that are alike share the code compiled for one of
    them, and gradient checkpointing keeps working. The first compilation is for the sizes of the first batch; a batch
    of another size triggers one that works for any size.

    Args:
        model: the classifier.
        backend: one of torch.compile's.
    """
    for block in model.trunk.block_list():
        block.compile(backend=backend)


def compile_nothing(model: VideoClassifier) -> None:
    """Undo `compile_blocks`."""
    for block in model.trunk.block_list():
        block._compiled_call_impl = None


@contextmanager
def uncompiled(model: VideoClassifier) -> Iterator[None]:
    """Run the blocks uncompiled: for batches of sizes that they have not been compiled for."""
    compiled = [(block, block._compiled_call_impl) for block in model.trunk.block_list()]
    compile_nothing(model)
    try:
        yield
    finally:
        for block, call in compiled:
            block._compiled_call_impl = call


def try_compiled(
    model: VideoClassifier,
    *,
    batch_sizes: Collection[int],
    num_frames: int,
    size: int,
    training: bool = True,
    backend: str = "inductor",
) -> str | None:
    """Compile the blocks and run black clips through them, forward and backward; if that fails, undo everything.

    Existing gradients are lost.

    Args:
        model: the classifier, on the device and in the precision of its training.
        batch_sizes: every B that will occur often.
        num_frames: T.
        size: S.
        training: False runs only the forward pass, in inference mode, which is compiled separately.
        backend: one of torch.compile's.

    Returns:
        Why the blocks are not compiled, on one line; None if they are.

    Raises:
        torch.OutOfMemoryError: there is not enough memory for a batch.
    """
    device = model.mean.device
    try:
        compile_blocks(model, backend=backend)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a compiler has much to say about torch and transformers
            for num_clips in batch_sizes:
                clips = torch.zeros(num_clips, num_frames, 3, size, size, device=device)
                with torch.inference_mode(not training):
                    logits: Tensor = model(clips)
                if training:
                    logits.sum().backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # from the compiler, what it calls, or the code it wrote
        compile_nothing(model)
        lines = str(error).strip().splitlines()[:2]  # the first often says only where, the second why
        return " ".join([f"{type(error).__name__}:", *lines])
    finally:
        model.zero_grad()
    return None
