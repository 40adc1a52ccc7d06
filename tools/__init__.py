"""Tools that work on runs from outside. They import tasks, models and the engine, but are not imported by them."""
