"""`unveil probe --corrupt`: the errors of trained probes on corrupted test images."""

from collections.abc import Callable, Mapping
from typing import Any

from unveil.data.splits import Subset, few_labels
from unveil.evaluate.corruption_errors import Classifier, corruption_errors, corruption_facts, refuse_other_images
from unveil.evaluate.corruptions import VERSIONS, library
from unveil.models.vit_config import ViTConfig
from unveil.plain_text import count_of
from unveil.reports.corruption_table import corruption_table
from unveil.reports.table import to_terminal
from unveil.runs.open_data import preprocessed, progress_bar
from unveil.train.recipe import Recipe
from unveil.train.terminal import show


def images_to_corrupt(test_set: Subset, count: int, seed: int) -> Subset:
    """The test images to corrupt, all for `count` 0, else balanced over the classes. Called before a probe is trained.

    Raises:
        UnveilError: If the package that corrupts images is missing, or cannot corrupt such images, or if there are fewer.
    """
    library()
    refuse_other_images(test_set)
    return few_labels(test_set, count, seed, "--corrupt-images", "labelled test images") if count else test_set.labelled()


def test_on_corruptions(
    classifiers: Mapping[str, Classifier], images: Subset, vit: ViTConfig, recipe: Recipe, say: Callable[[str], None]
) -> dict[str, Any]:
    """Classifies corrupted images, shows a table, and returns what `results.json` holds of it.

    Args:
        classifiers: The trained probes: of the encoder and, to compare, of the untrained one and of raw pixels.
        images: The images of `images_to_corrupt`.
        vit: Their size and normalisation.
        recipe: Seed, precision and device.
        say: Prints a message.
    """
    if images.dataset.transform is None:
        images = preprocessed(images, vit)
    versions, each = count_of(VERSIONS * len(images), "corrupted image"), f" by each of {len(classifiers)} probes"
    say(f"Classifying {versions} of {count_of(len(images), 'test image')}{each if len(classifiers) > 1 else ''}")
    seed = recipe.training.seed
    with progress_bar("test images", True, doing="corrupting") as progress:
        errors, count = corruption_errors(classifiers, images, vit, recipe.hardware, recipe.world, seed=seed, progress=progress)
    baseline = next((name for name in ("raw pixels", "untrained") if name in errors), None)
    facts = corruption_facts(errors, baseline, count, seed)
    show(to_terminal(corruption_table(facts)))
    return facts
