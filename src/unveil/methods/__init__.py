"""Floor 3: methods that train an encoder without labels: one file each, unaware of each other."""

import importlib
from typing import TYPE_CHECKING, Any

from unveil.errors import UnveilError
from unveil.options import literal

if TYPE_CHECKING:
    from unveil.learner import Method

IMAGES: dict[str, str] = {  # name: "module:class"
    "mae": "unveil.methods.mae:MAE",
    "simmim": "unveil.methods.simmim:SimMIM",
    "beit": "unveil.methods.beit:BEiT",
    "dvae": "unveil.methods.dvae:DVAE",
    "dino": "unveil.methods.dino:DINO",
    "mocov3": "unveil.methods.mocov3:MoCoV3",
    "supervised": "unveil.methods.supervised:Supervised",
}
TEXTS: dict[str, str] = {"bert": "unveil.methods.bert:BERT", "wordmae": "unveil.methods.wordmae:WordMAE"}
METHODS = IMAGES | TEXTS


def base_of(name: str) -> str:
    """The method that a name in a comparison stands for: mae, or mae under another name, mae-pixel. Itself where there is none."""
    return max((method for method in METHODS if f"{name}-".startswith(f"{method}-")), key=len, default=name)


def defaults_of(name: str) -> dict[str, Any]:
    """The knobs whose defaults are others for a method: `DEFAULTS` in its file, where it has one. Read without importing it."""
    try:
        return dict(literal(METHODS[name].partition(":")[0], "DEFAULTS"))
    except KeyError:
        return {}


def method_class(name: str) -> "type[Method]":
    """The class of a method. Raises `UnveilError` for a name that is not in the table."""
    if name not in METHODS:
        raise UnveilError(f"there is no method {name!r}: use one of {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    found: type[Method] = getattr(importlib.import_module(module), attribute)
    return found
