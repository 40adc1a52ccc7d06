"""Steps of a run without the run: their memory and time for the planner and the doctor, on fake tensors or a real device."""
