"""Clusters: from one spec to the machines and back: rendered, checked, priced, brought up, ended.

Rendering, checking and pricing are pure and need the thin core only; what starts something is
imported by its own name.
"""

from rayline.launch.clusters.rendering import render, target_name, tree_of

__all__ = ["render", "target_name", "tree_of"]
