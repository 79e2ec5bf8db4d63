"""Tokens per second of the native engine against its peers: same model, batch, plan and machine.

    python examples/bench/engines.py                  # ZeRO-3 over 4 workers, three rounds
    python examples/bench/engines.py --zero-stage 0   # replicas, with Hugging Face's Trainer
    python examples/bench/engines.py --slices 20 --steps 400 --only rayline plain_pytorch

Every contender trains the same steps from the same weights on the same tokens in the same order
(`peers/` holds one script each), in fp32 with AdamW, clipping and a loss reported at each step.
They run one after another, three rounds of all; compared are medians of the seconds between the
ends of steps, the first ones left out, and starting up is not counted. With --slices those under
torchrun stand side by side instead and take turns (see turns.py), which a drift of the machine's
speed meets all alike: give them --steps enough. The losses are compared as well: whoever computes
something else is no peer.

Under torchrun: rayline's engine, the hand-written script (FSDP2, or DistributedDataParallel for
replicas), DeepSpeed, and Hugging Face's Trainer, which on a CPU can only replicate, so it takes
part in stage 0 alone. On Ray: rayline's gang, Ray Train v2.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from contest import CONTENDERS, compete, conditions, prepare, take_turns_at
from ranks import leave_result
from workload import Work

SHAPE = {"layers": 6, "hidden": 256, "heads": 8, "kv_heads": 4, "ffn": 704, "vocab": 512}
"""5 M parameters."""
SLICE_S = 4.0
RIVALS = {
    "rayline": ("plain_pytorch", "deepspeed", "hf_trainer"),
    "rayline_gang": ("ray_train_v2",),
}
"""Whose tokens per second are set against whose."""


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--sequence-tokens", type=int, default=128)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--zero-stage", type=int, default=3, choices=(0, 1, 2, 3))
    parser.add_argument("--slices", type=int, default=0, help="take turns, so many each")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    options = parser.parse_args()
    names = [name for name in options.only if options.zero_stage == 0 or name != "hf_trainer"]
    with tempfile.TemporaryDirectory() as folder:
        work = Work(folder, options.steps, options.sequences, options.workers, options.zero_stage)
        prepare(work, SHAPE, options.sequence_tokens)
        if options.slices:
            found = take_turns_at(work, names, options.slices, SLICE_S, RIVALS)
        else:
            found = compete(work, names, options.rounds, RIVALS)
    what = f"{__doc__.splitlines()[0]} Llama of {SHAPE}, {options.sequence_tokens} tokens."
    variant = f"-zero{work.zero_stage}"
    said = conditions(work)
    leave_result(__file__, what, " ".join(sys.argv[1:]), variant=variant, **said, **found)


if __name__ == "__main__":
    main()
