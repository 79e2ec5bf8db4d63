"""How what the client hands out looks in a notebook.

A list of runs, models, keys and the like is a `Rows`: a list that draws itself as a table. Single
values belong to their rooms, which know nothing of notebooks; `display.register` tells IPython how
to draw them. `live_loss.LiveLoss` draws the loss while a job trains. Everything is HTML with SVG,
made here: no widgets, no scripts, nothing fetched.
"""
