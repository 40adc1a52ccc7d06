"""``python -m demo.real``: records of real pictures with human texts, from four sources and maps."""
