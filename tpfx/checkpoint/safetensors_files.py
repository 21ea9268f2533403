"""Weights from safetensors files: a model without contents is planned, then each rank reads its slices.

with accelerate.init_empty_weights():
    model = AutoModelForCausalLM.from_config(config)
model = tpfx.load(model, "folder", ["cuda:0", "cuda:1"])
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from ..console.progress import working
from ..errors import ModelError
from ..formatting import bytes_text
from ..ir.shards import SplitDims
from ..kernels.slices import shard_pieces
from ..torch_internals.parameter_slots import slots_of

STEMS = ("model", "diffusion_pytorch_model")  # what transformers, and what diffusers, call a folder's weights
PIECE = 1 << 22  # bytes that are read at a time


@dataclass
class Stored:
    """A tensor in a file, of which any slice can be read by itself."""

    file: Path
    key: str
    shape: tuple[int, ...]
    read_bytes: Callable[[int], None]

    def read(self, shard: torch.Tensor, dims: SplitDims, rank: int) -> None:
        """Fill a rank's shard. The file is opened anew for each piece: what is mapped counts as resident."""
        rows = max(1, PIECE // max(1, math.prod(self.shape[1:]) * shard.element_size()))
        for there, here in shard_pieces(self.shape, dims, rank, rows):
            shard[here] = self.piece(there)
            self.read_bytes(shard[here].nbytes)

    def piece(self, there: tuple[slice, ...]) -> torch.Tensor:
        """What the file has there."""
        with safe_open(self.file, framework="pt") as opened:
            found: torch.Tensor = opened.get_slice(self.key)[there] if there else opened.get_tensor(self.key)
            return found


class Checkpoint:
    """The tensors of a safetensors file, or of those that an index names, or a folder's.

    Raises:
        ModelError: there is no such file, or it is of another kind.
    """

    def __init__(self, path: str | Path, read_bytes: Callable[[int], None] = lambda size: None) -> None:
        self.path = Path(path)
        self.tensors: dict[str, Stored] = {}
        for file in _files(self.path):
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  (safe_open is no mapping)
                    shape = tuple(opened.get_slice(key).get_shape())
                    self.tensors[key] = Stored(file, key, shape, read_bytes)

    def find(self, names: list[str], prefix: str) -> Stored | None:
        """The tensor of one of these names, with or without the prefix of a transformers base model."""
        for name in names:
            bare = name.removeprefix(prefix)
            for key in (name, bare, prefix + name):
                if key in self.tensors:
                    return self.tensors[key]
        return None


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = _files_in(path)
    elif path.name.endswith(".json") and path.exists():
        found = _named_in(path)
    else:
        found = [path] if path.suffix == ".safetensors" and path.exists() else []
    missing = [file.name for file in found if not file.exists()]
    if found and not missing:
        return found
    raise ModelError(
        f"{path} lacks {len(missing)} files that its index names, {', '.join(missing[:5])}: fetch them, or "
        "name a folder that has them all"
        if missing
        else _unreadable(path)
    )


def _files_in(folder: Path) -> list[Path]:
    """The files of a folder's only set of weights, or of that by a name which libraries give it."""
    indices, single = sorted(folder.glob("*.safetensors.index*.json")), sorted(folder.glob("*.safetensors"))
    for stem in STEMS:
        if folder / f"{stem}.safetensors.index.json" in indices:
            return _named_in(folder / f"{stem}.safetensors.index.json")
        if folder / f"{stem}.safetensors" in single:
            return [folder / f"{stem}.safetensors"]
    if len(indices) == 1:
        return _named_in(indices[0])
    numbered = {re.sub(r"-\d+-of-\d+", "", file.name) for file in single}
    return single if len(numbered) == 1 and not indices else []


def _named_in(index: Path) -> list[Path]:
    named = json.loads(index.read_text()).get("weight_map", {})
    return [index.parent / name for name in sorted(set(named.values()))]


def _unreadable(path: Path) -> str:
    """What there is instead of weights that can be read, and what can be done."""
    none = f"{path} holds no weights that can be read"
    if not path.exists():
        return (
            f"{none}: there is no such file or folder; of a model of the hub, "
            "huggingface_hub.snapshot_download(name) gives the folder"
        )
    inside = sorted(path.iterdir()) if path.is_dir() else []
    files = [one.name for one in inside if one.suffix == ".safetensors"]
    if files:
        return f"{path} holds several sets of weights, {', '.join(files[:8])}: name one file"
    folders = [one.name for one in inside if one.is_dir() and any(one.glob("*.safetensors"))]
    if folders:
        return f"{path} holds several models, in {', '.join(folders)}: name one, as {path / folders[0]}"
    has = f"it has {', '.join(one.name for one in inside[:8]) or 'no files'}"
    what = has if path.is_dir() else "it is no safetensors file"
    return (
        f"{none}: {what}. Of those alone each device can read its "
        "slices; others, such as pytorch_model.bin, can be saved again as such: by the model's class, "
        "from_pretrained(folder).save_pretrained(folder), or by "
        "safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')"
    )


def weights_in(model: torch.nn.Module, checkpoint: Checkpoint) -> dict[int, Stored]:
    """For each parameter and persistent buffer without contents, by identity, where it is stored.

    Raises:
        ModelError: some are not in the checkpoint, or of another shape, or buffers that no checkpoint has.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '') or ''}."
    names: dict[int, list[str]] = {}
    values: dict[int, torch.Tensor] = {}
    for slot in slots_of(model):
        if slot.value.is_meta:
            names.setdefault(id(slot.value), []).append(slot.name)
            values[id(slot.value)] = slot.value
    found = {key: checkpoint.find(own, prefix if prefix != "." else "") for key, own in names.items()}
    missing = [names[key][0] for key, stored in found.items() if stored is None]
    if missing:
        raise ModelError(_missing(missing, names, model, checkpoint))
    for key, stored in found.items():
        if stored is not None and stored.shape != tuple(values[key].shape):
            raise ModelError(
                f"{names[key][0]} is {list(values[key].shape)} in the model and {list(stored.shape)} in "
                f"{stored.file}: this checkpoint belongs to a model of other sizes"
            )
    return {key: stored for key, stored in found.items() if stored is not None}


def _missing(
    missing: list[str], names: Mapping[int, list[str]], model: torch.nn.Module, checkpoint: Checkpoint
) -> str:
    saved = set(model.state_dict())
    computed = [name for name in missing if name not in saved]
    if computed:
        return (
            f"{', '.join(computed[:5])} have no contents, and no checkpoint has them: make the model with "
            "accelerate.init_empty_weights(), which leaves such buffers as they are, not on the meta device"
        )
    return (
        f"{len(missing)} of {len(names)} weights are not in {checkpoint.path}: {', '.join(missing[:5])}; "
        f"it has {', '.join(sorted(checkpoint.tensors)[:5])}, …: name a checkpoint of this model"
    )


@dataclass
class Reading:
    """How much has been read, of how much; `show` is told of it."""

    show: Callable[[str], None]
    read: int = 0
    total: int = 0

    def tell(self, size: int) -> None:
        """So many bytes more."""
        self.read += size
        done = f" ({self.read / self.total:.0%})" if self.total else ""
        self.show(f"{bytes_text(self.read)} of {bytes_text(self.total)}{done}")

    def expect(self, size: int) -> None:
        """So many bytes in all."""
        self.total = size


@contextmanager
def reading(show: bool | None) -> Iterator[Reading]:
    """Shows what has been read; None: where someone looks, if it takes long."""
    with working("reading weights", show) as at:
        yield Reading(at)
