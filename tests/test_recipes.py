"""Every network has a row for both kinds of images, at a size that it can take."""

import jax
import jax.numpy as jnp
import pytest

from flaxnets import create_model, list_models
from flaxnets.recipes import recipe_for


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("name", list_models())
def test_a_row_whose_images_fit_the_network(name, small):
    recipe = recipe_for(name, small=small)
    recipe.check()
    size = recipe.preprocessing.image_size
    model = create_model(name, num_classes=10)
    for channels in (1, 3):
        images = jnp.zeros((2, size, size, channels))
        logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
        assert logits.shape == (2, 10)


def test_rows_are_the_papers():
    """A few facts that a reader would look up."""
    alexnet = recipe_for("alexnet_2012", small=False)
    assert (alexnet.batch_size, alexnet.momentum, alexnet.weight_decay) == (128, 0.9, 5e-4)
    assert (alexnet.learning_rate, alexnet.schedule, alexnet.epochs) == (0.01, "plateau", 90)
    assert alexnet.preprocessing.pca_std == 0.1
    vgg = recipe_for("vgg16", small=False)
    assert (vgg.batch_size, vgg.epochs, vgg.learning_rate) == (256, 74, 0.01)
    assert recipe_for("vgg16_bn", small=False).milestones == (30, 60)
    resnet = recipe_for("resnet56_cifar", small=True)
    steps = 50_000 // resnet.batch_size
    assert round(resnet.epochs * steps, -3) == 64_000
    assert [round(m * steps, -3) for m in resnet.milestones] == [32_000, 48_000]
    assert recipe_for("resnet50", small=False).weight_decay == 1e-4
    assert recipe_for("wrn_28_10", small=True).factor == 0.2
