"""Who may ask, how much, and what it cost.

- keys.py: an ApiKey is a value; `judge` says whether it opens a route and a model.
- ring.py, key_store.py, pepper.py, store.py: keys lie in a database as keyed hashes; every gateway
  holds a copy that is half a second old at most.
- attempts.py: addresses that try keys that do not exist.
- window.py, allowances.py, hand.py, quota.py: requests and tokens a minute and budgets, of a key
  and of its team. One authority deals out slices; a gateway admits from the slices in its hand.
- fair_queue.py: who is next where the engines are full.
- ledger.py, spool.py, usage.py: every request's tokens, written once, and their sums.
- door.py joins these: the gateway asks it at the beginning and the end of each request.

Nothing here imports Ray, vLLM or torch, and no prompt, completion or key secret is kept anywhere.
"""
