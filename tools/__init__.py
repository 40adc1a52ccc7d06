"""Tools that look at a run from outside: they know tasks, models and engine, none of which knows them."""
