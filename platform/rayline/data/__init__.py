"""Sources, tokenizing, packing, and a sampler whose whole state is "samples consumed"."""

from rayline.data.cache import TokenCache
from rayline.data.dataset import Collated, Sample, TokenDataset, collate, load_dataset
from rayline.data.order import MixtureOrder, SampleOrder, share
from rayline.data.shards import (
    RunTasks,
    ShardDone,
    ShardTask,
    Tokenizing,
    do_task,
    fill_cache,
)
from rayline.data.source import (
    HELD_OUT_FILES,
    TRAINING_FILES,
    SourceFile,
    check_files,
    check_tokenizer,
    files_by_source,
    size_bytes,
)
from rayline.data.split import ALL, Split

__all__ = [
    "ALL",
    "HELD_OUT_FILES",
    "TRAINING_FILES",
    "Collated",
    "MixtureOrder",
    "RunTasks",
    "Sample",
    "SampleOrder",
    "ShardDone",
    "ShardTask",
    "SourceFile",
    "Split",
    "TokenCache",
    "TokenDataset",
    "Tokenizing",
    "check_files",
    "check_tokenizer",
    "collate",
    "do_task",
    "files_by_source",
    "fill_cache",
    "load_dataset",
    "share",
    "size_bytes",
]
