"""Which names are those of images, and which another program left behind."""

from __future__ import annotations

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
HIDDEN = ("@eadir", "__macosx", "#recycle", "lost+found", "$recycle.bin")  # what NAS boxes and archives leave behind


def is_hidden(name: str) -> bool:
    """Whether a file or folder is another program's: .ipynb_checkpoints, .Trash, a NAS box's @eaDir of thumbnails."""
    return name.startswith(".") or name.lower() in HIDDEN


def is_image(name: str) -> bool:
    """Whether a file is an image by its ending."""
    return name.lower().endswith(EXTENSIONS)
