"""How many replicas a version needs: what its engines and its clients feel in, a decision out.

- load.py: what one replica says each second, and what all of them together come to.
- signals.py: what each signal asks for, alone.
- deciding.py: the decision, with its reasons.
"""
