"""Tools that plan, check, inspect and report on runs. They import tasks, models and the engine, but are not imported by them."""
