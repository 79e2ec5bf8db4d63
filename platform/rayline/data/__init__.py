"""Sources, tokenizing, packing, and a sampler whose whole state is "samples consumed"."""

from rayline.data.dataset import Sample, TokenDataset, collate, load_dataset
from rayline.data.order import SampleOrder, share
from rayline.data.source import HELD_OUT_FILES, TRAINING_FILES, check_files, check_tokenizer

__all__ = [
    "HELD_OUT_FILES",
    "TRAINING_FILES",
    "Sample",
    "SampleOrder",
    "TokenDataset",
    "check_files",
    "check_tokenizer",
    "collate",
    "load_dataset",
    "share",
]
