"""The network: modules whose state_dict is the file format."""

from fastcond.nn.blocks import AdaGroupNorm, FusedGroupNorm
from fastcond.nn.embeddings import drop_labels
from fastcond.nn.unet import ConditionalUNet

__all__ = ["AdaGroupNorm", "ConditionalUNet", "FusedGroupNorm", "drop_labels"]
