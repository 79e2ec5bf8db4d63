"""The command line: one module per group of verbs, each a thin layer over `rayline.Client`.

A verb parses its options, shows the plan, calls the client and prints what came back. Specs, torch,
Ray and MLflow are imported inside the verbs, so that `rayline --help` answers at once.
"""

from rayline.cli.entry import main, run

__all__ = ["main", "run"]
