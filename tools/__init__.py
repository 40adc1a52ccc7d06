"""Tools that look at a run from outside: they import tasks, models and the engine, none of which imports them."""
