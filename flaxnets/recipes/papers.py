"""The papers' recipes for each kind of data: photographs, small images, and rows of features."""

from dataclasses import replace

from flaxnets.recipes.photographs import PHOTOGRAPHS
from flaxnets.recipes.recipe import Kind, Preprocessing, Recipe, matching
from flaxnets.recipes.small_images import LINEAR_REGRESSION, PERCEPTRON, SMALL_IMAGES


def _on_rows(recipe: Recipe) -> Recipe:
    """Return a recipe for rows of features, which the network reads as they are."""
    unchanged = Preprocessing(image_size=1, resize=1, pad=0, flip="none", pca_std=0.0)
    return replace(recipe, preprocessing=unchanged)


# The bound of the rate (see LINEAR_REGRESSION) is 4 for the standardised rows of the diabetes data,
# and 13 for those of the breast cancer data.
LINEAR_REGRESSION_ON_ROWS = replace(LINEAR_REGRESSION, learning_rate=0.02, epochs=200)

ROWS = matching(
    ("softmax_regression", _on_rows(PERCEPTRON)),
    ("perceptron", _on_rows(PERCEPTRON)),
    ("mlp", _on_rows(PERCEPTRON)),
    ("linear_regression", _on_rows(LINEAR_REGRESSION_ON_ROWS)),
)
PAPERS: dict[Kind, dict[str, Recipe]] = {
    "photographs": PHOTOGRAPHS,
    "small images": SMALL_IMAGES,
    "rows": ROWS,
}
