"""Public architectures with random weights, as torchvision and timm build them; only where these are installed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec

from torch import nn

from zoo.base import Input, Model

TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf",
    "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t",
    "swin_v2_t", "vgg11", "vgg16_bn", "vit_b_16", "wide_resnet50_2",
    "segmentation/deeplabv3_resnet50", "segmentation/fcn_resnet50", "segmentation/lraspp_mobilenet_v3_large",
    "video/mc3_18", "video/r2plus1d_18", "video/r3d_18", "video/s3d",
)  # fmt: skip

SIZES = {"inception_v3": (299, 299), "video/s3d": (16, 224, 224)}

TIMM = (
    "beit_base_patch16_224", "botnet26t_256", "cait_xxs24_224", "coat_tiny", "coatnet_nano_rw_224", "convit_tiny",
    "convmixer_768_32", "convnext_atto", "convnextv2_atto", "crossvit_tiny_240", "cspdarknet53", "cspresnet50",
    "davit_tiny", "deit_tiny_patch16_224", "deit3_small_patch16_224", "densenet121", "dla34", "dm_nfnet_f0", "dpn68",
    "edgenext_xx_small", "efficientformer_l1", "efficientnet_b0", "efficientnetv2_rw_t", "efficientvit_b0",
    "efficientvit_m0", "eva02_tiny_patch14_224", "fastvit_t8", "fbnetc_100", "focalnet_tiny_srf", "gcvit_xxtiny",
    "ghostnet_100", "ghostnetv2_100", "gmixer_24_224", "gmlp_s16_224", "halonet26t", "hardcorenas_a", "hgnet_tiny",
    "hrnet_w18_small", "inception_next_tiny", "inception_v4", "lambda_resnet26t", "lcnet_050", "levit_128s",
    "maxvit_tiny_tf_224", "mixer_s32_224", "mixnet_s", "mnasnet_100", "mobilenetv1_100", "mobilenetv2_100",
    "mobilenetv3_large_100", "mobilenetv4_conv_small", "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050",
    "mvitv2_tiny", "nest_tiny", "nf_resnet50", "pit_ti_224", "poolformer_s12", "pvt_v2_b0", "regnetx_002",
    "regnety_002", "regnetz_b16", "repghostnet_050", "repvgg_a0", "repvit_m0_9", "res2net50_26w_4s", "resmlp_12_224",
    "resnest14d", "resnet18", "resnet50", "resnetv2_50", "resnext50_32x4d", "rexnet_100", "sebotnet33ts_256",
    "selecsls42b", "semnasnet_100", "seresnet50", "sequencer2d_s", "skresnet18", "spnasnet_100",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "tiny_vit_5m_224", "tinynet_a", "tnt_s_patch16_224",
    "tresnet_m", "twins_pcpvt_small", "twins_svt_small", "vgg11", "visformer_tiny", "vit_tiny_patch16_224",
    "vit_base_patch16_siglip_224", "volo_d1_224", "vovnet39a", "wide_resnet50_2", "xception41", "xcit_nano_12_p16_224",
)  # fmt: skip


def _torchvision(name: str) -> nn.Module:
    segments = name.startswith("segmentation")  # these would load a trained backbone unless told not to
    options = {"weights_backbone": None} if segments else {}
    net = import_module("torchvision.models").get_model(name.split("/")[-1], weights=None, **options)
    return Chosen(net.eval(), "out" if segments else None)


def _timm(name: str) -> nn.Module:
    return import_module("timm").create_model(name, pretrained=False, exportable=True).eval()


class Chosen(nn.Module):
    """A network that gives one of several named outputs."""

    def __init__(self, net: nn.Module, output: str | None) -> None:
        super().__init__()
        self.net, self.output = net, output

    def forward(self, x: object) -> object:
        found = self.net(x)
        return found if self.output is None else found[self.output]


def models() -> Iterator[tuple[str, Model]]:
    """Each installed library's architectures by name."""
    if find_spec("torchvision"):
        for name in TORCHVISION:
            size = SIZES.get(name, (8, 112, 112) if name.startswith("video") else (224, 224))
            yield f"torchvision/{name}", Model(partial(_torchvision, name), {"x": Input(("batch", 3, *size))})
    if find_spec("timm"):
        timm = import_module("timm")
        for name in filter(timm.is_model, TIMM):  # names come and go between versions
            size = timm.get_pretrained_cfg(name).input_size
            yield f"timm/{name}", Model(partial(_timm, name), {"x": Input(("batch", *size))})


def absent() -> list[str]:
    """The libraries that are not installed."""
    return [name for name in ("torchvision", "timm") if not find_spec(name)]
