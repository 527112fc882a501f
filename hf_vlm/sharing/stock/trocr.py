"""Our TrOCR as transformers' `VisionEncoderDecoderModel` and `TrOCRProcessor`.

The vision encoder stays itself, or is what `stock_part` makes of ours; so does a decoder of transformers. Our own decoder
becomes whichever of theirs has its layers:

| `norm_position` | `embedding_norm` | `layer_norm_eps` | theirs |
|---|---|---|---|
| post | either | 1e-5 | `TrOCRForCausalLM`, the published decoders |
| post | yes | any | `BertGenerationDecoder`, as of BERT and RoBERTa |
| pre | no | any | `GPT2LMHeadModel` |
| pre | yes | 1e-5 | `MBartForCausalLM` |

The rest is brought to their form: fixed positions become a table, a factor on the word embedding is multiplied into it (the
output layer is then a table of its own), and a cross-attention of another width reads through `enc_to_dec_proj`.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BertGenerationConfig,
    BertGenerationDecoder,
    GPT2Config,
    GPT2LMHeadModel,
    MBartConfig,
    MBartForCausalLM,
    PreTrainedModel,
    TrOCRConfig,
    TrOCRForCausalLM,
    TrOCRProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)

from hf_vlm.models.trocr.configuration_trocr import TrOCREncoderDecoderTextConfig
from hf_vlm.models.trocr.text_decoder import TrOCREncoderDecoderForCausalLM
from hf_vlm.models.trocr.weights_trocr import (
    CONFIG_FIELDS,
    EMBEDDING_NORM,
    LAYER_MODULES,
    POSITION_OFFSET,
    POSITIONS,
    WORDS,
    decoder_weights_from_trocr,
)
from hf_vlm.parts import decoder_weights
from hf_vlm.parts.vision_features import configured_image_size
from hf_vlm.sharing.stock.export import stock_part
from hf_vlm.sharing.stock.pictures import stock_image_processor
from hf_vlm.sharing.stock.weights import Tensors, fill_stock, output_difference

_INSTEAD = "`hf-vlm export-code` carries the model as it is."
_TROCR_EPS = 1e-5  # torch's default, which TrOCR and MBart do not change


def to_stock(model: Any) -> tuple[VisionEncoderDecoderModel, list[str]]:
    """Transformers' reader of the same mathematics, weights in it, in the dtype of ours.

    Args:
        model: a `TrOCREncoderDecoderForConditionalGeneration`.

    Returns: that model in evaluation mode, its generation settings those of ours; notes, what was left behind or came out in
        another form. Where weights had to be multiplied, it is in fp32.

    Raises:
        ValueError: if there is none; it names the setting.
    """
    encoder, notes = stock_part(model.encoder.vision_model)
    width = getattr(encoder.config, "hidden_size", None)
    if width != model.config.vision_hidden_size:
        raise ValueError(
            "`VisionEncoderDecoderModel` asks the vision encoder's config for its `hidden_size`, which must be "
            f"{model.config.vision_hidden_size}, got {width} of `{encoder.config.model_type}`. {_INSTEAD}"
        )
    projection = dict(model.encoder.projection.state_dict())
    if isinstance(model.decoder, TrOCREncoderDecoderForCausalLM):
        decoder, projection, decoder_notes = _stock_decoder(model, projection)
        notes = [*notes, *decoder_notes]
    else:
        decoder = model.decoder
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
    stock = VisionEncoderDecoderModel(config).to(decoder.dtype).eval()
    if decoder.dtype != model.dtype:
        notes.append(
            f"the weights are in {str(decoder.dtype).removeprefix('torch.')}: in another form they would be rounded"
        )
    stock.encoder.load_state_dict(encoder.state_dict())
    stock.decoder.load_state_dict(decoder.state_dict())
    theirs = getattr(stock, "enc_to_dec_proj", None)
    if (theirs is not None) != bool(projection):
        raise ValueError(
            "The picture's tokens must go through a projection where encoder and decoder are of different widths, and only "
            f"there, for `VisionEncoderDecoderModel`, got {width} and {decoder.config.hidden_size}, "
            f"{'with' if projection else 'without'} one. {_INSTEAD}"
        )
    if theirs is not None:
        theirs.load_state_dict(projection)

    stock.generation_config = copy.deepcopy(model.generation_config)
    for name in ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(model.config, name)
        setattr(stock.config, name, value)
        if getattr(stock.generation_config, name, None) is None:
            setattr(stock.generation_config, name, value)
    if model.config.ctc_loss_weight:
        notes.append("the CTC head is left out: `VisionEncoderDecoderModel` has none")
    if model.config.ctc_decoding_weight:
        notes.append(
            f"greedy reading asks the decoder alone, where ours, with `ctc_decoding_weight={model.config.ctc_decoding_weight}`,"
            " asks the CTC head too: expect more errors"
        )
    return stock, list(dict.fromkeys(notes))


def to_stock_processor(processor: Any, model: Any) -> tuple[Any, list[str]]:
    """Transformers' `TrOCRProcessor` of the same pixels and the same tokenizer.

    Returns: the tokenizer alone in its place where transformers has no image processor of these pixels; the notes then say
        what pixels the model wants.
    """
    image_processor, notes = stock_image_processor(processor.image_processor)
    if image_processor is None:
        tokenizer = copy.deepcopy(processor.tokenizer)
        tokenizer._processor_class = None
        tokenizer.init_kwargs.pop("processor_class", None)
        return tokenizer, [*notes, "the tokenizer was written alone"]
    own_labels = processor.labels(["a"], return_tensors=None)[0]
    if processor.tokenizer(["a"])["input_ids"][0] != own_labels:
        notes.append(
            f"labels that `TrOCRProcessor` makes have the tokenizer's own special tokens, where ours end with token "
            f"{processor.end_token_id} alone: mind it when training on"
        )
    if processor.max_label_length is not None:
        notes.append(f"`TrOCRProcessor` doesn't refuse labels of more than {processor.max_label_length} tokens")
    return TrOCRProcessor(image_processor, processor.tokenizer), notes


@torch.no_grad()
def largest_difference(model: Any, stock: Any) -> float:
    """The largest difference of logits on two random pictures, as `output_difference` counts it; infinite if what they write
    differs, greedily or by beam search.

    Ours reads as the decoder alone does: a CTC head is not asked.

    Args:
        model, stock: in fp32, in evaluation mode.
    """
    config = model.config
    generator = torch.Generator().manual_seed(0)
    channels = getattr(config.vision_config, "num_channels", 3)
    pixels = torch.randn(2, channels, *configured_image_size(config.vision_config), generator=generator)
    num_tokens = min(8, getattr(config.text_config, "max_position_embeddings", 8) - 1)
    words = [token for token in range(model.decoder.config.vocab_size) if token != config.pad_token_id]
    ids = torch.tensor(words)[torch.randint(0, len(words), (2, num_tokens), generator=generator)]
    ids[:, 0] = config.decoder_start_token_id
    ours = model(pixel_values=pixels, decoder_input_ids=ids).logits
    difference = output_difference(ours, stock(pixel_values=pixels, decoder_input_ids=ids).logits)
    weight, config.ctc_decoding_weight = config.ctc_decoding_weight, 0.0
    try:
        for num_beams in (1, 3):
            settings = {"max_new_tokens": num_tokens, "num_beams": num_beams, "do_sample": False}
            if not torch.equal(model.generate(pixels, **settings), stock.generate(pixels, **settings)):
                return float("inf")
    finally:
        config.ctc_decoding_weight = weight
    return difference


def _stock_decoder(model: Any, projection: Tensors) -> tuple[PreTrainedModel, Tensors, list[str]]:
    """Transformers' decoder for ours; the projection before it, empty for none; notes."""
    config: TrOCREncoderDecoderTextConfig = copy.deepcopy(model.decoder.config)
    own: Tensors = dict(model.decoder.state_dict())
    notes: list[str] = []
    if config.norm_position == "post" and config.layer_norm_eps == _TROCR_EPS:
        build: Callable[..., PreTrainedModel] = _trocr
    elif config.norm_position == "post" and config.embedding_norm:
        build = _bert_generation
    elif config.norm_position == "pre" and not config.embedding_norm:
        build = _gpt2
    elif config.norm_position == "pre" and config.layer_norm_eps == _TROCR_EPS:
        build = _mbart
    else:
        raise ValueError(
            f"`layer_norm_eps` must be {_TROCR_EPS} for a decoder of transformers with `norm_position="
            f"'{config.norm_position}'` and `embedding_norm={config.embedding_norm}`, got {config.layer_norm_eps}. {_INSTEAD}"
        )
    projection = _fit_widths(model, config, own, projection, is_trocr=build is _trocr, notes=notes)
    if config.position_embedding == "sinusoidal":
        own["model.embed_positions.weight"] = model.decoder.model.embed_positions.computed()
        config.position_embedding = (
            "learned"  # `TrOCRForCausalLM`, loaded, has no fixed ones: they stay on the meta device
        )
        notes.append("the fixed positions of the text came out as a table that learns")
    if config.scale_embedding and build in (_bert_generation, _gpt2):
        own["model.embed_tokens.weight"] = own["model.embed_tokens.weight"].float() * model.decoder.model.embed_scale
        config.scale_embedding = False
        if config.tie_word_embeddings:
            config.tie_word_embeddings = False
            notes.append("the word embedding holds its factor, so that the output layer is a table of its own")
    if config.tie_word_embeddings:
        own.pop("lm_head.weight", None)
    # What was computed is in fp32, and with it all: rounded to half precision it would give other logits.
    dtype = torch.float32 if any(tensor.dtype == torch.float32 for tensor in own.values()) else model.dtype
    own = {name: tensor.to(dtype) for name, tensor in own.items()}
    decoder = build(config, own, model.config.decoder_start_token_id)
    if build is not _trocr:
        notes.append(f"the decoder came out as `{type(decoder).__name__}`: `TrOCRForCausalLM` has other layers")
    return decoder, projection, notes


def _fit_widths(
    model: Any,
    config: TrOCREncoderDecoderTextConfig,
    own: Tensors,
    projection: Tensors,
    *,
    is_trocr: bool,
    notes: list[str],
) -> Tensors:
    """The projection that theirs has before the decoder, after keys and values of `own` were made to fit it.

    Theirs projects to the decoder's width wherever the encoder is of another, but for a TrOCR decoder that reads the encoder's.
    """
    vision, read, width = model.config.vision_hidden_size, config.cross_attention_size, config.hidden_size
    assert read is not None
    names = [
        f"model.layers.{layer}.cross_attention.{kind}_proj"
        for layer in range(config.num_hidden_layers)
        for kind in ("k", "v")
    ]
    if projection and read != width:  # theirs would project to another width: it goes into keys and values
        for name in names:
            weight = own[f"{name}.weight"].float()
            bias = own[f"{name}.bias"].float() + weight @ projection["bias"].float()
            own[f"{name}.bias"], own[f"{name}.weight"] = bias, weight @ projection["weight"].float()
        notes.append("the projection of the picture's tokens is multiplied into the keys and values that read them")
        projection, read = {}, vision
        config.cross_attention_size = vision
    if is_trocr or read == width:
        return projection
    if read > width:
        raise ValueError(
            f"`cross_attention_size` must be at most the decoder's `hidden_size`, {width}, for a decoder of transformers with "
            f"`norm_position='{config.norm_position}'` and `layer_norm_eps={config.layer_norm_eps}`, got {read}. {_INSTEAD}"
        )
    for name in names:  # the picture's tokens are filled up with zeros, for which nothing is learned
        weight = own[f"{name}.weight"]
        own[f"{name}.weight"] = torch.cat((weight, weight.new_zeros(len(weight), width - read)), dim=1)
    notes.append("a projection that fills the picture's tokens up with zeros stands before the decoder")
    eye = torch.eye(width, read, dtype=model.dtype)
    return {"weight": eye, "bias": torch.zeros(width, dtype=model.dtype)}


def _trocr(config: TrOCREncoderDecoderTextConfig, own: Tensors, start_token_id: int) -> PreTrainedModel:
    settings = {theirs: getattr(config, ours) for theirs, ours in CONFIG_FIELDS.items()}
    settings["cross_attention_hidden_size"] = (
        config.cross_attention_size if config.cross_attention_size != config.hidden_size else None
    )
    stock = TrOCRForCausalLM(
        TrOCRConfig(
            **settings,
            use_learned_position_embeddings=True,
            decoder_start_token_id=start_token_id,
            is_decoder=True,
            add_cross_attention=True,
        )
    ).to(own["model.embed_tokens.weight"].dtype)

    def read(weights: Tensors) -> Tensors:
        return decoder_weights_from_trocr(weights, config)

    fill_stock(stock, own, read, unread={POSITIONS: 0.0})
    return stock.eval()


def _mbart(config: TrOCREncoderDecoderTextConfig, own: Tensors, start_token_id: int) -> PreTrainedModel:
    settings = {theirs: getattr(config, ours) for theirs, ours in CONFIG_FIELDS.items()}
    settings.pop("layernorm_embedding")  # MBart always has it
    stock = MBartForCausalLM(
        MBartConfig(**settings, is_decoder=True, add_cross_attention=True, is_encoder_decoder=False)
    )
    modules = {**EMBEDDING_NORM, "model.decoder.layer_norm": "model.final_norm"}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in LAYER_MODULES.items():
            modules[f"model.decoder.layers.{layer}.{theirs}"] = f"model.layers.{layer}.{ours}"
    table = own.pop("model.embed_positions.weight")
    placed = _placed(modules, own) | {
        WORDS: own.pop("model.embed_tokens.weight"),
        POSITIONS: torch.cat((table.new_zeros(POSITION_OFFSET, table.shape[1]), table)),
    }
    return _loaded(stock, placed, own, output="lm_head.weight", words=WORDS)


def _bert_generation(config: TrOCREncoderDecoderTextConfig, own: Tensors, start_token_id: int) -> PreTrainedModel:
    settings = {theirs: getattr(config, ours) for theirs, ours in decoder_weights.CONFIG_FIELDS.items()}
    stock = BertGenerationDecoder(
        BertGenerationConfig(
            **settings, is_decoder=True, add_cross_attention=True, tie_word_embeddings=config.tie_word_embeddings
        )
    )
    modules = {f"bert.{theirs}": ours for theirs, ours in decoder_weights.EMBEDDING_MODULES.items()}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in decoder_weights.LAYER_MODULES.items():
            modules[f"bert.encoder.layer.{layer}.{theirs}"] = f"model.layers.{layer}.{ours}"
            if theirs.startswith("attention."):  # its cross-attention is laid out alike
                ours = ours.replace("self_attention", "cross_attention")
                modules[f"bert.encoder.layer.{layer}.cross{theirs}"] = f"model.layers.{layer}.{ours}"
    words = f"bert.{decoder_weights.WORDS}"
    placed = _placed(modules, own) | {
        words: own.pop("model.embed_tokens.weight"),
        f"bert.{decoder_weights.POSITIONS}": own.pop("model.embed_positions.weight"),
    }
    zeros = placed[words].new_zeros(config.vocab_size)
    placed |= {"lm_head.bias": zeros, "lm_head.decoder.bias": zeros}  # ours adds none
    return _loaded(stock, placed, own, output="lm_head.decoder.weight", words=words)


# GPT-2's tables of one layer -> ours, side by side; its weights are (in, out).
_GPT2_LAYER = {
    "ln_1": ("self_attention_norm",),
    "attn.c_attn": ("self_attention.q_proj", "self_attention.k_proj", "self_attention.v_proj"),
    "attn.c_proj": ("self_attention.o_proj",),
    "ln_cross_attn": ("cross_attention_norm",),
    "crossattention.q_attn": ("cross_attention.q_proj",),
    "crossattention.c_attn": ("cross_attention.k_proj", "cross_attention.v_proj"),
    "crossattention.c_proj": ("cross_attention.o_proj",),
    "ln_2": ("mlp_norm",),
    "mlp.c_fc": ("mlp.fc1",),
    "mlp.c_proj": ("mlp.fc2",),
}


def _gpt2(config: TrOCREncoderDecoderTextConfig, own: Tensors, start_token_id: int) -> PreTrainedModel:
    stock = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_position_embeddings,
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_inner=config.intermediate_size,
            activation_function=config.hidden_act,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.attention_dropout,
            layer_norm_epsilon=config.layer_norm_eps,
            initializer_range=config.initializer_range,
            tie_word_embeddings=config.tie_word_embeddings,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            is_decoder=True,
            add_cross_attention=True,
        )
    )
    words = "transformer.wte.weight"
    placed = {
        words: own.pop("model.embed_tokens.weight"),
        "transformer.wpe.weight": own.pop("model.embed_positions.weight"),
    }
    placed |= _placed({"transformer.ln_f": "model.final_norm"}, own)
    for layer in range(config.num_hidden_layers):
        for theirs, parts in _GPT2_LAYER.items():
            for kind in ("weight", "bias"):
                joined = torch.cat([own.pop(f"model.layers.{layer}.{ours}.{kind}") for ours in parts])
                placed[f"transformer.h.{layer}.{theirs}.{kind}"] = joined.T if joined.ndim == 2 else joined
    return _loaded(stock, placed, own, output="lm_head.weight", words=words)


def _placed(modules: dict[str, str], own: Tensors) -> Tensors:
    """Weight and bias of modules, taken out of ours: their names -> ours."""
    return {
        f"{theirs}.{kind}": own.pop(f"{ours}.{kind}") for theirs, ours in modules.items() for kind in ("weight", "bias")
    }


def _loaded(stock: PreTrainedModel, placed: Tensors, own: Tensors, *, output: str, words: str) -> PreTrainedModel:
    """The stock decoder with these weights, its output layer ours or, where ours is tied, the words' table."""
    placed[output] = own.pop("lm_head.weight", placed[words])
    assert not own, sorted(own)  # every tensor of ours has its place; of theirs, `load_state_dict` makes sure
    stock.to(placed[words].dtype).load_state_dict({name: tensor.contiguous() for name, tensor in placed.items()})
    return stock.eval()
