"""``python -m demo.real``: makes records of real pictures with human texts, from four sources and maps."""
