"""Memory and time of training steps outside a run, for the planner and the doctor, on fake tensors or a real device."""
