"""The thin base class between `PreTrainedModel` and our models: our own names in files, foreign layouts on loading."""

import dataclasses
import os
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from .checkpoint_files import naming_faults, read_config, read_weights

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class HubModel(PreTrainedModel):
    """A `PreTrainedModel` that saves the names it has in memory and reads the folders of its home implementations.

    A subclass that knows foreign folders overrides `foreign_config` and `foreign_weights`; the translation holds for that
    one load, so whatever is saved afterwards is an ordinary folder of ours.

    Attributes:
        may_be_new: names of submodules that a folder may lack; they start from random weights. Any other tensor that
            is missing is an error.
    """

    may_be_new: tuple[str, ...] = ("pooler",)  # folders of other tasks have none

    @classmethod
    def foreign_config(cls, config: dict) -> PreTrainedConfig | None:
        """Our config for a foreign `config.json`, or None where the layout is not known.

        Args:
            config: the file's content.
        """
        return None

    @classmethod
    def foreign_weights(cls, config: PreTrainedConfig, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a foreign folder under our names.

        Args:
            config: what `foreign_config` gave.
            weights: the tensors under their names in the file.

        Raises:
            ValueError: if a tensor has no place in our model and no stated reason to be left out.
        """
        raise AssertionError(f"{cls.__name__} recognises foreign folders but has no `foreign_weights`.")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: object,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        image_size: int | tuple[int, int] | None = None,
        **kwargs: object,
    ) -> Any:
        """Load a folder or Hub repository: ours, or one of a home implementation that this class knows.

        Args:
            image_size: pixels, one number or (height, width); the model is resized to it after loading, its position
                tables resampled. A `config` whose `image_size` differs from the stored one (as `AutoModel` makes it from
                the same argument) asks for the same.
            kwargs: as for `PreTrainedModel.from_pretrained`.

        Raises:
            OSError: if the folder, its config or a weight file is missing.
            ValueError: if the checkpoint is of a layout that this class doesn't know, or lacks a tensor, unless
                `output_loading_info` asks to be told instead.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        stored = read_config(pretrained_model_name_or_path, **hub_arguments)
        stored_type = stored.get("model_type")
        with_info = kwargs.pop("output_loading_info", False)

        if stored_type != cls.config_class.model_type:
            if isinstance(config, cls.config_class):
                raise ValueError(
                    f"A `{stored_type}` folder brings its own config, which is translated, got another as `config`. Leave it "
                    "out, and give the fields to change by name."
                )
            config = cls.foreign_config(stored)
            if config is None:
                raise ValueError(
                    f"`{cls.__name__}` reads folders of model type `{cls.config_class.model_type}` and of its home "
                    f"implementations, got `{stored_type}` in {pretrained_model_name_or_path}. Load that folder with "
                    "`AutoModel.from_pretrained`, or use it as a part with `from_pretrained_parts`."
                )
            config.name_or_path = str(pretrained_model_name_or_path)
            weights = cls.foreign_weights(config, read_weights(pretrained_model_name_or_path, **hub_arguments))
            loading = {name: value for name, value in kwargs.items() if name not in HUB_ARGUMENTS}
            own_fields = {field.name for field in dataclasses.fields(config)}
            own_fields -= {field.name for field in dataclasses.fields(PreTrainedConfig)}  # `dtype` is for loading
            for field in own_fields & set(loading):
                setattr(config, field, loading.pop(field))
            model, info = super().from_pretrained(
                None, *model_args, config=config, state_dict=weights, output_loading_info=True, **loading
            )
            if model.can_generate():
                _take_generation_settings(model, pretrained_model_name_or_path, hub_arguments)
        else:
            if config is None or not hasattr(config, "image_size"):
                pass
            elif isinstance(config, PreTrainedConfig) and _size(config.image_size) != _size(stored.get("image_size")):
                image_size = image_size if image_size is not None else config.image_size
                config.image_size = stored["image_size"]
            with naming_faults(pretrained_model_name_or_path, **hub_arguments):
                model, info = super().from_pretrained(
                    pretrained_model_name_or_path, *model_args, config=config, output_loading_info=True, **kwargs
                )

        if not with_info:
            model._refuse_random_weights(info["missing_keys"], pretrained_model_name_or_path)
        if image_size is not None:
            model.resize(image_size=image_size)
        return (model, info) if with_info else model

    def _refuse_random_weights(self, missing: set[str], name_or_path: str | os.PathLike) -> None:
        needed = sorted(name for name in missing if not any(part in self.may_be_new for part in name.split(".")))
        if needed:
            raise ValueError(
                f"{name_or_path} must hold every weight of its model, got none for {len(needed)} tensors, the first "
                f"`{needed[0]}` by our name. Copy or download the checkpoint again; check that config.json belongs to it."
            )

    def save_pretrained(self, save_directory: str | os.PathLike, *args: object, **kwargs: object) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, under the names that the weights have in memory."""
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *args, **kwargs)


def _take_generation_settings(model: PreTrainedModel, name_or_path: str | os.PathLike, hub_arguments: dict) -> None:
    """Read a foreign folder's `generation_config.json`, or what stands in its `config.json`, over what the config implies."""
    try:
        stored = GenerationConfig.from_pretrained(name_or_path, **hub_arguments)
    except OSError:  # before transformers 4.25 there was no such file
        stored = GenerationConfig.from_model_config(read_config(name_or_path, **hub_arguments))
    settings = stored.to_diff_dict()
    if model.config.is_encoder_decoder and "max_new_tokens" not in settings and settings.get("max_length"):
        settings["max_new_tokens"] = (
            settings.pop("max_length") - 1
        )  # the start token counts in the one, not in the other
    model.generation_config.update(**settings)


def _size(image_size: int | list[int] | tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) of either way to write a picture size."""
    if image_size is None:
        return None
    return (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
