"""Sources, tokenizing, packing, and a sampler whose whole state is "samples consumed"."""

from rayline.data.cache import TokenCache
from rayline.data.dataset import NO_LOSS, Collated, Sample, TokenDataset, collate, load_dataset
from rayline.data.order import MixtureOrder, SampleOrder, share
from rayline.data.source import HELD_OUT_FILES, TRAINING_FILES, check_files, check_tokenizer
from rayline.data.split import ALL, Split

__all__ = [
    "ALL",
    "HELD_OUT_FILES",
    "NO_LOSS",
    "TRAINING_FILES",
    "Collated",
    "MixtureOrder",
    "Sample",
    "SampleOrder",
    "Split",
    "TokenCache",
    "TokenDataset",
    "check_files",
    "check_tokenizer",
    "collate",
    "load_dataset",
    "share",
]
