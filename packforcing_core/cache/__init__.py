"""The memory of the past: policies, the plan of slots and positions, and the tensors."""
