"""Released models that can be had by name: what each is, where its files lie, and what its licence allows.

To add one: a line in `_ALL`. A model whose licence is not known for certain is left out, and a checksum stands here
only where the makers tell it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from synoptic.weights.options import LoadOptions

Task = Literal["features", "words", "segments", "boxes"]


@dataclass(frozen=True)
class Licence:
    """What may be done with weights.

    Attributes:
        name: its SPDX identifier, or what its makers call it; "nc" between dashes where it forbids commercial use.
        commercial: whether it allows commercial use.
    """

    name: str
    commercial: bool


@dataclass(frozen=True)
class Remote:
    """A file on a server of its makers.

    Attributes:
        url: where; its last part is the file's name.
        sha256: its checksum, where the makers tell it.
    """

    url: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file's name, in the cache too."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Release:
    """A model that its makers have released.

    Attributes:
        name: as the makers call it.
        family: the work that it belongs to.
        task: what it answers with beside patches: a summary ("features"), one in a space with words, or masks; or
            boxes of what words name.
        parameters: how many the file holds of its network; of a RADIO without the heads of its teachers.
        resolution: side in pixels of the pictures that it was trained for at last.
        licence: of the weights.
        files: what is fetched, the weights and then a vocabulary if they need one; empty where they lie on the Hub.
        repository: on the Hub of Hugging Face, as `owner/name`; empty where they do not lie there.
        options: what the file does not say itself.
    """

    name: str
    family: str
    task: Task
    parameters: int
    resolution: int
    licence: Licence
    files: tuple[Remote, ...] = ()
    repository: str = ""
    options: LoadOptions = field(default_factory=LoadOptions)

    @property
    def source(self) -> str:
        """Where the weights come from: an address, or `hf:owner/name`."""
        return f"hf:{self.repository}" if self.repository else self.files[0].url


APACHE = Licence("Apache-2.0", True)
MIT = Licence("MIT", True)
CC_BY_NC = Licence("CC-BY-NC-4.0", False)
NVIDIA_SOURCE = Licence("NVIDIA-Source-Code-NC", False)
NVIDIA_OPEN = Licence("NVIDIA-Open-Model", True)

_META = "https://dl.fbaipublicfiles.com"
_OPENAI = "https://openaipublic.azureedge.net/clip/models"

_IDEA = "https://github.com/IDEA-Research/GroundingDINO/releases/download"

# BERT's vocabulary, of bert-base-uncased (Apache-2.0).
_WORD_PIECES = Remote("https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt")

# The byte-pair encoding that all of CLIP's kin read, from OpenAI's repository.
_VOCABULARY = Remote(
    "https://raw.githubusercontent.com/openai/CLIP/d05afc436d78f1c48dc0dbf8e5980a9d471f35f6/clip/"
    "bpe_simple_vocab_16e6.txt.gz",
    "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
)


def _dino(name: str, theirs: str, parameters: int) -> Release:
    """Licence: LICENSE of facebookresearch/dino."""
    return Release(
        name=name,
        family="DINO",
        task="features",
        parameters=parameters,
        resolution=224,
        licence=APACHE,
        files=(Remote(f"{_META}/dino/{theirs}_pretrain/{theirs}_pretrain.pth"),),
    )


def _dinov2(size: str, parameters: int, registers: bool = False) -> Release:
    """Licence: README of facebookresearch/dinov2, of code and weights."""
    backbone = f"dinov2_vit{size}14"
    return Release(
        name=f"{backbone}_reg" if registers else backbone,
        family="DINOv2",
        task="features",
        parameters=parameters,
        resolution=518,
        licence=APACHE,
        files=(Remote(f"{_META}/dinov2/{backbone}/{backbone}{'_reg4' if registers else ''}_pretrain.pth"),),
    )


def _clip(name: str, theirs: str, parameters: int, sha256: str, resolution: int = 224) -> Release:
    """Licence: LICENSE of openai/CLIP, whose addresses hold the checksums."""
    return Release(
        name=name,
        family="CLIP",
        task="words",
        parameters=parameters,
        resolution=resolution,
        licence=MIT,
        files=(Remote(f"{_OPENAI}/{sha256}/{theirs}.pt", sha256), _VOCABULARY),
    )


def _metaclip(name: str, theirs: str, parameters: int) -> Release:
    """Licence: as timm tells it of the same weights. Their layout is open_clip's, their activation OpenAI's."""
    return Release(
        name=name,
        family="MetaCLIP",
        task="words",
        parameters=parameters,
        resolution=224,
        licence=CC_BY_NC,
        files=(Remote(f"{_META}/MMPT/metaclip/{theirs}.pt"), _VOCABULARY),
        options=LoadOptions(activation="quick_gelu"),
    )


def _siglip(name: str, parameters: int) -> Release:
    """Licence: the models' cards on the Hub, and google-research/big_vision, from which they come."""
    return Release(
        name=name,
        family="SigLIP",
        task="words",
        parameters=parameters,
        resolution=int(name.rpartition("-")[2]),
        licence=APACHE,
        repository=f"google/{name}",
    )


def _sam(name: str, theirs: str, parameters: int) -> Release:
    """Licence: README of facebookresearch/segment-anything."""
    return Release(
        name=name,
        family="SAM",
        task="segments",
        parameters=parameters,
        resolution=1024,
        licence=APACHE,
        files=(Remote(f"{_META}/segment_anything/{theirs}.pth"),),
    )


def _grounding_dino(name: str, release: str, parameters: int) -> Release:
    """Licence: LICENSE of IDEA-Research/GroundingDINO, whose README tells the addresses; the models' cards on the Hub.

    Args:
        release: of the repository, that its file belongs to.
    """
    return Release(
        name=name,
        family="Grounding DINO",
        task="boxes",
        parameters=parameters,
        resolution=800,
        licence=APACHE,
        files=(Remote(f"{_IDEA}/{release}/{name}.pth"), _WORD_PIECES),
    )


def _radio(name: str, theirs: str, parameters: int, resolution: int, *, align_corners: bool | None = None) -> Release:
    """Licence: README of NVlabs/RADIO, and the models' cards on the Hub. Addresses: the same repository's list.

    Args:
        theirs: the file, behind the name of its repository.
        align_corners: see LoadOptions; as timm has it of the same weights.
    """
    repository, file = theirs.split("/")
    family, licence = ("C-RADIO", NVIDIA_OPEN) if name.startswith("c-") else ("RADIO", NVIDIA_SOURCE)
    return Release(
        name=name,
        family=family,
        task="features",
        parameters=parameters,
        resolution=resolution,
        licence=licence,
        files=(Remote(f"https://huggingface.co/nvidia/{repository}/resolve/main/{file}"),),
        options=LoadOptions(size=resolution, align_corners=align_corners),
    )


_ALL = (
    _dino("dino_vits16", "dino_deitsmall16", 21_665_664),
    _dino("dino_vits8", "dino_deitsmall8", 21_670_272),
    _dino("dino_vitb16", "dino_vitbase16", 85_798_656),
    _dino("dino_vitb8", "dino_vitbase8", 85_807_872),
    _dino("dino_resnet50", "dino_resnet50", 23_508_032),
    _dinov2("s", 22_056_576),
    _dinov2("b", 86_580_480),
    _dinov2("l", 304_368_640),
    _dinov2("g", 1_136_480_768),
    _dinov2("s", 22_058_112, registers=True),
    _dinov2("b", 86_583_552, registers=True),
    _dinov2("l", 304_372_736, registers=True),
    _dinov2("g", 1_136_486_912, registers=True),
    _clip("clip_rn50", "RN50", 102_007_137, "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"),
    _clip("clip_rn101", "RN101", 119_688_033, "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
    _clip(
        "clip_rn50x4", "RN50x4", 178_300_601, "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd", 288
    ),
    _clip(
        "clip_rn50x16", "RN50x16", 290_979_217, "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa", 384
    ),
    _clip(
        "clip_rn50x64", "RN50x64", 623_258_305, "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c", 448
    ),
    _clip("clip_vitb32", "ViT-B-32", 151_277_313, "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    _clip("clip_vitb16", "ViT-B-16", 149_620_737, "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    _clip("clip_vitl14", "ViT-L-14", 427_616_513, "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    _clip(
        "clip_vitl14_336",
        "ViT-L-14-336px",
        427_944_193,
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        336,
    ),
    _metaclip("metaclip_vitb32_400m", "b32_400m", 151_277_313),
    _metaclip("metaclip_vitb16_400m", "b16_400m", 149_620_737),
    _metaclip("metaclip_vitl14_400m", "l14_400m", 427_616_513),
    _metaclip("metaclip_vitb32_fullcc", "b32_fullcc2.5b", 151_277_313),
    _metaclip("metaclip_vitb16_fullcc", "b16_fullcc2.5b", 149_620_737),
    _metaclip("metaclip_vitl14_fullcc", "l14_fullcc2.5b", 427_616_513),
    _siglip("siglip-base-patch16-224", 203_155_970),
    _siglip("siglip-base-patch16-256", 203_202_050),
    _siglip("siglip-base-patch16-384", 203_447_810),
    _siglip("siglip-base-patch16-512", 203_791_874),
    _siglip("siglip-large-patch16-256", 652_150_786),
    _siglip("siglip-large-patch16-384", 652_478_466),
    _siglip("siglip-so400m-patch14-384", 877_960_498),
    _sam("sam_vitb", "sam_vit_b_01ec64", 93_735_472),
    _sam("sam_vitl", "sam_vit_l_0b3195", 312_342_832),
    _sam("sam_vith", "sam_vit_h_4b8939", 641_090_608),
    _grounding_dino("groundingdino_swint_ogc", "v0.1.0-alpha", 172_249_090),
    _grounding_dino("groundingdino_swinb_cogcoor", "v0.1.0-alpha2", 232_313_216),
    _radio("radio_v2.5-b", "RADIO/radio-v2.5-b_half.pth.tar", 98_233_344, 768),
    _radio("radio_v2.5-l", "RADIO/radio-v2.5-l_half.pth.tar", 319_881_216, 768),
    _radio("radio_v2.5-h", "RADIO/radio_v2.5-h.pth.tar", 651_642_880, 768),
    _radio("radio_v2.5-g", "RADIO/radio_v2.5-g.pth.tar", 1_159_553_024, 896),
    _radio("c-radio_v3-b", "C-RADIOv3-B/c-radio_v3-b_half.pth.tar", 98_251_776, 512),
    _radio("c-radio_v3-l", "C-RADIOv3-L/c-radio-v3_l_half.pth.tar", 319_930_368, 512, align_corners=False),
    _radio("c-radio_v3-h", "C-RADIOv3-H/c-radio_v3-h_half.pth.tar", 651_642_880, 512),
    _radio("c-radio_v3-g", "C-RADIOv3-g/c-radio_v3-g_half.pth.tar", 1_159_618_560, 512, align_corners=False),
    _radio(
        "c-radio_v4-so400m", "C-RADIOv4-SO400M/c-radio_v4-so400m_half.pth.tar", 431_237_232, 512, align_corners=False
    ),
    _radio("c-radio_v4-h", "C-RADIOv4-H/c-radio_v4-h_half.pth.tar", 651_645_440, 512, align_corners=False),
)
RELEASES: dict[str, Release] = {release.name: release for release in _ALL}


def allows_commerce(licence: str) -> bool:
    """Whether nothing in a licence's name tells that commercial use is forbidden."""
    return "nc" not in licence.lower().split("-")
