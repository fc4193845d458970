"""Repositories on the Hugging Face Hub, as folders on this machine."""

from collections.abc import Callable, Sequence
from pathlib import Path

from stadapter.errors import BackboneError
from stadapter.wording import first_line

DEFAULT_BACKBONE = "facebook/dinov2-small"
"""The trunk that training uses if none is named."""
HUB_TIMEOUT_SECONDS = 5.0


def fetch_snapshot(name: str, patterns: Callable[[Sequence[str]], list[str]], *, needed: Sequence[str]) -> Path:
    """The local folder of a Hub repository: fetched now or, if no hub answers, left by an earlier run.

    Args:
        name: the repository's id, such as "facebook/dinov2-small"; "…@v1" asks for a branch, tag or commit of it.
        patterns: from the names of all its files to patterns of those to fetch.
        needed: the files that the folder must hold, for messages; the first one shows whether an earlier run left it.

    Raises:
        BackboneError: no such repository, a gated one, or a hub that does not answer.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    repository, _, asked = name.partition("@")
    revision = asked or None
    try:
        # One request with a time limit shows at once whether the hub answers, and what is there: by itself the
        # library retries silently for a minute.
        found = HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
        files = [file.rfilename for file in found.siblings or []]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns(files)))
    except RevisionNotFoundError as error:
        raise BackboneError(f"{repository} has no revision {revision} on the Hub; check the spelling") from error
    except GatedRepoError as error:
        raise BackboneError(
            f"{name} is gated on the Hub: accept its terms on its page, then log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise BackboneError(
            f"{name} is neither a folder nor a model on the Hub; "
            "check the spelling (a private model needs `hf auth login`)"
        ) from error
    except Exception as error:
        # No DNS, no route, a time-out, a proxy's answer: the error types are those of whichever HTTP client is in use.
        return _cached(repository, revision, needed, error)


def is_hub_id(name: str) -> bool:
    """Whether a name that is not a local path may be a Hub id: owner/name, or owner/name@revision."""
    return name.partition("@")[0].count("/") == 1 and not name.startswith((".", "~", "/"))


def _cached(name: str, revision: str | None, needed: Sequence[str], reason: Exception) -> Path:
    """The snapshot of a Hub repository that an earlier run left on this machine."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, needed[0], revision=revision)
    if not isinstance(file, str):
        at = f" at {revision}" if revision is not None else ""
        raise BackboneError(
            f"{name}{at} is not a local folder, is not in the local cache, and the Hub does not answer "
            f"({type(reason).__name__}: {first_line(reason)}); go online once, "
            f"or pass a folder with {' and '.join(needed)}"
        ) from reason
    return Path(file).parent
