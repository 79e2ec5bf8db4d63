"""Lineage: data -> run -> checkpoint -> model -> deployment -> usage, as one value.

`graph` is the value and says it as text and JSON, `reading` reads it from MLflow, `picture` draws
it. Every node but usage, which the caller adds from the ledger of served models, stands in MLflow
under the address that it carries.
"""

from rayline.tracking.lineage.graph import Edge, Lineage, Node, UsageFigures
from rayline.tracking.lineage.picture import as_svg
from rayline.tracking.lineage.reading import lineage

__all__ = ["Edge", "Lineage", "Node", "UsageFigures", "as_svg", "lineage"]
