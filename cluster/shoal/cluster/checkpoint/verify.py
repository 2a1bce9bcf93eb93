"""Reading all of a checkpoint once, to know that every byte is there and means something.

Opening already proves config, headers, shapes, dtypes and file sizes. This reads the values too: no NaN among the
scales, no NaN or infinity among the other weights, a tokenizer that fits the vocabulary, and the sha256 of every file
against the manifest where there is one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from shoal.cluster.checkpoint import manifest
from shoal.workers.checkpoint.checkpoint import NAN_SCALE, Checkpoint, open_checkpoint
from shoal.workers.checkpoint.directory import INDEX
from shoal.workers.checkpoint.error import CheckpointError
from shoal.workers.checkpoint.json_file import read_object
from shoal.workers.checkpoint.safetensors_file import TensorEntry, TensorFile
from shoal.workers.checkpoint.validation import TORCH_DTYPES

Progress = Callable[[int, int], None]  # bytes read so far, bytes in all
_CHUNK = 8 << 20  # bytes read at once; a multiple of every dtype's size
_BESIDE = ("config.json", "dtypes.json", "generation_config.json", INDEX, "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. The checkpoint is good when `problems` is empty.

    Attributes:
        hashes: sha256 in hex of every file of the checkpoint, by its name relative to the verified directory.
        had_manifest: whether the hashes were compared with a manifest.
    """

    fingerprint: str
    nbytes: int
    hashes: dict[str, str]
    had_manifest: bool
    problems: tuple[CheckpointError, ...]


def verify_checkpoint(path: Path | str, progress: Progress | None = None, *, compare: bool = True) -> Report:
    """Reads every byte of the checkpoint and reports all that is wrong with its values.

    `compare` false leaves an existing manifest unread, for whoever is about to replace it.
    Raises CheckpointError when it cannot even be opened, or the manifest cannot be read.
    """
    root = Path(path)
    recorded = manifest.read(root) if compare else None
    problems: list[CheckpointError] = []
    hashes: dict[str, str] = {}
    with open_checkpoint(root) as checkpoint:
        total = sum(file.size for file in checkpoint.files)
        done = 0
        for file in checkpoint.files:
            digest = hashlib.sha256()
            for chunk, problem in _scan(file):
                digest.update(chunk)
                if problem is not None:
                    problems.append(problem)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
            hashes[str(file.path.relative_to(root))] = digest.hexdigest()
        problems += _tokenizer_problems(checkpoint)
        beside = [folder / name for folder in (root, checkpoint.path) for name in _BESIDE]
        listed = [root / name for name in recorded or () if _inside(name)]
        for path_beside in (*beside, *listed):
            name = str(path_beside.relative_to(root))
            if name not in hashes and path_beside.is_file():
                hashes[name] = _sha256(path_beside)
        if recorded is not None:
            problems += manifest.differences(recorded, hashes, root)
        return Report(checkpoint.fingerprint, total, hashes, recorded is not None, tuple(problems))


def _inside(name: str) -> bool:
    """Whether a name from the manifest stays in its directory."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error


def _scan(file: TensorFile) -> Iterator[tuple[memoryview, CheckpointError | None]]:
    """All bytes of a file in order; with a tensor's first bad value, what is wrong. A chunk is valid until the next."""
    buffer = torch.empty(_CHUNK, dtype=torch.uint8)
    entries = sorted(file.entries.values(), key=lambda entry: entry.offset)
    header = TensorEntry("header", "U8", (), 0, entries[0].offset)
    for entry in [header, *entries]:
        reported = False
        for start in range(0, entry.nbytes, _CHUNK):
            chunk = buffer[: min(_CHUNK, entry.nbytes - start)]
            view = chunk.numpy().data
            file.read_into(view, entry.offset + start, entry.name)
            problem = None if reported or entry is header else _bad_value(file, entry, start, chunk)
            reported = reported or problem is not None
            yield view, problem


def _bad_value(file: TensorFile, entry: TensorEntry, start: int, chunk: torch.Tensor) -> CheckpointError | None:
    """The first value in `chunk`, `start` bytes into the tensor, that no weight may have."""
    dtype = TORCH_DTYPES[entry.dtype]
    if dtype == torch.uint8:
        if not entry.name.endswith("scales"):
            return None  # every nibble of the blocks is a number
        bad, expected = chunk == NAN_SCALE, "scale bytes 0 to 254"
    else:
        bad, expected = ~chunk.view(dtype).isfinite(), "finite numbers"
    if not bool(bad.any()):
        return None
    first = int(bad.to(torch.uint8).argmax())
    position = torch.unravel_index(torch.tensor(start // dtype.itemsize + first), entry.shape)
    value = chunk.view(dtype)[first].item()
    return CheckpointError(
        file.path,
        f"bad value at {[int(index) for index in position]}",
        tensor=entry.name,
        expected=expected,
        found=f"NaN scale {value}" if dtype == torch.uint8 else value,
    )


def _tokenizer_problems(checkpoint: Checkpoint) -> list[CheckpointError]:
    """Token ids that the model has no row for, and ends of a turn that the tokenizer has no token for."""
    path = checkpoint.tokenizer_path
    if path is None:
        return [CheckpointError(checkpoint.path / "tokenizer.json", "missing file")]
    try:
        table = read_object(path)
    except CheckpointError as error:
        return [error]
    model, added = table.get("model"), table.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict) or not isinstance(added, list):
        return [CheckpointError(path, "not a tokenizer", expected="model.vocab and added_tokens")]
    ids = {*vocabulary.values(), *(item.get("id") for item in added if isinstance(item, dict))}
    rows = checkpoint.config.vocab_size
    problems = []
    beyond = [token for token in ids if type(token) is not int or not 0 <= token < rows]
    if beyond:
        problems.append(CheckpointError(path, "bad token id", expected=f"0 to {rows - 1}", found=beyond[0]))
    for token in checkpoint.config.eos_token_ids:
        if token not in ids:
            problems.append(CheckpointError(path, "no such token", expected=f"the eos_token_id {token}"))
    return problems
