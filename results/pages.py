"""Pages of one file without links, from the templates of this folder and report.css, in the library's colours."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from results.style import DARK, LIGHT
from utils import printable

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


def page(template: str, **content: Any) -> str:
    """A page as text. Whatever stops it is an Exception."""
    return (
        page_environment()
        .get_template(template)
        .render(
            **content,
            day=time.strftime("%Y-%m-%d"),
            light=LIGHT,
            dark=DARK,
            style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        )
    )


def page_environment() -> Environment:
    """This folder's templates: all that they print is escaped and can be shown; a name that they are not given is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # late: training and --help need none

    return Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else printable(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
