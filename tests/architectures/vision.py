"""Models of torchvision and timm, small ones or with few layers, at small pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.architectures.architecture import Architecture, Draw, reals
from tests.architectures.libraries import library
from torch import nn

CLASSES = 10


def _model(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: library("torchvision.models").get_model(name, weights=None, num_classes=CLASSES, **settings)


def _vision(make: Callable[[], nn.Module], draw: Draw | int = 32, **rest: Any) -> Architecture:
    return Architecture("torchvision", make, reals(3, draw, draw) if isinstance(draw, int) else draw, **rest)


def _vit() -> nn.Module:
    return library("torchvision.models").VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=CLASSES)


def _swin(version: str) -> nn.Module:
    swin = library("torchvision.models.swin_transformer")
    parts = {"v1": {}, "v2": {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}}
    settings: Any = parts[version]
    return swin.SwinTransformer([4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=CLASSES, **settings)


def _convnext() -> nn.Module:
    convnext = library("torchvision.models.convnext")
    blocks = [convnext.CNBlockConfig(16, 32, 1), convnext.CNBlockConfig(32, None, 1)]
    return convnext.ConvNeXt(blocks, num_classes=CLASSES)


def _densenet() -> nn.Module:
    return library("torchvision.models").DenseNet(8, (2, 2, 2), 16, num_classes=CLASSES)


def _vgg() -> nn.Module:
    vgg = library("torchvision.models.vgg")
    features = vgg.make_layers([8, "M", 16, "M", 16, 16, "M"], batch_norm=True)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, CLASSES))


def _maxvit() -> nn.Module:
    return library("torchvision.models").MaxVit((32, 32), 16, 2, [16, 32], [1, 1], 16, 0.0, num_classes=CLASSES)


def _fcn() -> nn.Module:
    library("torchvision")
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    body = IntermediateLayerGetter(resnet18(weights=None), {"layer2": "out", "layer1": "aux"})
    return FCN(body, FCNHead(128, 5), FCNHead(64, 5))


def _feature_pyramid() -> nn.Module:
    library("torchvision")
    from torchvision.models import mobilenet_v3_small
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    places = {"3": "fine", "8": "coarse"}
    return BackboneWithFPN(mobilenet_v3_small(weights=None).features, places, [24, 48], 16)


def _video() -> nn.Module:
    resnet = library("torchvision.models.video.resnet")
    parts = resnet.BasicBlock, [resnet.Conv3DSimple] * 4, [1, 1, 1, 1], resnet.BasicStem
    whole = resnet.VideoResNet(*parts, num_classes=CLASSES)
    return nn.Sequential(whole.stem, whole.layer1, whole.layer2, whole.avgpool)


TORCHVISION: dict[str, Architecture] = {
    "resnet18": _vision(_model("resnet18")),
    "mobilenet_v3_small": _vision(_model("mobilenet_v3_small")),
    "shufflenet_v2_x0_5": _vision(_model("shufflenet_v2_x0_5")),
    "squeezenet1_1": _vision(_model("squeezenet1_1")),
    "mnasnet0_5": _vision(_model("mnasnet0_5")),
    "googlenet": _vision(_model("googlenet", aux_logits=False, init_weights=False)),
    "densenet, 3 blocks": _vision(_densenet),
    "vgg, 4 convolutions": _vision(_vgg),
    "convnext, 2 stages": _vision(_convnext),
    "vit, 2 layers": _vision(_vit),
    "swin, 2 stages": _vision(lambda: _swin("v1")),
    "swin v2, 2 stages": _vision(lambda: _swin("v2")),
    "maxvit, 2 blocks": _vision(_maxvit),
    "fcn on half a resnet18": _vision(_fcn),
    "feature pyramid": _vision(_feature_pyramid, 64),
    "r3d, 2 blocks": _vision(_video, reals(3, 4, 16, 16)),
}


def _timm(name: str, size: int = 32, **settings: Any) -> Architecture:
    def make() -> nn.Module:
        return library("timm").create_model(name, num_classes=CLASSES, **settings)

    return Architecture("timm", make, reals(3, size, size))


def _mixer(block: str, mlp: str, **settings: Any) -> Architecture:
    def make() -> nn.Module:
        mixer = library("timm.models.mlp_mixer")
        kinds = {"block_layer": getattr(mixer, block), "mlp_layer": getattr(mixer, mlp)}
        return mixer.MlpMixer(CLASSES, num_blocks=2, **_SMALL, **kinds, **settings)

    return Architecture("timm", make, reals(3, 32, 32))


def _convmixer() -> nn.Module:
    return library("timm.models.convmixer").ConvMixer(32, 2, kernel_size=3, patch_size=4, num_classes=CLASSES)


def _poolformer() -> nn.Module:
    return library("timm.models.metaformer").MetaFormer(depths=(1, 1), dims=(32, 64), num_classes=CLASSES)


_SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32}

TIMM: dict[str, Architecture] = {
    "mobilevit_xxs": _timm("mobilevit_xxs", 64),
    "ghostnet_050": _timm("ghostnet_050"),
    "tf_efficientnet_lite0": _timm("tf_efficientnet_lite0"),
    "lcnet_035": _timm("lcnet_035"),
    "edgenext_xx_small": _timm("edgenext_xx_small", 64),
    "starnet_s1": _timm("starnet_s1"),
    "levit_128s": _timm("levit_128s", 64, img_size=64),
    "poolformer, 2 stages": Architecture("timm", _poolformer, reals(3, 32, 32)),
    "convmixer, 2 layers": Architecture("timm", _convmixer, reals(3, 32, 32)),
    "resmlp, 2 layers": _mixer("ResBlock", "Mlp", mlp_ratio=4),
    "mixer, 2 layers": _mixer("MixerBlock", "Mlp"),
    "gmlp, 2 layers": _mixer("SpatialGatingBlock", "GatedMlp", mlp_ratio=6),
    "deit_tiny_distilled, 2 layers": _timm("deit_tiny_distilled_patch16_224", depth=2, num_heads=2, **_SMALL),
    "beit_base, 2 layers": _timm("beit_base_patch16_224", depth=2, num_heads=2, **_SMALL),
    "cait_xxs24, 2 layers": _timm("cait_xxs24_224", depth=2, num_heads=2, **_SMALL),
    "xcit_nano, 2 layers": _timm("xcit_nano_12_p8_224", depth=2, num_heads=2, **_SMALL),
    "test_nfnet": _timm("test_nfnet"),
    "test_mambaout": _timm("test_mambaout", 64),
}
