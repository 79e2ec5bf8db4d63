"""Train one job spec on the cluster that this process runs in.

ray job submit --working-dir . -- python jobs/train.py --spec jobs/specs/quickstart.yaml
"""

import argparse
import sys
from pathlib import Path

# The checkout that Ray unpacked for this job comes before a rayline that is installed there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayline.actors import train
from rayline.errors import RaylineError
from rayline.spec import JobSpec, StepReport
from rayline.tracking import step_metrics


def main() -> int:
    """Run the job; returns the exit code."""
    parser = argparse.ArgumentParser(description="Train one job spec.")
    parser.add_argument("--spec", required=True, help="YAML file of the job")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    arguments = parser.parse_args()
    try:
        outcome = train(JobSpec.load(arguments.spec, arguments.set), observers=[_show])
    except RaylineError as wrong:
        print(f"error: {wrong}", file=sys.stderr, flush=True)
        return wrong.exit_code
    print(f"run {outcome.run_id} model {outcome.model} directory {outcome.directory}")
    return 0


def _show(report: StepReport) -> None:
    found = [(key, value) for key, value, _ in step_metrics(report) if value is not None]
    print(*(f"{key} {value:.6g}" for key, value in found), flush=True)


if __name__ == "__main__":
    sys.exit(main())
