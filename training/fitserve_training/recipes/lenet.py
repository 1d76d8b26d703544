"""LeNet with sigmoids and average pooling as in the original, for 28×28 images and for the user's pictures.

Source: LeCun et al., "Gradient-Based Learning Applied to Document Recognition" (1998), in the form of Zhang et al.,
Dive into Deep Learning, section "Convolutional Neural Networks (LeNet)", whose published runs give the bands.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from fitserve_training.blocks import block_kernel_index, pooled_sigmoid_convolution, space_to_depth
from fitserve_training.config import RunConfig
from fitserve_training.data import images
from fitserve_training.form import Form
from fitserve_training.objectives import Classification
from fitserve_training.recipe import Band, Recipe
from fitserve_training.recipes import images as image_recipes

_SMALLEST = 12
"""Of fewer pixels a side the second convolution leaves nothing to pool."""


class LeNet(nn.Sequential):
    """The network, (B, 1, 28, 28) to (B, 10) with 61,706 parameters, or pictures of another shape.

    While it trains on a CPU it goes over blocks of pixels, which is the same mathematics in less time; otherwise, for
    another shape, and in every export, it is the plain sequence of its layers.

    Args:
        layers: In order.
        shape: Of one picture, (C, H, W).
    """

    def __init__(self, *layers: nn.Module, shape: tuple[int, ...] = image_recipes.SHAPE) -> None:
        super().__init__(*layers)
        self._is_blocked = shape == image_recipes.SHAPE
        # Neither parameters nor buffers: they are no part of the model, and stay where they are used.
        self._indices = (block_kernel_index(6, 1, 5, block=4), block_kernel_index(16, 6, 5, block=2))

    def forward(self, images_B1HW: Tensor) -> Tensor:
        """Gives logits (B, 10)."""
        if not self._is_blocked or not self.training or images_B1HW.device.type != "cpu":
            hidden: Tensor = super().forward(images_B1HW)  # type: ignore[no-untyped-call]
            return hidden
        hidden = self.features_by_blocks(images_B1HW)
        for layer in list(self)[6:]:
            hidden = layer(hidden)
        return hidden

    def features_by_blocks(self, images_B1HW: Tensor) -> Tensor:
        """Gives what the first six layers give, (B, 16, 5, 5)."""
        blocks = space_to_depth(functional.pad(images_B1HW, (2, 2, 2, 2)), 4)
        for layer, index in zip((self[0], self[3]), self._indices, strict=True):
            weight, bias = layer.parameters()
            blocks = pooled_sigmoid_convolution(blocks, weight, bias, index)
        return blocks


def build_network(shape: tuple[int, ...], class_count: int) -> nn.Module:
    """Builds the network with Xavier-uniform weights.

    Args:
        shape: Of one picture, (C, H, W), of at least 12 pixels a side.
        class_count: Number of logits.
    """
    height, width = ((side // 2 - 4) // 2 for side in shape[1:])
    model = LeNet(
        nn.Conv2d(shape[0], 6, kernel_size=5, padding=2),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * height * width, 120),
        nn.Sigmoid(),
        nn.Linear(120, 84),
        nn.Sigmoid(),
        nn.Linear(84, class_count),
        shape=shape,
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return model


def build_model(_config: RunConfig) -> nn.Module:
    """Builds the network for the recipe's own data."""
    return build_network(image_recipes.SHAPE, image_recipes.CLASS_COUNT)


def for_form(form: Form) -> Recipe:
    """Fits inputs and network to the data."""
    return image_recipes.for_form(form, RECIPE, build_network)


RECIPE = Recipe(
    name="lenet",
    defaults={"lr": 0.9, "batch_size": 256, "epochs": 10, **image_recipes.SETTINGS},
    # The published settings stay at chance on so few examples.
    presets={
        name: {"optimizer": "adam", "lr": 3e-3, "batch_size": 64, "epochs": 40}
        for name in ("digits", image_recipes.OWN)
    },
    preset_for=image_recipes.preset_for,
    choose_data=images.choose,
    data_names=images.NAMES,
    load_data=partial(image_recipes.load_data, smallest=_SMALLEST),
    build_model=build_model,
    objective=Classification(),
    inputs=image_recipes.INPUTS,
    output_name=image_recipes.OUTPUT_NAME,
    for_form=for_form,
    start=image_recipes.start,
    own_data=image_recipes.OWN_DATA,
    bands={
        "fashion_mnist": (
            # Over 130 published runs gave 0.469 ± 0.011, 0.824 ± 0.005 and 0.804 ± 0.016 (0.752 to 0.828), mean ± sd.
            # One run is held to two sd of the first two, and to the extremes of the last.
            Band("train_loss", 0.447, 0.491),
            Band("train_accuracy", 0.814, 0.834),
            Band("test_accuracy", 0.752, 0.828),
        ),
    },
)
