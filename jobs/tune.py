"""Search over the fields of a job on the cluster that this process runs in.

ray job submit --working-dir . -- python jobs/tune.py --spec tune/quickstart.yaml
"""

import argparse
import sys
from pathlib import Path

# The checkout that Ray unpacked for this job comes before a rayline that is installed there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayline.errors import RaylineError
from rayline.spec import TuneSpec
from rayline.tuning import search


def main() -> int:
    """Run the search; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run one search spec.")
    parser.add_argument("--spec", required=True, help="YAML file of the search")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--resume", action="store_true", help="go on with what was broken off")
    arguments = parser.parse_args()
    try:
        spec = TuneSpec.load(arguments.spec, arguments.set)
        outcome = search(spec, resume=arguments.resume)
    except RaylineError as wrong:
        print(f"error: {wrong}", file=sys.stderr, flush=True)
        return wrong.exit_code
    print(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main())
