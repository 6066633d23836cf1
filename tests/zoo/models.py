"""The models of the zoo, by library: how each is built with random weights and what it is called with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["FAMILIES", "Entry", "build", "randomise"]


@dataclass(frozen=True)
class Entry:
    """A model by library and name; `size` is the edge of its example image."""

    library: str
    name: str
    size: int = 224
    small: bool = True  # runs in the tests as well


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch norm, and random values for parameters that start as constants, so that nothing hides."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.5)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                noise = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.add_(noise.to(parameter.dtype))
    return model


def declare_torchvision() -> None:
    """Let torchvision be imported where its compiled operators are of another build than torch: the import asks
    for their schemas only. Suppression of boxes, which detectors call, is then done here."""
    kept: list[torch.library.Library] = []  # schemas and kernels live as long as their libraries
    if not hasattr(torch.ops.torchvision, "nms"):
        kept.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            kept[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    if not torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "CPU"):
        kept.append(torch.library.Library("torchvision", "IMPL"))
        kept[-1].impl("nms", _nms, "CPU")
        torch.ops.torchvision._kept = kept
        if importlib.util.find_spec("torchvision") is None:
            return
        import torchvision.ops.boxes

        torchvision.ops.boxes._assert_has_ops = lambda: None


def _nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """The boxes that stay, best first: a box leaves when it overlaps a better one that stays."""
    corner, other = boxes[:, :2], boxes[:, 2:]
    area = (other - corner).clamp(min=0).prod(1)
    order = scores.argsort(descending=True, stable=True)
    kept: list[torch.Tensor] = []
    while order.numel():
        best, order = order[0], order[1:]
        kept.append(best)
        edges = torch.minimum(other[best], other[order]) - torch.maximum(corner[best], corner[order])
        inside = edges.clamp(min=0).prod(1)
        order = order[inside <= iou_threshold * (area[best] + area[order] - inside)]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.long)


CLASSIFIERS = [
    "alexnet",
    "convnext_tiny",
    "convnext_small",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mnasnet0_75",
    "mnasnet1_0",
    "mnasnet1_3",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "regnet_x_16gf",
    "regnet_x_1_6gf",
    "regnet_x_3_2gf",
    "regnet_x_400mf",
    "regnet_x_800mf",
    "regnet_x_8gf",
    "regnet_y_16gf",
    "regnet_y_1_6gf",
    "regnet_y_3_2gf",
    "regnet_y_400mf",
    "regnet_y_800mf",
    "regnet_y_8gf",
    "resnet101",
    "resnet152",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
    "squeezenet1_0",
    "squeezenet1_1",
    "swin_b",
    "swin_s",
    "swin_t",
    "swin_v2_b",
    "swin_v2_s",
    "swin_v2_t",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "vit_b_16",
    "vit_b_32",
    "vit_l_16",
    "vit_l_32",
    "wide_resnet101_2",
    "wide_resnet50_2",
    "convnext_base",
    "convnext_large",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_v2_m",
    "efficientnet_v2_l",
    "regnet_x_32gf",
    "regnet_y_32gf",
]
SEGMENTERS = [
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn_resnet50",
    "fcn_resnet101",
    "lraspp_mobilenet_v3_large",
]
VIDEO = [
    "mc3_18",
    "r2plus1d_18",
    "r3d_18",
    "s3d",
    "mvit_v1_b",
    "mvit_v2_s",
    "swin3d_t",
    "swin3d_s",
    "swin3d_b",
]
TIMM = [
    "resnet26d",
    "resnetv2_50",
    "resnest14d",
    "seresnet50",
    "skresnet18",
    "ecaresnet26t",
    "res2net50_26w_4s",
    "cspresnet50",
    "cspdarknet53",
    "dla34",
    "dpn68",
    "hrnet_w18_small",
    "mixnet_s",
    "ghostnet_100",
    "ghostnetv2_100",
    "mobileone_s0",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "efficientnet_lite0",
    "tf_efficientnetv2_b0",
    "fbnetc_100",
    "lcnet_050",
    "hardcorenas_a",
    "regnetx_002",
    "regnety_002",
    "repvgg_a0",
    "nf_resnet50",
    "nfnet_l0",
    "dm_nfnet_f0",
    "vovnet39a",
    "selecsls42",
    "xception41",
    "inception_v4",
    "inception_resnet_v2",
    "rexnet_100",
    "tresnet_m",
    "convnext_atto",
    "convnextv2_atto",
    "convmixer_768_32",
    "deit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "vit_tiny_patch16_224",
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "crossvit_tiny_240",
    "coat_lite_tiny",
    "convit_tiny",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "twins_pcpvt_small",
    "twins_svt_small",
    "pit_ti_224",
    "levit_128s",
    "mixer_s32_224",
    "resmlp_12_224",
    "gmlp_s16_224",
    "poolformer_s12",
    "poolformerv2_s12",
    "pvt_v2_b0",
    "tnt_s_legacy_patch16_224",
    "visformer_tiny",
    "volo_d1_224",
    "xcit_nano_12_p16_224",
    "edgenext_xx_small",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "inception_next_tiny",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientvit_b0",
    "efficientvit_m0",
    "repvit_m1",
    "starnet_s1",
    "tiny_vit_5m_224",
    "maxvit_tiny_rw_224",
    "coatnet_0_rw_224",
    "eva02_tiny_patch14_224",
    "mambaout_femto",
    "hiera_tiny_224",
    "davit_tiny",
    "gcvit_xxtiny",
    "nextvit_small",
    "sequencer2d_s",
    "bat_resnext26ts",
    "botnet26t_256",
    "halonet26t",
    "lambda_resnet26t",
    "caformer_s18",
    "convformer_s18",
    "samvit_base_patch16",
    "hgnet_tiny",
    "mobilenetv4_conv_small",
    "rdnet_tiny",
    "vitamin_small_224",
    "nest_tiny",
    "flexivit_small",
    "semnasnet_075",
]
SIZES = {
    "inception_v3": 96, "alexnet": 96, "maxvit_t": 224, "inception_v4": 128, "inception_resnet_v2": 128,
    "crossvit_tiny_240": 240, "swinv2_tiny_window8_256": 256, "mobilevit_xxs": 128, "mobilevitv2_050": 128,
    "samvit_base_patch16": 256, "halonet26t": 256, "botnet26t_256": 256, "lambda_resnet26t": 256,
    "bat_resnext26ts": 256, "s3d": 224, "flexivit_small": 240,
}  # fmt: skip
FIXED = [
    "vit",
    "swin",
    "deit",
    "beit",
    "cait",
    "coat",
    "conv",
    "pit",
    "levit",
    "mixer",
    "mlp",
    "twins",
    "pvt",
    "tnt",
    "visformer",
    "volo",
    "xcit",
    "eva",
    "hiera",
    "davit",
    "gcvit",
    "next",
    "sequencer",
    "nest",
    "focal",
    "former",
]


def _size(name: str) -> int:
    if name in SIZES:
        return SIZES[name]
    return 224 if any(word in name for word in FIXED) and not name.startswith("convnext") else 64


def FAMILIES() -> Iterator[Entry]:
    """Every entry whose library can be imported."""
    for name in CLASSIFIERS:
        yield Entry("torchvision", name, _size(name))
    for name in SEGMENTERS:
        yield Entry("torchvision", name, 64)
    for name in VIDEO:
        yield Entry(
            "torchvision",
            name,
            224 if "mvit" in name else (64 if "swin" in name else 56 if name != "s3d" else 224),
        )
    for name in TIMM:
        yield Entry("timm", name, _size(name))
    from hf import CONFIGS

    for name in CONFIGS:
        yield Entry("hf", name)


def build(entry: Entry) -> tuple[nn.Module, Any]:
    """The model in eval mode, with random weights, and its example."""
    if entry.library == "hf":
        from hf import build as build_hf

        return build_hf(entry.name)
    maker: Callable[[Entry], tuple[nn.Module, Any]] = {"torchvision": _of_torchvision, "timm": _of_timm}[
        entry.library
    ]
    model, example = maker(entry)
    return randomise(model).eval(), example


def _of_torchvision(entry: Entry) -> tuple[nn.Module, Any]:
    declare_torchvision()
    import torchvision

    options: dict[str, Any] = {"weights": None}
    if entry.name in SEGMENTERS:
        options["weights_backbone"] = None
    if entry.name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model = torchvision.models.get_model(entry.name, **options)
    edge = entry.size
    generator = torch.Generator().manual_seed(1)
    shape = (1, 3, 16, edge, edge) if entry.name in VIDEO else (1, 3, edge, edge)
    return model, torch.randn(shape, generator=generator)


def _of_timm(entry: Entry) -> tuple[nn.Module, Any]:
    declare_torchvision()
    import timm

    model = timm.create_model(entry.name, pretrained=False)
    return model, torch.randn(1, 3, entry.size, entry.size, generator=torch.Generator().manual_seed(1))
