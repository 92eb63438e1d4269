"""Image folders: where their images lie, how they are read, and how they are kept decoded."""

from testbed.image_folder.decoded import decode
from testbed.image_folder.layout import Layout, layout_of
from testbed.image_folder.mapped_pixels import MappedPixels, Origin

__all__ = ["Layout", "MappedPixels", "Origin", "decode", "layout_of"]
