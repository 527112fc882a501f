"""Tiny random vision models, language models and a tokenizer, one of each family: what the joining of parts is tried on.

Everything is drawn at random, takes milliseconds on a CPU and needs no network. A family's name is the one by which people
ask for it; its config is built anew at each call, as a model writes into the config that it is made of.
"""

import copy
import string
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers as hub
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

from hf_vlm import DVAEConfig, SwinTransformerConfig, VisionTransformerConfig, VQVAEConfig

# The tokenizer

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2, ...
PAD, START, END = 0, 1, 2
CHARACTERS = "\n " + string.digits + string.ascii_letters + string.punctuation
VOCAB_SIZE = len(SPECIAL_TOKENS) + len(CHARACTERS)  # 102: a language model gets as many rows, and a tokenizer no more
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer of one token a character, with the chat template ChatML; it knows nothing of pictures."""
    tokens = [*SPECIAL_TOKENS, *CHARACTERS]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?m:.)"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


# Vision models

_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
}
_DINOV2 = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}
_HEADS = {"num_attention_heads": [1, 1, 2, 2]}


def _timm(architecture: str, size: int, **arguments: Any) -> PreTrainedConfig:
    pretrained = {"input_size": [3, size, size]}
    return hub.TimmWrapperConfig(
        architecture=architecture, do_pooling=False, model_args=arguments, pretrained_cfg=pretrained
    )


VISION_FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "vit": lambda: hub.ViTConfig(**_VIT),
    "clip": lambda: hub.CLIPVisionConfig(**_VIT),
    "siglip": lambda: hub.SiglipVisionConfig(**_VIT),
    "dinov2": lambda: hub.Dinov2Config(**_DINOV2),
    "dinov2-registers": lambda: hub.Dinov2WithRegistersConfig(**_DINOV2, num_register_tokens=3),
    "dinov3": lambda: hub.DINOv3ViTConfig(**_VIT, num_register_tokens=2),
    "beit": lambda: hub.BeitConfig(**_VIT, use_relative_position_bias=True),
    "deit": lambda: hub.DeiTConfig(**_VIT),
    "vit-mae": lambda: hub.ViTMAEConfig(**_VIT, decoder_hidden_size=16, decoder_num_attention_heads=2),
    "yolos": lambda: hub.YolosConfig(**_VIT | {"image_size": [32, 32]}, num_detection_tokens=5),
    "swin": lambda: hub.SwinConfig(**_SWIN),
    "swinv2": lambda: hub.Swinv2Config(**_SWIN),
    "convnext": lambda: hub.ConvNextConfig(**_STAGES),
    "resnet": lambda: hub.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16, 16], depths=[1] * 5, layer_type="basic"
    ),  # says nothing of a size: 224 pixels become 4 x 4 places
    "segformer": lambda: hub.SegformerConfig(**_STAGES, **_HEADS),
    "pvt-v2": lambda: hub.PvtV2Config(**_STAGES, **_HEADS),
    "efficientnet": lambda: hub.EfficientNetConfig(
        image_size=64,
        width_coefficient=0.1,
        depth_divisor=4,
        hidden_dim=128,  # 1280 times the width coefficient
        in_channels=[32, 80, 80],
        out_channels=[80, 80, 160],
        kernel_sizes=[3, 3, 3],
        strides=[2, 2, 2],
        num_block_repeats=[1, 1, 1],
        expand_ratios=[1, 2, 2],
        depthwise_padding=[],
    ),
    "timm-resnet": lambda: _timm("resnet10t", 64, channels=(8, 8, 8, 8), stem_width=8),
    "timm-vit": lambda: _timm(
        "vit_tiny_patch16_224", 32, img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4
    ),
    "hf_vlm_vit": lambda: VisionTransformerConfig(hidden_size=32, num_hidden_layers=2, image_size=32, patch_size=8),
    "hf_vlm_swin": lambda: SwinTransformerConfig(
        embed_dim=8, depths=(1, 1), num_attention_heads=(2, 2), image_size=32, patch_size=4, window_size=2
    ),
    "hf_vlm_vqvae": lambda: VQVAEConfig(image_size=16, code_dim=8, hidden_channels=(8, 8), num_residual_blocks=(0, 0)),
    "hf_vlm_dvae": lambda: DVAEConfig(image_size=16, group_channels=8, num_groups=3, code_dim=8),
}

# Language models

_IDS = {"vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
_LLAMA = {
    **_IDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_ONE_KIND_OF_HEADS = {name: value for name, value in _LLAMA.items() if name != "num_key_value_heads"}
_GEMMA = {**_LLAMA, "head_dim": 8}
_GPT2 = {**_IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
_NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
_MAMBA = {**_IDS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}

LANGUAGE_FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: hub.LlamaConfig(**_LLAMA | {"vocab_size": 128}),  # spare rows, as real ones have
    "mistral": lambda: hub.MistralConfig(**_LLAMA, sliding_window=8),
    "mixtral": lambda: hub.MixtralConfig(**_LLAMA, num_local_experts=3, sliding_window=None),
    "qwen2": lambda: hub.Qwen2Config(**_LLAMA),
    "qwen3": lambda: hub.Qwen3Config(**_LLAMA, head_dim=8),
    "gemma": lambda: hub.GemmaConfig(**_GEMMA),
    "gemma2": lambda: hub.Gemma2Config(**_GEMMA, sliding_window=8, query_pre_attn_scalar=8),
    "gemma3_text": lambda: hub.Gemma3TextConfig(
        **_GEMMA,
        sliding_window=8,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi": lambda: hub.PhiConfig(**_ONE_KIND_OF_HEADS, embd_pdrop=0.0, resid_pdrop=0.0),
    "phi3": lambda: hub.Phi3Config(**_LLAMA),
    "opt": lambda: hub.OPTConfig(
        **_IDS, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, dropout=0.0
    ),
    "opt-word_embed_proj": lambda: hub.OPTConfig(
        **_IDS,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        dropout=0.0,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
    ),
    "gpt2": lambda: hub.GPT2Config(**_GPT2, **_NO_DROPOUT),
    "gptj": lambda: hub.GPTJConfig(**_GPT2, **_NO_DROPOUT, rotary_dim=4),
    "codegen": lambda: hub.CodeGenConfig(**_GPT2, **_NO_DROPOUT, rotary_dim=4),
    "gpt_bigcode": lambda: hub.GPTBigCodeConfig(**_GPT2, **_NO_DROPOUT),
    "gpt_neox": lambda: hub.GPTNeoXConfig(**_ONE_KIND_OF_HEADS),
    "gpt_neo": lambda: hub.GPTNeoConfig(
        **_IDS,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=512,
    ),
    "gpt_oss": lambda: hub.GptOssConfig(**_LLAMA, head_dim=8, sliding_window=8, num_local_experts=4),
    "falcon": lambda: hub.FalconConfig(**_IDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "falcon-alibi": lambda: hub.FalconConfig(
        **_IDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
    ),
    "bloom": lambda: hub.BloomConfig(**_IDS, hidden_size=32, n_layer=2, n_head=4),
    "mpt": lambda: hub.MptConfig(**_IDS, d_model=32, n_layers=2, n_heads=4, max_seq_len=512),
    "stablelm": lambda: hub.StableLmConfig(**_LLAMA),
    "olmo": lambda: hub.OlmoConfig(**_LLAMA),
    "olmo2": lambda: hub.Olmo2Config(**_LLAMA),
    "smollm3": lambda: hub.SmolLM3Config(**_LLAMA, no_rope_layers=[1, 0]),
    "granite": lambda: hub.GraniteConfig(
        **_LLAMA, embedding_multiplier=12.0, logits_scaling=2.0, residual_multiplier=0.5, attention_multiplier=0.3
    ),
    "cohere": lambda: hub.CohereConfig(**_LLAMA, logit_scale=0.5),
    "starcoder2": lambda: hub.Starcoder2Config(**_LLAMA, sliding_window=None),
    "biogpt": lambda: hub.BioGptConfig(
        **_ONE_KIND_OF_HEADS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ),
    "xglm": lambda: hub.XGLMConfig(
        **_IDS,
        d_model=32,
        ffn_dim=48,
        num_layers=2,
        attention_heads=4,
        max_position_embeddings=512,
        dropout=0.0,
        attention_dropout=0.0,
    ),
    "glm4": lambda: hub.Glm4Config(**_LLAMA, head_dim=8),
    "nemotron": lambda: hub.NemotronConfig(**_LLAMA),
    "exaone4": lambda: hub.Exaone4Config(
        **_LLAMA, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "modernbert-decoder": lambda: hub.ModernBertDecoderConfig(
        **_ONE_KIND_OF_HEADS,
        sliding_window=8,
        layer_types=["full_attention", "sliding_attention"],
        cls_token_id=START,
        sep_token_id=END,
    ),
    "bert-as-decoder": lambda: hub.BertConfig(
        **_ONE_KIND_OF_HEADS,
        is_decoder=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ),
    "deepseek_v3": lambda: hub.DeepseekV3Config(
        **_LLAMA | {"num_key_value_heads": 4},
        moe_intermediate_size=16,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        first_k_dense_replace=1,
    ),
    "mamba": lambda: hub.MambaConfig(**_MAMBA),
    "mamba2": lambda: hub.Mamba2Config(**_MAMBA, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
    "falcon_mamba": lambda: hub.FalconMambaConfig(**_MAMBA),
    "recurrent_gemma": lambda: hub.RecurrentGemmaConfig(
        **_LLAMA, head_dim=8, lru_width=32, attention_window_size=8, block_types=["recurrent", "attention"]
    ),
    "falcon_h1": lambda: hub.FalconH1Config(
        **_LLAMA, mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8
    ),
    "qwen3_5_text": lambda: hub.Qwen3_5TextConfig(
        **_LLAMA,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    "lfm2": lambda: hub.Lfm2Config(**_LLAMA, layer_types=["conv", "full_attention"]),
}


class Refused(NamedTuple):
    """A text model that can't be joined, a word of the message that says why, and whether its config is enough to tell."""

    config: Callable[[], PreTrainedConfig]
    word: str
    before_weights: bool = True


_T5 = {"vocab_size": VOCAB_SIZE, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
_PER_LAYER = {"vocab_size_per_layer_input": VOCAB_SIZE, "hidden_size_per_layer_input": 8}

REFUSED_FAMILIES: dict[str, Refused] = {
    "rwkv": Refused(
        lambda: hub.RwkvConfig(**_IDS, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
        "padding would enter its state",
    ),
    "trocr": Refused(
        lambda: hub.TrOCRConfig(**_IDS, d_model=32, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=48),
        "position_ids",
    ),
    "t5": Refused(lambda: hub.T5Config(**_T5), "causal language model"),
    "gemma3n_text": Refused(
        lambda: hub.Gemma3nTextConfig(**_GEMMA, **_PER_LAYER, num_kv_shared_layers=0), "hidden_size_per_layer_input"
    ),
    "gemma4_text": Refused(lambda: hub.Gemma4TextConfig(**_GEMMA, **_PER_LAYER), "hidden_size_per_layer_input"),
    "distilbert": Refused(
        lambda: hub.DistilBertConfig(**{"vocab_size": VOCAB_SIZE}, dim=32, n_layers=1, n_heads=4, hidden_dim=48),
        "causal language model",
    ),
    "gemma3": Refused(
        lambda: hub.Gemma3Config(text_config=dict(_GEMMA), vision_config=dict(_VIT)), "language model alone"
    ),
    "minimax": Refused(
        lambda: hub.MiniMaxConfig(
            **_LLAMA, head_dim=8, num_local_experts=2, layer_types=["linear_attention", "full_attention"]
        ),
        "a cache of its own",
    ),
    "bert": Refused(lambda: hub.BertConfig(**_ONE_KIND_OF_HEADS), "left to right", before_weights=False),
    "roberta-as-decoder": Refused(
        lambda: hub.RobertaConfig(**_ONE_KIND_OF_HEADS, is_decoder=True), "positions 0, 1, 2", before_weights=False
    ),
}

# Models


def randomise(model: nn.Module, gain: float = 1.0) -> None:
    """Gives every linear, convolution and embedding weight values that matter; a fresh model says nearly the same to all.

    Args:
        gain: output deviation of a layer for inputs of deviation 1.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(std=gain)
                if module.padding_idx is not None:
                    module.weight[module.padding_idx] = 0
            elif isinstance(module, (nn.Linear, Conv1D, nn.modules.conv._ConvNd)):
                weight = module.weight
                fan_in = weight.shape[0] if isinstance(module, Conv1D) else weight[0].numel()
                weight.normal_(std=gain / fan_in**0.5)
                if module.bias is not None:
                    module.bias.normal_(std=0.1)
    if isinstance(model, PreTrainedModel):
        model.tie_weights()


def tiny_vision_model(family: str) -> PreTrainedModel:
    """A vision model of one of `VISION_FAMILIES`, in evaluation mode."""
    model = AutoModel.from_config(VISION_FAMILIES[family]())
    randomise(model)
    return model.eval()


def tiny_language_model(family: str) -> PreTrainedModel:
    """A causal language model of one of `LANGUAGE_FAMILIES`, in evaluation mode."""
    model = AutoModelForCausalLM.from_config(copy.deepcopy(LANGUAGE_FAMILIES[family]()))
    randomise(model)
    return model.eval()


def tiny_image_processor(height: int, width: int) -> CLIPImageProcessor:
    """What brings pictures to a size and mean 0."""
    return CLIPImageProcessor(
        size={"height": height, "width": width},
        crop_size={"height": height, "width": width},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
