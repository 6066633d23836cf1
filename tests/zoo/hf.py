"""Hugging Face architectures at small size, built from their configurations; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["CONFIGS", "PARAMETERS", "build"]

# experts are bare parameters, which a call must ask for
PARAMETERS = {"mixtral": "*.experts.*"}

_TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 99,
}
_LM = {**_TEXT, "num_key_value_heads": 2, "max_position_embeddings": 64}
_IMAGE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}

# name -> (model class, config class, options, kind of example)
CONFIGS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "bert": ("BertModel", "BertConfig", _TEXT, "text"),
    "roberta": ("RobertaModel", "RobertaConfig", _TEXT, "text"),
    "electra": ("ElectraModel", "ElectraConfig", {**_TEXT, "embedding_size": 32}, "text"),
    "albert": ("AlbertModel", "AlbertConfig", {**_TEXT, "embedding_size": 32}, "text"),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 99},
        "text",
    ),
    "mpnet": ("MPNetModel", "MPNetConfig", _TEXT, "text"),
    "deberta_v2": ("DebertaV2Model", "DebertaV2Config", _TEXT, "text"),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 64},
        "text",
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT, "text"),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "vocab_size": 99,
            "word_embed_proj_dim": 64,
            "max_position_embeddings": 64,
        },
        "text",
    ),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99},
        "text",
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _LM, "text"),
    "mistral": ("MistralForCausalLM", "MistralConfig", _LM, "text"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _LM, "text"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_LM, "head_dim": 16}, "text"),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_LM, "head_dim": 16}, "text"),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_LM, "head_dim": 16}, "text"),
    "phi": ("PhiForCausalLM", "PhiConfig", {**_LM, "num_key_value_heads": 4}, "text"),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**_LM, "pad_token_id": 0}, "text"),
    "t5": (
        "T5Model",
        "T5Config",
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 99},
        "seq2seq",
    ),
    "bart": (
        "BartModel",
        "BartConfig",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "vocab_size": 99,
            "max_position_embeddings": 64,
        },
        "seq2seq",
    ),
    "vit": ("ViTModel", "ViTConfig", _IMAGE, "image"),
    "deit": ("DeiTModel", "DeiTConfig", _IMAGE, "image"),
    "beit": ("BeitModel", "BeitConfig", _IMAGE, "image"),
    "dinov2": ("Dinov2Model", "Dinov2Config", {**_IMAGE, "mlp_ratio": 2}, "image"),
    "swin": (
        "SwinModel",
        "SwinConfig",
        {
            "embed_dim": 32,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "image_size": 32,
            "patch_size": 4,
            "window_size": 4,
        },
        "image",
    ),
    "convnext": (
        "ConvNextModel",
        "ConvNextConfig",
        {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1]},
        "image",
    ),
    "resnet": (
        "ResNetModel",
        "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
        "image",
    ),
    "segformer": (
        "SegformerModel",
        "SegformerConfig",
        {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8]},
        "image",
    ),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {**_TEXT, "max_position_embeddings": 32, "eos_token_id": 2},
            "vision_config": _IMAGE,
            "projection_dim": 32,
        },
        "clip",
    ),
    "siglip": (
        "SiglipModel",
        "SiglipConfig",
        {"text_config": {**_TEXT, "max_position_embeddings": 32}, "vision_config": _IMAGE},
        "clip",
    ),
    "whisper": (
        "WhisperModel",
        "WhisperConfig",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "vocab_size": 99,
            "num_mel_bins": 16,
            "max_source_positions": 30,
            "max_target_positions": 30,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        "speech",
    ),
    "wav2vec2": (
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        {
            **_TEXT,
            "conv_dim": (32, 32),
            "conv_stride": (5, 2),
            "conv_kernel": (10, 3),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        "audio",
    ),
    "detr": (
        "DetrModel",
        "DetrConfig",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "num_queries": 5,
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone_config": "resnet",
        },
        "image",
    ),
    "mask2former": (
        "Mask2FormerForUniversalSegmentation",
        "Mask2FormerConfig",
        {
            **dict.fromkeys(["feature_size", "mask_feature_size", "hidden_dim"], 64),
            **dict.fromkeys(["encoder_feedforward_dim", "dim_feedforward"], 128),
            "encoder_layers": 2,
            "decoder_layers": 3,
            "num_attention_heads": 4,
            "num_queries": 10,
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone_config": "swin",
        },
        "image",
    ),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "vocab_size": 99},
        "text",
    ),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**_LM, "num_local_experts": 4, "num_experts_per_tok": 2},
        "text",
    ),
}


def build(name: str) -> tuple[nn.Module, Any]:
    """A small model with random weights in eval mode, and an example."""
    import transformers

    from models import declare_torchvision, randomise

    declare_torchvision()
    model_class, config_class, options, kind = CONFIGS[name]
    options = dict(options)
    if options.get("backbone_config") == "resnet":
        options["backbone_config"] = transformers.ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], out_features=["stage4"]
        )
    if options.get("backbone_config") == "swin":
        options["backbone_config"] = transformers.SwinConfig(
            **{"embed_dim": 32, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 4},
            image_size=32,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
    config = getattr(transformers, config_class)(**options)
    model = getattr(transformers, model_class)(config)
    config.use_cache = False
    return randomise(model).eval(), example(kind)


def example(kind: str) -> Any:
    """An input of the kind a model takes."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 90, (2, 7), generator=generator)
    image = torch.randn(2, 3, 32, 32, generator=generator)
    if kind == "text":
        return {"input_ids": tokens}
    if kind == "seq2seq":
        return {"input_ids": tokens, "decoder_input_ids": tokens[:, :5]}
    if kind == "image":
        return {"pixel_values": image}
    if kind == "clip":
        return {"input_ids": tokens, "pixel_values": image}
    if kind == "speech":
        return {
            "input_features": torch.randn(2, 16, 60, generator=generator),
            "decoder_input_ids": tokens[:, :5],
        }
    return {"input_values": torch.randn(2, 400, generator=generator)}
