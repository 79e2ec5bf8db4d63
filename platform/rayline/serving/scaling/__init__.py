"""How many replicas a version needs: what its engines and its clients feel in, a decision out.

- moment.py: how busy all replicas of a version were in one second.
- signals.py: what each signal asks for, alone.
- deciding.py: the decision, with its reasons.
"""
