"""Fine-tune a model on chats, export it checked, deploy it, and ask it over HTTP.

    python examples/finetune_and_deploy.py                    two CPU cores, no network, two minutes
    python examples/finetune_and_deploy.py --model hub:HuggingFaceTB/SmolLM2-135M-Instruct

Without --model a tiny random one is made: it learns one answer by heart, which is enough to see
that what is served is what was trained.
"""

import argparse
import json
import sys
from pathlib import Path

from rayline import Client, JobSpec, ModelRef, ServeSpec
from rayline.errors import RaylineError
from rayline.models.tiny import write_tiny_model
from rayline.spec import TrackingSpec

QUESTION, ANSWER = "Who stands in the water?", "Otto the heron."


def job_spec(folder: Path, model: ModelRef, steps: int) -> JobSpec:
    """A fine-tuning on chats; the loss is on the assistant's words alone."""
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    chats = folder / "chats.jsonl"
    chats.write_text((json.dumps({"messages": turns}) + "\n") * 8)
    return JobSpec.parse(
        {
            "name": "finetuned",
            "model": model.model_dump(exclude_none=True),
            "init": "weights",
            "steps": steps,
            "data": {"kind": "chat", "files": [str(chats)], "sequence_tokens": 96},
            "batch": {"sequences": 4},
            "optim": {"lr": 3e-3, "warmup_steps": 5},
            "resources": {"device": "cpu", "cpus_per_worker": 1},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "export": {"register_as": "otto"},
            "output_dir": str(folder / "runs" / "{name}"),
        }
    )


def serve_spec(folder: Path, model: ModelRef, port: int) -> ServeSpec:
    """One replica of the exported model."""
    return ServeSpec.parse(
        {
            "name": "otto",
            "model": model.model_dump(exclude_none=True),
            "device": "cpu",
            "gateway": {"port": port, "store": f"sqlite:///{folder}/serving.db"},
            "engine": {"max_model_len": 256, "max_num_seqs": 2, "kv_cache_gib": 0.1},
            "drain_s": 2,
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        }
    )


def main(words: list[str]) -> int:
    """Train, deploy, ask, take away; 0 where the answer is the one that was taught."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(".rayline/finetune"))
    parser.add_argument("--model", type=ModelRef.from_text, help="hub:ID, directory:PATH ...")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args(words)
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    model = given.model or ModelRef(directory=str(write_tiny_model(folder / "base", layers=2)))
    job = job_spec(folder, model, given.steps)
    client = Client(tracking=TrackingSpec(uri=job.tracking.uri))
    outcome = client.train(job)
    if outcome.model is None or outcome.result.export is None:
        print("the job stopped before its end: nothing was exported")
        return 1
    print(f"trained {outcome.model}: logits differ by {outcome.result.export.logit_difference:.1e}")
    endpoint = client.deploy(serve_spec(folder, outcome.model, given.port))
    print(f"{endpoint.model} answers at {endpoint.url}")
    try:
        said = client.chat(QUESTION, url=endpoint.url, temperature=0, max_tokens=32)
    finally:
        client.undeploy(endpoint.name)
    print(f"{QUESTION} {said}")
    return 0 if said.strip() == ANSWER else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RaylineError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(wrong.exit_code)
