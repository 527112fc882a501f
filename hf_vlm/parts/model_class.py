"""Which class a saved model is of: of the several that an auto class or two have for a configuration, the one that saved it."""

from typing import Any

from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMaskedImageModeling,
    PreTrainedConfig,
    PreTrainedModel,
)

_AUTO_CLASSES = (
    AutoModelForImageTextToText,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoBackbone,
    AutoModel,
)


def model_class(config: PreTrainedConfig, name: str | None = None) -> type[PreTrainedModel]:
    """The class of a configuration's model, the one of this name where it has models for several tasks.

    Args:
        name: such as `VisionTransformerForMaskedImageModeling`; by default the first of the config's `architectures`.

    Raises:
        ValueError: if there is no model for the configuration.
    """
    wanted = name or next(iter(config.architectures or ()), None)
    able: list[Any] = [
        auto._model_mapping[type(config)] for auto in _AUTO_CLASSES if type(config) in auto._model_mapping
    ]
    if not able:
        raise ValueError(
            f"A model that writes, classifies or encodes pictures is wanted, got a `{config.model_type}`. Name another."
        )
    return next((one for one in able if one.__name__ == wanted), able[0])
