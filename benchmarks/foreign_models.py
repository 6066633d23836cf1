"""The models of `foreign.py`, by library: small, with random weights, and two calls of different shapes for each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "zoo"))

from foreign_own import OWN

from models import declare_torchvision, randomise

Built = tuple[nn.Module, object, object]
"""A model, an example, and an example of another shape."""


@dataclass(frozen=True)
class Foreign:
    """A model of the list.

    Attributes:
        library: What must be importable.
        name: The model.
        make: Builds it, with its two examples.
    """

    library: str
    name: str
    make: Callable[[], Built]

    def build(self) -> Built:
        """The model in evaluation mode and its two examples."""
        declare_torchvision()
        torch.manual_seed(0)
        model, example, other = self.make()
        return randomise(model).eval(), example, other


def _images(edge: int = 64, other: int = 96, channels: int = 3, rows: int = 2) -> tuple[object, object]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(rows, channels, edge, edge, generator=generator),
        torch.randn(1, channels, other, other, generator=generator),
    )


def _built(module: str, name: str, *args: object, images: tuple[object, object], **options: object) -> Built:
    return (getattr(import_module(module), name)(*args, **options), *images)


def _all(library: str, made: dict[str, Callable[[], Built]]) -> list[Foreign]:
    return [Foreign(library, name, make) for name, make in made.items()]


# -- ultralytics -------------------------------------------------------------------------------------------------------
_YOLO = [
    "yolov3-tiny",
    "yolov5n",
    "yolov6n",
    "yolov8n",
    "yolov8n-seg",
    "yolov8n-pose",
    "yolov8n-obb",
    "yolov8n-cls",
    "yolov8n-p2",
    "yolov8n-ghost",
    "yolov9t",
    "yolov10n",
    "yolov10s",
    "yolo11n",
    "yolo11n-seg",
    "yolo11n-pose",
    "yolo11n-obb",
    "yolo11n-cls",
    "yolo12n",
    "yolo12n-seg",
    "yolo12n-pose",
    "yolo12n-cls",
    "yolo26n",
    "yolo26n-seg",
    "yolo26n-pose",
    "yolo26n-obb",
    "yolo26n-cls",
]


def _yolo(name: str) -> Built:
    tasks = import_module("ultralytics.nn.tasks")
    kinds = {"seg": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel", "cls": "ClassificationModel"}
    kind = kinds.get(name.rpartition("-")[2], "DetectionModel")
    return (getattr(tasks, kind)(f"{name}.yaml", ch=3, verbose=False), *_images())


# -- segmentation_models_pytorch ---------------------------------------------------------------------------------------
_SMP = [
    "Unet",
    "UnetPlusPlus",
    "MAnet",
    "Linknet",
    "FPN",
    "PSPNet",
    "DeepLabV3",
    "DeepLabV3Plus",
    "PAN",
    "UPerNet",
    "Segformer",
]
_ENCODERS = [
    "resnet34",
    "densenet121",
    "efficientnet-b0",
    "mobilenet_v2",
    "vgg11_bn",
    "mit_b0",
    "resnext50_32x4d",
    "se_resnet50",
    "dpn68",
]


def _smp(kind: str, encoder: str) -> Built:
    edges = (128, 192) if kind == "PAN" else (64, 96)
    model = getattr(import_module("segmentation_models_pytorch"), kind)(
        encoder, encoder_weights=None, classes=3
    )
    return (model, *_images(*edges))


# -- monai -------------------------------------------------------------------------------------------------------------
_C = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
_MONAI: dict[str, dict[str, object]] = {
    "UNet": {**_C, "channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 1},
    "BasicUNet": {**_C, "features": (8, 8, 16, 32, 64, 8)},
    "BasicUNetPlusPlus": {**_C, "features": (8, 8, 16, 32, 64, 8)},
    "AttentionUnet": {**_C, "channels": (8, 16, 32), "strides": (2, 2)},
    "DynUNet": {
        **_C,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [8, 16, 32],
        "norm_name": "batch",
    },
    "SegResNet": {**_C, "init_filters": 16, "norm": "batch"},
    "SegResNetDS": {**_C, "init_filters": 16, "norm": "batch"},
    "VNet": {"spatial_dims": 2, "in_channels": 1, "out_channels": 2},
    "HighResNet": {"spatial_dims": 2, "in_channels": 1, "out_channels": 2},
    "DenseNet121": _C,
    "EfficientNetBN": {
        "model_name": "efficientnet-b0",
        "pretrained": False,
        "spatial_dims": 2,
        "in_channels": 1,
    },
    "SEResNet50": {"spatial_dims": 2, "in_channels": 1, "num_classes": 2},
    "resnet18": {"spatial_dims": 2, "n_input_channels": 1, "num_classes": 2},
    "SwinUNETR": {
        **_C,
        "feature_size": 12,
        "spatial_dims": 2,
        "depths": (1, 1, 1, 1),
        "num_heads": (2, 2, 2, 2),
    },
    "UNETR": {**_C, "img_size": 64, "hidden_size": 48, "mlp_dim": 96, "num_heads": 4, "feature_size": 8},
    "ViT": {
        "in_channels": 1,
        "img_size": 64,
        "patch_size": 16,
        "hidden_size": 48,
        "mlp_dim": 96,
        "num_heads": 4,
        "spatial_dims": 2,
        "num_layers": 2,
    },
    "FlexibleUNet": {
        "in_channels": 1,
        "out_channels": 2,
        "backbone": "efficientnet-b0",
        "decoder_channels": (64, 32, 16, 8, 8),
    },
    "AutoEncoder": {**_C, "channels": (8, 16, 32), "strides": (2, 2, 2)},
    "Discriminator": {"in_shape": (1, 64, 64), "channels": (8, 16, 32), "strides": (2, 2, 2)},
}


def _monai(name: str) -> Built:
    fixed = name in ("UNETR", "ViT", "Discriminator")
    options = _MONAI[name]
    return _built("monai.networks.nets", name, images=_images(64, 64 if fixed else 96, 1), **options)


# -- torchvision's detectors -------------------------------------------------------------------------------------------
_DETECTORS = [
    "ssdlite320_mobilenet_v3_large",
    "ssd300_vgg16",
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
]


def _detector(name: str) -> Built:
    import torchvision

    sizes: dict[str, object] = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 160}
    score = "box_score_thresh" if "rcnn" in name else "score_thresh"  # random weights are sure of nothing
    most = "box_detections_per_img" if "rcnn" in name else "detections_per_img"
    options: dict[str, object] = {**sizes, score: 0.0, most: 20}
    if "rcnn" in name:
        options |= {
            "rpn_pre_nms_top_n_test": 200,
            "rpn_post_nms_top_n_test": 100,
        }  # of each level; of an image
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **options)
    generator = torch.Generator().manual_seed(1)
    example = [torch.rand(3, 96, 96, generator=generator)]
    other = [torch.rand(3, 96, 128, generator=generator), torch.rand(3, 80, 96, generator=generator)]
    return model, (example,), (other,)


# -- diffusers ---------------------------------------------------------------------------------------------------------
def _diffusers(name: str, options: dict[str, object], call: Callable[[int, int], object]) -> Built:
    torch.manual_seed(0)
    return getattr(import_module("diffusers"), name)(**options), call(2, 16), call(1, 24)


def _noise(channels: int, **more: Callable[[int], torch.Tensor]) -> Callable[[int, int], object]:
    def made(rows: int, edge: int) -> object:
        call = {"sample": torch.randn(rows, channels, edge, edge), "timestep": torch.full((rows,), 3)}
        return {**call, **{key: make(rows) for key, make in more.items()}}

    return made


_BLOCKS = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
_DOWN_UP = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
_CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
}
_TEXT = {"encoder_hidden_states": lambda rows: torch.randn(rows, 5, 24)}
_DIT = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}
_DIFFUSERS: dict[str, tuple[dict[str, object], Callable[[int, int], object]]] = {
    "UNet2DModel": ({**_BLOCKS, **_DOWN_UP, "sample_size": 16}, _noise(3)),
    "UNet2DConditionModel": ({**_BLOCKS, **_CROSS, "sample_size": 16}, _noise(4, **_TEXT)),
    "AutoencoderKL": (
        {
            **_BLOCKS,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
        lambda rows, edge: torch.randn(rows, 3, edge, edge),
    ),
    "AutoencoderTiny": (
        {"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4},
        lambda rows, edge: torch.randn(rows, 3, edge, edge),
    ),
    "VQModel": (
        {
            **_BLOCKS,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
        lambda rows, edge: torch.randn(rows, 3, edge, edge),
    ),
    "DiTTransformer2DModel": (
        {**_DIT, "in_channels": 4, "sample_size": 16, "num_embeds_ada_norm": 10, "norm_num_groups": 8},
        lambda rows, edge: {
            "hidden_states": torch.randn(rows, 4, 16, 16),
            "timestep": torch.full((rows,), 3),
            "class_labels": torch.full((rows,), 2),
        },
    ),
    "PixArtTransformer2DModel": (
        {**_DIT, "in_channels": 4, "sample_size": 16, "cross_attention_dim": 32, "caption_channels": 24},
        lambda rows, edge: {
            "hidden_states": torch.randn(rows, 4, 16, 16),
            "timestep": torch.full((rows,), 3),
            "encoder_hidden_states": torch.randn(rows, 5, 24),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    "SD3Transformer2DModel": (
        {
            **_DIT,
            "in_channels": 4,
            "out_channels": 4,
            "sample_size": 16,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 20,
            "pos_embed_max_size": 16,
        },
        lambda rows, edge: {
            "hidden_states": torch.randn(rows, 4, edge, edge),
            "timestep": torch.full((rows,), 3),
            "encoder_hidden_states": torch.randn(rows, 5, 24),
            "pooled_projections": torch.randn(rows, 20),
        },
    ),
}

# -- open_clip ---------------------------------------------------------------------------------------------------------
_CLIP_TEXT = {"context_length": 16, "vocab_size": 99, "width": 64, "heads": 4, "layers": 2}
_CLIP_VISION: dict[str, dict[str, object]] = {
    "ViT": {"image_size": 64, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16},
    "RN50": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    "timm": {"image_size": 64, "timm_model_name": "resnet18", "timm_pool": "avg", "timm_proj": "linear"},
}


def _clip(kind: str, name: str) -> Built:
    options = {
        "embed_dim": 64 if kind == "CoCa" else 32,
        "vision_cfg": _CLIP_VISION[name],
        "text_cfg": _CLIP_TEXT,
    }
    if kind == "CoCa":
        pooled = {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
        options["vision_cfg"] = {**_CLIP_VISION[name], **pooled}
        options["text_cfg"] = {**_CLIP_TEXT, "embed_cls": True, "output_tokens": True}
        options["multimodal_cfg"] = {**_CLIP_TEXT, "attn_pooler_heads": 4}
    model = getattr(import_module("open_clip.model" if kind != "CoCa" else "open_clip.coca_model"), kind)(
        **options
    )
    return (
        model,
        (torch.randn(2, 3, 64, 64), torch.randint(1, 99, (2, 16))),
        (torch.randn(3, 3, 64, 64), torch.randint(1, 99, (3, 16))),
    )


# -- torch_geometric ---------------------------------------------------------------------------------------------------
_GRAPH = ["GCN", "GraphSAGE", "GIN", "GAT", "EdgeCNN", "PNA"]


def _graph(name: str) -> Built:
    options: dict[str, object] = {
        "in_channels": 16,
        "hidden_channels": 32,
        "num_layers": 3,
        "out_channels": 7,
    }
    if name == "PNA":
        options.update(aggregators=["mean", "max"], scalers=["identity"], deg=torch.tensor([0, 3, 5, 2]))
    model = getattr(import_module("torch_geometric.nn.models"), name)(**options)

    def graph(nodes: int, edges: int) -> object:
        return torch.randn(nodes, 16), torch.randint(nodes, (2, edges))

    return model, graph(20, 60), graph(33, 90)


# -- vit_pytorch -------------------------------------------------------------------------------------------------------
_V = {
    "image_size": 64,
    "patch_size": 16,
    "num_classes": 10,
    "dim": 64,
    "depth": 2,
    "heads": 4,
    "mlp_dim": 128,
}
_VIT: dict[str, tuple[str, dict[str, object]]] = {
    "vit.ViT": ("ViT", _V),
    "simple_vit.SimpleViT": ("SimpleViT", _V),
    "vit_for_small_dataset.ViT": ("ViT", _V),
    "deepvit.DeepViT": ("DeepViT", _V),
    "cait.CaiT": ("CaiT", {**_V, "cls_depth": 1}),
    "parallel_vit.ViT": ("ViT", _V),
    "simple_vit_with_register_tokens.SimpleViT": ("SimpleViT", _V),
    "simple_vit_with_qk_norm.SimpleViT": ("SimpleViT", _V),
    "simple_vit_with_patch_dropout.SimpleViT": ("SimpleViT", _V),
    "vit_with_patch_dropout.ViT": ("ViT", _V),
    "look_vit.LookViT": (
        "LookViT",
        {**{k: v for k, v in _V.items() if k != "mlp_dim"}, "highres_patch_size": 8, "cross_attn_heads": 4},
    ),
    "learnable_memory_vit.ViT": ("ViT", _V),
    # Its feed-forward has a layer norm of `dim` numbers over the last axis of (dim, 8, 8).
    "local_vit.LocalViT": ("LocalViT", {**_V, "patch_size": 8, "dim": 8, "dim_head": 8, "mlp_dim": 32}),
    "pit.PiT": (
        "PiT",
        {
            "image_size": 64,
            "patch_size": 8,
            "dim": 32,
            "num_classes": 10,
            "depth": (1, 1),
            "heads": 4,
            "mlp_dim": 64,
        },
    ),
    "levit.LeViT": (
        "LeViT",
        {
            "image_size": 64,
            "num_classes": 10,
            "stages": 2,
            "dim": (32, 64),
            "depth": 1,
            "heads": (2, 4),
            "mlp_mult": 2,
        },
    ),
    "cvt.CvT": ("CvT", {"num_classes": 10}),
    "mobile_vit.MobileViT": (
        "MobileViT",
        {
            "image_size": (64, 64),
            "dims": [32, 48, 64],
            "channels": [16, 32, 48, 48, 64, 64, 80, 80, 96, 96, 128],
            "num_classes": 10,
        },
    ),
    "crossformer.CrossFormer": (
        "CrossFormer",
        {
            "num_classes": 10,
            "dim": (32, 64, 64, 128),
            "depth": (1, 1, 1, 1),
            "global_window_size": (4, 2, 2, 1),
            "local_window_size": 2,
        },
    ),
    "sep_vit.SepViT": (
        "SepViT",
        {
            "num_classes": 10,
            "dim": 16,
            "heads": (1, 2, 2, 4),
            "depth": (1, 1, 1, 1),
        },
    ),
    "nest.NesT": (
        "NesT",
        {
            "image_size": 64,
            "patch_size": 4,
            "dim": 16,
            "heads": 2,
            "num_hierarchies": 3,
            "block_repeats": (1, 1, 1),
            "num_classes": 10,
        },
    ),
    "xcit.XCiT": ("XCiT", {**_V, "cls_depth": 1}),
    "max_vit.MaxViT": (
        "MaxViT",
        {"num_classes": 10, "dim": 16, "dim_head": 8, "depth": (1, 1), "window_size": 4, "dim_conv_stem": 16},
    ),
    "t2t.T2TViT": (
        "T2TViT",
        {
            "dim": 64,
            "image_size": 64,
            "depth": 2,
            "heads": 4,
            "mlp_dim": 128,
            "num_classes": 10,
            "t2t_layers": ((7, 4), (3, 2)),
        },
    ),
    "vit_3d.ViT": ("ViT", {**_V, "image_patch_size": 16, "frames": 4, "frame_patch_size": 2}),
}
_ANY_SIZE = ("cvt", "crossformer", "max_vit")


def _vit(name: str) -> Built:
    module, (kind, options) = name.rpartition(".")[0], _VIT[name]
    edges = (64, 128) if name.startswith(_ANY_SIZE) else (64, 64)
    if module == "sep_vit":  # windows of 7, whatever is asked for
        edges = (224, 224)
    images: tuple[object, object] = _images(*edges)
    if module == "vit_3d":
        options = {key: value for key, value in options.items() if key != "patch_size"}
        images = torch.randn(2, 3, 4, 64, 64), torch.randn(1, 3, 4, 64, 64)
    return _built(f"vit_pytorch.{module}", kind, images=images, **options)


# -- x_transformers ----------------------------------------------------------------------------------------------------
_X: dict[str, dict[str, object]] = {
    "plain": {},
    "rotary": {"rotary_pos_emb": True},
    "glu": {"ff_glu": True, "ff_swish": True},
    "rmsnorm": {"use_rmsnorm": True, "ff_no_bias": True},
    "alibi": {"alibi_pos_bias": True},
    "grouped": {"attn_kv_heads": 2},
    "one_kv_head": {"attn_one_kv_head": True},
    "flash": {"attn_flash": True},
    "talking": {"attn_pre_talking_heads": True},
    "sandwich": {"sandwich_norm": True},
    "residual_attention": {"residual_attn": True},
    "qk_norm": {"attn_qk_norm": True},
    "gate_values": {"attn_gate_values": True},
    "macaron": {"macaron": True},
    "relu_squared": {"ff_relu_squared": True},
}


def _x(name: str) -> Built:
    xt = import_module("x_transformers")
    layers = xt.Decoder(dim=64, depth=2, heads=4, attn_dim_head=16, **_X[name])
    model = xt.TransformerWrapper(num_tokens=99, max_seq_len=64, attn_layers=layers)
    return model, torch.randint(99, (2, 12)), torch.randint(99, (1, 20))


# -- kornia, lightly ---------------------------------------------------------------------------------------------------
def _lightly(name: str) -> Built:
    heads = import_module("lightly.models.modules.heads")
    import torchvision

    trunk = torchvision.models.resnet18(weights=None)
    trunk.fc = nn.Identity()
    if name.startswith("DINO"):
        head = heads.DINOProjectionHead(512, 256, 64, 128)
        nn.utils.remove_weight_norm(head.last_layer)  # the old one, which no copy of a model can hold
    else:
        head = getattr(heads, name)(512, 256, 64)
    return (nn.Sequential(trunk, head), *_images())


def _kornia(name: str) -> Built:
    feature = import_module("kornia.feature")
    if name in ("HardNet", "SOSNet", "TFeat", "HyNet"):
        return (getattr(feature, name)(pretrained=False), *_images(32, 32, 1, 4))
    if name == "KeyNet":
        return (feature.KeyNet(pretrained=False), *_images(64, 96, 1))
    if name == "EdgeDetector":
        return (import_module("kornia.models.dexined").DexiNed(pretrained=False), *_images(64, 96))
    contrib = import_module("kornia.models.vit")
    if name == "VisionTransformer":
        model = contrib.VisionTransformer(image_size=64, patch_size=16, embed_dim=64, depth=2, num_heads=4)
        return (model, *_images(64, 64))
    raise ValueError(name)


# -- Hugging Face ------------------------------------------------------------------------------------------------------
_LM: dict[str, object] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS: dict[str, object] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT: dict[str, object] = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
_STATES: dict[str, object] = {
    "state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_ssm": 128,
    "mamba_n_groups": 1,
}
_HF_LM: dict[str, dict[str, object]] = {
    **{
        name: {}
        for name in [
            "apertus",
            "arcee",
            "bitnet",
            "cohere2",
            "diffllama",
            "ernie4_5",
            "exaone4",
            "gemma3_text",
            "glm",
            "glm4",
            "granite",
            "granite_swa",
            "helium",
            "hunyuan_v1_dense",
            "jais2",
            "lfm2",
            "ministral",
            "ministral3",
            "nanochat",
            "nemotron",
            "olmo2",
            "olmo3",
            "qwen3_next",
            "seed_oss",
            "smollm3",
            "stablelm",
            "starcoder2",
            "vaultgemma",
            "internlm3",
            "qwen3_5_text",
            "doge",
            "hyperclovax",
            "mellum",
            "youtu",
            "minicpm3",
            "modernbert-decoder",
            "iquestcoder",
            "cwm",
        ]
    },
    **dict.fromkeys(
        [
            "qwen3_moe",
            "olmoe",
            "flex_olmo",
            "ernie4_5_moe",
            "gpt_oss",
            "granitemoe",
            "granitemoeshared",
            "hunyuan_v1_moe",
            "minimax",
            "minimax_m2",
            "phimoe",
            "glm4_moe",
            "jetmoe",
            "afmoe",
            "solar_open",
            "exaone_moe",
            "qwen2_moe",
        ],
        _EXPERTS,
    ),
    **{
        name: {**_EXPERTS, **_LATENT}
        for name in ["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "youtu", "minicpm3"]
    },
    **dict.fromkeys(["mamba", "falcon_mamba", "bamba", "falcon_h1", "recurrent_gemma"], _STATES),
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "zamba2": {
        **{"mamba_d_state": 8, "n_mamba_heads": 8, "mamba_headdim": 16, "chunk_size": 8, "adapter_rank": 8},
        **{"attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4},
        **{"layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1},
    },
    "step3p5": {"sliding_window": 8},
    "gemma4_text": {"vocab_size_per_layer_input": 99, "hidden_size_per_layer_input": 16},
    "dots1": {**_EXPERTS, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "lfm2_moe": {**_EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "longcat_flash": {
        **_EXPERTS,
        **_LATENT,
        **{"head_dim": 8, "num_layers": 2, "ffn_hidden_size": 128, "expert_ffn_hidden_size": 32},
        **{"zero_expert_num": 2, "moe_topk": 2},
    },
}
_HF_TEXT = ["modernbert", "eurobert", "nomic_bert", "gte", "jina_embeddings_v3", "esmc"]
_HF_IMAGE: dict[str, dict[str, object]] = {
    **{
        name: {}
        for name in [
            "aimv2_vision_model",
            "dinov2_with_registers",
            "ijepa",
            "siglip_vision_model",
            "dinov3_vit",
            "pixio",
            "metaclip_2_vision_model",
            "mlcd_vision_model",
            "vitpose_backbone",
        ]
    },
    "hiera": {
        "image_size": [64, 64],
        "patch_size": [7, 7],
        "embed_dim": 16,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 8],
    },
    "convnextv2": {"patch_size": 4, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1]},
    "dinov3_convnext": {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1]},
    "hgnet_v2": {},
    "textnet": {},
    "pp_lcnet": {},
    "rt_detr_resnet": {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
    "pvt_v2": {
        "hidden_sizes": [16, 32, 64, 128],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 4, 8],
    },
    "swiftformer": {},
}
_SIDE: dict[str, object] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 64,
    "patch_size": 16,
}


def _config(name: str, options: dict[str, object]) -> Any:
    """The configuration of an architecture, with those of the options that it has."""
    auto = import_module("transformers.models.auto.configuration_auto")
    kind = auto.CONFIG_MAPPING[name]
    known = kind().to_dict()
    wanted = {
        key: value
        for key, value in options.items()
        if key in known or (key == "layers_block_type" and hasattr(kind, key))
    }
    if "qk_rope_head_dim" in wanted and wanted.get("head_dim") != wanted["qk_rope_head_dim"]:
        wanted.pop("head_dim", None)
    if "num_key_value_heads" in wanted and name == "esmc":
        wanted["num_key_value_heads"] = wanted["num_attention_heads"]
    layers = known.get("layer_types")
    if layers and not {"layer_types", "layers_block_type"} & set(wanted):
        wanted["layer_types"] = [layers[0], layers[-1]]
    return kind(**wanted)


def _alone(config: Any) -> Any:
    """The model of a configuration that no Auto class knows, by its class name; None where there is none."""
    kind = type(config)
    module = import_module(kind.__module__.replace("configuration_", "modeling_"))
    found = getattr(module, kind.__name__.replace("Config", "Model"), None)
    return None if found is None else found(config)


def _hf_lm(name: str) -> Built:
    transformers = import_module("transformers")
    config = _config(name, {**_LM, **_HF_LM[name]})
    config.use_cache = False
    try:
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    except ValueError:
        model = _alone(config)

    def call(rows: int, length: int) -> object:
        return {"input_ids": torch.randint(3, 99, (rows, length)), "use_cache": False}

    return model, call(2, 12), call(1, 20)


def _hf_text(name: str) -> Built:
    transformers = import_module("transformers")
    model = transformers.AutoModel.from_config(_config(name, _LM), attn_implementation="eager")
    return (
        model,
        {"input_ids": torch.randint(3, 99, (2, 12))},
        {"input_ids": torch.randint(3, 99, (1, 20))},
    )


def _hf_image(name: str) -> Built:
    transformers = import_module("transformers")
    config = _config(name, {**_SIDE, **_HF_IMAGE[name]})
    try:
        model = transformers.AutoModel.from_config(config)
    except ValueError:
        model = _alone(config) or transformers.AutoBackbone.from_config(config)
    size = getattr(config, "image_size", 64) or 64
    size = size[0] if isinstance(size, (list, tuple)) else size
    fixed = "image_size" in config.to_dict() and name != "dinov3_vit"
    first, second = _images(size, size if fixed else 96)
    return model, {"pixel_values": first}, {"pixel_values": second}


def _encodec() -> Built:
    transformers = import_module("transformers")
    options = {"num_filters": 8, "hidden_size": 32, "num_lstm_layers": 1, "upsampling_ratios": [4, 2]}
    config = transformers.EncodecConfig(**options, codebook_dim=32, codebook_size=64)
    return transformers.EncodecModel(config), torch.randn(2, 1, 640), torch.randn(1, 1, 960)


def _rt_detr() -> Built:
    transformers = import_module("transformers")
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[32, 64, 128],
        decoder_in_channels=[32, 32, 32],
        **dict.fromkeys(["encoder_hidden_dim", "d_model"], 32),
        **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 64),
        **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 4),
        decoder_layers=2,
        num_queries=20,
        num_denoising=0,
        num_labels=10,
    )
    return (transformers.RTDetrForObjectDetection(config), *_images(128, 160))


_HF_WHOLE = {"encodec": _encodec, "rt_detr": _rt_detr}


# -- timm --------------------------------------------------------------------------------------------------------------
_TIMM: dict[str, int] = dict.fromkeys(
    [
        "aimv2_large_patch14_224",
        "bat_resnext26ts",
        "crossvit_9_240",
        "csatv2",
        "cs3darknet_s",
        "darknet17",
        "darknetaa53",
        "dpn48b",
        "eca_resnet33ts",
        "efficientnet_b0_g8_gn",
        "efficientnet_es",
        "efficientvit_l1",
        "ese_vovnet19b_slim",
        "fasternet_t0",
        "gc_efficientnetv2_rw_t",
        "gcresnet33ts",
        "gcresnext26ts",
        "gernet_s",
        "ghostnetv3_050",
        "gmixer_12_224",
        "hgnetv2_b0",
        "hrnet_w18_ssld",
        "inception_resnet_v2",
        "lambda_resnet26rpt_256",
        "legacy_senet154",
        "legacy_xception",
        "mnasnet_small",
        "mobilenet_edgetpu_100",
        "mobilenetv1_100",
        "mobilenetv4_hybrid_medium",
        "naflexvit_base_patch16_gap",
        "nasnetalarge",
        "nf_regnet_b0",
        "nf_ecaresnet26",
        "pnasnet5large",
        "regnetv_040",
        "regnetz_b16",
        "regnetz_c16",
        "repghostnet_050",
        "repvgg_d2se",
        "res2next50",
        "resnet10t",
        "resnet14t",
        "resnet18d",
        "resnetaa34d",
        "resnetblur18",
        "resnetrs50",
        "resnetv2_18d",
        "rexnetr_100",
        "sebotnet33ts_256",
        "sehalonet33ts",
        "selecsls60b",
        "seresnext26t_32x4d",
        "shvit_s1",
        "skresnext50_32x4d",
        "spnasnet_100",
        "swiftformer_xs",
        "tf_mixnet_s",
        "tinynet_e",
        "vit_small_resnet26d_224",
        "vit_wee_patch16_reg1_gap_256",
        "vgg11_bn",
        "xcit_tiny_12_p16_224",
        "swinv2_cr_tiny_ns_224",
        "mobilevitv2_075",
        "fastvit_sa12",
        "eva_giant_patch14_clip_224",
        "convnextv2_femto",
        "convnext_zepto_rms",
        "edgenext_small_rw",
        "mambaout_kobe",
        "resnest26d",
        "mobileone_s1",
        "repvit_m0_9",
        "tiny_vit_11m_224",
        "efficientformer_l3",
        "pvt_v2_b1",
        "poolformer_s24",
        "haloregnetz_b",
        "hieradet_small",
        "lcnet_035",
        "dla46_c",
        "dla60x_c",
        "hardcorenas_b",
        "semnasnet_050",
        "cspresnext50",
        "seresnet33ts",
        "visformer_small",
        "resnetv2_50d_gn",
    ],
    64,
)
_FIXED_WORDS = [
    "224",
    "240",
    "256",
    "mixer",
    "naflex",
    "halo",
    "sebot",
    "swiftformer",
    "visformer",
    "hieradet",
    "csatv2",
    "mobilenetv4_hybrid",
    "efficientformer",
]
_TOO_LARGE = [
    "aimv2_large",
    "eva_giant",
    "nasnetalarge",
    "pnasnet5large",
    "legacy_senet154",
    "bat_resnext26ts",
    "inception_resnet_v2",
]


def _timm(name: str) -> Built:
    timm = import_module("timm")
    model = timm.create_model(name, pretrained=False)
    if any(word in name for word in _FIXED_WORDS):
        size = model.pretrained_cfg.get("input_size", (3, 224, 224))[-1]
        return (model, *_images(size, size, rows=1))
    return (model, *_images(rows=1))


def listed() -> list[Foreign]:
    """Every model of the list."""
    found: list[Foreign] = []

    def add(library: str, names: Any, make: Callable[..., Built]) -> None:
        for name in names:
            args = name if isinstance(name, tuple) else (name,)
            found.append(Foreign(library, "/".join(args), lambda make=make, args=args: make(*args)))

    add("own", OWN, lambda name: OWN[name]())
    add("ultralytics", _YOLO, _yolo)
    add("segmentation_models_pytorch", [(kind, "resnet18") for kind in _SMP], _smp)
    add("segmentation_models_pytorch", [("Unet", encoder) for encoder in _ENCODERS], _smp)
    add("monai", _MONAI, _monai)
    add("torchvision", _DETECTORS, _detector)
    add("diffusers", _DIFFUSERS, lambda name: _diffusers(name, *_DIFFUSERS[name]))
    clips = [(kind, name) for kind in ("CLIP", "CustomTextCLIP") for name in _CLIP_VISION]
    add("open_clip", [*clips, ("CoCa", "ViT")], _clip)
    add("torch_geometric", _GRAPH, _graph)
    add("vit_pytorch", _VIT, _vit)
    add("x_transformers", _X, _x)
    add(
        "kornia",
        ["HardNet", "SOSNet", "TFeat", "HyNet", "KeyNet", "EdgeDetector", "VisionTransformer"],
        _kornia,
    )
    add(
        "lightly",
        [
            "SimCLRProjectionHead",
            "BarlowTwinsProjectionHead",
            "BYOLProjectionHead",
            "MoCoProjectionHead",
            "DINOProjectionHead",
        ],
        _lightly,
    )
    add("transformers", _HF_LM, _hf_lm)
    add("transformers", _HF_TEXT, _hf_text)
    add("transformers", _HF_IMAGE, _hf_image)
    add("transformers", _HF_WHOLE, lambda name: _HF_WHOLE[name]())
    add("timm", [name for name in _TIMM if not name.startswith(tuple(_TOO_LARGE))], _timm)
    return found
