"""unveil: pre-trains vision models on images without labels by masked autoencoding, and evaluates what they have learned."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unveil.data.augment import normalise as normalise
    from unveil.errors import UnveilError as UnveilError
    from unveil.experiments.compare import compare as compare
    from unveil.experiments.images_vs_words import images_vs_words as images_vs_words
    from unveil.experiments.study import study as study
    from unveil.experiments.verdict import verdict as verdict
    from unveil.interop.load import load as load
    from unveil.recipes.doctor import doctor as doctor
    from unveil.recipes.embed import embed as embed
    from unveil.recipes.export import export as export
    from unveil.recipes.fill_mask import fill_mask as fill_mask
    from unveil.recipes.finetune import finetune as finetune
    from unveil.recipes.options import command as command
    from unveil.recipes.pack import pack as pack
    from unveil.recipes.plan import plan as plan
    from unveil.recipes.predict import predict as predict
    from unveil.recipes.pretrain import pretrain as pretrain
    from unveil.recipes.probe import probe as probe
    from unveil.recipes.reconstruct import draw_reconstructions as draw_reconstructions
    from unveil.recipes.reconstruct import reconstruct as reconstruct
    from unveil.recipes.report import report as report
    from unveil.recipes.similar import similar as similar
    from unveil.recipes.translate import train_translator as train_translator
    from unveil.recipes.translate import translate as translate
    from unveil.train.run_folder import Run as Run

_HOMES = {
    "Run": "unveil.train.run_folder",
    "UnveilError": "unveil.errors",
    "command": "unveil.recipes.options",
    "compare": "unveil.experiments.compare",
    "doctor": "unveil.recipes.doctor",
    "draw_reconstructions": "unveil.recipes.reconstruct",
    "embed": "unveil.recipes.embed",
    "export": "unveil.recipes.export",
    "fill_mask": "unveil.recipes.fill_mask",
    "finetune": "unveil.recipes.finetune",
    "images_vs_words": "unveil.experiments.images_vs_words",
    "load": "unveil.interop.load",
    "normalise": "unveil.data.augment",
    "pack": "unveil.recipes.pack",
    "plan": "unveil.recipes.plan",
    "predict": "unveil.recipes.predict",
    "pretrain": "unveil.recipes.pretrain",
    "probe": "unveil.recipes.probe",
    "reconstruct": "unveil.recipes.reconstruct",
    "report": "unveil.recipes.report",
    "similar": "unveil.recipes.similar",
    "study": "unveil.experiments.study",
    "train_translator": "unveil.recipes.translate",
    "translate": "unveil.recipes.translate",
    "verdict": "unveil.experiments.verdict",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import unveil` is fast."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("unveil")
        except PackageNotFoundError:  # a checkout that is not installed
            return "0+unknown"
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'unveil' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
