"""Loading weights into a backbone, and saying what became of every tensor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from utils import UserError, load_tensors

# Names under which training programs wrap a state dict, and prefixes that their wrappers put before every key.
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "backbone.", "net.", "base_model.")
CLASSIFIERS = ("fc.", "classifier.", "new_fc.", "head.")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of a network's tensors: `loaded` from a file, `missing` in it; and what it held beside, `unexpected`."""

    source: str
    loaded: list[str]
    missing: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        def some(names: list[str]) -> str:
            return f"{len(names)}" + (f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "")

        return (
            f"weights from {self.source}: {len(self.loaded)} tensors loaded, {some(self.missing)} missing, "
            f"{some(self.unexpected)} unexpected"
        )


def state_dict_in(content: Any, source: str) -> dict[str, Tensor]:
    """The state dict in what a file held: wrappers opened, common prefixes taken off."""
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{source} holds no weights: expected a dict of names and tensors, give a state_dict file")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_weights(net: nn.Module, state: dict[str, Tensor], source: str) -> LoadReport:
    """Copies `state` into `net` by name; classifier tensors of the file may be left over.

    Raises UserError when a tensor has another shape, or when the file lacks any weight of the network: a backbone that
    is half pretrained is never what was wanted.
    """
    own = net.state_dict()
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            raise UserError(
                f"{source} does not fit: {name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}; "
                "give weights of the same --backbone"
            )
    report = LoadReport(
        source,
        loaded=sorted(own.keys() & state.keys()),
        missing=sorted(name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked")),
        unexpected=sorted(name for name in state.keys() - own.keys() if not name.startswith(CLASSIFIERS)),
    )
    if report.missing:
        raise UserError(f"{report}; expected every weight of the backbone, give weights of the same --backbone")
    net.load_state_dict(state, strict=False)
    return report


def load_weights_file(net: nn.Module, path: str | Path) -> LoadReport:
    """`load_weights` from a file that torch.save wrote: a state dict, or a checkpoint that holds one."""
    return load_weights(net, state_dict_in(load_tensors(Path(path)), str(path)), str(path))
