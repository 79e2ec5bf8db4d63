"""One small Serve deployment that knows what is up and who gets what.

fleet.py is what it hears and says, as values; actor.py is the deployment.
"""
