"""The packages that foundation backbones come from, imported only when one is asked for.

None of them is needed for anything else, and nothing of them is ever downloaded: networks are built without their
weights, which come from files that the user has.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

# timm, open_clip and transformers import torchvision by its own name, which works after it was imported here.
import backbones.torchvision_import  # noqa: F401
from utils import UserError

INSTALL = "pip install -r requirements-foundation.txt"


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def imported(package: str, purpose: str) -> Any:
    """The module `package`, which `purpose` needs. Raises UserError where it is not installed."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read at import; whatever a package would look up online is an error instead
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs {package.partition('.')[0]}, which could not be imported ({error}): {INSTALL}"
        ) from error
