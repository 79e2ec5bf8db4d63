"""The engine's side: a Ray Serve deployment whose actor holds vLLM's engine client and a socket.

actor.py is the deployment's class, starting.py how an engine comes up, vllm_engine.py the engine
behind OpenAI's requests, adapters.py what it answers with under other names, counting.py what each
request took of it, continuing.py how a stream goes on that another replica began.

Only actor.py and starting.py may be imported without vLLM.
"""
