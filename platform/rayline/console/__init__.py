"""One web page over what a cluster trains and serves: `rayline console`.

    browser ── FastAPI (app.py) ── routes ── views (values) ── rayline.Client ── store, Ray, gateway
       ▲                             │
       └── server-sent events ───────┘   (live.py)

- settings.py says what is looked at, and how much may be done.
- signing.py, guarding.py: who may see it, and what a browser may do with it. Nothing is open: a key
  that is minted at the start, or an operator's API key, becomes a cookie that no script can read.
- *_views.py: pure functions from what rooms give to what is shown. No HTTP, no clock.
- command_lines.py: for everything that is shown or done, the line of the command line that does the
  same; the page shows it beside.
- reading.py, doing.py, chatting.py: the routes. live.py: what is pushed while somebody looks.
- page/: HTML, CSS and ES modules as they are served: no build step, nothing from elsewhere.

The process imports no torch. It asks the tracking store, the key store, the gateway and, where it
is given an address, the Ray cluster; none of them is asked for more than the command line asks.
"""

from rayline.console.settings import ConsoleSettings

__all__ = ["ConsoleSettings"]
