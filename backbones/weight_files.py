"""The files that researchers hold weights in: their tensors, and what they say about the network, nothing of them run.

| kind | read by | what is trusted |
|---|---|---|
| torch.save: a state dict, or a checkpoint that holds one | torch.load(weights_only=True) | its list of allowed types |
| TorchScript archive (OpenAI's CLIP) | `ArchiveReader`: tensors alone, no code is even parsed | the zip and pickle formats |
| safetensors, in one file or several with an index | safetensors | nothing can run |
| npz (big_vision's SigLIP and ViT) | numpy.load(allow_pickle=False) | nothing can run |
"""

from __future__ import annotations

import dataclasses
import pickle
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from backbones.optional import imported
from utils import UserError, load_tensors, read_json

# Names under which training programs wrap a state dict.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "teacher")

Activation = Literal["quick_gelu", "gelu", ""]


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """What a file holds: tensors by name; the activation of its network's blocks, "" where it does not say; and, where
    it is a checkpoint of this library, the run's settings."""

    path: Path
    state: dict[str, Tensor]
    activation: Activation = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_weights(path: str | Path) -> WeightsFile:
    """The content of a file of any kind in the table above, or of a Hugging Face folder with such a file in it.

    Raises UserError where it is missing, damaged, or holds anything but tensors and plain values.
    """
    path = file_in(Path(path))
    if path.suffix == ".npz":
        return WeightsFile(path, read_npz(path))
    if path.name.endswith(".safetensors.index.json"):
        shards = sorted(set(read_json(path)["weight_map"].values()))
        state = {name: tensor for shard in shards for name, tensor in read_safetensors(path.with_name(shard)).items()}
        return WeightsFile(path, state, activation_beside(path))
    if path.suffix == ".safetensors":
        return WeightsFile(path, read_safetensors(path), activation_beside(path))
    if is_torchscript(path):
        state = read_torchscript(path)
        # OpenAI's CLIP is the one that is handed out this way, and all of its networks have QuickGELU.
        return WeightsFile(path, state, "quick_gelu" if "visual.proj" in state or "text_projection" in state else "")
    content = load_tensors(path)
    is_ours = isinstance(content, dict) and isinstance(content.get("args"), dict) and "format" in content
    return WeightsFile(
        path,
        state_dict_in(content, str(path)),
        activation_beside(path),
        content["args"] if is_ours else {},
    )


def read_content(path: Path) -> Any:
    """All that a file of torch.save holds, beside its tensors too, or the tensors of one of safetensors."""
    return read_safetensors(path) if path.suffix == ".safetensors" else load_tensors(path)


def file_in(path: Path) -> Path:
    """`path`, or where that is a folder, the file of weights in it."""
    if not path.is_dir():
        return path
    names = ("model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors", "pytorch_model.bin")
    for name in names:
        if (path / name).is_file():
            return path / name
    raise UserError(f"no weights in {path}: expected one of {', '.join(names)}; give the file itself")


def state_dict_in(content: Any, source: str) -> dict[str, Tensor]:
    """The state dict in what a file held, out of its wrappers."""
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{source} holds no weights: expected a dict of names and tensors, give a state_dict file")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def activation_beside(path: Path) -> Activation:
    """The activation that a configuration next to the file names, as the Hugging Face folders of CLIP have it."""
    for name in ("open_clip_config.json", "config.json"):
        if not path.with_name(name).is_file():
            continue
        config = read_json(path.with_name(name))
        if not isinstance(config, dict):
            continue
        if isinstance(config.get("model_cfg"), dict) and "vision_cfg" in config["model_cfg"]:  # open_clip
            return "quick_gelu" if config["model_cfg"].get("quick_gelu") else "gelu"
        if "_clip_" in str(config.get("architecture")):  # timm
            return "quick_gelu" if "quickgelu" in config["architecture"] else "gelu"
        if config.get("model_type") in (
            "clip",
            "clip_vision_model",
        ):  # transformers, which leaves out what is its default
            vision = config.get("vision_config", config)
            return "quick_gelu" if vision.get("hidden_act", "quick_gelu") == "quick_gelu" else "gelu"
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# Kinds of files


def read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"no file {path}: expected weights in safetensors")
    load_file = imported("safetensors.torch", f"reading {path}").load_file
    try:
        state: dict[str, Tensor] = load_file(path)
    except Exception as error:  # its own kind, which is known only once it is imported
        raise UserError(
            f"{path} is truncated or no safetensors file ({error}); copy it again or give another"
        ) from error
    return state


def read_npz(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"no file {path}: expected weights in numpy's npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            # numpy knows no bfloat16 and reads it as two bytes of anything; such files are not for this library.
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:  # any kind, wherever damaged bytes lead the reader
        raise UserError(
            f"{path} is damaged, no npz file, or holds more than numbers ({error}); copy it again or give another"
        ) from error


def is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The state dict of the module in a TorchScript archive, whose code is left alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(data) as file:
                module = ArchiveReader(file, archive, data.removesuffix(".pkl")).load()
        return dict(tensors_of(module))
    except Exception as error:  # any kind: the unpickler follows whatever damaged bytes say until it stumbles
        raise UserError(f"{path} is a damaged TorchScript archive ({error}); copy it again or give another") from error


class Inert:
    """Stands for every object in an archive that is no tensor: takes what it is made with, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class Storage(Inert):
    """Stands for the type of a storage; its name tells the numbers' format."""

    dtype: torch.dtype


STORAGES = {
    f"{kind}Storage": type(f"{kind}Storage", (Storage,), {"dtype": dtype})
    for kind, dtype in {
        "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}  # fmt: skip


class ArchiveReader(pickle.Unpickler):
    """Unpickles an archive's modules as `Inert` objects with tensors in them. No name in it is ever looked up anywhere."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if name == "_rebuild_tensor_v2":
            return rebuilt_tensor
        return STORAGES.get(name, Inert)

    def persistent_load(self, reference: Any) -> Tensor:
        _, storage, key, _, _ = reference
        numbers = bytearray(self.archive.read(f"{self.folder}/{key}"))
        return torch.frombuffer(numbers, dtype=storage.dtype) if numbers else torch.empty(0, dtype=storage.dtype)


def rebuilt_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).clone()


def tensors_of(module: Any, prefix: str = "") -> Any:
    """(name, tensor) of everything in an unpickled module, named as a state dict names it."""
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Inert):
            yield from tensors_of(value, f"{prefix}{name}.")
