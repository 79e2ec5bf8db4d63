"""What HTTP reaches: it holds the client's connection from the first byte to the last.

actor.py is the Serve deployment, http.py the routes, journey.py one request's way through the
fleet, fleet.py the connections to the replicas, choosing.py which of them, survival.py what happens
to a stream whose replica is lost. No vLLM in here: it is a light process of its own.
"""
