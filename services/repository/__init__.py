"""Models as sealed, immutable versions on a disk, and the channels that point at them."""
