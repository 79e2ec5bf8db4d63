"""How one version of a model gives way to the next: values and pure functions, no Ray, no clock.

- version.py, release.py: what a served model consists of.
- transitions.py: what may happen to it, each a function to the next Release and the effects.
- choosing.py: which version answers a request. Gateways call it.
- sketch.py, measured.py: what gateways measure of a version.
- certainty.py, gates.py: whether that is good enough, and whether it is certain.
- advancing.py: the step that follows by itself; allotting.py: the replicas it needs.

The director keeps Releases, applies these functions to what it hears, and carries the effects out.
"""
