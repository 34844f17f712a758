"""Labelled images from what people have: a folder, arrays, MNIST's and CIFAR's files, EDM's zip, a built-in set.

`open_dataset(source)` is the only door, `LabelledImages` the only result. One file a format; nothing is ever unpickled.
"""

from fastcond.data.labelled_images import LabelledImages
from fastcond.data.opening import open_dataset

__all__ = ["LabelledImages", "open_dataset"]
