"""Pre-training methods, one per file. A method does not import another one."""

from typing import TYPE_CHECKING, Any

from unveil.errors import UnveilError
from unveil.options import ClassSource
from unveil.plugins import Registry

if TYPE_CHECKING:
    from unveil.learner import Method

METHODS = Registry(
    "method",
    {
        "mae": "unveil.methods.mae:MAE",
        "simmim": "unveil.methods.simmim:SimMIM",
        "beit": "unveil.methods.beit:BEiT",
        "dvae": "unveil.methods.dvae:DVAE",
        "dino": "unveil.methods.dino:DINO",
        "mocov3": "unveil.methods.mocov3:MoCoV3",
        "supervised": "unveil.methods.supervised:Supervised",
        "bert": "unveil.methods.bert:BERT",
        "wordmae": "unveil.methods.wordmae:WordMAE",
    },
)


def method_class(method: "str | type[Method]") -> "type[Method]":
    """The class of a method. Raises `UnveilError` for a name that is not in the table."""
    found: type[Method] = METHODS.load(method)
    return found


def method_source(method: "str | type[Method]") -> ClassSource:
    """The source of a method's class, to read its options, its defaults and its modality without importing torch."""
    return ClassSource.find(METHODS.find(method))


def method_defaults(method: "str | type[Method]") -> dict[str, Any]:
    """The options whose defaults differ for a method."""
    return dict(method_source(method).literal("DEFAULTS", {}))


def modality_of_method(method: "str | type[Method]") -> str:
    """What a method learns from: "images" or "text". Raises `UnveilError` for a class that is no method."""
    found = method_source(method).literal("modality")
    if found is None:
        raise UnveilError(f"{method} is no method: its class does not extend unveil.learner.Method")
    return str(found)


def base_of(name: str) -> str:
    """The method of an entry in a comparison: mae for "mae" and for "mae-pixel". An unknown name is returned as it is."""
    return max((method for method in METHODS.names if f"{name}-".startswith(f"{method}-")), key=len, default=name)
