"""The operators by families, as methods: `tvmops.runtime.operators` puts them together."""

from tvmops.runtime.families.attention import Attention
from tvmops.runtime.families.images import Images
from tvmops.runtime.families.products import NarrowProducts
from tvmops.runtime.families.rows import Rows

__all__ = ["Attention", "Images", "NarrowProducts", "Rows"]
