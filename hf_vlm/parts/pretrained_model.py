"""The thin base class between `PreTrainedModel` and our models: our own names in files, foreign layouts on loading."""

import contextlib
import copy
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import resolve_revision

from ..blocks.patch_embed import as_pair
from ..blocks.weight_placement import computing_device
from .adapter_loading import load_with_adapter, take_generation_settings
from .base_weights import check_base, exactly_hashed, hash_parts, hold_base, kept_roles, name_of, write_base_weights
from .checkpoint_files import (
    drop_old_weights,
    find_file,
    list_files,
    naming_faults,
    read_config,
    read_tensors,
    read_weights,
)
from .hub_config import newer_version
from .hub_upload import PUSH_SETTINGS, push_files, push_model
from .model_origin import note_origin, published_name
from .model_saving import check_folder, is_split, naming_folder, save_report, written_files
from .package_version import __version__
from .weight_report import REPORT_FILE, read_report

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class HubModel(PreTrainedModel):
    """A `PreTrainedModel` that saves the names it has in memory and reads the folders of its home implementations.

    A subclass that knows foreign folders overrides `foreign_config` and `foreign_weights`; the translation holds for that
    one load, so whatever is saved afterwards is an ordinary folder of ours.

    A report of where its weights came from, `weight_report`, which a model made of pretrained parts has, is saved and loaded
    with it.

    Attributes:
        may_be_new: names of submodules that a folder may lack; they start from random weights. Any other tensor that
            is missing is an error.
        heads: names of the submodules beside the base model, which a folder of the base model, or of another head, lacks;
            None for the base model itself.
        part_paths: role -> where its part is, in a model that is made of parts.
        read_layers: paths of layers whose weights are read as tables, without a call: an adapter there would be passed over.
        resizable: settings that `from_pretrained` and `resize` can change, the weights resampled.
    """

    may_be_new: tuple[str, ...] = ("pooler",)  # folders of other tasks have none
    heads: tuple[str, ...] | None = None
    part_paths: Mapping[str, str] = {}
    read_layers: tuple[str, ...] = ()
    resizable: tuple[str, ...] = ("image_size",)

    def get_input_embeddings(self) -> nn.Module | None:
        """As `PreTrainedModel.get_input_embeddings`; None where there are none, as in a visual tokenizer: FSDP2 asks for them."""
        try:
            return super().get_input_embeddings()
        except NotImplementedError:
            return None

    @property
    def device(self) -> torch.device:
        """Where inputs are wanted: the device of the first weight, also where accelerate keeps it elsewhere between calls."""
        return computing_device(self)

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: what `_init_weights` sets, here and in every part, leaves loaded tensors as they are.

        transformers then asks it for modules without tensors of their own too, where parts such as FalconH1 fill the buffers
        of their layers, which no file holds.
        """
        return False

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
    def config_of_weights(cls, weights: Mapping[str, torch.Tensor]) -> PreTrainedConfig:
        """Our config for a file of weights that comes without one.

        Args:
            weights: the tensors under their names in the file.

        Raises:
            ValueError: if the class knows no such file.
        """
        raise ValueError(
            f"`{cls.__name__}` is loaded from a folder with a `config.json`, got a file of weights. Name the folder."
        )

    @classmethod
    def place_weights(
        cls, base: Mapping[str, torch.Tensor], of_heads: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The tensors that this class has, under its names.

        Args:
            base: those of the base model by their names there.
            of_heads: those of any head by their names beside the base model.
        """
        prefix = f"{cls.base_model_prefix}." if cls.heads is not None else ""
        placed = {f"{prefix}{name}": tensor for name, tensor in base.items()}
        return placed | {name: tensor for name, tensor in of_heads.items() if name.split(".")[0] in (cls.heads or ())}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: object,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a folder or Hub repository: ours, one of a home implementation that this class knows, or a PEFT adapter's with
        its base.

        `name_or_path` of the model never is an absolute path (`published_name`): what is saved later, such as an adapter, may
        tell it.

        Args:
            kwargs: as for `PreTrainedModel.from_pretrained`; and, where the class has them among `resizable`,
                `image_size`, pixels, and `window_size`, patches, each one number or (height, width). The model is resized
                to them after loading, its tables resampled. A `config` whose sizes differ from the stored ones (as
                `AutoModel` makes it from the same arguments) asks for the same.

        Raises:
            OSError: if the folder, its config or a weight file is missing.
            ValueError: if the checkpoint is of a layout that this class doesn't know, or lacks a tensor, unless
                `output_loading_info` asks to be told instead.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        sizes = {name: kwargs.pop(name) for name in cls.resizable if name in kwargs}
        where = {name: kwargs[name] for name in ("token", "local_files_only", "cache_dir") if name in kwargs}
        commit = resolve_revision(pretrained_model_name_or_path, kwargs.get("revision"), **where)
        if commit is not None:  # all files of one commit, whatever is pushed meanwhile
            kwargs["revision"] = commit
        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        with_info = kwargs.pop("output_loading_info", False)
        is_file = Path(pretrained_model_name_or_path).is_file()
        try:
            stored = {} if is_file else read_config(pretrained_model_name_or_path, **hub_arguments)
        except FileNotFoundError as missing:
            # Where the Hub refused, or could not be asked, it is not asked once more.
            again = hub_arguments | ({"local_files_only": True} if missing.__cause__ is not None else {})
            try:
                adapter_file = find_file(pretrained_model_name_or_path, "adapter_config.json", **again)
            except FileNotFoundError:
                adapter_file = None
            if adapter_file is None:
                raise
            of_base = {name: value for name, value in kwargs.items() if name not in HUB_ARGUMENTS} | sizes
            of_base |= {"config": config, "output_loading_info": with_info}
            return load_with_adapter(cls, pretrained_model_name_or_path, hub_arguments, **of_base)

        if stored.get("model_type") != cls.config_class.model_type:
            model, info = cls._from_elsewhere(
                pretrained_model_name_or_path, stored, is_file, model_args, config, hub_arguments, kwargs
            )
        else:
            if isinstance(config, PreTrainedConfig):
                config = copy.deepcopy(config)  # the caller's stays as it is
                for name in cls.resizable:
                    if name in stored and as_pair(getattr(config, name)) != as_pair(stored[name]):
                        sizes.setdefault(name, getattr(config, name))
                        setattr(config, name, stored[name])
            with naming_faults(pretrained_model_name_or_path, **hub_arguments):
                model, info = super().from_pretrained(
                    pretrained_model_name_or_path, *model_args, config=config, output_loading_info=True, **kwargs
                )

        if cls.part_paths and not is_file:
            report = None
            with contextlib.suppress(FileNotFoundError):  # a token that has expired: the cache has the model alone
                report = find_file(pretrained_model_name_or_path, REPORT_FILE, **hub_arguments)
            if report is not None:
                model.weight_report = read_report(report)
        if not with_info:
            model._refuse_random_weights(
                info["missing_keys"], pretrained_model_name_or_path, newer=newer_version(stored)
            )
        sizes = {name: size for name, size in sizes.items() if size is not None}
        if sizes:
            if model._keeps_weights_elsewhere():
                raise ValueError(
                    f"`{next(iter(sizes))}` wants all weights in memory, got some that `device_map` left on the CPU or on disk. "
                    "Load without it, save the resized model, and load that folder."
                )
            model.resize(**sizes)
        note_origin(model, pretrained_model_name_or_path, **hub_arguments)
        of_adapter = kwargs.get("adapter_kwargs") or {}  # which an auto class found: its revision is not the base's
        adapter = of_adapter.get("_adapter_model_path")
        if adapter is not None and os.fspath(adapter) != os.fspath(pretrained_model_name_or_path):
            given = {name: value for name, value in hub_arguments.items() if name not in ("revision", "subfolder")}
            given |= {name: of_adapter[name] for name in HUB_ARGUMENTS if name in of_adapter}
            take_generation_settings(model, adapter, **given)
        return (model, info) if with_info else model

    @classmethod
    def _from_elsewhere(
        cls,
        name_or_path: str | os.PathLike,
        stored: dict[str, Any],
        is_file: bool,
        model_args: tuple[object, ...],
        config: object,
        hub_arguments: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> tuple[Any, dict[str, Any]]:
        """A folder or file of another layout: the model, and transformers' account of its loading."""
        if isinstance(config, cls.config_class):
            raise ValueError(
                f"A `{stored.get('model_type')}` folder brings its own config, which is translated, got another as `config`. "
                "Leave it out, and give the fields to change by name."
            )
        if is_file:
            tensors = read_tensors(Path(name_or_path))
            own_config: Any = cls.config_of_weights(tensors)
        else:
            own_config = cls.foreign_config(stored)
            if own_config is None:
                raise ValueError(
                    f"`{cls.__name__}` reads folders of model type `{cls.config_class.model_type}` and of its home "
                    f"implementations, got `{stored.get('model_type')}` in {name_or_path}. Load that folder with "
                    "`AutoModel.from_pretrained`, or use it as a part with `from_pretrained_parts`."
                )
            tensors = read_weights(name_or_path, **hub_arguments)
        own_config.name_or_path = str(name_or_path)
        weights = cls.foreign_weights(own_config, tensors)
        loading = {name: value for name, value in kwargs.items() if name not in HUB_ARGUMENTS}
        own_fields = {field.name for field in dataclasses.fields(own_config)}
        own_fields -= {field.name for field in dataclasses.fields(PreTrainedConfig)}  # `dtype` is for loading
        own_fields |= {"num_labels", "id2label", "label2id", "problem_type"}
        own_fields |= {"out_features", "out_indices"} & set(dir(own_config))  # of a backbone: properties
        for field in own_fields & set(loading):
            setattr(own_config, field, loading.pop(field))
        try:
            model, info = super().from_pretrained(
                None, *model_args, config=own_config, state_dict=weights, output_loading_info=True, **loading
            )
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(
                f"The tensors of {name_or_path} must have the shapes that its config asks for, got others, listed above. "
                "Take weights and config of one version; for a new head of other classes pass "
                "`ignore_mismatched_sizes=True`, for other pictures `image_size`."
            ) from error
        beside = tuple(f"{name}." for name in ("classifier", "distillation_classifier", *(cls.heads or ())))
        if left_over := sorted(name for name in info["unexpected_keys"] if not name.startswith(beside)):
            raise ValueError(
                f"Every tensor of {name_or_path} must have its place in the model of its config, got {len(left_over)} "
                f"without, the first `{left_over[0]}` by our name. Check that config.json belongs to the weights."
            )
        if model.can_generate():
            _take_generation_settings(model, name_or_path, hub_arguments)
        return model, info

    def _refuse_random_weights(
        self, missing: set[str], name_or_path: str | os.PathLike, newer: str | None = None
    ) -> None:
        may_be_new = (*self.may_be_new, *(self.heads or ()))
        needed = sorted(name for name in missing if not any(part in may_be_new for part in name.split(".")))
        for head in self.heads or ():  # new as a whole, or not at all
            module = getattr(self, head, None)
            own = {f"{head}.{name}" for name in module.state_dict()} if isinstance(module, nn.Module) else set()
            if own & missing and not own <= missing and not isinstance(module, nn.ModuleDict):
                needed += sorted(own & missing)
        if needed:
            raise ValueError(
                f"{name_or_path} must hold every weight of its model, got none for {len(needed)} tensors, the first "
                f"`{needed[0]}` by our name. "
                + (
                    f"hf-vlm {newer} wrote it, this is {__version__}: run `pip install --upgrade hf-vlm`."
                    if newer is not None
                    else "Copy or download the checkpoint again; check that config.json belongs to it."
                )
            )

    def train(self, mode: bool = True) -> Any:
        """As `Module.train`; what adapters stand on stays as it is, see `hold_base`."""
        super().train(mode)
        if mode:
            hold_base(self)
        return self

    def load_adapter(
        self, peft_model_id: str | None = None, adapter_name: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As `PreTrainedModel.load_adapter`; warns if the adapter was trained on other weights than this model's.

        `from_pretrained` of an adapter's folder comes by here, peft's own loading doesn't.

        Raises:
            ValueError: if the adapter's tensors don't fit the model: it was trained on another one. The model is to be loaded
                anew then.
        """
        try:
            info = super().load_adapter(peft_model_id, adapter_name, *args, **kwargs)
            own = f".{adapter_name or 'default'}."  # not those of an adapter that came before
            faults = [f"none for `{name}`" for name in sorted(info.missing_keys) if own in name]
            faults += [f"`{name}` too many" for name in sorted(info.unexpected_keys) if ".lora_" in name]
            if faults:
                raise ValueError(f"got {faults[0]}")
        except (RuntimeError, ValueError) as error:
            if peft_model_id is None or "already exists" in str(error):
                raise
            raise ValueError(
                f"The adapter {published_name(peft_model_id)} must fit its base, got {name_of(self)}, which it doesn't: "
                f"{_first_fault(error)}. Load the base that it names in `adapter_config.json`."
            ) from error
        if peft_model_id is not None and self.part_paths and self._holds_own_weights():  # others can't be compared
            where = {**kwargs, **(kwargs.get("adapter_kwargs") or {})}
            check_base(self, peft_model_id, **{name: where[name] for name in HUB_ARGUMENTS if name in where})
        return info

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:
        """Push the model to the Hub, as `push_model` does it: one commit, errors that name the repository and what to do.

        Args:
            repo_id: `user/name`, or `name` of one's own; made if it isn't there.
            settings: as for `PreTrainedModel.push_to_hub`: `private`, `token`, `revision`, `max_shard_size`, ...
        """
        tags = list(dict.fromkeys([*(self.model_tags or ()), *(settings.pop("tags", None) or ())]))
        return push_model(self, repo_id, tags=tags or None, **settings)

    def enable_adapters(self) -> None:
        """As `PreTrainedModel.enable_adapters`, which leaves parts that trained in full as they are without the adapter."""
        super().enable_adapters()
        for module in self.modules():
            if "modules_to_save" in module._modules:
                module.enable_adapters(enabled=True)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: Mapping[str, Any] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, under the names that the weights have in memory.

        Args:
            save_directory, is_main_process, state_dict, max_shard_size, variant: as there.
            push_to_hub: push what was written too, as `push_files` does it, which takes `repo_id` (by default the folder's
                name), `commit_message`, `private`, `token`, `revision`, `create_pr`, `tags` from `kwargs`.
            kwargs: as there.

        Raises:
            ValueError: if a whole model is saved beside an adapter, which would be applied to it on loading.
            OSError: if the disk has no room for the weights, as far as it tells, which is found before anything is written; or
                if a file can't be written, as by a quota: older and newer files may then lie beside each other. Also if the
                Hub refuses; the folder is then written.
        """
        kwargs.setdefault("save_original_format", False)
        if Path(save_directory).is_file():
            raise NotADirectoryError(f"A folder to save in is wanted, got the file {save_directory}. Name another one.")
        settings = {"is_main_process": is_main_process, "max_shard_size": max_shard_size, "variant": variant}
        if kwargs.get("distributed_checkpoint"):  # files of another kind, to go on training from
            super().save_pretrained(
                save_directory, state_dict=state_dict, push_to_hub=push_to_hub, **settings, **kwargs
            )
            return
        if not self.should_save_on_this_rank(is_main_process):
            super().save_pretrained(save_directory, state_dict=state_dict, **settings, **kwargs)
            return
        has_adapters = getattr(self, "_hf_peft_config_loaded", False)
        if not has_adapters:  # these are small, whatever the model
            check_folder(save_directory, self, state_dict)
        push = {name: kwargs.pop(name) for name in PUSH_SETTINGS if name in kwargs} if push_to_hub else {}
        saved = None if state_dict is None else dict(state_dict)  # transformers empties the one that it is given
        state_dict = state_dict and self._without_tied_copies(state_dict)
        before = list_files(save_directory)
        with naming_folder(save_directory):
            super().save_pretrained(save_directory, state_dict=state_dict, **settings, **kwargs)
            if has_adapters:
                self._save_base_weights(save_directory)
            else:
                drop_old_weights(save_directory, before)
                save_report(self, save_directory, saved, variant)
        if push_to_hub:
            push.setdefault("repo_id", os.path.basename(os.path.abspath(save_directory)))
            push["tags"] = list(dict.fromkeys([*(self.model_tags or ()), *(push.get("tags") or ())])) or None
            push_files(written_files(save_directory, before), **push)

    def _without_tied_copies(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Tied weights once: gathered from several processes, each name comes with values of its own."""
        tied = getattr(self, "all_tied_weights_keys", None) or {}
        copies = {name for name, other in tied.items() if _are_equal(state_dict.get(name), state_dict.get(other))}
        return {name: value for name, value in state_dict.items() if name not in copies}

    def _save_base_weights(self, folder: str | os.PathLike) -> None:
        """Beside an adapter that was saved: the hashes of the base, this model, where all of it is at hand."""
        if self.part_paths and self._holds_own_weights():
            config = self.peft_config[self.active_adapters()[0]]
            hashes = hash_parts(self, kept_roles(self, getattr(config, "modules_to_save", None)))
            write_base_weights(folder, config.base_model_name_or_path, hashes, exact=exactly_hashed(self))

    def _holds_own_weights(self) -> bool:
        return not (getattr(self, "is_quantized", False) or self._keeps_weights_elsewhere() or is_split(self))

    def _keeps_weights_elsewhere(self) -> bool:
        return any(weight.is_meta for weight in self.parameters())


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


def _are_equal(weight: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two weights are there and equal; of those without values or in parts nothing is known."""
    if weight is None or other is None or weight.is_meta or hasattr(weight, "device_mesh"):
        return False
    return weight.device == other.device and torch.equal(weight, other)


def _first_fault(error: Exception) -> str:
    """What is wrong with an adapter, of the many lines of an error."""
    if "ignore_mismatched_sizes" in str(error):
        return "its tensors have other sizes, listed above"
    return next((line.strip(" .") for line in str(error).splitlines() if line.strip()), type(error).__name__)
