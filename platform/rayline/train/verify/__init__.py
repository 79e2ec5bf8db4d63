"""`rayline verify`: a model and its plan against one process that shares no parallel code.

    shrink ── trial (values) ── reference ─┐
                                           ├─ measure ── verdict (values)
              forks ── rank, one a worker ─┘

No Ray: ranks are forked processes of this machine. What starts them is `rayline.actors.verify`.
"""
