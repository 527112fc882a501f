"""LLaVA as transformers' `LlavaForConditionalGeneration`; its processor: `llava_processor.py`.

    ours                                    transformers'
    vision_model.                           model.vision_tower.
    projector.linears.0, .1                 model.multi_modal_projector.linear_1, linear_2
    language_model's body                   model.language_model.
    language_model's output layer           lm_head.

Vision encoder and language model stay what they are. What transformers' class adds around them is narrower than ours:

- it reads `hidden_states[vision_feature_layer]` of the encoder as tokens, and cuts off one token or none;
- its projector has two linear layers: LLaVA's single one becomes the first, the second is the identity;
- its output layer is one matrix: a factor on the logits is multiplied into it, a bias or a cap on them has no place;
- the word embedding and the output layer are one tensor only where the body calls its embedding `embed_tokens`.

Whether the two give the same is not concluded from names and settings but tried, on a random picture and a few words.

Source: Liu et al. 2023b, https://arxiv.org/abs/2310.03744
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init

from hf_vlm.parts.language_model import accepted_arguments
from hf_vlm.parts.vision_features import configured_image_size, select_tokens, vision_features
from hf_vlm.sharing.stock.export import stock_part
from hf_vlm.sharing.stock.weights import output_difference

INSTEAD = "Export the model with its own code instead: `hf-vlm export-code`."

# What a model that wants other inputs, or gives other outputs, raises when it is tried.
FAULTS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError)

_NUM_PROBE_WORDS = 6


def to_stock(model: Any) -> tuple[LlavaForConditionalGeneration, list[str]]:
    """Transformers' LLaVA with a copy of the weights of ours.

    Args:
        model: a `LlavaVisionLanguageForConditionalGeneration`, without an adapter.

    Returns: the model, in evaluation mode on the device of ours, and notes: what came out in another form.

    Raises:
        ValueError: if the projector is deeper than two layers, or vision encoder or language model are of a kind that
            transformers' LLaVA can't read; the message names which, and why.
    """
    config = model.config
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("A whole model is wanted, got one with an adapter. Merge it first: `hf-vlm merge`.")
    if config.num_linear_layers > 2:
        raise ValueError(
            f"`num_linear_layers` must be 1 or 2 for transformers' LLaVA, got {config.num_linear_layers}. {INSTEAD}"
        )
    strategy = stock_strategy(config)
    with _evaluated(model):
        return _to_stock(model, strategy)


def _to_stock(model: Any, strategy: str) -> tuple[LlavaForConditionalGeneration, list[str]]:
    config = model.config
    tower = _vision_tower(model, strategy)
    body, text_config, head, head_notes = _language_model(model.language_model)
    notes = [*tower.notes, *head_notes]

    is_single = config.num_linear_layers == 1
    stock_config = LlavaConfig(
        vision_config=_without_name(tower.config),
        text_config=_without_name(text_config),
        image_token_index=config.image_token_id,
        image_seq_length=config.num_image_tokens,
        projector_hidden_act="linear" if is_single else config.projector_hidden_act,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=tower.layer,
        tie_word_embeddings=text_config.tie_word_embeddings,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    with init.no_init_weights():
        stock = AutoModelForImageTextToText.from_config(stock_config, dtype=model.language_model.dtype)
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if len(dtypes) > 1:
        notes.append(
            f"parts of {', '.join(sorted(str(dtype).removeprefix('torch.') for dtype in dtypes))} came out in one type, the "
            f"language model's {str(stock.dtype).removeprefix('torch.')}"
        )
    _copy_into(stock.model.vision_tower, tower.model, config.vision_config.model_type, "vision encoder")
    _copy_into(stock.model.language_model, body, config.text_config.model_type, "language model")
    with torch.no_grad():
        stock.lm_head.weight.copy_(head)
        _copy_projector(stock.model.multi_modal_projector, model.projector.linears)
    stock.tie_weights()
    stock.to(model.device)
    stock.generation_config = GenerationConfig.from_dict(model.generation_config.to_dict())
    if is_single:
        notes.append(
            "the projector's single linear layer came out as the first of two, with the identity as the second and no "
            "activation between: the same numbers, for one multiplication more a picture"
        )
    if config.label_smoothing:
        notes.append("`label_smoothing` was left out: transformers' LLaVA trains without")
    stock.eval()
    return stock, notes + _compare(model, stock)


def largest_difference(model: Any, stock: LlavaForConditionalGeneration) -> float:
    """The largest difference of logits on random pictures and words, as `output_difference` counts it; infinite if answers
    differ.

    Args:
        model: ours.
        stock: transformers', of the same dtype.
    """
    pixels = _probe_pixels(model, 2)
    ids = _probe_ids(model)
    largest = 0.0
    with torch.no_grad(), _without_stop_strings(model), _without_stop_strings(stock):
        words = ids[ids != model.config.image_token_id].view(len(ids), -1)
        for inputs in ({"input_ids": words}, {"input_ids": ids, "pixel_values": pixels}):
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            largest = max(largest, output_difference(model(**inputs).logits, stock(**inputs).logits))
            settings = {**inputs, "max_new_tokens": 8, "do_sample": False}
            if not torch.equal(model.generate(**settings), stock.generate(**settings)):
                return float("inf")
    return largest


def stock_strategy(config: Any) -> str:
    """What `vision_feature_select_strategy` must be for transformers' LLaVA to keep the tokens that ours keeps.

    Theirs cuts off one token ("default") or none ("full"); ours cuts off the tokens in front of the patches, however many.

    Raises:
        ValueError: if there are two or more, and they are to be cut off.
    """
    num_cut = config.num_prefix_tokens if config.vision_feature_select_strategy == "default" else 0
    if num_cut > 1:
        _refuse(
            config.vision_config.model_type,
            f"whose patches stand behind {num_cut} other tokens, where transformers' cuts off one or none "
            "(`vision_feature_select_strategy`)",
        )
    return "default" if num_cut == 1 else "full"


# The model


@contextlib.contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """No dropout; the modes of the modules afterwards as before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _without_stop_strings(model: Any) -> Iterator[None]:
    """Generation settings without stop strings, which want a tokenizer."""
    own = model.generation_config
    model.generation_config = copy.deepcopy(own)
    model.generation_config.stop_strings = None
    try:
        yield
    finally:
        model.generation_config = own


def _without_name(config: PreTrainedConfig) -> dict[str, Any]:
    """A part's config without the place that it was once loaded from, which may be a folder of somebody's machine."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def _refuse(name: str, why: str, part: str = "vision encoder") -> NoReturn:
    raise ValueError(f"Transformers' LLaVA must be able to read the {part}, got `{name}`, {why}. {INSTEAD}")


@dataclass
class _VisionTower:
    """The vision encoder that transformers' LLaVA is to have.

    Attributes:
        layer: `vision_feature_layer` for it.
    """

    model: PreTrainedModel
    config: PreTrainedConfig
    layer: int
    notes: list[str]


def _vision_tower(model: Any, strategy: str) -> _VisionTower:
    """A vision encoder of transformers for pictures of our size.

    Raises:
        ValueError: if none of its hidden states holds the tokens that ours reads.
    """
    config = model.config
    own = model.vision_model
    name = own.config.model_type
    asked = accepted_arguments(own) & {"noise", "return_loss"}
    if asked:
        _refuse(name, f"which wants to be told its `{asked.pop()}`, and transformers' passes pictures alone")
    vision, notes = stock_part(own)
    size = (config.image_size[0], config.image_size[1])
    layer = config.vision_feature_layer
    pixels = _probe_pixels(model, 1)
    is_own_size = size == configured_image_size(own.config)
    with torch.no_grad():
        wanted = vision_features(own, pixels, interpolate_pos_encoding=not is_own_size, layer=layer).features
    fault = ""
    for candidate in [vision] if is_own_size else [_at_size(vision, size), vision]:
        tower = _VisionTower(candidate, copy.deepcopy(candidate.config), layer, list(notes))
        fault = _settle_layer(tower, pixels, wanted)
        if not fault:
            break
    if fault:
        _refuse(name, fault)
    if _tables_of_another_size(tower.model, vision):
        tower.notes.append(
            f"the vision encoder's positions came out resampled to {size[0]} x {size[1]} pixels, once for all"
        )
    width = getattr(tower.config, "hidden_size", None)
    if width != wanted.shape[-1]:
        _refuse(name, f"whose config says {width} for `hidden_size`, where its tokens are {wanted.shape[-1]} wide")
    num_tokens = select_tokens(wanted, config.num_prefix_tokens or 0, config.vision_feature_select_strategy).shape[1]
    if num_tokens != wanted.shape[1] - (strategy == "default"):
        _refuse(name, f"of whose {wanted.shape[1]} tokens ours shows {num_tokens}")
    return tower


def _settle_layer(tower: _VisionTower, pixels: torch.Tensor, wanted: torch.Tensor) -> str:
    """Find out how transformers' LLaVA comes to the tokens that ours reads; gives back why it can't, or nothing.

    Args:
        pixels: float (1, channels, height, width).
        wanted: float (1, tokens, hidden_size), what ours reads of them.
    """
    layer, dtype = tower.layer, tower.model.dtype
    with torch.no_grad():
        try:
            outputs = tower.model(pixels, output_hidden_states=True, return_dict=True)
        except FAULTS as error:
            height, width = pixels.shape[-2:]
            return f"which does not take pictures of {height} x {width} pixels without being told ({error})"
    states = getattr(outputs, "hidden_states", None) or ()
    if not -len(states) <= layer < len(states):
        return f"which gives {len(states)} hidden states, none of them number {layer}"
    if states[layer].dim() != 3:
        return f"which gives a map of shape {tuple(states[layer].shape)} and no tokens"
    if _alike(states[layer], wanted, dtype):
        if layer == 0:  # it is passed on as `output_hidden_states`, where 0 means none
            tower.layer = -len(states)
        return ""
    if layer != -1 or not _alike(outputs.last_hidden_state, wanted, dtype):
        return f"whose hidden state {layer} is not what ours reads at `vision_feature_layer` {layer}"
    tower.config.tie_last_hidden_states = True
    tower.notes.append(
        "`vision_feature_layer` -1, the output behind the vision encoder's final norm, came out as its setting "
        "`tie_last_hidden_states`, which transformers 5.20 and newer know; a program that reads the folder by code of its own "
        "may take the layer before that norm"
    )
    return ""


def _at_size(vision: PreTrainedModel, size: tuple[int, int]) -> PreTrainedModel:
    """A vision encoder whose table of positions is resampled to pictures of another size, which it then need not be told.

    Where it has no such table only its config differs. Where it can't be made for the size it is given back as it is.

    Args:
        size: (height, width) in pixels.
    """
    config = copy.deepcopy(vision.config)
    try:
        config.image_size = size[0] if size[0] == size[1] and isinstance(config.image_size, int) else list(size)
        with init.no_init_weights():
            resized = AutoModel.from_config(config, dtype=vision.dtype).to(vision.device)
        weights = vision.state_dict()
        for name in _tables_of_another_size(resized, vision):
            table = resized.state_dict()[name]
            owner: Any = vision.get_submodule(name.removesuffix(".weight").rpartition(".")[0])
            nothing = table.new_zeros(1, *table.shape[-2:])
            with torch.no_grad():
                weights[name] = owner.interpolate_pos_encoding(nothing, *size).reshape(table.shape)
        resized.load_state_dict(weights)
    except FAULTS:
        return vision
    return resized.eval()


def _tables_of_another_size(resized: PreTrainedModel, vision: PreTrainedModel) -> list[str]:
    weights = vision.state_dict()
    return [name for name, tensor in resized.state_dict().items() if weights[name].shape != tensor.shape]


def _language_model(language_model: Any) -> tuple[PreTrainedModel, PreTrainedConfig, torch.Tensor, list[str]]:
    """A language model's body, the config that it is to have, the matrix that makes logits of its output, and notes.

    Raises:
        ValueError: if logits are made in another way than by a matrix, or embeddings have another width than the layers.
    """
    config = language_model.config
    name = config.model_type
    body = language_model.base_model
    output_layer = language_model.get_output_embeddings()
    if body is language_model or not isinstance(output_layer, nn.Linear):
        _refuse(name, "whose output layer does not stand beside a body", "language model")
    if output_layer.bias is not None and bool(output_layer.bias.any()):
        _refuse(name, "whose output layer has a bias, where transformers' has none", "language model")
    words = body.get_input_embeddings().weight
    if not words.shape[-1] == output_layer.in_features == config.hidden_size:
        _refuse(
            name,
            f"whose embeddings are {words.shape[-1]} wide and its layers {config.hidden_size}, where transformers' projector "
            "has one width for both",
            "language model",
        )
    scaled_by, factor = _logit_factor(language_model, body, output_layer)
    is_tied = output_layer.weight is words or output_layer.weight.data_ptr() == words.data_ptr()
    can_tie = factor == 1 and getattr(body, "embed_tokens", None) is body.get_input_embeddings()
    text_config = copy.deepcopy(body.config)
    text_config.tie_word_embeddings = is_tied and can_tie
    notes = []
    if scaled_by is not None and factor != 1:
        setattr(text_config, scaled_by, 1.0)
        notes.append(f"the language model's `{scaled_by}` was multiplied into its output layer, and is 1 now")
    if is_tied and not can_tie:
        notes.append(
            "word embedding and output layer, one tensor in ours, came out as two: transformers' LLaVA can't tie those of "
            f"`{name}`" + (", whose logits have a factor" if factor != 1 else "")
        )
    return body, text_config, output_layer.weight * factor, notes


def _logit_factor(language_model: Any, body: Any, output_layer: nn.Linear) -> tuple[str | None, float]:
    """The setting by which a language model multiplies its output layer's numbers, and the factor, tried on a few words.

    Raises:
        ValueError: if it does something else to them.
    """
    config = language_model.config
    factors: dict[str | None, float] = {None: 1.0}
    if getattr(config, "logit_scale", None):
        factors["logit_scale"] = config.logit_scale
    if getattr(config, "logits_scaling", None):
        factors["logits_scaling"] = 1 / config.logits_scaling
    is_capped = bool(getattr(config, "final_logit_softcapping", None))  # small numbers don't show it
    with torch.no_grad():
        words = language_model.get_input_embeddings()
        ids = torch.arange(min(words.num_embeddings, 4 * _NUM_PROBE_WORDS), device=language_model.device)[None]
        arguments = {"inputs_embeds": words(ids), "use_cache": False, "return_dict": True}
        wanted = language_model(**arguments).logits
        plain = output_layer(body(**arguments).last_hidden_state)
    for name, factor in factors.items():
        if not is_capped and _alike(plain * factor, wanted, language_model.dtype):
            return name, factor
    _refuse(
        config.model_type,
        "which makes its logits by more than a matrix" + (" (`final_logit_softcapping`)" if is_capped else ""),
        "language model",
    )


def _copy_into(part: nn.Module, own: nn.Module, name: str, kind: str) -> None:
    weights = own.state_dict()
    missing, unexpected = sorted(set(part.state_dict()) - set(weights)), sorted(set(weights) - set(part.state_dict()))
    if missing or unexpected:
        _refuse(name, f"of other tensors than `AutoModel` makes: {', '.join([*missing, *unexpected][:3])}", kind)
    part.load_state_dict(weights)


def _copy_projector(theirs: Any, linears: Any) -> None:
    theirs.linear_1.load_state_dict(linears[0].state_dict())
    if len(linears) == 2:
        theirs.linear_2.load_state_dict(linears[1].state_dict())
    else:
        nn.init.eye_(theirs.linear_2.weight)
        nn.init.zeros_(theirs.linear_2.bias)


def _compare(model: Any, stock: LlavaForConditionalGeneration) -> list[str]:
    """Checks that both give the same logits, and notes on what only transformers' class does otherwise.

    Raises:
        ValueError: if they don't.
    """
    vision_name, text_name = model.config.vision_config.model_type, model.config.text_config.model_type
    pixels = _probe_pixels(model, 2)
    ids = _probe_ids(model)
    notes = []
    with torch.no_grad():
        try:
            seen = torch.stack(list(stock.get_image_features(pixels).pooler_output))
        except FAULTS as error:
            _refuse(vision_name, f"which it fails on ({error})")
        if not _alike(seen, torch.stack(list(model.get_image_features(pixels).pooler_output)), stock.dtype):
            _refuse(
                vision_name,
                "of which it reads something else than ours"
                + (
                    ": the output behind a final norm is none of its hidden states"
                    if model.config.vision_feature_layer == -1
                    else ""
                ),
            )
        mask = torch.ones_like(ids)
        try:
            got = stock(input_ids=ids, attention_mask=mask, pixel_values=pixels, use_cache=True).logits
        except FAULTS as error:
            _refuse(text_name, f"which it fails on ({error})", "language model")
        wanted = model(input_ids=ids, attention_mask=mask, pixel_values=pixels, use_cache=True).logits
        if not _alike(got, wanted, stock.dtype):
            _refuse(text_name, "which it reads otherwise than ours", "language model")

        ids = torch.cat([ids[:1, :2], ids[:1, -4:]], dim=1)
        mask = torch.tensor([[0, 0, 1, 1, 1, 1]], device=ids.device)
        positions = torch.tensor([[0, 0, 0, 1, 2, 3]], device=ids.device)
        alone = stock(input_ids=ids[:, 2:], attention_mask=mask[:, 2:]).logits
        if not _alike(
            stock(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, 2:], alone, stock.dtype
        ):
            notes.append(
                f"transformers' LLaVA reads the padding in front of a row with `{text_name}`, though it is masked: give "
                "prompts one at a time, or of equal length"
            )
        elif not _alike(stock(input_ids=ids, attention_mask=mask).logits[:, 2:], alone, stock.dtype):
            notes.append(
                f"`{text_name}` counts positions from the padding of a row: `forward` wants `position_ids` with a padded batch, "
                "as `generate` makes them"
            )
    return notes


def _alike(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors are the same but for rounding, judged against the largest number."""
    if got.shape != wanted.shape:
        return False
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 5e-2
    return bool((got.double() - wanted.double()).abs().max() <= tolerance * wanted.double().abs().max())


def _probe_pixels(model: Any, number: int) -> torch.Tensor:
    """Random pictures, float (number, channels, height, width), as the vision encoder takes them."""
    height, width = model.config.image_size
    channels = getattr(model.config.vision_config, "num_channels", 3)
    noise = torch.randn(number, channels, height, width, generator=torch.Generator().manual_seed(0))
    return noise.to(model.vision_model.device, model.vision_model.dtype)


def _probe_ids(model: Any) -> torch.Tensor:
    """Two prompts with a picture each between words, int64 (2, tokens)."""
    config = model.config
    rows = model.get_input_embeddings().num_embeddings
    special = {config.image_token_id, config.pad_token_id, config.bos_token_id}
    special |= set(config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id])
    words = [token for token in range(rows) if token not in special][: 4 * _NUM_PROBE_WORDS]
    picture = [config.image_token_id] * config.num_image_tokens
    prompts = [
        [*words[0:2], *picture, *words[2:_NUM_PROBE_WORDS]],
        [*words[-2:], *picture, *words[1 : _NUM_PROBE_WORDS - 1]],
    ]
    return torch.tensor(prompts, device=model.device)
